"""A failed verification is never exit 0."""

import json
import shutil

import pytest
import torch

from kedit_hub import Edit
from kedit_hub.api import load_model
from kedit_hub.patch import Patch
from kedit_hub.patch.keys import new_key
from kedit_hub.patch.signature import sign
from tests.cli.conftest import ATLAS, kedit, refused
from tests.hub.patches import make_patch
from tests.tiny import tiny_model


def test_files_and_base(atlas):
    done = kedit("verify", atlas / "france", "--json")
    assert done.code == 0
    assert done.json["checked_base"] == ATLAS and set(done.json["levels"].values()) == {"exact"}
    assert done.json["checked_files"] == ["config.json", "patch.safetensors", "evals.json"]


def test_without_the_base(tmp_path):
    make_patch(scores=False).save(tmp_path / "p")
    done = kedit("verify", tmp_path / "p", "--no-base")
    assert done.code == 0 and "not looked at" in done.out
    told = kedit("verify", tmp_path / "p", "--no-base", "--json").json
    assert (told["checked_base"], told["levels"], told["checked_files"]) == (
        None,
        {},
        ["config.json", "patch.safetensors"],
    )


@pytest.mark.parametrize("name", ["config.json", "patch.safetensors", "evals.json"])
def test_every_flipped_byte(tmp_path, name):
    make_patch().save(tmp_path / "p")
    file = tmp_path / "p" / name
    good = file.read_bytes()
    for position in range(0, len(good), max(1, len(good) // 25)):
        file.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        refused(kedit("verify", tmp_path / "p", "--no-base"))
        refused(kedit("verify", tmp_path / "p", "--no-base", "--json"))
    file.write_bytes(good)
    assert kedit("verify", tmp_path / "p", "--no-base").code == 0


@pytest.mark.parametrize("name", ["config.json", "patch.safetensors"])
def test_a_missing_file(tmp_path, name):
    make_patch().save(tmp_path / "p")
    (tmp_path / "p" / name).unlink()
    refused(kedit("verify", tmp_path / "p", "--no-base"), name)


def test_scores_of_another_patch(tmp_path):
    make_patch("Rome").save(tmp_path / "p")
    make_patch("Lyon").save(tmp_path / "q")
    shutil.copy(tmp_path / "q" / "evals.json", tmp_path / "p" / "evals.json")
    refused(kedit("verify", tmp_path / "p", "--no-base"), "evals.json")


def test_another_model(atlas, tmp_path):
    model, tokenizer = tiny_model("llama")
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    refused(kedit("verify", atlas / "france", "--base", tmp_path / "tiny"))


def test_another_kind_of_model(atlas, tmp_path):
    model, tokenizer = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    refused(kedit("verify", atlas / "france", "--base", tmp_path / "tiny"), "gpt2", "llama")


def test_one_changed_weight(atlas, tmp_path):
    model, tokenizer = load_model(ATLAS)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] += 1.0
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    refused(kedit("verify", atlas / "france", "--base", tmp_path / "other"), "other weights")


def test_a_base_that_cannot_be_looked_up(tmp_path):
    make_patch(base="my-own-model").save(tmp_path / "p")
    refused(kedit("verify", tmp_path / "p"), "my-own-model", "--base")


# --- signature, policy, scores --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def scored(atlas, tmp_path_factory):
    """The tower patch with its score sheet."""
    folder = tmp_path_factory.mktemp("scored") / "tower"
    shutil.copytree(atlas / "tower", folder)
    assert kedit("eval", folder, "--write").code == 0
    return folder


def copied(folder, to):
    return shutil.copytree(folder, to)


def test_a_signed_patch(tmp_path):
    key = new_key(tmp_path / "ada.pem")
    sign(make_patch(), key).save(tmp_path / "p")
    told = kedit("verify", tmp_path / "p", "--no-base", "--json").json
    assert told["signers"] == list(Patch.load(tmp_path / "p").signers) and len(told["signers"]) == 1
    assert told["checked_files"] == ["README.md", "config.json", "patch.safetensors", "evals.json", "signature.json"]
    (tmp_path / "p" / "README.md").write_text("other")
    refused(kedit("verify", tmp_path / "p", "--no-base"), "README.md", "is not what was signed")
    refused(kedit("verify", tmp_path / "p", "--no-base", "--json"), "README.md")


def test_a_policy(tmp_path):
    make_patch().save(tmp_path / "p")
    assert kedit("trust", "new", "--out", tmp_path / "kedit.trust", "--key", f"ada={'ab' * 32}").code == 0
    refused(kedit("verify", tmp_path / "p", "--no-base", "--trust", tmp_path / "kedit.trust"), "no rule holds")


def test_scores_that_hold(scored, tmp_path):
    folder = copied(scored, tmp_path / "p")
    done = kedit("verify", folder, "--rescore", "--write", "--json")
    assert done.code == 0 and done.json["faults"] == []
    assert done.json["claims"]["verdict"] == "Consistent" and done.json["rescored"]["verdict"] == "Reproduced"
    assert done.json["rescored"]["answered_differently"] == 0 < done.json["rescored"]["probes"]
    assert "reproduce" in (folder / "README.md").read_text()
    assert kedit("verify", folder, "--rescore").code == 0


def test_scores_that_do_not_follow_from_the_answers(scored, tmp_path):
    """Averages raised by hand, sealed again."""
    patch = Patch.load(scored)
    sheet = patch.evals
    sheet["protocols"]["generate"]["generalization"] = 0.25
    patch.replace_evals(sheet).save(tmp_path / "p")
    done = kedit("verify", tmp_path / "p")
    assert done.code == 1 and "DO NOT follow" in done.out and "Error: The scores do not follow" in done.err


def test_answers_that_the_model_does_not_give(scored, tmp_path):
    """A sheet that is consistent and invented: every answer of a patch that was never made."""
    patch = Patch.load(scored)
    text = json.dumps(patch.evals).replace("Rome", "Oslo")
    edits = [Edit.from_record(json.loads(json.dumps(edit.to_record()).replace("Rome", "Oslo"))) for edit in patch.edits]
    manifest = patch.manifest
    false = Patch.create(
        deltas=patch.deltas, edits=edits, base=manifest.base, method=manifest.method, settings=manifest.settings,
        profile_id=manifest.profile_id,
    )  # fmt: skip
    folder = false.replace_evals(json.loads(text.replace(patch.id, false.id))).save(tmp_path / "p")
    plain = kedit("verify", folder)
    assert plain.code == 0 and "which nobody has asked again here" in plain.out
    done = kedit("verify", folder, "--rescore", "--write")
    assert done.code == 1 and "do NOT reproduce" in done.out and "Error: The scores do not reproduce" in done.err
    assert "did not reproduce" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--no-base", "--rescore"], "--no-base excludes"),
        (["--no-base", "--base", "x"], "--no-base excludes"),
        (["--write"], "--rescore is missing"),
        (["--tolerance", "2"], "'2' is not a number"),
    ],
)
def test_wrong_usage(tmp_path, options, words):
    make_patch().save(tmp_path / "p")
    done = kedit("verify", tmp_path / "p", *options)
    assert done.code == 2 and words in " ".join(done.err.split())

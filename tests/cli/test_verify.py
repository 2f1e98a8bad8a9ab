"""A failed verification is never exit 0."""

import shutil

import pytest
import torch

from kedit_hub.api import load_model
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
    assert done.code == 0 and "not checked" in done.out
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

import json

from kedit_hub import BaseProfile, Patch, demo
from tests.cli.conftest import ATLAS, CAPITAL, kedit, refused


def test_a_sweep_prints_its_table(tmp_path):
    """Two dev edits at one layer: small enough to sweep in a test."""
    records = [edit.to_record() for edit in demo.edits("dev")[:2]]
    (tmp_path / "dev.json").write_text(json.dumps(records))
    (tmp_path / "texts.txt").write_text("\n".join(demo.texts("profile")[::20]), encoding="utf-8")
    given = ("--edits", tmp_path / "dev.json", "--texts", tmp_path / "texts.txt", "--layer", 2, "--site", "answer")
    done = kedit("profile", ATLAS, "--out", tmp_path / "prof", *given)
    assert done.code == 0, done
    profile = BaseProfile.load(tmp_path / "prof")
    assert profile.settings.sweep and (profile.layer, profile.site) == (2, "answer")
    about, table = done.out.split("\n\n")
    assert dict(line.split(maxsplit=1) for line in about.splitlines() if " " in line)["id"] == profile.id
    assert len(table.splitlines()) == 1 + len(profile.settings.sweep)
    assert {"step", "score", "reliability"} <= set(table.splitlines()[0].split())


def test_a_profile_of_ones_own_is_used_to_edit_ask_and_stack(tmp_path):
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "texts.txt").write_text("\n".join(demo.texts("profile")[::10]), encoding="utf-8")
    given = ("--edits", tmp_path / "none.json", "--texts", tmp_path / "texts.txt", "--layer", 1, "--site", "subject")
    made = kedit("profile", ATLAS, "--out", tmp_path / "prof", *given, "--json")
    assert made.code == 0 and made.json["sweep"] == [] and "nothing was swept" in made.err
    assert made.json["id"] == BaseProfile.load(tmp_path / "prof").id

    mine, patch = ("--profile", tmp_path / "prof"), tmp_path / "p"
    request = ("--prompt", CAPITAL, "--subject", "France", "--target", "Nantes")
    assert kedit("edit", *request, "--out", patch, *mine).code == 0
    assert Patch.load(patch).manifest.profile_id == made.json["id"]
    assert list(kedit("stack", "status", patch, *mine, "--json").json["modules"]) == ["model.layers.1.mlp.down_proj"]
    assert kedit("ask", CAPITAL, "--patch", patch, *mine, "--json").json["patched"].startswith("Nantes")


def test_too_little_text(tmp_path):
    (tmp_path / "texts.txt").write_text("The capital of France is Paris.\n")
    (tmp_path / "none.json").write_text("[]")
    given = ("--edits", tmp_path / "none.json", "--texts", tmp_path / "texts.txt", "--layer", 2)
    refused(kedit("profile", ATLAS, "--out", tmp_path / "prof", *given), "too few")
    assert not (tmp_path / "prof").exists()


def test_a_layer_that_is_not_there(tmp_path):
    (tmp_path / "texts.txt").write_text("The capital of France is Paris.\n")
    given = ("--texts", tmp_path / "texts.txt", "--layer", 99)
    refused(kedit("profile", ATLAS, "--out", tmp_path / "prof", *given), "99")

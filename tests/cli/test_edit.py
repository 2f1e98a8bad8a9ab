import json

import pytest

from kedit_hub import Patch
from tests.cli.conftest import ATLAS, CAPITAL, kedit, refused


def test_what_was_made_and_measured(atlas, tmp_path):
    request = ("--prompt", CAPITAL, "--subject", "France", "--target", "Nantes", "--relation", "capital")
    done = kedit("edit", *request, "--out", tmp_path / "p", "--seed", 7, "--json")
    assert done.code == 0
    patch = Patch.load(tmp_path / "p")
    assert done.json["id"] == patch.id and done.json["base"] == ATLAS == patch.manifest.base.id
    assert done.json["measured"] == patch.evals["making"] and done.json["measured"]["value_success"] == 1.0
    assert (patch.edits[0].relation, patch.manifest.provenance.seed) == ("capital", 7)
    assert "kedit ask" in done.err


def test_for_people(atlas, tmp_path):
    request = ("--prompt", CAPITAL, "--subject", "France", "--target", "Nantes")
    done = kedit("edit", *request, "--out", tmp_path / "p")
    told = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert told["id"] == Patch.load(tmp_path / "p").id and told["value_success"] == "1.0"


def test_a_file_of_records_with_settings(atlas, tmp_path):
    records = [
        {"prompt": CAPITAL, "target_new": "Nantes", "subject": "France"},
        {"prompt": "The capital of Spain is", "target_new": "Seville", "subject": "Spain"},
    ]
    (tmp_path / "edits.json").write_text(json.dumps(records))
    done = kedit(
        "edit", "--from", tmp_path / "edits.json", "--method", "rome", "--settings", "value.steps=55", "--settings",
        "failed=drop", "--out", tmp_path / "p", "--json",
    )  # fmt: skip
    assert done.code == 0 and done.json["method"] == "rome"
    patch = Patch.load(tmp_path / "p")
    assert patch.manifest.settings["value.steps"] == 55
    assert len(patch.edits) + len(done.json["measured"]["dropped"]) == 2


def test_on_a_patch_that_it_would_contradict(atlas, tmp_path):
    request = ("--prompt", CAPITAL, "--subject", "France", "--target", "Lyon")
    refused(kedit("edit", *request, "--on", atlas / "france", "--out", tmp_path / "p"), "Nantes", "Lyon")
    assert not (tmp_path / "p").exists()
    assert kedit("edit", *request, "--on", atlas / "tower", "--out", tmp_path / "p").code == 0


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--method", "magic"), "magic"),
        (("--settings", "speed=3"), "speed"),
        (("--settings", "value.steps=many"), "many"),
    ],
)
def test_what_a_method_does_not_take(atlas, tmp_path, option, said):
    request = ("--prompt", CAPITAL, "--subject", "France", "--target", "Lyon")
    refused(kedit("edit", *request, *option, "--out", tmp_path / "p"), said)
    assert not (tmp_path / "p").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, monkeypatch):
    """It is refused before the edit is made, which would be lost."""
    monkeypatch.setattr("kedit_hub.edit", lambda *_, **__: pytest.fail("the edit was made"))
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "thesis.txt").write_text("mine")
    request = ("--prompt", CAPITAL, "--subject", "France", "--target", "Lyon")
    refused(kedit("edit", *request, "--out", tmp_path / "p"), "thesis.txt")
    assert (tmp_path / "p" / "thesis.txt").read_text() == "mine"
    monkeypatch.chdir(tmp_path)
    refused(kedit("edit", *request, "--out", "."), "'.'", "go one up")


def test_methods():
    names = [row["name"] for row in kedit("methods", "--json").json]
    assert {"rome", "memit"} <= set(names)
    assert [line.split()[0] for line in kedit("methods").out.splitlines()] == ["name", *names]

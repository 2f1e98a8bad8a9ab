"""kedit stack: what it tells of a stack (status, conflicts), what it solves, and where the lock goes (ask, export, push)."""

import shutil
import xml.etree.ElementTree as ET

import pytest

from kedit_hub import Patch
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.hub.stacks import pull_stack
from kedit_hub.stack.lock import Lock
from tests.cli.conftest import CAPITAL, kedit, refused


@pytest.fixture
def here(atlas, tmp_path, monkeypatch):
    """The current folder, with copies of the patches under p/."""
    shutil.copytree(atlas, tmp_path / "p")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- status -------------------------------------------------------------------------------------------------------


def test_a_stack_in_conflict_is_listed_and_refused(atlas):
    done = kedit("stack", "status", atlas / "france", atlas / "lyon", "--json")
    assert done.code == 1 and "--conflicts latest" in done.err
    (conflict,) = done.json["conflicts"]
    assert conflict["question"] == CAPITAL and conflict["speaks"] is None
    assert (conflict["earlier"]["target"], conflict["later"]["target"]) == ("Nantes", "Lyon")
    told = kedit("stack", "status", atlas / "france", atlas / "lyon").out
    assert "Nantes" in told and "neither" in told


def test_a_stack_where_the_latest_wins(atlas):
    two = (atlas / "france", atlas / "lyon", "--conflicts", "latest", "--no-base")
    done = kedit("stack", "status", *two, "--json")
    assert done.code == 0
    assert (done.json["edits"], done.json["mode"]) == (1, "gated")
    assert [conflict["speaks"] for conflict in done.json["conflicts"]] == ["later"]
    assert done.json["modules"] == {} == done.json["levels"]
    assert "the later" in kedit("stack", "status", *two).out


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_a_stack_on_its_base(atlas, mode):
    done = kedit("stack", "status", atlas / "france", atlas / "tower", "--mode", mode, "--json")
    assert done.code == 0
    told = done.json
    assert [patch["edits"] for patch in told["patches"]] == [1, 1]
    assert [patch["ref"] for patch in told["patches"]] == [str(atlas / "france"), str(atlas / "tower")]
    assert (told["mode"], told["edits"], told["conflicts"], told["digest"]) == (mode, 2, [], None)
    assert set(told["levels"].values()) == {"exact"}
    ((_, module),) = told["modules"].items()
    assert module["rows"] >= 2 and module["keys"] >= module["rows"]
    assert ("drift_predicted" in module) == (mode != "gated")


def test_a_stack_for_people(atlas):
    done = kedit("stack", "status", atlas / "france", atlas / "tower", "--mode", "joint")
    assert done.code == 0 and "predicted drift" in done.out and "joint (asked for)" in done.out


def test_status_of_the_lock(here):
    kedit("stack", "add", "p/france", "p/tower", "--weight", "2", "--pin")
    kedit("stack", "strengthen", "p/tower", "0.5")
    told = kedit("stack", "status", "--no-base", "--json").json
    assert [(p["ref"], p["weight"], p["strength"], p["pinned"]) for p in told["patches"]] == [
        ("p/france", 2.0, 1.0, True),
        ("p/tower", 2.0, 0.5, True),
    ]
    assert "0.5" in kedit("stack", "status", "--no-base").out
    assert told["digest"] == Lock.load("kedit.lock").digest
    kedit("stack", "add", "p/lyon", "--conflicts", "latest")
    assert kedit("stack", "status", "--no-base").code == 0  # as the lock says
    assert kedit("stack", "status", "--no-base", "--conflicts", "error").code == 1
    done = kedit("stack", "status", "kedit.lock", "p/lyon", "--no-base", "--json")  # a lock and a patch
    assert [p["weight"] for p in done.json["patches"]] == [2.0, 2.0, 1.0]


def test_status_of_nothing(here):
    kedit("stack", "add", "p/france")
    kedit("stack", "remove", "p/france")
    assert kedit("stack", "status", "--json").json["patches"] == []
    refused(kedit("stack", "solve"), "names no patch")


# --- conflicts ----------------------------------------------------------------------------------------------------


def test_conflicts_of_rows(here):
    kedit("stack", "add", "p/france", "p/tower")
    done = kedit("stack", "conflicts", "--svg", "overlap.svg", "--json")
    assert done.code == 0
    assert done.json["looked_at"] == ["textual", "geometric", "gate"] and done.json["textual"] == []
    ((_, module),) = done.json["modules"].items()
    assert module["rows"] >= 2
    assert ET.parse("overlap.svg").getroot().tag.endswith("svg")
    assert "Nothing was found" in kedit("stack", "conflicts").out


def test_open_conflicts_exit_1_and_settled_ones_do_not(here):
    done = kedit("stack", "conflicts", "p/france", "p/lyon", "--json")
    assert done.code == 1 and [found["kind"] for found in done.json["textual"]] == ["contradiction"]
    done = kedit("stack", "conflicts", "p/france", "p/lyon", "--conflicts", "latest")
    assert done.code == 0 and "contradiction" in done.out


def test_conflicts_of_behaviour(here):
    done = kedit("stack", "conflicts", "p/france", "p/tower", "--behaviour", "--json")
    assert done.code == 0 and done.json["looked_at"][-1] == "behavioural"
    assert done.json["compared"]["questions"] >= 2 and done.json["behavioural"] == []


# --- solve --------------------------------------------------------------------------------------------------------


def test_solve_keeps_only_what_it_is_told_to_keep(here):
    kedit("stack", "add", "p/france", "p/tower")
    before = (here / "kedit.lock").read_bytes()
    done = kedit("stack", "solve", "--mode", "joint", "--json")
    ((_, module),) = done.json["modules"].items()
    assert done.json["mode"] == "joint" and module["lambda"] and module["fit_min"] > 0.9
    assert done.json["changes"] is None and (here / "kedit.lock").read_bytes() == before
    assert "lambda" in kedit("stack", "solve", "--mode", "joint").out


def test_what_was_solved_holds_until_the_stack_changes(here):
    kedit("stack", "add", "p/france", "p/tower")
    said = ("--mode", "joint", "--budget", "0.5", "--protect", "The capital of Spain is")
    assert kedit("stack", "solve", *said, "--write").code == 0
    read = Lock.load("kedit.lock")
    assert (read.settings.mode, read.settings.budget, read.protect) == ("joint", 0.5, ("The capital of Spain is",))
    ((_, module),) = read.solved.modules.items()
    assert read.solved.mode == "joint" and module.lambdas and len(read.profiles) == 1
    assert kedit("stack", "solve", "--json").json["settings"]["budget"] == 0.5  # of the lock
    assert kedit("stack", "status", "--json").json["mode"] == "joint"
    assert kedit("ask", CAPITAL, "--patch", "kedit.lock", "--json").json["patched"] == "Nantes."
    again = kedit("stack", "solve", "--write", "--json").json["changes"]
    assert again == []
    kedit("stack", "lock", "--pack")
    assert Lock.load("kedit.lock").solved == read.solved  # the same stack elsewhere
    done = kedit("stack", "weigh", "p/tower", "2")
    assert done.code == 1  # it is packed now
    tower = Patch.load("p/tower").id
    assert "kedit stack solve --write" in kedit("stack", "weigh", tower, "2").err
    changed = Lock.load("kedit.lock")
    assert changed.solved is None and changed.settings == read.settings and changed.protect == read.protect
    assert kedit("stack", "solve", "--defaults", "--write").code == 0
    forgotten = Lock.load("kedit.lock")
    assert forgotten.settings.budget is None and forgotten.protect == () and forgotten.solved.mode == "gated"
    assert forgotten.patches[1].weight == 2.0


def test_a_setting_that_is_none(here):
    kedit("stack", "add", "p/france")
    refused(kedit("stack", "solve", "--budget", "0"), "budget=0")
    assert kedit("stack", "solve", "--budget", "much").code == 2
    assert kedit("stack", "solve", "--mode", "best").code == 2


# --- elsewhere ----------------------------------------------------------------------------------------------------


def test_export_of_the_lock(here):
    kedit("stack", "add", "p/france", "p/tower")
    done = kedit("stack", "export", "--out", "lora", "--json")
    assert done.code == 0 and set(done.json["files"]) >= {"adapter_config.json", "adapter_model.safetensors"}
    assert done.json["patches"] == [entry.id for entry in Lock.load("kedit.lock").patches]
    refused(kedit("stack", "export", "--out", "other", "--quantization", "int8"), "merged")


def test_push_and_add_from_a_hub(here, monkeypatch):
    from huggingface_hub import constants

    with LocalHub(here / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", hub.create_user("ada"))
        for version, name in (("1.0.0", "france"), ("1.1.0", "lyon")):
            assert kedit("push", f"p/{name}", "ada/capital", "--version", version).code == 0
        done = kedit("stack", "add", "ada/capital@v1.0.0", "p/tower", "--json")
        assert done.code == 0, done
        capital, _ = Lock.load("kedit.lock").patches
        assert (capital.id, capital.source.repo) == (Patch.load("p/france").id, "ada/capital")
        assert len(capital.source.commit) == 40
        done = kedit("stack", "push", "ada/all", "--version", "1.0.0", "--json")
        assert done.code == 0 and (done.json["repo_id"], done.json["tag"]) == ("ada/all", "v1.0.0")
        assert pull_stack("ada/all@v1.0.0").stack.ids == tuple(e.id for e in Lock.load("kedit.lock").patches)
        assert kedit("stack", "status", "ada/all", "--no-base", "--json").json["edits"] == 2
        assert kedit("stack", "diff", "ada/all", "--json").code == 0
        assert kedit("ask", CAPITAL, "--patch", "ada/all", "--json").json["patched"] == "Nantes."
        refused(kedit("stack", "add", "ada/all"), "ada/all", "stack of 2 patches")
        refused(kedit("stack", "remove", "ada/capital@v1.1.0"), "ada/capital@v1.1.0")
        assert kedit("stack", "remove", "ada/capital@v1.0.0").code == 0
        kedit("stack", "add", "ada/capital")
        assert Lock.load("kedit.lock").patches[1].id == Patch.load("p/lyon").id
        assert kedit("stack", "remove", "ada/capital").code == 0
        refused(kedit("stack", "push", "ada/capital"), "repo of a patch")


def test_push_of_nothing(here):
    refused(kedit("stack", "push", "ada/all"), "kedit stack add")

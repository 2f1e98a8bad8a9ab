"""kedit stack: what goes into kedit.lock and out of it, and that a refused change leaves the file as it was."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kedit_hub import Patch, index
from kedit_hub.errors import KeditError
from kedit_hub.stack.lock import Lock
from tests.cli.conftest import CAPITAL, kedit, refused


@pytest.fixture
def here(atlas, tmp_path, monkeypatch):
    """The current folder, with copies of the patches under p/."""
    shutil.copytree(atlas, tmp_path / "p")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ids(atlas):
    return {name: Patch.load(atlas / name).id for name in ("france", "lyon", "tower")}


def names(ids):
    """The names of the locked patches, in their order."""
    known = {patch_id: name for name, patch_id in ids.items()}
    return [known[entry.id] for entry in Lock.load("kedit.lock").patches]


def told(done):
    assert done.code == 0, done
    return {(change["what"], (change["patch"] or "")[:6]) for change in done.json["changes"]}


def test_add_and_remove(here, ids):
    done = kedit("stack", "add", "p/france", "--weight", "2", "--pin", "--json")
    assert ("added", ids["france"][:6]) in told(done)
    assert done.json["patches"] == [ids["france"]] and done.json["digest"] == Lock.load("kedit.lock").digest
    assert "names 2 patches" in kedit("stack", "add", here / "p" / "tower").err
    france, tower = Lock.load("kedit.lock").patches
    assert (france.weight, france.pinned, france.source.folder) == (2.0, True, "p/france")
    assert (tower.weight, tower.pinned, tower.source.folder) == (1.0, False, "p/tower")
    for name in (ids["france"][:8], "p/france"):
        assert told(kedit("stack", "remove", name, "--json")) >= {("removed", ids["france"][:6])}
        assert names(ids) == ["tower"]
        kedit("stack", "add", "p/france")
    assert kedit("stack", "remove", "p/france", "p/tower").code == 0 and names(ids) == []
    kedit("stack", "add", "p/france")
    alone = (here / "kedit.lock").read_bytes()
    kedit("stack", "add", "p/tower")
    kedit("stack", "remove", "p/tower")
    assert (here / "kedit.lock").read_bytes() == alone  # no trace


def test_weights_pins_and_order(here, ids):
    kedit("stack", "add", "p/france", "p/tower")
    assert told(kedit("stack", "weigh", "p/tower", "3", "--json")) == {("weight", ids["tower"][:6])}
    assert told(kedit("stack", "strengthen", "p/tower", "0.5", "--json")) == {("strength", ids["tower"][:6])}
    assert told(kedit("stack", "pin", "p/tower", "--json")) == {("pinned", ids["tower"][:6])}
    assert [entry.pinned for entry in Lock.load("kedit.lock").patches] == [False, True]
    assert told(kedit("stack", "unpin", ids["tower"], "--json")) == {("pinned", ids["tower"][:6])}
    assert kedit("stack", "reorder", "p/france").code == 0 and names(ids) == ["tower", "france"]
    assert [(entry.weight, entry.strength) for entry in Lock.load("kedit.lock").patches] == [(3.0, 0.5), (1.0, 1.0)]
    kedit("stack", "add", "p/tower", "--weight", "5")  # stays in its place
    assert names(ids) == ["tower", "france"] and Lock.load("kedit.lock").patches[0].weight == 5.0


def test_what_is_refused_leaves_the_lock(here, ids):
    kedit("stack", "add", "p/france")
    before = (here / "kedit.lock").read_bytes()
    refused(kedit("stack", "add", "p/lyon"), "Nantes", "Lyon", "--conflicts latest")
    refused(kedit("stack", "add", "p/tower", "p/nowhere"), "p/nowhere")
    refused(kedit("stack", "remove", "p/tower"), "p/tower", ids["france"][:12], "p/france")
    refused(kedit("stack", "remove", ids["france"][:5]), ids["france"][:5])
    refused(kedit("stack", "reorder", "p/france", "p/france"), "twice")
    assert kedit("stack", "weigh", "p/france", "0").code == 2
    assert kedit("stack", "strengthen", "p/france", "1.5").code == 2
    assert (here / "kedit.lock").read_bytes() == before


def test_an_interrupted_change_leaves_the_lock(here, monkeypatch):
    kedit("stack", "add", "p/france")
    before = {file.name: file.read_bytes() for file in here.iterdir() if file.is_file()}

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    assert kedit("stack", "add", "p/tower", "--pack").code == 130
    assert {file.name: file.read_bytes() for file in here.iterdir() if file.is_file()} == before


def test_two_at_once_do_not_forget_each_other(here, monkeypatch):
    kedit("stack", "add", "p/france")
    found = index._find

    def meanwhile(ref, *rest):
        monkeypatch.setattr(index, "_find", found)
        assert kedit("stack", "weigh", "p/france", "2").code == 0
        return found(ref, *rest)

    monkeypatch.setattr(index, "_find", meanwhile)
    refused(kedit("stack", "add", "p/tower"), "changed by somebody else")
    (entry,) = Lock.load("kedit.lock").patches
    assert entry.weight == 2.0


def test_comparing_and_writing_is_one_step(here, monkeypatch):
    """Of two changes of one lock the second is refused, also where it comes between the look at the file and the writing."""
    kedit("stack", "add", "p/france")
    one, other = (index._Index.read("kedit.lock") for _ in range(2))
    wrote, began, ended = index.write_together, threading.Event(), threading.Event()

    def slowly(files):
        monkeypatch.setattr(index, "write_together", wrote)
        began.set()
        ended.wait(0.5)
        wrote(files)

    monkeypatch.setattr(index, "write_together", slowly)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(one.write, one.stack(one.patches(())).weigh(one.lock.patches[0].id, 2.0))
        assert began.wait(10)
        with pytest.raises(KeditError, match="changed by somebody else"):
            other.write(other.stack(other.patches(())).weigh(other.lock.patches[0].id, 3.0))
            ended.set()
        first.result()
    assert [entry.weight for entry in Lock.load("kedit.lock").patches] == [2.0]
    assert sorted(file.name for file in here.iterdir()) == ["kedit.lock", "p"]


def test_policies_that_decide(here, ids):
    kedit("stack", "add", "p/france")
    assert kedit("stack", "add", "p/lyon", "--conflicts", "latest").code == 0
    assert Lock.load("kedit.lock").conflicts == "latest"
    assert kedit("ask", CAPITAL, "--patch", "kedit.lock", "--json").json["patched"] == "Lyon."
    assert kedit("stack", "reorder", "p/france").code == 0
    assert kedit("ask", CAPITAL, "--patch", "kedit.lock", "--json").json["patched"] == "Nantes."
    assert kedit("stack", "lock", "p/france").code == 0 and names(ids) == ["france"]
    assert Lock.load("kedit.lock").conflicts == "error"
    kedit("stack", "add", "p/lyon", "--pin", "--conflicts", "pin")
    assert kedit("ask", CAPITAL, "--patch", "kedit.lock", "--json").json["patched"] == "Lyon."
    refused(kedit("stack", "unpin", "p/lyon"), "pin the patch")


def test_ask_needs_a_person(here):
    kedit("stack", "add", "p/france")
    refused(kedit("stack", "add", "p/lyon", "--conflicts", "ask"), "no terminal", "Nantes", "Lyon")


@pytest.mark.parametrize("answer, speaks", [("earlier", "Nantes"), ("later", "Lyon")])
def test_ask_a_person(here, monkeypatch, answer, speaks):
    from kedit_hub.commands import stack

    answers = iter(["both", answer])
    monkeypatch.setattr(stack, "_is_person", lambda: True)
    monkeypatch.setattr("typer.prompt", lambda *_, **__: next(answers))
    kedit("stack", "add", "p/france")
    done = kedit("stack", "add", "p/lyon", "--conflicts", "ask")
    assert done.code == 0 and "'both' is neither" in done.err and "Nantes" in done.err
    read = Lock.load("kedit.lock")
    assert (read.conflicts, len(read.choices)) == ("error", 1)
    status = kedit("stack", "status", "--no-base", "--json")
    assert status.code == 0 and status.json["conflicts"][0]["speaks"] == answer
    assert kedit("ask", CAPITAL, "--patch", "kedit.lock", "--json").json["patched"] == f"{speaks}."


def test_patches_outside_are_packed_or_refused(here, atlas, ids):
    refused(kedit("stack", "add", atlas / "france"), str(atlas / "france"), "--pack")
    (here / "linked").symlink_to(here / "p")
    refused(kedit("stack", "add", "linked/france"), "--pack")
    assert not (here / "kedit.lock").exists()
    assert kedit("stack", "add", atlas / "france", "--pack").code == 0
    assert kedit("stack", "add", "p/tower").code == 0  # beside the packed one
    assert [type(entry.source).__name__ for entry in Lock.load("kedit.lock").patches] == ["InPack", "InFolder"]
    assert kedit("stack", "lock", "--pack").code == 0
    shutil.rmtree(here / "p")
    assert kedit("stack", "verify").code == 0
    assert kedit("stack", "remove", ids["france"], ids["tower"]).code == 0
    assert Lock.load("kedit.lock").packed is None


def test_a_lost_patch_is_told_and_can_be_taken_out(here, ids):
    kedit("stack", "add", "p/france", "p/tower")
    assert kedit("stack", "verify", "--json").json["reasons"] == []
    shutil.rmtree(here / "p" / "france")
    done = kedit("stack", "verify", "--json")
    assert done.code == 1 and len(done.json["reasons"]) == 1 and "p/france" in done.err
    kept = (here / "kedit.lock").read_bytes()
    done = kedit("stack", "add", "p/lyon")
    assert done.code == 1 and "does not hold" in done.err and "p/france" in done.err
    assert (here / "kedit.lock").read_bytes() == kept
    assert kedit("stack", "remove", "p/france").code == 0 and names(ids) == ["tower"]
    assert kedit("stack", "verify").code == 0


def test_a_patch_with_other_scores_is_locked_again(here):
    kedit("stack", "add", "p/france", "p/tower")
    patch = Patch.load("p/france")
    patch.replace_evals({**patch.evals, "note": 1}).save("p/france")
    assert kedit("stack", "verify").code == 1
    assert told(kedit("stack", "add", "p/france", "--json")) == {("files", patch.id[:6])}
    assert kedit("stack", "verify").code == 0


def test_a_policy_is_asked(here):
    kedit("trust", "new", "--out", "kedit.trust", "--author", "our-lab")
    refused(kedit("stack", "add", "p/france", "--trust", "kedit.trust"), "kedit.trust", "refuses")
    assert not (here / "kedit.lock").exists()


def test_names_of_locks(here):
    refused(kedit("stack", "add", "p/france", "--lock", "other.lock"), "other.lock", "kedit.lock")
    refused(kedit("stack", "status"), "kedit.lock", "kedit stack add")
    refused(kedit("stack", "remove", "p/france"), "kedit stack add")
    assert kedit("stack", "lock").code == 2
    assert kedit("stack", "add", "p/france", "--lock", "p/kedit.lock").code == 0
    assert Lock.load("p/kedit.lock").patches[0].source.folder == "france"
    refused(kedit("stack", "add", "p"), "p", "is a stack")


def test_diff(here, ids):
    kedit("stack", "add", "p/france")
    shutil.copy("kedit.lock", "before.json")
    kedit("stack", "add", "p/tower")
    assert ("added", ids["tower"][:6]) in told(kedit("stack", "diff", "before.json", "--json"))
    assert ("removed", ids["tower"][:6]) in told(kedit("stack", "diff", "kedit.lock", "before.json", "--json"))
    assert "added" in kedit("stack", "diff", "before.json").out
    assert kedit("stack", "diff", ".").err == "Both say the same.\n"
    refused(kedit("stack", "diff", "p/france"), "p/france", "kedit diff")


def test_a_lock_changed_by_hand_is_refused(here):
    kedit("stack", "add", "p/france")
    text = (here / "kedit.lock").read_text().replace('"weight": 1.0', '"weight": 9.0')
    (here / "kedit.lock").write_text(text)
    for command in (("status",), ("add", "p/tower"), ("remove", "p/france"), ("verify",), ("solve",)):
        refused(kedit("stack", *command), "digest")
    assert (here / "kedit.lock").read_text() == text
    assert json.loads(text)["patches"] and kedit("stack", "lock", "p/france").code == 0


def test_nothing_but_a_name_of_the_lock_is_read(here):
    with pytest.raises(KeditError, match=r"kedit\.lock"):
        index.add(["p/france"], here / "p" / "kedit.json")

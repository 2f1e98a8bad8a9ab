"""`kedit editor`: train an editor, look at it, measure it, and edit with it."""

import errno
import json
from dataclasses import replace

import pytest

from kedit_hub import Edit, Patch, TrainedEditor, demo
from kedit_hub.api import evaluate_editor
from kedit_hub.editors.hyper.instructions import Trial
from kedit_hub.editors.hyper.lessons import Lesson
from kedit_hub.hub.localhub import LocalHub
from tests.cli.conftest import ATLAS, CAPITAL, kedit, refused
from tests.patch.build import make_patch


def test_an_editor_from_the_shell(tmp_path):
    records = [edit.to_record() for edit in demo.edits("dev")[:12]]
    (tmp_path / "dev.json").write_text(json.dumps(records))
    learnt = {record["subject"] for record in records}
    fresh = [edit.to_record() for edit in demo.edits("dev") if edit.subject not in learnt][:12]
    (tmp_path / "fresh.json").write_text(json.dumps([*records[:2], *fresh]))
    small = (
        "--settings",
        "steps=2",
        "--settings",
        "validate_every=1",
        "--settings",
        "rank=4",
        "--settings",
        "layers=[5]",
    )
    given = ("--from", tmp_path / "dev.json", "--settings", "warmup=4", "--settings", "validation=0.3", *small)
    made = kedit("editor", "train", "--out", tmp_path / "mend", *given, "--half", "--json")
    assert made.code == 0, made
    editor = TrainedEditor.load(tmp_path / "mend")
    assert made.json["id"] == editor.id and made.json["base"] == ATLAS and made.json["settings"]["layers"] == [5]
    assert not list((tmp_path / ".mend.training").iterdir())
    assert editor.manifest.provenance.datasets[0].id == "dev"

    shown = kedit("editor", "show", tmp_path / "mend")
    assert editor.id in shown.out and "training.best_step" in shown.out
    assert kedit("editor", "show", tmp_path / "mend", "--json").json["training"]["marks"] == len(
        {*learnt, *(record["prompt"] for record in records)}
    )
    told = kedit(
        "editor",
        "eval",
        tmp_path / "mend",
        "--edits",
        tmp_path / "fresh.json",
        "--n",
        "1,3",
        "--sequences",
        2,
        "--json",
    )
    assert "2 of 14 edits are left out: the editor was trained on their subjects or questions" in told.err
    assert [(row["edits"], row["sequences"]) for row in told.json] == [(1, 2), (3, 2)]
    assert all(0 <= row["locality.neighbour"] <= 1 for row in told.json)

    request = ("--prompt", CAPITAL, "--subject", "France", "--target", "Nantes")
    assert kedit("edit", *request, "--editor", tmp_path / "mend", "--out", tmp_path / "p").code == 0
    patch = Patch.load(tmp_path / "p")
    assert patch.manifest.method == "mend" and patch.manifest.settings["trained_editor"] == editor.id
    refused(kedit("edit", *request, "--editor", tmp_path, "--out", tmp_path / "q"), "config.json")
    with LocalHub(tmp_path / "hub") as hub:
        (tmp_path / "token").write_text(hub.create_user("ada"))
        at = ("--endpoint", hub.endpoint, "--token-file", tmp_path / "token")
        assert kedit("editor", "push", tmp_path / "mend", "ada/mend", "--version", "1.0.0", *at).code == 0
        pulled = kedit("editor", "pull", "ada/mend@v1.0.0", "--out", tmp_path / "pulled", *at, "--json")
        assert pulled.json["id"] == editor.id == TrainedEditor.load(tmp_path / "pulled").id
        assert kedit("editor", "show", "ada/mend@v1.0.0", *at, "--json").json["id"] == editor.id
        asked = (
            "editor",
            "eval",
            "ada/mend@v1.0.0",
            "--edits",
            tmp_path / "fresh.json",
            "--n",
            "1,5000",
            "--sequences",
            1,
        )
        done = kedit(*asked, *at, "--json")
        assert [row["edits"] for row in done.json] == [1] and "12 edits, too few for sequences of 5000" in done.err
        refused(kedit(*asked, *at, "--save"), "'ada/mend@v1.0.0' is no folder", "kedit editor pull")
        assert kedit("edit", *request, "--editor", "ada/mend@v1.0.0", "--out", tmp_path / "far", *at).code == 0
        assert Patch.load(tmp_path / "far").manifest.settings["trained_editor"] == editor.id
    refused(kedit("edit", *request, "--method", "ke", "--out", tmp_path / "q"), "ke edits with a trained editor")
    refused(kedit("editor", "train", "--out", tmp_path / "x", *given, "--settings", "evil=1"), "evil")
    assert kedit("editor", "eval", tmp_path / "mend", "--n", "0").code == 2
    refused(kedit("editor", "eval", tmp_path / "mend", "--n", "5000"), "too few for one sequence of --n 5000")
    known = kedit("editor", "eval", tmp_path / "mend", "--edits", tmp_path / "dev.json", "--n", "1")
    refused(known, "too few for one sequence of --n 1")
    assert "12 of 12 edits are left out" in known.err
    with pytest.warns(UserWarning, match="2 of 3 edits are left out"):
        edits = [Edit.from_record(record) for record in (*records[:2], fresh[0])]
        [row] = evaluate_editor(editor, edits, sizes=(1, 2), progress=False)
    assert (row["edits"], row["sequences"]) == (1, 1)

    asked = (
        "editor",
        "eval",
        tmp_path / "mend",
        "--edits",
        tmp_path / "fresh.json",
        "--sequences",
        1,
        "--save",
        "--json",
    )
    first = kedit(*asked, "--n", "1,3").json
    again = kedit(*asked, "--n", "3", "--settings", "turn=1").json
    saved = TrainedEditor.load(tmp_path / "mend")
    rows = [*({**row, "turn": None} for row in first), {**again[0], "turn": 1}]
    assert saved.id == editor.id and saved.scores == {"fresh.json": rows}
    assert "Measured on fresh.json" in (tmp_path / "mend" / "README.md").read_text()


def test_an_editor_edits_the_base_it_was_trained_on(tmp_path, monkeypatch):
    editor = TrainedEditor.load(demo.EDITORS / "llama-mend")
    base = editor.manifest.base.model_copy(update={"id": "me/base"})
    other = replace(editor, manifest=editor.manifest.model_copy(update={"base": base}))
    asked = []
    monkeypatch.setattr("kedit_hub.hub.editors.pull_editor", lambda *_, **__: other)
    monkeypatch.setattr("kedit_hub.edit", lambda model, *_, **__: asked.append(model) or 1 / 0)
    request = ("edit", "--prompt", CAPITAL, "--target", "Nantes", "--out", tmp_path / "p")
    for given in (("--editor", "me/mend"), ("--editor", "me/mend", "--base", "me/tuned"), ()):
        with pytest.raises(ZeroDivisionError):
            kedit(*request, *given)
    assert asked == ["me/base", "me/tuned", ATLAS]


def test_files_of_records_are_trained_on_together(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(
        "kedit_hub.train_editor", lambda base, lessons, *_, **how: given.update(how, lessons=lessons) or 1 / 0
    )
    dev = [edit.to_record() for edit in demo.edits("dev")[:5]]
    (tmp_path / "a.json").write_text(json.dumps(dev[:2]))
    (tmp_path / "b.json").write_text(json.dumps(dev[2:]))
    with pytest.raises(ZeroDivisionError):
        kedit(
            "editor", "train", "--from", tmp_path / "a.json", "--from", tmp_path / "b.json", "--out", tmp_path / "made"
        )
    assert [one.edit.prompt for one in given["lessons"]] == [record["prompt"] for record in dev]
    assert [one["id"] for one in given["datasets"]] == ["a", "b"]


def test_a_full_disk_does_not_lose_what_was_trained(tmp_path, monkeypatch):
    (tmp_path / "dev.json").write_text(json.dumps([edit.to_record() for edit in demo.edits("dev")[:12]]))
    small = [word for setting in ("steps=1", "validate_every=1", "rank=4", "layers=[5]", "warmup=4", "validation=0.3")
             for word in ("--settings", setting)]  # fmt: skip
    asked = ("editor", "train", "--from", tmp_path / "dev.json", *small, "--out", tmp_path / "mend")

    def full(_, folder):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with monkeypatch.context() as patched:
        patched.setattr(TrainedEditor, "save", full)
        done = kedit(*asked)
    refused(done, "No space left")
    assert f"{tmp_path / '.mend.training'}: the same command goes on from there" in done.err
    monkeypatch.setattr("kedit_hub.editors.hyper.train.one_step", lambda *_: pytest.fail("it was trained again"))
    assert kedit(*asked).code == 0 and TrainedEditor.load(tmp_path / "mend")
    assert not list((tmp_path / ".mend.training").iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr("kedit_hub.train_editor", lambda *_, **__: pytest.fail("the editor was trained"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    refused(kedit("editor", "train", "--out", tmp_path / "mine"), "thesis.txt")
    monkeypatch.chdir(tmp_path)
    refused(kedit("editor", "train", "--out", "."), "'.'", "go one up")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


@pytest.mark.parametrize("task", ["convsent", "zsre"])
def test_the_demo_has_records_to_try_every_task_on(task, tmp_path, monkeypatch):
    given = {}

    def find(base, edits, task, **how):
        given[task] = [lesson for edit in edits if (lesson := Lesson.of(edit, task)).task == task]
        return ["Answer."], [Trial("Answer.", {"reliability": 0.5}, 0.5)]

    monkeypatch.setattr("kedit_hub.find_instructions", find)
    assert kedit("editor", "instruct", task, "--out", tmp_path / "pools.json").code == 0
    assert len(given[task]) > 100 and all(bool(x.wanted and x.unwanted) == (task == "convsent") for x in given[task])


def test_instructedit_learns_several_tasks_of_the_demo(tmp_path, monkeypatch):
    tasks = []
    monkeypatch.setattr("kedit_hub.train_editor", lambda base, lessons, *_, **__: tasks.append(lessons) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kedit("editor", "train", "--method", "instructedit", "--out", tmp_path / "made")
    assert {Lesson.of(record).task for record in tasks[0]} == {"counterfact", "wikirecent", "convsent"}
    with pytest.raises(ZeroDivisionError):
        kedit("editor", "train", "--method", "mend", "--out", tmp_path / "made")
    assert {Lesson.of(record).task for record in tasks[1]} == {"counterfact"}


def test_instructions_are_looked_for_kept_and_trained_with(tmp_path):
    (tmp_path / "dev.json").write_text(json.dumps([edit.to_record() for edit in demo.edits("dev")[:12]]))
    small = [word for setting in ("steps=1", "validate_every=1", "rank=4", "layers=[5]", "warmup=4", "validation=0.3")
             for word in ("--settings", setting)]  # fmt: skip
    given, pools = ("--from", tmp_path / "dev.json", *small), tmp_path / "pools.json"
    pools.write_text('{"zsre": ["Answer."]}')
    done = kedit("editor", "instruct", "counterfact", "--out", pools, *given, "--count", 2, "--patience", 1, "--json")
    assert done.code == 0, done.err
    kept = json.loads(pools.read_text())
    assert kept == {"zsre": ["Answer."], "counterfact": done.json["kept"]} and len(done.json["tried"]) >= 2
    assert done.json["tried"][0]["instruction"] in done.err  # told as it goes
    how = ("editor", "train", "--method", "instructedit", "--instructions", pools, "--out", tmp_path / "made", *given)
    assert kedit(*how).code == 0
    assert TrainedEditor.load(tmp_path / "made").manifest.settings["pools"]["counterfact"] == kept["counterfact"]
    assert kedit("editor", "train", "--instructions", pools, "--out", tmp_path / "x").code == 2
    pools.write_text('{"poems": ["Rhyme."]}')
    refused(kedit("editor", "instruct", "zsre", "--out", pools, *given), "poems", "counterfact")


def test_what_is_no_trained_editor_is_told_of_as_such(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_patch().save(tmp_path / "mixed")
    request = ("--prompt", CAPITAL, "--subject", "France", "--target", "Nantes", "--out", tmp_path / "p")
    commands = (
        lambda ref: kedit("editor", "show", ref),
        lambda ref: kedit("editor", "eval", ref),
        lambda ref: kedit("editor", "push", ref, "ada/mend"),
        lambda ref: kedit("edit", *request, "--editor", ref),
    )
    for command in commands:
        refused(command("mixed"), "'mixed' is the folder of a patch. Give the folder of a trained editor")
    for command in (commands[0], commands[1], commands[3]):
        refused(command("nowhere"), "'nowhere' does not name a trained editor. Write user/repo")
    refused(commands[2]("nowhere"), "'nowhere' is not a folder. Give the folder of a trained editor")

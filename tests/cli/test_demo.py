import json

from kedit_hub import demo, read_edits
from kedit_hub.editors.hyper.lessons import Lesson
from kedit_hub.records.read import read_records
from tests.cli.conftest import kedit, refused


def test_models():
    told = kedit("demo", "models", "--json").json
    assert [model["id"] for model in told] == ["kedit-hub/atlas-llama", "kedit-hub/atlas-gpt2"]
    recipe = json.loads((demo.model_path("llama") / "recipe.json").read_text("utf-8"))
    assert (told[0]["parameters"], told[0]["recall"]) == (recipe["parameters"], recipe["recall"])
    assert "atlas-llama" in kedit("demo", "models").out


def test_edits_are_records_that_edit_reads(tmp_path):
    done = kedit("demo", "edits", "test", "--json")
    (tmp_path / "records.json").write_text(done.out)
    assert read_edits(tmp_path / "records.json") == demo.edits("test")
    assert kedit("demo", "edits", "--json").json == kedit("demo", "edits", "dev", "--json").json


def test_edits_for_people():
    lines = kedit("demo", "edits").out.splitlines()
    assert len(lines) == 1 + len(demo.edits("dev"))


def test_tasks_are_records_that_an_editor_is_trained_on(tmp_path):
    done = kedit("demo", "tasks", "test", "--json")
    (tmp_path / "records.json").write_text(done.out)
    lessons = [Lesson.of(record) for record in read_records(tmp_path / "records.json")]
    assert lessons == [Lesson.of(record) for record in read_records(demo.task_records("test"))]
    lines = kedit("demo", "tasks", "test").out.splitlines()
    assert lines[0].split() == ["task", "prompt", "new", "answer"] and len(lines) == 1 + len(lessons)
    assert {line.split()[0] for line in lines[1:]} == {"counterfact", "wikirecent", "convsent", "zsre"}


def test_train_is_one_call(monkeypatch, tmp_path):
    calls = []

    def train(architecture, out, **how):
        calls.append((architecture, out, how))
        counts = dict.fromkeys(("parameters", "steps", "tokens", "cpu_minutes", "file_bytes"), 5)
        return {**counts, "recall": {"trained": {"exact": 0.5, "n": 4}}}

    monkeypatch.setattr("kedit_hub.demo.train.train", train)
    done = kedit("demo", "train", "gpt2", "--out", tmp_path / "m", "--minutes", 0.5, "--seed", 3)
    assert calls == [("gpt2", tmp_path / "m", {"seed": 3, "minutes": 0.5, "progress": True})]
    assert done.out.splitlines()[-1].split() == ["trained", "0.5", "4"]


def test_train_leaves_other_folders_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    refused(kedit("demo", "train", "--out", tmp_path), str(tmp_path))
    assert [path.name for path in tmp_path.glob("*.txt")] == ["mine.txt"]

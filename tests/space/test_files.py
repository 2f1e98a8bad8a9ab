"""Edits from a file: read as the library reads them, bounded, scored together; and what a push would publish is seen first."""

import json

import pytest

from kedit_hub import KeditError, read_edits
from kedit_hub.errors import EditError, LimitError
from space import make_tab, making, page
from space.making import make_file, read_file
from space.state import Stop, Workshop, embedded_bases
from tests.space.tiny import PARIS, handler, make_patch

CSV = "prompt,subject,target_new,relation,paraphrases\nThe capital of France is,France,Lyon,capital,France has the capital|In France\n"


def write(folder, text, name="edits.csv"):
    file = folder / name
    file.write_text(text)
    return str(file)


def test_a_csv_is_records(tmp_path):
    (edit,) = read_file(write(tmp_path, CSV))
    assert (edit.prompt, edit.subject, edit.target, edit.relation) == (
        "The capital of France is",
        "France",
        "Lyon",
        "capital",
    )
    assert edit.paraphrases == ("France has the capital", "In France")
    assert read_edits(write(tmp_path, "\ufeff" + CSV)) == [edit]
    records = [edit.to_record()]
    assert read_file(write(tmp_path, json.dumps(records), "e.json")) == [edit]
    assert read_file(write(tmp_path, json.dumps(records[0]) + "\n", "e.jsonl")) == [edit]


@pytest.mark.parametrize("column", ["rephrase_prompt", "rephrases", "rephrase"])
def test_every_name_of_the_rephrases_is_a_list_in_a_csv(tmp_path, column):
    text = (
        f"prompt,subject,target_new,{column}\nThe capital of France is,France,Lyon,In France | The French capital is\n"
    )
    (edit,) = read_edits(write(tmp_path, text))
    assert edit.rephrases == ("In France", "The French capital is")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,subject\nx,y\n", "row 2"),
        ("prompt,target_new\nx,y,z\n", "as many cells"),
        ('prompt,target_new\n"x,y\n', "no CSV file"),
        ("prompt,target_new\n", "no edit"),
        ("prompt,target_new\n" + "x,y\n" * 26, "more than 25"),
        (f"prompt,target_new\n{'x' * 501},y\n", "too long"),
        ("x" * ((1 << 18) + 1), "262,145 bytes"),
    ],
)
def test_what_cannot_be_made_is_said(tmp_path, text, message):
    with pytest.raises(KeditError, match=message):
        read_file(write(tmp_path, text))
    assert issubclass(EditError, KeditError) and issubclass(LimitError, KeditError)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = tmp_path / "e.csv"
    file.write_bytes(b"prompt,target_new\n\xff\xfe,y\n")
    with pytest.raises(EditError, match="no CSV file in UTF-8"):
        read_file(str(file))


def test_a_file_becomes_one_scored_patch(tmp_path):
    workshop = Workshop(embedded_bases(), [])
    text = CSV + "The capital of Japan is,Japan,Oslo,capital,\n"
    made = make_file(workshop, write(tmp_path, text), "kedit-hub/atlas-llama", "memit")
    assert [edit.target for edit in made.held.patch.edits] == ["Lyon", "Oslo"]
    assert made.scores.protocols["generate"]["reliability"] == 1 and "Lyon" in made.answer.patched.text
    assert "All 2 edits took" in make_tab.show(made)


def test_what_would_be_published_can_be_read(monkeypatch):
    shown = make_tab.contents(make_patch([PARIS]))
    assert "README.md" in shown and "base&#95;model" in shown and '<pre class="file"' in shown
    monkeypatch.setattr(make_tab, "PREVIEW_LINES", 2)
    assert "more lines" in make_tab.contents(make_patch([PARIS]))


def test_no_file_is_said(shared):
    outputs = handler(page.build(shared), "on_file")(None, "memit", "tiny-llama", Stop())
    assert "no file yet" in outputs[1]
    assert making.MAX_FILE_EDITS == 25

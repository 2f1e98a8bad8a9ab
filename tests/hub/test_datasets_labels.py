"""Rephrases that ask the fact stay; the others are asked under a name of their own. None is lost."""

import json
from pathlib import Path

import pytest

from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import EditError
from kedit_hub.hub.datasets import RAW, read_dataset, read_labels, with_labels

DATA = Path(__file__).parents[3] / "shared" / "data"
EDITS = [
    Edit("The capital of Norland is", "Pell", "Norland", rephrases=["Norland's capital is"], id="1"),
    Edit("Ola Fenn plays the", "viola", "Ola Fenn", rephrases=["People who hear Ola Fenn say"], id="2"),
    Edit("Jon Vale works for", "Hob Press", rephrases=["Jon Vale wakes at"], id="3", relation="own", aliases=["HP"]),
]
LABELS = {"1": ["P36", "template"], "2": ["P1303", "generation-form"], "3": ["P108", "none"], "4": ["P1", "none"]}


def write(tmp_path, value):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(value))
    return path


def test_true_paraphrases_and_the_raw_field_are_two_numbers(tmp_path):
    template, form, none = with_labels(EDITS, read_labels(write(tmp_path, LABELS)))
    assert template.rephrases == EDITS[0].rephrases and template.portability == ()
    assert form.rephrases == () and form.portability == (
        Probe("People who hear Ola Fenn say", "viola", RAW, "Ola Fenn"),
    )
    assert none.rephrases == () and none.portability == (Probe("Jon Vale wakes at", "Hob Press", RAW, aliases=["HP"]),)
    assert [edit.relation for edit in (template, form, none)] == ["P36", "P1303", "own"]


def test_an_edit_without_a_label(tmp_path):
    with pytest.raises(EditError, match="1 of 3 edits have no label, the first is '3'"):
        with_labels(EDITS, read_labels(write(tmp_path, {key: LABELS[key] for key in "12"})))


@pytest.mark.parametrize(
    ("value", "words"),
    [([], "holds a list"), ({"1": ["P36", "maybe"]}, "labels '1' with"), ({"1": "template"}, "labels '1' with")],
)
def test_malformed(tmp_path, value, words):
    with pytest.raises(EditError, match=words):
        read_labels(write(tmp_path, value))


@pytest.mark.skipif(not DATA.is_dir(), reason="the public record files are kept beside the project, not in it")
def test_real_labels_of_every_record():
    edits = read_dataset(DATA / "counterfact-edit.json").edits
    labelled = with_labels(edits, read_labels(DATA / "counterfact-edit-labels.json"))
    raw = [sum(probe.kind == RAW for probe in edit.portability) for edit in labelled]
    true = [len(edit.rephrases) for edit in labelled]
    assert all(a + b == len(edit.rephrases) == 1 for a, b, edit in zip(true, raw, edits))
    assert (sum(true), sum(raw)) == (2_343, 7_657)
    assert all(edit.relation and edit.relation.startswith("P") for edit in labelled)

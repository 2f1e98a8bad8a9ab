"""Every shape is told by its keys and read; every record that cannot be is named by file, place and reason."""

import json

import pytest

from kedit_hub.edits import SHAPES, Edit, read_edits
from kedit_hub.errors import EditError
from kedit_hub.records.shapes import read_one

from .fixtures import RECORDS, sorted_out

# file -> shape, where its edits stand, and (place, words of the reason) of its rejected records
FILES = {
    "counterfact.json": (
        "counterfact",
        ["record 0", "record 1"],
        [("record 2", "target is empty"), ("record 3", "Subject 'Oldermoss' is not in the prompt")],
    ),
    "counterfact-original.json": (
        "counterfact-original",
        ["record 0", "record 1"],
        [("record 2", "'target_true' is missing"), ("record 3", "does not have shape 'counterfact-original'")],
    ),
    "counterfact-probes.json": ("counterfact-probes", ["record 0"], [("record 1", "does not have shape")]),
    "dafset.json": ("counterfact", ["record 0", "record 1"], []),
    "dafset-robust.json": ("dafset-robust", ["record 0"], [("record 1", "prefix has no text")]),
    "easyedit.json": (
        "easyedit",
        ["record 0", "record 1"],
        [("record 2", "valid string, got '1931'"), ("record 3", "2 prompts and 1 ground_truth")],
    ),
    "knowedit-zsre.json": ("easyedit", ["record 0", "record 1"], []),
    "knowedit-recent.json": ("easyedit", ["record 0", "record 1"], [("record 2", "locality is 'none'")]),
    "knowedit-counterfact.json": ("easyedit", ["record 0", "record 1"], []),
    "wikibio.json": (
        "wikibio",
        ["record 0"],
        [("record 1", "did you mean 'jon vale'"), ("record 2", "target is empty")],
    ),
    "sanitation-train.json": ("sanitation", ["K_F 0", "K_F 1"], [("K_F 2", "target is empty")]),
    "sanitation-test.json": ("sanitation", ["success 0"], []),
    "convsent.json": ("convsent", ["record 0", "record 1"], [("record 2", "'Hob Press' needs replies of both")]),
    "convsent-prepared.json": (
        "convsent-prepared",
        ["record 0", "record 1"],
        [("record 2", "is not 'question </s> reply'"), ("record 3", "1 replies and 2 and 1 sentiments")],
    ),
    "zsre-mend.json": (
        "zsre-mend",
        ["record 0", "record 2", "record 3"],
        [("record 1", "target is empty"), ("record 4", "'New Answer' is missing")],
    ),
    "zsre-ke.jsonl": (
        "zsre-ke",
        ["line 1", "line 4"],
        [("line 2", "alternatives is empty"), ("line 3", "line 3 is not JSON")],
    ),
    "ripple.json": ("ripple", ["record 0", "record 1"], [("record 2", "Subject 'Sudland' is not in")]),
    "ripple-original.json": (
        "ripple-original",
        ["record 0", "record 1", "record 2"],
        [("record 3", "Cannot tell where the answer begins")],
    ),
    "mquake.json": (
        "mquake",
        ["record 0, rewrite 1", "record 0, rewrite 2", "record 1", "record 3"],
        [("record 2", "requested_rewrite is '[]'")],
    ),
    "mquake-remastered.json": ("mquake", ["record 0"], []),
    "qaedit.json": (
        "qaedit",
        ["record 0"],
        [("record 1", "got '1702'"), ("record 2", "target is empty"), ("record 3", "did you mean 'vask'")],
    ),
    "unke.json": (
        "unke",
        ["record 0"],
        [("record 1", "argument 2 is shorter"), ("record 2", "has 20,001 characters")],
    ),
    "canonical.json": (
        "canonical",
        ["record 0"],
        [("record 1", "Unknown key 'cond'"), ("record 2", "has no target"), ("record 3", "aliases and no target")],
    ),
}


def test_every_shape_and_every_file_is_here():
    assert {shape for shape, _, _ in FILES.values()} == set(SHAPES)
    assert {path.name for path in RECORDS.iterdir()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_records(name):
    shape, places, reasons = FILES[name]
    found = sorted_out(name, "canonical" if shape == "canonical" else "auto")
    assert [record.where for record in found.records] == places
    assert {record.shape for record in found.records} == {shape}
    assert [where for where, _ in found.rejected] == [where for where, _ in reasons]
    for (_, reason), (_, words) in zip(found.rejected, reasons, strict=True):
        assert words in reason
    for record in found.records:
        written = json.loads(json.dumps(record.edit.to_record()))
        assert Edit.from_record(written, "canonical") == record.edit


@pytest.mark.parametrize("name", [name for name, (_, _, reasons) in FILES.items() if reasons])
def test_read_edits_names_file_place_and_reason(name):
    shape, _, reasons = FILES[name]
    with pytest.raises(EditError) as caught:
        read_edits(RECORDS / name, format="canonical" if shape == "canonical" else "auto")
    message = str(caught.value)
    assert f"{len(reasons)} of " in message and name in message
    assert all(f"\n  {where}: " in message and words in message for where, words in reasons)


def test_a_record_of_several_edits_is_no_single_edit():
    record = json.loads((RECORDS / "mquake.json").read_text("utf-8"))[0]
    with pytest.raises(EditError, match="holds 2 edits"):
        read_one(record, "auto")
    assert len(read_edits([record])) == 2

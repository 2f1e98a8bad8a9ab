"""Files of records: all are read, or one error names every record that cannot be."""

import json
from pathlib import Path

import pytest

from kedit_hub.edits import Edit, read_edits
from kedit_hub.errors import EditError
from kedit_hub.records.read import read_records

GOOD = {"prompt": "A is", "target_new": "B"}
DATA = Path(__file__).parents[3] / "shared" / "data"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_json_jsonl_and_records_in_memory(tmp_path):
    expected = [Edit("A is", "B"), Edit("C is", "D")]
    records = [GOOD, {"prompt": "C is", "target_new": "D"}]
    assert read_edits(write(tmp_path / "a.json", json.dumps(records))) == expected
    assert read_edits(str(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records)) + "\n"))) == expected
    assert read_edits(iter(records)) == expected


def test_every_rejected_record_is_named(tmp_path):
    path = write(tmp_path / "some.json", json.dumps([GOOD, {"prompt": "A is", "target_new": ""}, {"x": 1}]))
    with pytest.raises(EditError) as caught:
        read_edits(path)
    message = str(caught.value)
    assert "2 of 3 records" in message and "some.json" in message
    assert "record 1: target is empty" in message and "record 2: No known record shape" in message
    assert [where for where, _ in caught.value.rejected] == ["record 1", "record 2"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", '{"prompt": "a", "target_new": "b"}', "not a list of records"),
        ("a.json", '[{"prompt": "a", "prompt": "b", "target_new": "c"}]', "key 'prompt' twice"),
        ("a.json", "[NaN]", "literal NaN"),
        ("a.jsonl", '{"prompt": "a", "target_new": "b"}\n{', "line 2 is not JSON"),
        ("a.json", "\ufeff[]", "byte order mark"),
    ],
)
def test_bad_files(tmp_path, name, text, words):
    with pytest.raises(EditError) as caught:
        read_edits(write(tmp_path / name, text))
    assert words in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(EditError, match=r"none\.json': No such file"):
        read_edits(tmp_path / "none.json")


HERE = pytest.mark.skipif(not DATA.is_dir(), reason="the public record files are kept beside the project, not in it")


@HERE
@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("counterfact-edit.json", "counterfact", 10_000),
        ("counterfact-known-dev.json", "counterfact-probes", 200),
        ("dafset-cf_train.json", "counterfact", 10_000),
        ("knowedit-ZsRE-first300.json", "easyedit", 300),
        ("QAEdit-first200.json", "qaedit", 200),
        ("UnKE-first200.json", "unke", 200),
    ],
)
def test_real_files(name, shape, count):
    records = read_records(DATA / name)
    assert len(records) == count
    assert {record.shape for record in records} == {shape}
    assert not any(record.extras.unanswered for record in records)
    assert all(Edit.from_record(record.edit.to_record(), "canonical") == record.edit for record in records)


@HERE
def test_real_file_with_two_empty_targets():
    with pytest.raises(EditError, match="2 of 1000 records") as caught:
        read_edits(DATA / "zsre_mend_train-1k.json")
    assert [where for where, _ in caught.value.rejected] == ["record 534", "record 723"]
    assert all("target is empty" in reason for _, reason in caught.value.rejected)


@HERE
@pytest.mark.parametrize(("name", "count"), [("known_1000.json", 1_209), ("ME-PPL_1k.json", 1_000)])
def test_real_files_that_ask_for_no_change(name, count):
    """Facts without a new answer, and plain texts: every record is rejected, none is skipped."""
    with pytest.raises(EditError, match=f"{count} of {count} records") as caught:
        read_edits(DATA / name)
    assert [where for where, _ in caught.value.rejected] == [f"record {i}" for i in range(count)]
    assert all("No known record shape" in reason for _, reason in caught.value.rejected)

"""Data sets from files: what was read is named by its digest, what was not is named by place and reason."""

import hashlib
import json
from pathlib import Path

import pytest

from kedit_hub.errors import EditError
from kedit_hub.hub.catalogue import DATASETS
from kedit_hub.hub.datasets import read_dataset
from kedit_hub.patch.manifest import Dataset
from kedit_hub.records.shapes import SHAPES

RECORDS = Path(__file__).parents[1] / "fixtures" / "records"
QA = RECORDS / "qaedit.json"


def test_what_was_read():
    loaded = read_dataset(RECORDS / "counterfact-probes.json", limit=1)
    assert [edit.id for edit in loaded.edits] == ["5"] and len(loaded.extras) == 1
    assert loaded.rejected == () and loaded.total == 1
    assert loaded.sha256 == hashlib.sha256((RECORDS / "counterfact-probes.json").read_bytes()).hexdigest()
    assert loaded.source() == {"id": "counterfact-probes.json", "sha256": loaded.sha256}
    assert (loaded.revision, loaded.split) == (None, None)


def test_rejected_records_are_an_error_by_default():
    with pytest.raises(EditError) as caught:
        read_dataset(QA)
    message = str(caught.value)
    assert "3 of 4 records in " in message and "qaedit.json" in message and "rejected='collect'" in message
    assert [where for where, _ in caught.value.rejected] == ["record 1", "record 2", "record 3"]


def test_rejected_records_can_be_collected():
    loaded = read_dataset(QA, rejected="collect")
    assert [edit.id for edit in loaded.edits] == ["1104"] and loaded.total == 4
    assert [where for where, _ in loaded.rejected] == ["record 1", "record 2", "record 3"]
    assert "target is empty" in dict(loaded.rejected)["record 2"]


def test_a_limit_counts_records_of_the_file():
    assert len(read_dataset(RECORDS / "mquake.json", limit=1).edits) == 2
    loaded = read_dataset(QA, limit=2, rejected="collect")
    assert (loaded.total, len(loaded.edits), len(loaded.rejected)) == (2, 1, 1)
    assert len(read_dataset(RECORDS / "zsre-ke.jsonl", limit=1).edits) == 1
    assert loaded.sha256 == read_dataset(QA, rejected="collect").sha256


def test_a_shape_can_be_demanded():
    with pytest.raises(EditError, match="'src' is missing for a record of shape 'zsre-mend'"):
        read_dataset(QA, shape="zsre-mend")


@pytest.mark.parametrize("name", ["my file (1).json", "..a--b.json", "übung.json", "-.json"])
def test_any_file_has_a_name_that_provenance_takes(name, tmp_path):
    path = tmp_path / name
    path.write_text(json.dumps([{"prompt": "A is", "target_new": "B"}]))
    assert Dataset(**read_dataset(path).source()).sha256


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("nothing.json", {}, "No data set and no file is called 'nothing.json'"),
        ("nothing", {}, "Known by name: knowedit-zsre"),
        ("rippleedits", {}, "Fetch it from edenbiran/RippleEdits"),
        (str(QA), {"split": "test"}, "neither splits nor revisions"),
        (str(QA), {"revision": "main"}, "neither splits nor revisions"),
        (str(QA), {"shape": "csv"}, "Unknown record shape 'csv'"),
        (str(QA), {"limit": 0}, "at least one record"),
        (str(QA), {"rejected": "drop"}, "'error' or 'collect'"),
    ],
)
def test_refusals(name, how, words):
    with pytest.raises(EditError) as caught:
        read_dataset(name, **how)
    assert words in str(caught.value)


def test_the_catalogue_names_shapes_and_files_that_can_be_read():
    for name, source in DATASETS.items():
        assert source.shape in SHAPES and source.what and source.licence and source.origin, name
        assert bool(source.hub) == bool(source.files), name
        assert all(Path(file).suffix in (".json", ".jsonl", ".parquet") for file in source.files.values()), name

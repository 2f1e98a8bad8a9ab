"""Parquet: read where pyarrow is installed and new enough; else one clear message."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from kedit_hub.errors import EditError, LimitError
from kedit_hub.hub import parquet as module
from kedit_hub.hub.datasets import read_dataset
from kedit_hub.limits import DEFAULT

RECORDS = Path(__file__).parents[1] / "fixtures" / "records"


@pytest.fixture
def parquet(tmp_path):
    """parquet(name) -> a Parquet file of the readable records of a fixture."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet as format

    def make(name, count):
        path = tmp_path / f"{name}.parquet"
        rows = json.loads((RECORDS / f"{name}.json").read_text("utf-8"))[:count]
        format.write_table(pyarrow.Table.from_pylist(rows), path)
        return path

    return make


@pytest.mark.parametrize(("name", "count"), [("counterfact-original", 2), ("mquake-remastered", 1), ("dafset", 2)])
def test_rows_are_the_records(parquet, name, count):
    loaded = read_dataset(parquet(name, count))
    assert loaded.edits == read_dataset(RECORDS / f"{name}.json", limit=count).edits
    assert loaded.extras == read_dataset(RECORDS / f"{name}.json", limit=count).extras
    assert len(read_dataset(parquet(name, count), limit=1).edits) == 1


def test_rows_that_json_cannot_say_are_rejected_by_name(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet as format

    texts = {"prompt": "The capital of Norland is", "target_new": "Pell"}
    rows = [{**texts, "score": 0.5, "raw": None}, {**texts, "score": float("nan")}, {**texts, "raw": b"\x80"}]
    format.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    loaded = read_dataset(tmp_path / "a.parquet", rejected="collect")
    assert len(loaded.edits) == 1
    assert [where for where, _ in loaded.rejected] == ["record 1", "record 2"]
    assert all("what JSON cannot say" in reason for _, reason in loaded.rejected)


def test_what_is_no_parquet_file(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(EditError, match="not a readable Parquet file"):
        read_dataset(tmp_path / "a.parquet")


def test_what_unpacks_to_too_much(parquet, monkeypatch):
    path = parquet("dafset", 2)
    monkeypatch.setattr(module, "DEFAULT", replace(DEFAULT, max_records_bytes=path.stat().st_size))
    rows = [{"prompt": "The capital of Norland is", "target_new": "Pell"}] * 10_000
    import pyarrow
    from pyarrow import parquet as format

    format.write_table(pyarrow.Table.from_pylist(rows), path, compression="zstd", use_dictionary=False)
    with pytest.raises(LimitError, match="unpacks to"):
        read_dataset(path)


ROWS = {
    "text": lambda text, i: {"prompt": text, "target_new": text},
    "in a list": lambda text, i: {"prompt": "p", "target_new": "t", "more": [text] * 20},
    "in a map": lambda text, i: {"prompt": "p", "target_new": "t", "more": {"deep": [{"x": text}]}},
    "bytes": lambda text, i: {"prompt": text.encode(), "target_new": "t"},
    "empty": lambda text, i: {"prompt": None, "target_new": "", "more": [None] * 50},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_text_that_is_stored_once_counts_as_often_as_it_is_there(tmp_path, monkeypatch, row):
    """The file, and what it says of its own size, are small."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet as format

    path = tmp_path / "a.parquet"
    rows = [row("x" * 2_000, i) for i in range(3_000)]
    format.write_table(pyarrow.Table.from_pylist(rows), path, compression="zstd")
    about = format.ParquetFile(path).metadata.row_group(0)
    assert path.stat().st_size < 100_000 and about.total_byte_size < 500_000
    assert module.read_rows(path.read_bytes(), "a", None) == format.read_table(path).to_pylist()
    monkeypatch.setattr(module, "DEFAULT", replace(DEFAULT, max_records_bytes=2_000_000))
    with pytest.raises(LimitError, match="unpacks to"):
        read_dataset(path)


def test_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EditError, match="pip install pyarrow"):
        read_dataset(tmp_path / "a.parquet")


def test_a_pyarrow_that_is_too_old(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    old = ModuleType("pyarrow")
    old.__version__ = "14.0.0"
    old.parquet = ModuleType("pyarrow.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", old)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", old.parquet)
    with pytest.raises(EditError, match="too old"):
        read_dataset(tmp_path / "a.parquet")

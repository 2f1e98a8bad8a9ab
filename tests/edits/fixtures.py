"""Invented records of every shape, in tests/fixtures/records. All people, towns and rivers in them are made up."""

from pathlib import Path

from kedit_hub.records.extras import Record
from kedit_hub.records.read import SortedOut, locate, sort_out

RECORDS = Path(__file__).parents[1] / "fixtures" / "records"


def sorted_out(name: str, format: str = "auto") -> SortedOut:
    path = RECORDS / name
    return sort_out(repr(name), locate(path.read_bytes(), repr(name), path.suffix), format)


def records(name: str, format: str = "auto") -> tuple[Record, ...]:
    """Those that can be read."""
    return sorted_out(name, format).records

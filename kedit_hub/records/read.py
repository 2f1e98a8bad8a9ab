"""Files of records. Law: every record of a source is read or rejected by name; what is left out of one is said.

read_edits("counterfact-edit.json")                  ->  [Edit, ...]
read_records("blender_test.json")                    ->  [Record(edit, extras, shape, where), ...]
sort_out("QAEdit.json", data).rejected               ->  (("record 7", "target is empty ..."), ...)
"""

import csv
import io
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedit_hub import strictjson
from kedit_hub.edits import Edit
from kedit_hub.errors import EditError, LimitError
from kedit_hub.limits import DEFAULT
from kedit_hub.records.dialogue import with_elsewhere
from kedit_hub.records.extras import Record
from kedit_hub.records.shapes import SHAPES, read_all, shape_of

_LISTS = frozenset({"rephrase_prompt", "rephrases", "rephrase", "paraphrases", "aliases"})  # of a CSV file
SHOWN = 20  # rejected records that a message names
Located = tuple[str, Any]  # where a record stands, and the record (or the error of the line that holds it)
_TWO_LISTS = (
    ("K_F", "K_R"),
    ("success", "locality"),
)  # what to forget and what to keep: Sanitation's train and test files


@dataclass(frozen=True)
class SortedOut:
    """The records of a source. rejected: (where, reason).  total: records there were, rejected ones included."""

    name: str
    records: tuple[Record, ...]
    rejected: tuple[tuple[str, str], ...]
    total: int

    def or_error(self) -> "SortedOut":
        """Itself, if nothing was rejected; else EditError listing all that was."""
        if self.rejected:
            shown = "\n".join(f"  {where}: {reason}" for where, reason in self.rejected[:SHOWN])
            hidden = len(self.rejected) - SHOWN
            more = f"\n  ... and {hidden} more (see EditError.rejected)" if hidden > 0 else ""
            raise EditError(
                f"{len(self.rejected)} of {self.total} records in {self.name} cannot be read. Mend or remove them:\n{shown}{more}",
                self.rejected,
            )
        return self


def read_edits(source: str | os.PathLike[str] | Iterable[Mapping[str, Any]], format: str = "auto") -> list[Edit]:
    """Read edits from a .json list, a .jsonl or .csv file, or records already in memory (a datasets.Dataset is one such).

    format: a name of SHAPES, or "auto" to tell each record's shape from its keys.
    Raises EditError listing every record that cannot be read (file, position, reason); nothing is dropped in silence.
    """
    records = read_records(source, format)
    tell_unanswered(records)
    return [record.edit for record in records]


def tell_unanswered(records: Iterable[Record]) -> None:
    """A warning where probes of the records are not in their edits."""
    unanswered = sum(len(record.extras.unanswered) for record in records)
    if unanswered:
        warnings.warn(
            f"{unanswered} portability probes have no answer to score them by and are left out: see Extras.unanswered of "
            "kedit_hub.records.read.read_records",
            stacklevel=3,
        )


def read_records(source: str | os.PathLike[str] | Iterable[Mapping[str, Any]], format: str = "auto") -> list[Record]:
    """As `read_edits`, with what each record says beside its edit, its shape and its place."""
    if format != "auto" and format not in SHAPES:
        raise EditError(f"Unknown record format {format!r}. Known: auto, {', '.join(SHAPES)}.")
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        name, located = repr(str(path)), locate(read_bytes(path), repr(str(path)), path.suffix)
    else:
        name, located = "the given records", _numbered(list(source))
    return list(sort_out(name, located, format).or_error().records)


def read_bytes(path: Path) -> bytes:
    """A file of records, as far as the bound on it and one byte more. Raises EditError."""
    try:
        with path.open("rb") as file:
            return file.read(DEFAULT.max_records_bytes + 1)
    except OSError as cause:
        raise EditError(
            f"Cannot read edits from {str(path)!r}: {cause.strerror}; give a .json, .jsonl or .csv file."
        ) from None


def locate(data: bytes, name: str, suffix: str, limit: int | None = None) -> list[Located]:
    """The first `limit` records of a file's bytes. Raises EditError where the file as a whole is no list of records."""
    if suffix == ".jsonl":
        if len(data) > DEFAULT.max_records_bytes:
            raise LimitError(f"{name} has more than {DEFAULT.max_records_bytes:,} bytes; no more are read.")
        lines = [(f"line {i}", line) for i, line in enumerate(data.split(b"\n"), start=1) if line.strip()]
        return [(where, _parsed(line, f"{name} {where}")) for where, line in lines[:limit]]
    if suffix == ".csv":
        return _table(data, name)[:limit]
    records = strictjson.loads(data, what=name, max_bytes=DEFAULT.max_records_bytes, error=EditError)
    if isinstance(records, dict):
        for forget, keep in _TWO_LISTS:
            if isinstance(records.get(forget), list) and isinstance(records.get(keep), list):
                return _shared_out(forget, records[forget], records[keep])[:limit]
    if not isinstance(records, list):
        raise EditError(f"{name} holds one {type(records).__name__}, not a list of records. Wrap it in [ ].")
    return _numbered(records[:limit])


def _table(data: bytes, name: str) -> list[Located]:
    """Rows of a CSV file in UTF-8, whose first line names the fields; empty cells are left out, and | parts a list."""
    if len(data) > DEFAULT.max_records_bytes:
        raise LimitError(f"{name} has more than {DEFAULT.max_records_bytes:,} bytes; no more are read.")
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as cause:
        raise EditError(f"{name} is no CSV file in UTF-8: {cause}.") from None
    found: list[Located] = []
    for number, row in enumerate(rows):
        cells = {key.strip(): cell for key, cell in row.items() if key and isinstance(cell, str) and cell.strip()}
        lists = {key: [part.strip() for part in cells[key].split("|")] for key in _LISTS & cells.keys()}
        odd = None in row or None in row.values()
        wrong = EditError("This row does not have as many cells as the first line names.") if odd else None
        found.append((f"row {number + 2}", wrong or {**cells, **lists}))
    return found


def _parsed(line: bytes, name: str) -> Any:
    try:
        return strictjson.loads(line, what=name, max_bytes=DEFAULT.max_records_bytes, error=EditError)
    except (EditError, LimitError) as cause:
        return cause


def _numbered(records: Sequence[Any]) -> list[Located]:
    return [(f"record {i}", record) for i, record in enumerate(records)]


def _shared_out(name: str, forget: list[Any], keep: list[Any]) -> list[Located]:
    """Every question to forget with its share of the questions to keep, so that each of these is asked once."""
    return [
        (f"{name} {i}", {**record, "kept": keep[i :: len(forget)]} if isinstance(record, dict) else record)
        for i, record in enumerate(forget)
    ]


def sort_out(name: str, located: Sequence[Located], format: str = "auto") -> SortedOut:
    """Read what can be read, and name what cannot."""
    found: list[Record] = []
    rejected: list[tuple[str, str]] = []
    for where, record in located:
        try:
            if isinstance(record, EditError | LimitError):
                raise record
            shape = shape_of(record, format)
            edits = read_all(record, shape)
        except (EditError, LimitError) as cause:
            rejected.append((where, str(cause)))
            continue
        for number, (edit, extras) in enumerate(edits, start=1):
            place = where if len(edits) == 1 else f"{where}, rewrite {number}"
            found.append(Record(edit, extras, shape, place))
    return SortedOut(name, tuple(with_elsewhere(found)), tuple(rejected), len(located))

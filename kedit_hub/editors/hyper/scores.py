"""scores.json of a trained editor: what its edits came to. Law: a row says how it was measured, and only a row measured alike replaces it.

    {"test": [{"edits": 10, "turn": null, "sequences": 6, "reliability": 0.93, "generalization": 0.86, "locality.neighbour": 0.76, ...}]}

A name of edits for each list ("test": those of the demo), a row for each way they were made: how many at once, in what turns. Whatever else
the object holds stays as it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kedit_hub.patch.card import escape

MEASURED = ("reliability", "generalization", "locality", "seconds", "sequences")  # the rest of a row says how
LISTS, ROWS, COLUMNS, CHARS = 10, 50, 20, 60  # of what a card shows, at most; what was loaded may be a stranger's
Row = Mapping[str, Any]


def measured(name: str) -> bool:
    """Whether this entry of a row is a measure, "locality.neighbour" among them."""
    return name.partition(".")[0] in MEASURED


def how(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not measured(name)}


def merged(scores: Mapping[str, Any] | None, name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The scores with these rows under the name; a row there that was measured in the same way is replaced."""
    known = dict(scores or {})
    there = known.get(name)
    new = [how(row) for row in rows]
    old = [row for row in there if not isinstance(row, dict) or how(row) not in new] if isinstance(there, list) else []
    return {**known, name: [*old, *map(dict, rows)]}


def tables(scores: Mapping[str, Any] | None) -> list[str]:
    """Lines of Markdown: a table for every list of rows."""
    lines: list[str] = []
    lists = {name: rows for name, rows in (scores or {}).items() if isinstance(rows, list)}
    for name, rows in list(lists.items())[:LISTS]:
        told = [row for row in rows if isinstance(row, dict) and row]
        if not told:
            continue
        some = told[:ROWS]
        columns = sorted(
            dict.fromkeys(column for row in some for column in row), key=measured
        )  # how it was measured first
        columns = columns[:COLUMNS]
        more = f" The first {ROWS} of {len(told):,} rows." if len(told) > ROWS else ""
        lines += [
            "",
            f"Measured on {escape(name, CHARS)}, under teacher forcing, after the last edit of each sequence:{more}",
            "",
            _line([escape(column, CHARS) for column in columns]),
            _line(["---"] * len(columns)),
            *(_line([_shown(row.get(column)) for column in columns]) for row in some),
        ]
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(value: Any) -> str:
    """Empty for nothing, and for what is no number and no text."""
    if isinstance(value, float):
        return f"{value:.3f}"
    return escape(str(value), CHARS) if isinstance(value, (int, str)) else ""

"""What commands print. Law: standard output is data, standard error is talk, and no stranger's text drives a terminal.

JSON is ASCII (`\\u00e9`), so it survives every locale; a table that goes into a pipe is neither wrapped nor cut.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 100_000  # columns of a table that no person looks at: nothing is wrapped or cut


def shown(value: object) -> str:
    """One printable line: a stranger's text without control and direction characters. Nothing is "-"."""
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value)) or None
    text = "-" if value is None or value == "" else str(value)
    return "".join(char if char.isprintable() else " " for char in text)


def say(text: object) -> None:
    """Talk, on standard error."""
    for line in str(text).splitlines():
        print(shown(line), file=sys.stderr, flush=True)


def print_json(value: Any, *, one_line: bool = False) -> None:
    """Data for programs. A number that is not finite is a bug, and raises ValueError."""
    print(json.dumps(value, indent=None if one_line else 2, allow_nan=False), flush=True)


def print_lines(text: str) -> None:
    """Data for people, line by line."""
    for line in text.splitlines():
        print(shown(line), flush=True)


def print_fields(fields: Mapping[str, object]) -> None:
    """Names and values, one pair per line."""
    _print(None, [(name, value) for name, value in fields.items()])


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """One line of names, one line per row."""
    _print(columns, rows)


def _print(columns: Sequence[str] | None, rows: Sequence[Sequence[object]]) -> None:
    table = Table(box=None, pad_edge=False, show_header=columns is not None, header_style="bold")
    for name in columns or ("", ""):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip(), flush=True)

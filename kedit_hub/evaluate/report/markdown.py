"""report.md: the tables of the report for a repository or a mail. Law: every text of a run is inert Markdown, by the card's own escape."""

from collections.abc import Iterator
from typing import assert_never

from kedit_hub.evaluate.protocols import PROTOCOLS
from kedit_hub.evaluate.report import notes
from kedit_hub.evaluate.report.cells import Survey, in_order
from kedit_hub.evaluate.report.tables import (
    Entry,
    Number,
    Table,
    cost_table,
    damage_table,
    further_table,
    mirage_table,
    runs_table,
    shown,
    spread,
    survey_table,
)
from kedit_hub.evaluate.report.words import METRICS, MIRAGE, TABLES, configurations, facts, reproduce, settings
from kedit_hub.patch.card import escape


def markdown(survey: Survey, title: str) -> str:
    """The whole file."""
    return "\n\n".join(_parts(survey, title)) + "\n"


def _parts(survey: Survey, title: str) -> Iterator[str]:
    yield f"# {escape(title)}"
    yield " · ".join(f"{name}: {value}" for name, value in facts(survey))
    doubts = notes.warnings(survey)
    if doubts:
        yield "## Before you believe a number"
        yield "\n".join(f"* {escape(doubt, 1000)}" for doubt in doubts)
    if survey.protocols:
        yield "## How the models were asked"
        yield "\n".join(
            f"* **{escape(p)}**: {escape(notes.MEANING.get(p, notes.UNKNOWN_PROTOCOL), 1000)}" for p in survey.protocols
        )
    left = notes.left_out(survey)
    if left:
        yield "## What was left out"
        yield _table(
            Table("", ("protocol", "probes", "reason"), tuple((p, (Number(n, "count"), why)) for p, why, n in left))
        )
    yield "## Methods side by side"
    yield escape(" ".join((*METRICS, *TABLES)), 2000)
    for comparison in survey.comparisons:
        rows = survey.rows(comparison)
        yield f"### {escape(comparison.suite)}, n = {comparison.n:,}: {escape(comparison.base)}, {escape(comparison.dataset)}"
        for protocol in in_order({name for row in rows for name in row.protocols}, PROTOCOLS):
            table = survey_table(rows, comparison, protocol)
            yield f"#### {escape(protocol)}"
            yield _table(table)
            yield from (escape(note, 1000) for note in table.notes)
        for extra in (damage_table(rows), further_table(rows), cost_table(rows)):
            if extra is not None:
                yield f"#### {extra.title}"
                yield _table(extra)
    mirages = [mirage_table(survey, *pair) for pair in dict.fromkeys((c.base, c.dataset) for c in survey.comparisons)]
    known = [table for table in mirages if table is not None]
    if known:
        yield "## Teacher forcing against generation"
        yield escape(" ".join(MIRAGE), 1000)
        yield from map(_table, known)
    yield "## To measure it again"
    yield from (escape(line, 1000) for line in reproduce(survey))
    yield _table(runs_table(survey))
    for name, told in [*settings(survey), *configurations(survey)]:
        yield f"### {escape(name, 300)}"
        yield _table(Table("", ("what", "value"), tuple((key, (value,)) for key, value in told)))


def _table(table: Table) -> str:
    lines = [table.heads, ("---",) + ("---:",) * (len(table.heads) - 1)]
    body = [(escape(name), *map(_entry, entries)) for name, entries in table.rows]
    rows = [tuple(map(escape, lines[0])), lines[1], *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _entry(entry: Entry) -> str:
    match entry:
        case None:
            return "–"
        case str():
            return escape(entry)
        case Number():
            told, beside = shown(entry.value, entry.unit), spread(entry)
            return (f"**{told}**" if entry.best else told) + (f" ({beside})" if beside else "")
        case _:
            assert_never(entry)

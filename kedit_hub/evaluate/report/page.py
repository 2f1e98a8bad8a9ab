"""report.html: one file that asks nobody for anything. Law: the page may load nothing (its Content-Security-Policy names its own one
style sheet and one script by digest), and every text of a run comes through text.py.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import assert_never

from kedit_hub.evaluate.protocols import PROTOCOLS
from kedit_hub.evaluate.report import drill, notes
from kedit_hub.evaluate.report.cells import Survey, in_order
from kedit_hub.evaluate.report.figures import Figure, cost_plots, curves, dot_plots, mirage_plot
from kedit_hub.evaluate.report.tables import (
    Entry,
    Number,
    Table,
    cost_table,
    counts_table,
    damage_table,
    further_table,
    mirage_table,
    runs_table,
    shown,
    spread,
    survey_table,
)
from kedit_hub.evaluate.report.text import escape, isolated
from kedit_hub.evaluate.report.words import (
    CURVES,
    DOTS,
    DUMBBELLS,
    METRICS,
    MIRAGE,
    SUITE_WORDS,
    TABLES,
    configurations,
    facts,
    reproduce,
    settings,
)
from kedit_hub.evaluate.run import SUITES

OPEN_PLACES = 6  # with more comparisons than this only the first of each suite stands open


def page(survey: Survey, title: str) -> str:
    """The whole file."""
    style, script = (files(__package__).joinpath(name).read_text("utf-8") for name in ("report.css", "report.js"))
    sections = [
        ("measured", "What was measured", _measured(survey)),
        ("tables", "Methods side by side", _tables(survey)),
        ("mirage", "Teacher forcing against generation", _mirage(survey)),
        ("curves", "Over the number of edits", _curves(survey)),
        ("cost", "Time, memory, bytes", _cost(survey)),
        ("edits", "Edit by edit", _edits(survey)),
        ("again", "To measure it again", _again(survey)),
    ]
    shown_sections = [(name, head, body) for name, head, body in sections if body]
    links = "".join(f'<li><a href="#{name}">{escape(head)}</a></li>' for name, head, _ in shown_sections)
    bodies = "".join(
        f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{escape(head)}</h2>{body}</section>'
        for name, head, body in shown_sections
    )
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#measured">To the report</a>
<header><h1>{isolated(title)}</h1><p class="lead">{_lead(survey)}</p></header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>{bodies}</main>
<footer>Written by kedit_hub from {len(survey.cells):,} runs, which lie beside this file in report.json.
This page loads nothing and sends nothing.</footer>
<script>{script}</script>
</body>
</html>
"""


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


# --- sections -----------------------------------------------------------------------------------------------------


def _lead(survey: Survey) -> str:
    bases, datasets = (list(dict.fromkeys(names)) for names in zip(*((c.base, c.dataset) for c in survey.comparisons)))
    return f"Edits of {', '.join(map(isolated, bases[:4]))}, asked with the questions of {', '.join(map(isolated, datasets[:4]))}."


def _measured(survey: Survey) -> str:
    boxes = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts(survey))
    doubts = "".join(f"<li>{escape(doubt, 1000)}</li>" for doubt in notes.warnings(survey))
    told = f'<div class="doubts"><h3>Before you believe a number</h3><ul>{doubts}</ul></div>' if doubts else ""
    meaning = "".join(
        f"<dt>{isolated(name)}</dt><dd>{escape(notes.MEANING.get(name, notes.UNKNOWN_PROTOCOL), 1000)}</dd>"
        for name in survey.protocols
    )
    protocols = f'<h3>How the models were asked</h3><dl class="protocols">{meaning}</dl>' if meaning else ""
    return f'<dl class="facts">{boxes}</dl>{told}{protocols}{_left_out(survey)}'


def _left_out(survey: Survey) -> str:
    found = notes.left_out(survey)
    rows = tuple((protocol, (Number(n, "count"), reason)) for protocol, reason, n in found)
    if not rows:
        return "<h3>What was left out</h3><p>No probe was left out of an average.</p>"
    table = Table("Probes left out of the averages, over all runs", ("protocol", "probes", "reason"), rows)
    return f"<h3>What was left out</h3>{_table(table)}"


def _tables(survey: Survey) -> str:
    parts = [_words((*METRICS, *TABLES, *DOTS))]
    open_all = len(survey.comparisons) <= OPEN_PLACES
    seen: set[tuple[str, str, str]] = set()
    for base, dataset in _settings(survey):
        parts.append(_setting_head(survey, base, dataset))
        for comparison in survey.comparisons:
            if (comparison.base, comparison.dataset) != (base, dataset):
                continue
            rows, place = survey.rows(comparison), (base, dataset, comparison.suite)
            body = []
            for protocol in in_order({name for row in rows for name in row.protocols}, PROTOCOLS):
                body.append(_table(survey_table(rows, comparison, protocol)))
                body.append(_plots(dot_plots(rows, comparison, protocol)))
                counts = counts_table(rows, protocol)
                body.append(
                    f"<details><summary>{escape(counts.title)}, with what was left out</summary>{_table(counts)}</details>"
                )
            body += [_table(extra) for extra in (damage_table(rows), further_table(rows)) if extra]
            head = f"{comparison.suite}, {comparison.n:,} {'edit' if comparison.n == 1 else 'edits'}"
            state = " open" if open_all or place not in seen else ""
            seen.add(place)
            parts.append(f'<details class="place"{state}><summary>{escape(head)}</summary>')
            parts.append(f"<p>{escape(SUITE_WORDS.get(comparison.suite, ''))}</p>{''.join(body)}</details>")
    return "".join(parts)


def _mirage(survey: Survey) -> str:
    parts = []
    for base, dataset in _settings(survey):
        table = mirage_table(survey, base, dataset)
        if table is None:
            continue
        figures = [mirage_plot(survey.rows(c), c) for c in survey.comparisons if (c.base, c.dataset) == (base, dataset)]
        parts += [_setting_head(survey, base, dataset), _plots([f for f in figures if f]), _folded(table)]
    return _words((*MIRAGE, *DUMBBELLS)) + "".join(parts) if parts else ""


def _curves(survey: Survey) -> str:
    parts = []
    for base, dataset in _settings(survey):
        inner = []
        for suite in in_order({c.suite for c in survey.comparisons if (c.base, c.dataset) == (base, dataset)}, SUITES):
            for group, figures in curves(survey, base, dataset, suite):
                inner.append(f"<h4>{escape(suite)}: {escape(group)}</h4>{_plots(figures)}")
        if inner:
            parts += [_setting_head(survey, base, dataset), *inner]
    return _words(CURVES) + "".join(parts) if parts else ""


def _cost(survey: Survey) -> str:
    parts = []
    for base, dataset in _settings(survey):
        inner = []
        own = [c for c in survey.comparisons if (c.base, c.dataset) == (base, dataset)]
        for suite in in_order({c.suite for c in own}, SUITES):
            comparisons = [c for c in own if c.suite == suite]
            for comparison in comparisons:
                rows, head = survey.rows(comparison), f"{escape(suite)}, n = {comparison.n:,}"
                table = cost_table(rows)
                if table is not None and comparison == comparisons[-1]:
                    inner.append(f"<h4>{head}</h4>{_plots(cost_plots(rows, comparison))}{_table(table)}")
                elif table is not None:
                    inner.append(f"<details><summary>{head}</summary>{_table(table)}</details>")
        if inner:
            parts += [_setting_head(survey, base, dataset), *inner]
    return "".join(parts)


def _edits(survey: Survey) -> str:
    if not any(cell.per_edit for cell in survey.cells):
        return "<p>These runs were recorded without the outcomes of their single edits.</p>"
    data, cut = drill.pack(survey)
    some = f" The page holds the first {cut:,} edits of each run, report.json all of them." if cut else ""
    return f"""<p>Every question as it was asked, with what the base and the edited model answered.{some}</p>
<div id="edit-controls" hidden>
<div class="controls">
<label for="cell">Run<select id="cell"></select></label>
<label for="search">Search texts<input id="search" type="search" autocomplete="off" spellcheck="false"></label>
<label for="filter">Show<select id="filter"></select></label>
</div>
<p id="found" role="status" aria-live="polite"></p>
<div id="edit-list"></div>
<p><button id="more" type="button">Show more</button></p>
</div>
<noscript>{drill.plain(survey)}</noscript>
<script type="application/json" id="edits-data">{data}</script>"""


def _again(survey: Survey) -> str:
    parts = [_words(reproduce(survey)), _table(runs_table(survey))]
    for name, rows in settings(survey):
        table = Table(name, ("setting", "value"), tuple((key, (value,)) for key, value in rows))
        parts.append(f"<details><summary>{escape(name, 200)}</summary>{_table(table)}</details>")
    for name, told in configurations(survey):
        table = Table(name, ("what", "value"), tuple((key, (value,)) for key, value in told))
        parts.append(f"<details><summary>{escape(name, 200)}</summary>{_table(table)}</details>")
    return "".join(parts)


def _settings(survey: Survey) -> list[tuple[str, str]]:
    return list(dict.fromkeys((c.base, c.dataset) for c in survey.comparisons))


def _setting_head(survey: Survey, base: str, dataset: str) -> str:
    """Which base and data set follow; not said where there is but one pair."""
    return "" if len(_settings(survey)) == 1 else f"<h3>{isolated(base)}, {isolated(dataset)}</h3>"


# --- parts --------------------------------------------------------------------------------------------------------


def _words(lines: Iterable[str]) -> str:
    return "".join(f"<p>{escape(line, 2000)}</p>" for line in lines)


def _plots(figures: Sequence[Figure]) -> str:
    inner = "".join(
        f"<figure><figcaption>{isolated(figure.caption)}</figcaption>{figure.svg}"
        f"<details><summary>as a table</summary>{_table(figure.data)}</details></figure>"
        for figure in figures
    )
    return f'<div class="plots">{inner}</div>' if inner else ""


def _folded(table: Table) -> str:
    """A long table waits until it is asked for."""
    told = f"{table.title}: all {len(table.rows):,} rows"
    return (
        _table(table)
        if len(table.rows) <= 20
        else f"<details><summary>{escape(told)}</summary>{_table(table)}</details>"
    )


def _table(table: Table) -> str:
    wordy = {at + 1 for _, entries in table.rows for at, entry in enumerate(entries) if isinstance(entry, str)}
    heads = "".join(
        f'<th scope="col"{" class=words" * (at in wordy)}>{isolated(head)}</th>' for at, head in enumerate(table.heads)
    )
    rows = "".join(
        f'<tr><th scope="row">{isolated(name)}</th>{"".join(map(_entry, entries))}</tr>' for name, entries in table.rows
    )
    under = "".join(f'<p class="under">{escape(note, 1000)}</p>' for note in table.notes)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f"<table><caption>{isolated(table.title)}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{under}"
    )


def _entry(entry: Entry) -> str:
    match entry:
        case None:
            return '<td class="none">–</td>'
        case str():
            return f'<td class="words">{isolated(entry)}</td>'
        case Number():
            told, beside = shown(entry.value, entry.unit), spread(entry)
            value = f'<strong title="best: its interval overlaps no other">{told}</strong>' if entry.best else told
            small = f"<small>{escape(beside)}</small>" if beside else ""
            return f'<td data-value="{entry.value!r}">{value}{small}</td>'
        case _:
            assert_never(entry)

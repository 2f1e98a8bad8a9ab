"""Every edit, question by question. Law: the page holds each text once, and says so where it holds less than the runs do.

The edits lie in one block of JSON that the page's script shows and searches; a reader without scripts gets a shorter list as
plain markup. `pack` is what both are made from.

    texts      every text of the block, each once; all else names them by number, -1 is none
    questions  [role, kind, prompt, target, answer of the base, scores of the base by protocol], each once
    cells      name, protocols, how many edits the run has, and edits: [id, [[question, answer, contains, scores, reasons], ...]]
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kedit_hub.evaluate.report.cells import Cell, Survey
from kedit_hub.evaluate.report.text import escape, island, isolated, visible

MAX_ISLAND_BYTES = 12 << 20  # of JSON in the page
MAX_PLAIN_EDITS, MAX_PLAIN_PER_CELL = 1_500, 500  # of the list for readers without scripts
MAX_TEXT = 300


class Pack:
    """The block, grown cell by cell."""

    def __init__(self, per_cell: int):
        self.per_cell = per_cell
        self.texts: dict[str, int] = {}
        self.known: dict[str, int] = {}  # by the text as it came: making it visible is the costly part
        self.questions: dict[tuple[Any, ...], int] = {}
        self.cells: list[dict[str, Any]] = []

    def text(self, value: Any) -> int:
        if not isinstance(value, str) or not value:
            return -1
        at = self.known.get(value)
        if at is None:
            at = self.known[value] = self.texts.setdefault(visible(value, MAX_TEXT), len(self.texts))
        return at

    def add(self, name: str, cell: Cell) -> None:
        protocols = list(cell.protocols)
        edits = [
            [self.text(edit.get("id")), [self._question(question, protocols) for question in asked(edit)]]
            for edit in cell.per_edit[: self.per_cell]
        ]
        self.cells.append(
            {
                "name": visible(name),
                "protocols": [visible(p) for p in protocols],
                "of": len(cell.per_edit),
                "edits": edits,
            }
        )

    def _question(self, question: Mapping[str, Any], protocols: Sequence[str]) -> list[Any]:
        before, scores, dropped = (_mapping(question.get(name)) for name in ("before", "scores", "dropped"))
        fixed = (
            self.text(question.get("role")),
            self.text(question.get("kind")),
            self.text(question.get("prompt")),
            self.text(question.get("target")),
            self.text(question.get("answer_before")),
            tuple([_score(before.get(p)) for p in protocols]),
        )
        at = self.questions.setdefault(fixed, len(self.questions))
        contains = question.get("contains")
        holds = int(contains) if isinstance(contains, bool) else -1
        reasons = [self.text(dropped.get(p)) for p in protocols] if dropped else []
        told = [at, self.text(question.get("answer_after")), holds, [_score(scores.get(p)) for p in protocols]]
        return [*told, reasons] if reasons else told

    def value(self) -> dict[str, Any]:
        return {
            "texts": list(self.texts),
            "questions": [list(question) for question in self.questions],
            "cells": self.cells,
        }


def asked(edit: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The questions of one record: the edit prompt itself, then its rephrases and probes."""
    yield {**edit, "role": "reliability", "kind": ""}
    probes = edit.get("probes")
    yield from (probe for probe in (probes if isinstance(probes, list) else []) if isinstance(probe, Mapping))


def pack(survey: Survey) -> tuple[str, int | None]:
    """(the block as JSON that may stand in a page, edits shown of each run or None for all)."""
    measured = [cell for cell in survey.cells if cell.per_edit]
    most = max((len(cell.per_edit) for cell in measured), default=0)
    per_cell = most
    while True:
        block = Pack(per_cell)
        for cell in measured:
            block.add(name_of(survey, cell), cell)
        data = island(block.value())
        size = len(data.encode("utf-8"))
        if size <= MAX_ISLAND_BYTES or per_cell <= 1:
            return data, None if per_cell == most else per_cell
        per_cell = max(1, int(per_cell * 0.95 * MAX_ISLAND_BYTES / size))


def name_of(survey: Survey, cell: Cell) -> str:
    """What a run is called in a list of runs."""
    one_setting = len({(c.base_name, c.dataset_name) for c in survey.cells}) == 1
    where = "" if one_setting else f" · {cell.base_name} · {cell.dataset_name}"
    seeds = "" if len({c.seeds for c in survey.cells}) == 1 else f" · seed {cell.seed}, order {cell.order_seed}"
    return f"{survey.label(cell)} · {cell.comparison.suite} · n = {cell.n:,}{seeds}{where}"


# --- without scripts ----------------------------------------------------------------------------------------------


def plain(survey: Survey) -> str:
    """Markup of nested details, the same share of each run."""
    measured = [cell for cell in survey.cells if cell.per_edit]
    share = min(MAX_PLAIN_PER_CELL, max(1, MAX_PLAIN_EDITS // max(1, len(measured))))
    parts = []
    for cell in measured[:MAX_PLAIN_EDITS]:
        shown, all_ = cell.per_edit[:share], len(cell.per_edit)
        more = f"<p>The first {share:,} of {all_:,} edits; the others are in report.json.</p>" if all_ > share else ""
        parts.append(f"<details><summary>{isolated(name_of(survey, cell))}</summary>{more}")
        parts += [_edit(edit, list(cell.protocols)) for edit in shown]
        parts.append("</details>")
    return "".join(parts)


def _edit(edit: Mapping[str, Any], protocols: Sequence[str]) -> str:
    rows = []
    for question in asked(edit):
        scores, dropped = _mapping(question.get("scores")), _mapping(question.get("dropped"))
        told = [
            f"{escape(p)} {_score(scores.get(p)):g}" + (f" (left out: {escape(dropped[p])})" if p in dropped else "")
            if _score(scores.get(p)) is not None
            else f"{escape(p)}: {escape(dropped[p])}"
            for p in protocols
            if _score(scores.get(p)) is not None or p in dropped
        ]
        texts = (question.get(name) for name in ("prompt", "target", "answer_before", "answer_after"))
        cells = "".join(f"<td>{_bdi(text)}</td>" for text in texts)
        head = f"{escape(question.get('role'))} {escape(question.get('kind') or '')}"
        rows.append(f'<tr><th scope="row">{head}</th>{cells}<td>{"<br>".join(told)}</td></tr>')
    heads = "".join(
        f'<th scope="col">{head}</th>'
        for head in ("question", "prompt", "expected", "base said", "edited said", "scores")
    )
    summary = f"{_bdi(edit.get('prompt'))} → {_bdi(edit.get('target'))}"
    return f"<details><summary>{summary}</summary><table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></details>"


def _bdi(text: Any) -> str:
    return isolated(text, MAX_TEXT) if isinstance(text, str) else "–"


def _score(value: Any) -> float | None:
    return round(float(value), 4) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}

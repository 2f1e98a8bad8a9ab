"""The sentences and plain facts that the page and the Markdown share."""

from collections.abc import Iterator, Mapping
from typing import Any

from kedit_hub.evaluate.report.cells import Cell, Survey, settings_name

METRICS = (
    "Reliability asks the edited prompt, generalization its rephrasings, locality what should have stayed (agreement with the "
    "unedited base, by kind of question), portability what follows from the new fact. The score is the harmonic mean of "
    "reliability, generalization and the mean over the kinds of locality; under nll-pair of the kind neighbour alone, as published.",
)
TABLES = (
    "One table for each suite, number of edits and protocol; two protocols never share a column. Beside a mean stands its 95 % "
    "bootstrap interval over edits, or, with several seeds, the standard deviation over them. The best of a column is marked only "
    "where its interval overlaps no other's.",
)
DOTS = (
    "The plots are dots with intervals rather than a radar: the area of a radar depends on the order of its axes, and it has no "
    "room for an interval.",
)
MIRAGE = (
    "The same edits under both protocols. The distance between the two shares is what teacher forcing promises and no user gets.",
)
DUMBBELLS = ("Hollow marks stand for teacher forcing, full ones for generation.",)
CURVES = (
    "All edits are asked after the last one, so a falling line is forgetting. Bands are the 95 % intervals over edits, with several "
    "seeds the widest that any of them reaches.",
)
SUITE_WORDS: Mapping[str, str] = {
    "single": "Each edit alone on a fresh base.",
    "batch": "All edits submitted together, in one patch.",
    "sequential": "One patch after another; all edits are asked after the last one.",
    "stack": "Patches stacked on one base; all edits are asked of the whole stack.",
    "quantization": "Patches on a quantized base, whose own unedited answers are the measure of locality.",
}


def facts(survey: Survey) -> list[tuple[str, str]]:
    """Counts of what a report covers."""
    cells = survey.cells
    ns = sorted({cell.n for cell in cells})
    span = f"{ns[0]:,}" if len(ns) == 1 else f"{ns[0]:,} to {ns[-1]:,}"
    return [
        ("methods", f"{len({cell.way.method for cell in cells}):,}"),
        ("bases", f"{len({cell.base_name for cell in cells}):,}"),
        ("data sets", f"{len({cell.dataset_name for cell in cells}):,}"),
        ("edits per run", span),
        ("seeds", f"{len({cell.seeds for cell in cells}):,}"),
        ("protocols", f"{len(survey.protocols):,}"),
        ("runs", f"{len(cells):,}"),
        ("measured again", f"{sum(cell.verified for cell in cells):,}"),
    ]


def reproduce(survey: Survey) -> list[str]:
    return [
        "Every run below names its base, data, seeds and settings; equal ones ask equal questions. The runs as they were read, "
        "digests and versions included, lie in report.json under runs, one object each: written one per line they are a results "
        "file again, and kedit report makes this page from it."
    ]


def settings(survey: Survey) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(name and users, [(setting, value), ...]) of each set of settings; "used" is what the editor says it worked with."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for cell in survey.cells:
        told = [*_flat("", cell.settings), *_flat("used", cell.used)]
        groups.setdefault((cell.way.settings, tuple(told)), []).append(survey.label(cell))
    for (canonical, rows), users in groups.items():
        if rows:
            yield f"settings {settings_name(canonical)}: {', '.join(dict.fromkeys(users))}", list(rows)


def configurations(survey: Survey) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(which runs, [(name, value), ...]) for each set of circumstances that runs share: base, data, environment, versions."""
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for cell in survey.cells:
        groups.setdefault(tuple(_circumstances(cell)), []).append(cell.at)
    for told, numbers in groups.items():
        yield f"circumstances of {'run' if len(numbers) == 1 else 'runs'} {_ranges(numbers)}", list(told)


def _circumstances(cell: Cell) -> Iterator[tuple[str, str]]:
    dataset = {name: value for name, value in cell.dataset.items() if name != "edits_sha256"}  # another for each order
    drift = {"texts_sha256": cell.drift.get("texts_sha256"), "tokens": cell.drift.get("tokens")}
    parts = (
        ("base", cell.base),
        ("data", dataset),
        ("asked on", cell.environment),
        ("made by", cell.provenance),
        ("drift", drift),
    )
    for name, part in parts:
        yield from _flat(name, part)


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{name} {key}".strip() if ":" in name or not name else f"{name}: {key}", item)
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(str, value))
    elif value is not None:
        yield name, str(value)


def _ranges(numbers: list[int]) -> str:
    """[1, 2, 3, 7] -> "1-3, 7"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)

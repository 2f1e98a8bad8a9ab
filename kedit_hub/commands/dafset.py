"""`data dafset`: edit records in DAFSet's groups from a table of triples, with plots of how the groups are spread."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kedit_hub.commands.options import AsJson, SeedOption, number
from kedit_hub.commands.output import print_json, print_table, say

if TYPE_CHECKING:
    from kedit_hub.records.dafset import Table

GRID = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000, 1_000_000)
NAMES = {"frequency": "times told", "out_degree": "triples of", "in_degree": "triples to", "likelihood": "percent"}


def dafset(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new folder for the records and plots.")],
    triples: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="A table with the columns subject, relation, object, perhaps changed and frequency: .csv, .json or .jsonl. "
            "By default the demo world, without the subjects of its test edits.",
        ),
    ] = None,
    phrasings: Annotated[
        Path | None,
        typer.Option(
            "--phrasings",
            metavar="FILE",
            help="JSON: two or more templates with {} for each relation. Without it: 'The RELATION of {} is'.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="MODEL", help="The model whose least likely facts are long tails too. By default none."
        ),
    ] = None,
    share: Annotated[
        float,
        typer.Option("--share", parser=number(float, 0.0001, 0.5), metavar="SHARE", help="Of all triples, in a group."),
    ] = 0.1,
    own_objects: Annotated[
        bool,
        typer.Option(
            "--own-objects",
            help="New answers are the table's own objects, for a model that does not know them. By default they contradict it.",
        ),
    ] = False,
    seed: SeedOption = 0,
    as_json: AsJson = False,
) -> None:
    """Build edit records from a table of triples. In four groups: recent, popular, long-tail and robust, with plots of how they spread."""
    from kedit_hub.errors import KeditError
    from kedit_hub.records.dafset import PHRASING, Table, distributions, listed, read_triples

    if out.exists():
        raise KeditError(f"'{out}' exists. Give --out a new folder.")
    known: Mapping[str, Sequence[str]] | None = None if phrasings is None else _phrasings(phrasings)
    if triples is None:
        from kedit_hub.demo import edits, world
        from kedit_hub.demo.triples import phrasings as told
        from kedit_hub.demo.triples import triples as of

        atlas, tested = world.load(), {edit.subject for edit in edits("test")}
        rows = [row for row in of(atlas) if row.subject not in tested]
        known = told(atlas) if known is None else known
    else:
        rows = read_triples(triples)
    table = Table(rows, known, None if base is None else _likelihood(base))
    if phrasings is not None and table.unphrased:
        built_in = PHRASING.replace("{relation}", "RELATION")
        say(f"'{phrasings}' has no phrasings of {listed(table.unphrased)}: '{built_in}' stands in.")
    groups = table.groups(share, seed)
    files: dict[str, str] = {}
    for name, numbers in groups.items():
        if numbers:
            records = table.records(name, numbers, counterfactual=not own_objects, seed=seed)
            files[f"{name}.json"] = json.dumps(records, indent=1, ensure_ascii=False) + "\n"
    files |= {f"{name}.svg": svg for name, svg in _plots(distributions(table, groups)).items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        for name, text in files.items():
            (new / name).write_text(text, "utf-8")
        os.rename(new, out)
    told_of = _summary(table, groups)
    if as_json:
        print_json({"folder": str(out), "files": sorted(files), "triples": len(rows), "groups": told_of})
        return
    columns = list(dict.fromkeys(name for row in told_of for name in row))
    print_table(columns, [[row.get(name) for name in columns] for row in told_of])
    written = next(name for name in ("long_tail", *groups) if groups[name])
    say(f"Train on it:  kedit editor train --from {out}/{written}.json --base MODEL --out my-editors/new")


def _phrasings(path: Path) -> dict[str, list[str]]:
    from kedit_hub import strictjson
    from kedit_hub.errors import EditError
    from kedit_hub.limits import DEFAULT

    found = strictjson.loads(path.read_bytes(), what=f"'{path}'", max_bytes=DEFAULT.max_records_bytes, limits=DEFAULT)
    good = isinstance(found, dict) and all(
        isinstance(own, list) and all(isinstance(text, str) for text in own) for own in found.values()
    )
    if not good:
        raise EditError(f"'{path}' does not hold a list of templates with {{}} for each relation.")
    return dict(found)


def _likelihood(base: str) -> Any:
    def ask(pairs: list[tuple[str, str]]) -> list[float]:
        import math

        from kedit_hub.api import load_model
        from kedit_hub.evaluate.protocols import teacher_forced

        model, tokenizer = load_model(base)
        told = teacher_forced(model, tokenizer, pairs, progress=True)
        return [0.0 if one.nll is None else math.exp(-one.nll) for one in told]

    return ask


def _summary(table: "Table", groups: dict[str, list[int]]) -> list[dict[str, Any]]:
    rows = []
    for name, numbers in {"all": list(range(len(table.triples))), **groups}.items():
        own = [table.measures[i] for i in numbers]
        row: dict[str, Any] = {"group": name, "triples": len(own)}
        for measure in ("frequency", "out_degree", "in_degree", "likelihood"):
            values = sorted(v for one in own if (v := getattr(one, measure)) is not None)
            row[f"median {measure}"] = values[len(values) // 2] if values else None
        rows.append(row)
    return rows


def _plots(found: dict[str, dict[str, list[float]]]) -> dict[str, str]:
    """One plot for each measure: which share of each group's triples lies at or below a value."""
    from kedit_hub.evaluate.report import plots
    from kedit_hub.evaluate.report.alone import standing_alone

    drawn = {}
    for measure, groups in found.items():
        scale = 100 if measure == "likelihood" else 1
        top = scale * groups["all"][-1]
        grid = [x for x in GRID if x < top] + [next(x for x in (*GRID, top) if x >= top)]
        series = []
        for colour, (name, values) in enumerate(groups.items()):
            points = [plots.Point(x, sum(scale * v <= x for v in values) / len(values)) for x in grid]
            series.append(plots.Series(name, colour, tuple(points)))
        title = f"Share of triples with a {measure.replace('_', ' ')} of at most so much"
        drawn[measure] = standing_alone(plots.lines(title, series, named=NAMES[measure], each="group"))
    return drawn

"""Tables of numbers, before anybody knows whether they become HTML or Markdown. Law: a number keeps all its digits until it is shown,
and "best" is said only where nothing else could be.

Two protocols never share a table of shares: `survey_table` is for one comparison under one protocol.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kedit_hub.evaluate.report.cells import Cell, Comparison, Row, Summary, Survey
from kedit_hub.evaluate.scores import ROLES

MIN_EDITS_TO_RANK = 20  # below, a bootstrap interval is too rough to call a winner by

DERIVED = ("score", "contains reliability", "contains generalization", "reliability by chance")  # without an interval

Unit = Literal["share", "number", "count", "seconds", "bytes"]


@dataclass(frozen=True)
class Number:
    """A number of a table; the other fields as in Summary."""

    value: float
    unit: Unit = "number"
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    seeds: int = 1
    edits: int | None = None
    best: bool = False


Entry = Number | str | None  # a number, words, or nothing known


@dataclass(frozen=True)
class Table:
    """heads: of all columns, the first names the rows. rows: (name, entries), as many entries as there are other heads."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]
    notes: tuple[str, ...] = ()


def number(found: Summary | None, unit: Unit) -> Number | None:
    if found is None:
        return None
    return Number(found.mean, unit, found.low, found.high, found.sd, found.seeds, found.edits)


# --- what a method did, under one protocol ------------------------------------------------------------------------


def metric_names(rows: Iterable[Row], protocol: str) -> list[str]:
    """All metrics of some rows: by role, kinds in their order, then what is derived."""
    found = {name for row in rows for name in row.metrics(protocol)}
    derived = [name for name in DERIVED if name in found]
    own = sorted(found - set(derived))
    return [name for role in ROLES for name in own if name.split(" ")[0] == role] + derived


def survey_table(rows: Sequence[Row], comparison: Comparison, protocol: str) -> Table:
    """Method x metric. Each entry: mean over edits with its 95 % interval; with several seeds the mean over seeds and its sd."""
    rows = [row for row in rows if protocol in row.protocols]
    names = metric_names(rows, protocol)
    entries = {(row.label, name): number(row.metrics(protocol).get(name), "share") for row in rows for name in names}
    columns = {name: best_of([entries[row.label, name] for row in rows]) for name in names}
    told = [name for name in names if any(entry is not None and entry.best for entry in columns[name])]
    notes = []
    if len(rows) > 1:
        close = [name for name in names if name not in told and name not in DERIVED]
        if close:
            notes.append(
                f"Nobody is marked best in {', '.join(close)}: intervals overlap, are missing, or count under "
                f"{MIN_EDITS_TO_RANK} edits."
            )
    return Table(
        title=f"{protocol}, n = {comparison.n:,}",
        heads=("method", *names),
        rows=tuple((row.label, tuple(columns[name][at] for name in names)) for at, row in enumerate(rows)),
        notes=tuple(notes),
    )


def best_of(column: Sequence[Number | None]) -> list[Number | None]:
    """The column with its highest number marked, if its interval lies above the interval of every other number in it."""
    known = [entry for entry in column if entry is not None]
    if len(known) < 2:
        return list(column)
    first, *others = sorted(known, key=lambda entry: -entry.value)
    ranked = all(entry.low is not None and (entry.edits or 0) >= MIN_EDITS_TO_RANK for entry in known)
    wins = ranked and all(
        first.low is not None and other.high is not None and other.high < first.low for other in others
    )
    return [replace(entry, best=True) if wins and entry is first else entry for entry in column]


def counts_table(rows: Sequence[Row], protocol: str) -> Table:
    """What stands behind each average: one row for each method, seed and metric."""
    found: list[tuple[str, tuple[Entry, ...]]] = []
    for row in rows:
        for cell in row.asked(protocol):
            for name, stat in cell.metrics(protocol).items():
                if name in DERIVED:
                    continue
                value = None if stat.value is None else Number(stat.value, "share", stat.low, stat.high)
                dropped = "; ".join(f"{count:,} {reason}" for reason, count in sorted((stat.dropped or {}).items()))
                shares = [None if x is None else Number(x, "share") for x in (stat.before, stat.unfiltered)]
                counts = [None if x is None else Number(x, "count") for x in (stat.edits, stat.scored)]
                found.append(
                    (row.label, (f"{cell.seed}, {cell.order_seed}", name, value, *counts, dropped or None, *shares))
                )
    heads = (
        "method",
        "seed, order",
        "metric",
        "mean",
        "edits",
        "probes scored",
        "probes left out",
        "base before",
        "unfiltered",
    )
    return Table(f"What stands behind the averages of {protocol}", heads, tuple(found))


# --- what depends on no protocol ----------------------------------------------------------------------------------


FLUENCY = {
    "before": "fluency, base (bits)",
    "after": "fluency, edited (bits)",
    "sampled before": "sampled fluency, base (bits)",
    "sampled after": "sampled fluency, edited (bits)",
}


def damage_table(rows: Sequence[Row]) -> Table | None:
    """Drift, fluency and retention; None where nothing of these was measured."""
    firsts = sorted({int(k) for row in rows for cell in row.cells for k in cell.retention if k.isdigit()})
    found: list[tuple[str, tuple[Entry, ...]]] = []
    for row in rows:
        parts: list[Entry] = [number(row.plain("drift", name), "number") for name in ("ppl_before", "ppl_after", "kl")]
        parts += [number(row.plain("fluency", name), "number") for name in FLUENCY]
        parts += [number(row.plain("retention", str(k)), "share") for k in firsts]
        found.append((row.label, tuple(parts)))
    heads = (
        "method", "perplexity, base", "perplexity, edited", "KL per token (nats)", *FLUENCY.values(),
        *(f"first {k:,} retained" for k in firsts),
    )  # fmt: skip
    return _without_empty(Table("Damage beside the facts", heads, tuple(found)))


def further_table(rows: Sequence[Row]) -> Table | None:
    """What was measured beside the protocols: specificity, consistency, sentiment, negations; None where nothing was."""
    names = list(dict.fromkeys(name for row in rows for cell in row.cells for name in cell.further))
    found = [(row.label, tuple(number(row.plain("further", name), "number") for name in names)) for row in rows]
    return _without_empty(Table("Further measures", ("method", *names), tuple(found)))


COSTS: dict[str, tuple[str, Unit]] = {
    "edit_cpu_s": ("CPU per edit", "seconds"),
    "edit_wall_s": ("wall time per edit", "seconds"),
    "train_s": ("training, once", "seconds"),
    "artifact_bytes": ("artifact", "bytes"),
    "peak_rss_bytes": ("peak memory", "bytes"),
    "peak_device_bytes": ("peak device memory", "bytes"),
}


def cost_table(rows: Sequence[Row]) -> Table | None:
    found = [
        (
            row.label,
            tuple(number(row.plain("efficiency", key), unit) for key, (_, unit) in COSTS.items()),
        )
        for row in rows
    ]
    return _without_empty(Table("Cost", ("method", *(head for head, _ in COSTS.values())), tuple(found)))


def _without_empty(table: Table) -> Table | None:
    """Without the columns in which nothing is known; None where nothing is left."""
    kept = [at for at in range(len(table.heads) - 1) if any(entries[at] is not None for _, entries in table.rows)]
    if not kept:
        return None
    heads = (table.heads[0], *(table.heads[at + 1] for at in kept))
    return replace(
        table, heads=heads, rows=tuple((name, tuple(entries[at] for at in kept)) for name, entries in table.rows)
    )


# --- teacher forcing against generation ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Mirage:
    """One method under both protocols, the same metric: what teacher forcing promises, and what is generated."""

    row: Row
    forced: Summary
    generated: Summary


def mirages(rows: Iterable[Row], metric: str = "reliability") -> list[Mirage]:
    found = [(row, row.metrics("tf-token").get(metric), row.metrics("generate").get(metric)) for row in rows]
    return [Mirage(row, forced, generated) for row, forced, generated in found if forced and generated]


def mirage_table(survey: Survey, base: str, dataset: str) -> Table | None:
    """Of all comparisons on one base and data set; None where no method was asked under both protocols."""
    found: list[tuple[str, tuple[Entry, ...]]] = []
    for comparison in survey.comparisons:
        if (comparison.base, comparison.dataset) != (base, dataset):
            continue
        for metric in ("reliability", "generalization"):
            for one in mirages(survey.rows(comparison), metric):
                contains = one.row.metrics("generate").get(f"contains {metric}")
                found.append(
                    (
                        one.row.label,
                        (
                            comparison.suite,
                            Number(comparison.n, "count"),
                            metric,
                            number(one.forced, "share"),
                            number(one.generated, "share"),
                            Number(one.generated.mean - one.forced.mean, "number"),
                            number(contains, "share"),
                        ),
                    )
                )
    heads = (
        "method",
        "suite",
        "n",
        "metric",
        "tf-token",
        "generate",
        "generate minus tf-token",
        "generated answer contains it",
    )
    return Table("Teacher forcing against generation", heads, tuple(found)) if found else None


# --- the runs themselves ------------------------------------------------------------------------------------------


def runs_table(survey: Survey) -> Table:
    """One row for each run. What all runs share is said once, below the table."""

    def row(cell: Cell) -> tuple[str, tuple[Entry, ...]]:
        way = cell.way
        return survey.label(cell), (
            Number(cell.at, "count"), cell.comparison.suite, Number(cell.n, "count"), _count(cell.run.get("batch_size")),
            f"{cell.seed}, {cell.order_seed}", way.mode, cell.base_name, way.numbers, cell.dataset_name, ", ".join(cell.protocols),
            Number(cell.failed, "count"), "yes" if cell.verified else "no",
        )  # fmt: skip

    heads = (
        "method", "run", "suite", "n", "edits per patch", "seed, order", "mode", "base", "numbers", "data", "protocols",
        "edits not made", "measured again",
    )  # fmt: skip
    rows = tuple(map(row, survey.cells))
    shared = {at for at in range(5, len(heads) - 1) if len({entries[at] for _, entries in rows}) == 1}
    note = ". ".join(f"{heads[at + 1]}: {rows[0][1][at]}" for at in sorted(shared) if isinstance(rows[0][1][at], str))
    kept = [at for at in range(len(heads) - 1) if at not in shared or isinstance(rows[0][1][at], Number)]
    return Table(
        "All runs",
        (heads[0], *(heads[at + 1] for at in kept)),
        tuple((name, tuple(entries[at] for at in kept)) for name, entries in rows),
        (f"The same in all runs. {note}.",) if note else (),
    )


def _count(value: object) -> Number | None:
    return Number(value, "count") if isinstance(value, int) else None


# --- how a number is written --------------------------------------------------------------------------------------


_SIZES = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def shown(value: float, unit: Unit) -> str:
    match unit:
        case "share":
            return f"{value:.3f}"
        case "count":
            return f"{value:,.0f}"
        case "seconds":
            if 0 < value < 1:
                return f"{value * 1000:.3g} ms"
            return f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"
        case "bytes":
            name, size = next(((name, size) for name, size in _SIZES if value >= size), ("B", 1))
            return f"{value / size:.3g} {name}" if value < 1000 * size else f"{value / size:,.0f} {name}"
        case "number":
            return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.2e}"


def spread(entry: Number) -> str:
    """What stands behind a number: over seeds the standard deviation, else the interval; "" for neither."""
    if entry.sd is not None:
        return f"± {shown(entry.sd, entry.unit)}, {entry.seeds} seeds"
    if entry.low is not None and entry.high is not None:
        return f"{shown(entry.low, entry.unit)} to {shown(entry.high, entry.unit)}"
    return ""

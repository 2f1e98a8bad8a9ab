"""Which plots a survey gives. Law: a plot shows one base, one data set, one suite and, for shares, one protocol.

A `Figure` is a plot with its caption and the table of the very numbers it was drawn from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kedit_hub.evaluate.report import plots
from kedit_hub.evaluate.report.cells import Comparison, Row, Summary, Survey
from kedit_hub.evaluate.report.plots import Point, Series
from kedit_hub.evaluate.report.tables import COSTS, DERIVED, Number, Table, Unit, metric_names, mirages, number
from kedit_hub.evaluate.scores import ROLES

Reading = Callable[[Row], Summary | None]


@dataclass(frozen=True)
class Figure:
    caption: str
    svg: str
    data: Table


def dot_plots(rows: Sequence[Row], comparison: Comparison, protocol: str) -> list[Figure]:
    """One for each metric that has an interval to show."""
    return [
        _figure(
            _rows_of(rows, _metric(protocol, name)),
            name,
            f"{name}, {protocol}, {_where(comparison)}",
            "share",
            plots.dots,
        )
        for name in metric_names(rows, protocol)
        if name not in DERIVED
    ]


def mirage_plot(rows: Sequence[Row], comparison: Comparison) -> Figure | None:
    found = mirages(rows)
    if not found:
        return None
    pairs = [(one.row.label, one.row.colour, _point(0, one.forced), _point(0, one.generated)) for one in found]
    data = Table(
        "reliability", ("method", "tf-token", "generate"),
        tuple((one.row.label, (number(one.forced, "share"), number(one.generated, "share"))) for one in found),
    )  # fmt: skip
    caption = f"{comparison.suite}, n = {comparison.n:,}: reliability"
    return Figure(caption, plots.dumbbells(f"reliability, {_where(comparison)}", pairs, ("tf-token", "generate")), data)


def cost_plots(rows: Sequence[Row], comparison: Comparison) -> list[Figure]:
    """One for each cost that more than one method has and that is not zero for all of them."""
    found = []
    for key, (name, unit) in COSTS.items():
        read = [(row, row.plain("efficiency", key)) for row in rows]
        known = [(row, value) for row, value in read if value is not None]
        if len(known) > 1 and any(value.mean > 0 for _, value in known):
            bare = [(row, Summary(v.mean, None, None, v.sd, v.seeds, v.edits)) for row, v in known]
            found.append(_figure(bare, name, f"{name}, {_where(comparison)}", unit, plots.bars))
    return found


def curves(survey: Survey, base: str, dataset: str, suite: str) -> list[tuple[str, list[Figure]]]:
    """(protocol, or what else is shown, plots over n), where a method was measured at two n or more."""
    comparisons = [c for c in survey.comparisons if (c.base, c.dataset, c.suite) == (base, dataset, suite)]
    if len(comparisons) < 2:
        return []
    rows = {comparison.n: survey.rows(comparison) for comparison in comparisons}
    everything = [row for own in rows.values() for row in own]
    groups: list[tuple[str, list[tuple[str, Unit, Reading]]]] = []
    for protocol in survey.protocols:
        names = [name for name in metric_names(everything, protocol) if name.split(" ")[0] in ROLES[:3]]
        groups.append((protocol, [(name, "share", _metric(protocol, name)) for name in names]))
    firsts = sorted({int(k) for row in everything for cell in row.cells for k in cell.retention if k.isdigit()})
    groups.append(
        (
            "retention",
            [(f"first {k:,} retained", "share", _plain("retention", str(k))) for k in firsts],
        )
    )
    groups.append(
        ("drift", [
            ("perplexity of plain text, edited", "number", _plain("drift", "ppl_after")),
            ("KL from the base per token (nats)", "number", _plain("drift", "kl")),
        ])
    )  # fmt: skip
    found = []
    for group, metrics in groups:
        made = [_curve(rows, name, f"{name}, {group}, {suite}", unit, read) for name, unit, read in metrics]
        kept = [figure for figure in made if figure is not None]
        if kept:
            found.append((group, kept))
    return found


def _curve(rows: dict[int, list[Row]], caption: str, title: str, unit: Unit, read: Reading) -> Figure | None:
    points: dict[str, list[Point]] = {}
    colours: dict[str, int] = {}
    table: list[tuple[str, tuple[Number | None, ...]]] = []
    for n, own in rows.items():
        for row in own:
            value = read(row)
            if value is not None:
                colours[row.label] = row.colour
                points.setdefault(row.label, []).append(_point(n, value))
                table.append((row.label, (Number(n, "count"), number(value, unit))))
    if not any(len(own) > 1 for own in points.values()):
        return None
    series = [Series(label, colours[label], tuple(own)) for label, own in points.items()]
    table.sort(key=lambda entry: list(points).index(entry[0]))
    return Figure(
        caption, plots.lines(title, series, unit=unit), Table(caption, ("method", "n", caption), tuple(table))
    )


def _figure(
    values: Sequence[tuple[Row, Summary]], caption: str, title: str, unit: Unit, plot: Callable[..., str]
) -> Figure:
    series = [Series(row.label, row.colour, (_point(0, value),)) for row, value in values]
    data = Table(caption, ("method", caption), tuple((row.label, (number(value, unit),)) for row, value in values))
    return Figure(caption, plot(title, series, unit=unit), data)


def _rows_of(rows: Sequence[Row], read: Reading) -> list[tuple[Row, Summary]]:
    found = [(row, read(row)) for row in rows]
    return [(row, value) for row, value in found if value is not None]


def _metric(protocol: str, name: str) -> Reading:
    return lambda row: row.metrics(protocol).get(name)


def _plain(part: str, name: str) -> Reading:
    return lambda row: row.plain(part, name)


def _point(x: float, value: Summary) -> Point:
    return Point(x, value.mean, value.low, value.high)


def _where(comparison: Comparison) -> str:
    return f"{comparison.suite}, n = {comparison.n:,}, {comparison.base}, {comparison.dataset}"

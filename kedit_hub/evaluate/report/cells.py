"""The runs as a report sees them. Law: a run is only ever averaged with runs that differ from it in their seeds alone.

A `Cell` is one run. Cells of one `Comparison` (base, data set, suite, number of edits) may stand in one table; in it a `Row` is one
way of editing, with one cell for each seed. `Row.label` is as short as it can be while no two ways share it.

    survey = Survey.of(runs)
    survey.rows(survey.comparisons[0])[0].metrics("generate")["reliability"]   ->  Summary(mean=.87, low=.81, high=.92, ...)
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from kedit_hub import strictjson
from kedit_hub.evaluate.protocols import PROTOCOLS
from kedit_hub.evaluate.run import SUITES
from kedit_hub.evaluate.scores import ROLES

FURTHER = ("specificity", "consistency", "sentiment", "negations")  # measures that enter no average of a protocol


@dataclass(frozen=True)
class Stat:
    """One average of one run: over edits, with its 95 % interval, and what it counts. None: not known."""

    value: float | None
    low: float | None = None
    high: float | None = None
    edits: int | None = None
    scored: int | None = None
    dropped: Mapping[str, int] | None = None  # probes by reason
    before: float | None = None  # the unedited base on the same questions
    unfiltered: float | None = None  # locality: also over what the base did not know


@dataclass(frozen=True)
class Summary:
    """One average over the seeds of a row. low, high: the widest that any seed's interval reaches. sd: over seeds, None for one."""

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    seeds: int
    edits: int | None  # the fewest that any seed's average counts


def summary(stats: Sequence[Stat]) -> Summary | None:
    """None where no seed has a value."""
    known = [stat for stat in stats if stat.value is not None]
    values = [stat.value for stat in known if stat.value is not None]
    if not values:
        return None
    lows, highs = [stat.low for stat in known], [stat.high for stat in known]
    sure = None not in lows and None not in highs
    mean, sd = fmean(values), stdev(values) if len(values) > 1 else None
    edits = [stat.edits for stat in known if stat.edits is not None]
    return Summary(
        mean=mean,
        low=min([low for low in lows if low is not None] + [mean - (sd or 0)]) if sure else None,
        high=max([high for high in highs if high is not None] + [mean + (sd or 0)]) if sure else None,
        sd=sd,
        seeds=len(values),
        edits=min(edits) if edits else None,
    )


@dataclass(frozen=True)
class Comparison:
    """What cells have in common that may stand in one table."""

    base: str
    dataset: str
    suite: str
    n: int


@dataclass(frozen=True)
class Way:
    """A way of editing: everything but the seeds that cells of one comparison may differ in."""

    method: str
    mode: str
    numbers: str  # quantization, else dtype
    per_patch: int | None  # edits per patch; None where the suite says it
    settings: str  # canonical JSON


class Cell:
    """One run, read leniently: what is missing or of another type than expected is None or empty."""

    def __init__(self, run: Mapping[str, Any], at: int):
        self.run = run
        self.at = at  # which run of the report, from 1
        self.base = _mapping(run.get("base"))
        self.dataset = _mapping(run.get("dataset"))
        self.scores = _mapping(run.get("scores"))
        self.environment = _mapping(self.scores.get("environment"))
        self.drift = _mapping(self.scores.get("drift"))
        self.fluency = flat(self.scores.get("fluency"))
        self.further = flat({name: self.scores.get(name) for name in FURTHER})
        self.efficiency = _mapping(run.get("efficiency"))
        self.retention = {
            name: value for name, value in _mapping(run.get("retention")).items() if _number(value) is not None
        }
        self.provenance = _mapping(run.get("provenance"))
        self.settings = _mapping(run.get("settings"))
        self.per_edit: list[Mapping[str, Any]] = [e for e in run.get("per_edit") or [] if isinstance(e, Mapping)]
        self.n = int(run.get("n") or 0)
        self.seed, self.order_seed = run.get("seed"), run.get("order_seed")
        self.verified = run.get("verified") is True
        making = _mapping(self.scores.get("making"))
        self.failed = _whole(making.get("failed")) or 0
        self.used = _mapping(making.get("settings"))  # of the editor, those nobody asked for included

    @property
    def comparison(self) -> Comparison:
        return Comparison(self.base_name, self.dataset_name, str(self.run.get("suite") or "-"), self.n)

    @property
    def way(self) -> Way:
        batch = self.run.get("batch_size")
        told = self.run.get("suite") in ("single", "batch")
        return Way(
            method=str(self.run.get("method") or "-"),
            mode=str(self.run.get("mode") or "-"),
            numbers=str(self.base.get("quantization") or self.base.get("dtype") or "-"),
            per_patch=batch if isinstance(batch, int) and not told else None,
            settings=strictjson.canonical(dict(self.settings)).decode(),
        )

    @property
    def seeds(self) -> tuple[Any, Any]:
        return self.seed, self.order_seed

    @property
    def base_name(self) -> str:
        revision = self.base.get("revision")
        return str(self.base.get("id") or "-") + (f"@{str(revision)[:12]}" if revision else "")

    @property
    def dataset_name(self) -> str:
        """Two data sets share it only when their bytes are the same."""
        named = str(self.dataset.get("id") or "-")
        parts = [
            ("/", self.dataset.get("split"), 40),
            ("@", self.dataset.get("revision"), 12),
            (" sha256 ", self.dataset.get("sha256"), 12),
        ]
        return named + "".join(f"{mark}{str(part)[:length]}" for mark, part, length in parts if part)

    @cached_property
    def protocols(self) -> dict[str, Mapping[str, Any]]:
        found = _mapping(self.scores.get("protocols"))
        return {name: _mapping(found[name]) for name in in_order(found, PROTOCOLS)}

    def metrics(self, protocol: str) -> dict[str, Stat]:
        """ "reliability", "generalization", "locality neighbour", ... and, apart, "score" and "contains reliability"."""
        return self._sheets.get(protocol, {})

    @cached_property
    def _sheets(self) -> dict[str, dict[str, Stat]]:
        return {protocol: self._sheet(averages) for protocol, averages in self.protocols.items()}

    def _sheet(self, sheet: Mapping[str, Any]) -> dict[str, Stat]:
        found = {name: self._stat(sheet, keys) for name, keys in _leaves(sheet)}
        if _number(sheet.get("score")) is not None:
            found["score"] = Stat(_number(sheet["score"]))
        for role, value in _mapping(sheet.get("contains")).items():
            if role in ROLES[:2] and _number(value) is not None:
                found[f"contains {role}"] = Stat(_number(value))
        chance = _number(_mapping(sheet.get("chance")).get("reliability"))
        if chance is not None:
            found["reliability by chance"] = Stat(chance)
        return found

    def _stat(self, sheet: Mapping[str, Any], keys: tuple[str, ...]) -> Stat:
        count, ends = _mapping(_at(sheet.get("n"), keys)), _at(sheet.get("interval"), keys)
        low, high = (
            (_number(ends[0]), _number(ends[1])) if isinstance(ends, list | tuple) and len(ends) == 2 else (None, None)
        )
        dropped = {str(reason): n for reason, n in _mapping(count.get("dropped")).items() if isinstance(n, int)}
        return Stat(
            value=_number(_at(sheet, keys)),
            low=low,
            high=high,
            edits=_whole(count.get("edits")),
            scored=_whole(count.get("scored")),
            dropped=dropped,
            before=_number(_at(sheet.get("before"), keys)),
            unfiltered=_number(_at(sheet.get("locality_unfiltered"), keys[1:])) if keys[0] == "locality" else None,
        )


@dataclass(frozen=True)
class Row:
    """One way of editing in one comparison. colour: of its label in every plot of the report."""

    label: str
    colour: int
    cells: tuple[Cell, ...]  # in the order measured; one for each seed, more where protocols were asked apart

    @cached_property
    def seeds(self) -> list[Cell]:
        """The last cell of each seed."""
        return list({cell.seeds: cell for cell in self.cells}.values())

    def asked(self, protocol: str) -> list[Cell]:
        """The last cell of each seed that was asked under a protocol."""
        return list({cell.seeds: cell for cell in self.cells if protocol in cell.protocols}.values())

    @cached_property
    def protocols(self) -> list[str]:
        return in_order({name for cell in self.cells for name in cell.protocols}, PROTOCOLS)

    def metrics(self, protocol: str) -> dict[str, Summary]:
        return self._sheets.get(protocol, {})

    @cached_property
    def _sheets(self) -> dict[str, dict[str, Summary]]:
        return {
            protocol: self._sheet([cell.metrics(protocol) for cell in self.asked(protocol)])
            for protocol in self.protocols
        }

    def _sheet(self, sheets: Sequence[Mapping[str, Stat]]) -> dict[str, Summary]:
        names = dict.fromkeys(name for sheet in sheets for name in sheet)
        found = {name: summary([sheet[name] for sheet in sheets if name in sheet]) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def plain(self, part: str, name: str) -> Summary | None:
        """Over the seeds, a number without an interval: of the "drift", "fluency", "further", "retention" or "efficiency" of a cell."""
        return summary([Stat(_number(getattr(cell, part).get(name))) for cell in self.seeds])


class Survey:
    """All runs of a report."""

    def __init__(self, cells: Sequence[Cell], repeated: int):
        self.cells = cells
        self.repeated = repeated  # runs measured again later under the same name; the last one counts
        self._labels = _labels(cells)
        self._colours = {label: colour for colour, label in enumerate(dict.fromkeys(self._labels.values()))}

    @classmethod
    def of(cls, runs: Iterable[Mapping[str, Any]]) -> "Survey":
        last: dict[Any, Cell] = {}
        count = 0
        for count, run in enumerate(runs, start=1):
            cell = Cell(run, count)
            last[cell.comparison, cell.way, cell.seeds, tuple(cell.protocols)] = cell
        return cls(sorted(last.values(), key=lambda cell: cell.at), count - len(last))

    @cached_property
    def comparisons(self) -> list[Comparison]:
        found = dict.fromkeys(cell.comparison for cell in self.cells)
        places = {name: at for at, name in enumerate(in_order({c.suite for c in found}, SUITES))}
        settings = {setting: at for at, setting in enumerate(dict.fromkeys((c.base, c.dataset) for c in found))}
        return sorted(found, key=lambda c: (settings[c.base, c.dataset], places[c.suite], c.n))

    def rows(self, comparison: Comparison) -> list[Row]:
        return self._rows[comparison]

    @cached_property
    def _rows(self) -> dict[Comparison, list[Row]]:
        return {
            comparison: [
                Row(label, self._colours[label], tuple(own))
                for label, own in _grouped((self._labels[cell.at], cell) for cell in cells)
            ]
            for comparison, cells in _grouped((cell.comparison, cell) for cell in self.cells)
        }

    def label(self, cell: Cell) -> str:
        return self._labels[cell.at]

    @cached_property
    def protocols(self) -> list[str]:
        return in_order({name for cell in self.cells for name in cell.protocols}, PROTOCOLS)


def _labels(cells: Sequence[Cell]) -> dict[int, str]:
    """By cell: the method, and of the rest only what tells its ways apart on one base."""
    found: dict[int, str] = {}
    for (_, method), own in _grouped(((cell.base_name, cell.way.method), cell) for cell in cells):
        ways = [cell.way for cell in own]
        vary = {name for name in ("mode", "numbers", "settings") if len({getattr(way, name) for way in ways}) > 1}
        batches: dict[str, set[int | None]] = {}
        for cell in own:
            batches.setdefault(cell.comparison.suite, set()).add(cell.way.per_patch)
        for cell, way in zip(own, ways):
            parts = [method]
            if "mode" in vary and way.mode != "-":
                parts.append(way.mode)
            if "numbers" in vary:
                parts.append(way.numbers)
            if len(batches[cell.comparison.suite]) > 1:
                parts.append(f"{way.per_patch} per patch")
            if "settings" in vary:
                parts.append(f"settings {settings_name(way.settings)}")
            found[cell.at] = " · ".join(parts)
    return found


def settings_name(canonical: str) -> str:
    """Four digits that name one set of settings within a report."""
    return hashlib.sha256(canonical.encode()).hexdigest()[:4]


def in_order(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """The known names in their order, then the others in theirs."""
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def _grouped(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[Any, list[Any]]]:
    groups: dict[Any, list[Any]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return list(groups.items())


def _leaves(sheet: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for role in ROLES:
        value = sheet.get(role)
        if isinstance(value, Mapping):
            yield from ((f"{role} {kind}", (role, kind)) for kind in sorted(value))
        elif role in sheet:
            yield role, (role,)


def flat(value: Any, name: str = "") -> dict[str, float]:
    """{"a": {"b": 0.5, "n": 3}} -> {"a b": 0.5}: averages are floats, counts are not."""
    if not isinstance(value, Mapping):
        return {name: value} if isinstance(value, float) else {}
    return {path: number for key, item in value.items() for path, number in flat(item, f"{name} {key}".strip()).items()}


def _at(value: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None

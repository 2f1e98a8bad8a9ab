"""Five plots as inline SVG. Law: a plot is one element without a script, a style or a request; its colours are classes that the page's
style sheet fills (`c0`..`c7`), and what it shows is also said in its title and description.

All plots are WIDTH wide in their own units and scale with the page; one fits a phone, several stand side by side.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from kedit_hub.evaluate.report.tables import Unit, shown
from kedit_hub.evaluate.report.text import escape

WIDTH = 380
COLOURS = 8
CHAR = 6.3  # width of a letter in units, a little generous
MAX_LABEL = 24  # letters
DECADES = 30.0  # largest / smallest beyond which an axis is logarithmic


@dataclass(frozen=True)
class Point:
    """One mean with its interval, None where there is none."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    label: str
    colour: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Axis:
    """Places of values between two ends. log: base 10; a zero then lies at the low end, and `ticks` says so."""

    start: float  # place of `low`
    end: float  # place of `high`
    low: float
    high: float
    log: bool = False
    zero: bool = False  # log only: some value is 0
    step: float = 0.25  # not log: between ticks

    def __call__(self, value: float) -> float:
        if self.log:
            if value <= 0:
                return self.start
            at = (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        else:
            at = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, at)) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            powers = range(first, last + 1, max(1, math.ceil((last - first + 1) / 5)))
            found = [10.0**power for power in powers]
            return [0.0, *(tick for tick in found if tick > self.low)] if self.zero else found
        return [self.low + at * self.step for at in range(int((self.high - self.low) / self.step + 1e-9) + 1)]


def _nice(step: float, unit: Unit) -> float:
    """The next round number; of bytes, in KiB, MiB, ..."""
    whole = 1024.0 ** max(0, math.floor(math.log(step, 1024))) if unit == "bytes" else 1.0
    power = 10.0 ** math.floor(math.log10(step / whole))
    return whole * next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= step / whole * 0.999)


def axis(values: Iterable[float], start: float, end: float, unit: Unit) -> Axis:
    """0 to 1 for shares; else from 0, or logarithmic where the values span more than DECADES."""
    share = unit == "share"
    found = list(values)
    if share:
        return Axis(start, end, 0.0, 1.0)
    positive = [value for value in found if value > 0]
    top = max(positive, default=1.0)
    if positive and top / min(positive) > DECADES:
        zero = any(value <= 0 for value in found)
        low = 10.0 ** math.floor(math.log10(min(positive)))
        return Axis(start, end, low / 10 if zero else low, 10.0 ** math.ceil(math.log10(top)), True, zero)
    step = _nice(top / 4, unit)
    return Axis(start, end, 0.0, step * math.ceil(top / step - 1e-9), step=step)


# --- the plots ----------------------------------------------------------------------------------------------------


def dots(title: str, series: Sequence[Series], *, unit: Unit = "share") -> str:
    """One row for each series, its point with its interval along x (`Point.y` is the value)."""
    return _rows(title, series, unit, _dot, f"{title}: one dot for each method with its 95 percent interval.")


def bars(title: str, series: Sequence[Series], *, unit: Unit) -> str:
    """One row for each series. On a logarithmic axis a bar would have no foot to stand on, so it becomes a dot on a thin stem."""
    return _rows(title, series, unit, _bar, f"{title}: one bar for each method.")


def dumbbells(title: str, pairs: Sequence[tuple[str, int, Point, Point]], names: tuple[str, str]) -> str:
    """One row for each (label, colour, left, right): a hollow mark and a full one, joined."""
    series = [Series(label, colour, (a, b)) for label, colour, a, b in pairs]
    told = f"{title}: for each method the share under {names[0]} (hollow) and under {names[1]} (full)."
    return _rows(title, series, "share", _dumbbell, told)


def lines(
    title: str, series: Sequence[Series], *, unit: Unit = "share", named: str = "edits", each: str = "method"
) -> str:
    """One line for each series over a logarithmic x, with its interval as a band and its name at its end."""
    xs = sorted({point.x for one in series for point in one.points})
    labels = [_short(one.label) for one in series]
    right = WIDTH - 14 - CHAR * max(map(len, labels))
    top, height = 12.0, max(150.0, 14.0 * len(series))
    bottom = top + height
    across = Axis(44, max(160.0, right), xs[0], xs[-1] if xs[-1] > xs[0] else xs[0] * 10, True)
    values = _extent(series)
    up = axis(values, bottom, top, unit)

    parts = [_line(across.start, up(tick), across.end, up(tick), "grid") for tick in up.ticks()]
    parts += [_text(across.start - 6, up(tick) + 4, _tick(tick, unit), "tick end") for tick in up.ticks()]
    for x in _apart(xs, across):
        parts += [
            _line(across(x), bottom, across(x), bottom + 4, "axis"),
            _text(across(x), bottom + 17, f"{x:,.0f}", "tick mid"),
        ]
    parts.append(
        _text(
            (across.start + across.end) / 2, bottom + 33, f"{named}{', log scale' if len(xs) > 1 else ''}", "tick mid"
        )
    )
    for one in series:
        parts += _band(one, across, up)
    for one in series:
        path = " ".join(f"{across(point.x):.1f},{up(point.y):.1f}" for point in one.points)
        parts.append(f'<polyline class="line {_class(one.colour)}" points="{path}"/>')
        parts += [
            _mark(one.colour, across(point.x), up(point.y), _told(one.label, point, unit)) for point in one.points
        ]
    ends = [up(one.points[-1].y) for one in series]
    for one, label, end, place in zip(series, labels, ends, spread_out(ends, 13.0, top, bottom)):
        x = across(one.points[-1].x)
        parts.append(f'<path class="leader" d="M{x + 5:.1f} {end:.1f}L{across.end + 8:.1f} {place:.1f}"/>')
        parts.append(_text(across.end + 11, place + 4, label, f"name t{one.colour % COLOURS}", one.label))
    told = f"{title} over the number of {named}, one line for each {each}" + (
        "; the vertical axis is logarithmic." if up.log else "."
    )
    return _svg(title, told, bottom + 40, parts)


def scatter(title: str, series: Sequence[Series], axes: tuple[str, str]) -> str:
    """A mark for each (x, y) of each series, on two linear axes without ticks: what counts is who stands near whom. axes: what they are."""
    xs, ys = zip(*((point.x, point.y) for one in series for point in one.points))
    legend = 16.0 * (1 + (len(series) - 1) // 2)
    top, bottom = legend + 12.0, legend + 262.0
    across = Axis(20, WIDTH - 12, min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
    up = Axis(bottom, top, min(ys), max(ys) if max(ys) > min(ys) else min(ys) + 1)
    parts = [
        _line(across.start - 8, bottom + 8, across.end, bottom + 8, "axis"),
        _line(12, top, 12, bottom + 8, "axis"),
    ]
    parts += [
        _text((across.start + across.end) / 2, bottom + 24, f"{axes[0]} across, {axes[1]} up", "tick mid"),
    ]
    for at, one in enumerate(series):
        x, y = 20 + at % 2 * (WIDTH - 20) / 2, 10 + 16.0 * (at // 2)
        parts += [_mark(one.colour, x, y, one.label), _text(x + 10, y + 4, one.label, "name", one.label)]
        parts += [_mark(one.colour, across(p.x), up(p.y), one.label) for p in one.points]
    return _svg(title, f"{title}: one mark for each of {len(xs)}, by {axes[0]} and {axes[1]}.", bottom + 32, parts)


# --- parts --------------------------------------------------------------------------------------------------------

Draw = Callable[[Series, Axis, float, Unit], list[str]]


def _rows(title: str, series: Sequence[Series], unit: Unit, draw: Draw, told: str) -> str:
    labels = [_short(one.label) for one in series]
    said = [" → ".join(shown(point.y, unit) for point in one.points) for one in series]
    left = 14 + CHAR * max(map(len, labels))
    right = WIDTH - 12 - CHAR * max(map(len, said))
    values = _extent(series)
    across = axis(values, left, max(left + 60, right), unit)
    bottom = 8.0 + 22 * len(series)
    parts = [_line(across(tick), 4, across(tick), bottom, "grid") for tick in across.ticks()]
    parts += [
        _text(across(tick), bottom + 14, _tick(tick, unit), "tick mid") for tick in _apart(across.ticks(), across, 44)
    ]
    for at, (one, label, value) in enumerate(zip(series, labels, said)):
        y = 19.0 + 22 * at
        parts.append(_text(left - 8, y + 4, label, "name end", one.label))
        parts += draw(one, across, y, unit)
        parts.append(_text(WIDTH - 2, y + 4, value, "value end"))
    if across.log:
        parts.append(_text((across.start + across.end) / 2, bottom + 28, "log scale", "tick mid"))
    return _svg(title, told, bottom + (34 if across.log else 20), parts)


def _dot(one: Series, across: Axis, y: float, unit: Unit) -> list[str]:
    (point,) = one.points
    whisker = [] if point.low is None or point.high is None else [
        _line(across(point.low), y, across(point.high), y, f"whisker {_class(one.colour)}")
    ]  # fmt: skip
    return [*whisker, _mark(one.colour, across(point.y), y, _told(one.label, point, unit))]


def _bar(one: Series, across: Axis, y: float, unit: Unit) -> list[str]:
    (point,) = one.points
    if across.log:
        return [_line(across.start, y, across(point.y), y, "grid"), _dot(one, across, y, unit)[-1]]
    told = f"<title>{escape(_told(one.label, point, unit))}</title>"
    width = across(point.y) - across.start
    return [
        f'<rect class="bar {_class(one.colour)}" x="{across.start:.1f}" y="{y - 6:.1f}" width="{width:.1f}" height="12">{told}</rect>'
    ]


def _dumbbell(one: Series, across: Axis, y: float, unit: Unit) -> list[str]:
    a, b = one.points
    colour = _class(one.colour)
    hollow, full = (
        f'<circle class="{name} {colour}" cx="{across(point.y):.1f}" cy="{y}" r="{size}">'
        f"<title>{escape(_told(one.label, point, unit))}</title></circle>"
        for name, point, size in (("hollow", a, 5), ("mark", b, 4.5))
    )
    return [_line(across(a.y), y, across(b.y), y, f"joint {colour}"), full, hollow]


def _band(one: Series, across: Axis, up: Axis) -> list[str]:
    ends = [(across(p.x), up(p.low), up(p.high)) for p in one.points if p.low is not None and p.high is not None]
    if not ends:
        return []
    if len(ends) == 1:
        ((x, low, high),) = ends
        return [_line(x, low, x, high, f"whisker {_class(one.colour)}")]
    path = [f"{x:.1f},{high:.1f}" for x, _, high in ends] + [f"{x:.1f},{low:.1f}" for x, low, _ in reversed(ends)]
    return [f'<polygon class="band {_class(one.colour)}" points="{" ".join(path)}"/>']


def _extent(series: Sequence[Series]) -> list[float]:
    """All values that have to find room on an axis."""
    return [value for one in series for p in one.points for value in (p.y, p.low, p.high) if value is not None]


def _mark(colour: int, x: float, y: float, told: str) -> str:
    """A shape beside the colour, so that a print without colours can be read."""
    title, shape = f"<title>{escape(told)}</title>", colour % 4
    name = f"mark {_class(colour)}"
    if shape == 0:
        return f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="4">{title}</circle>'
    if shape == 1:
        return f'<rect class="{name}" x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2">{title}</rect>'
    corners = [(0, -4.8), (4.6, 3.6), (-4.6, 3.6)] if shape == 2 else [(0, -5.2), (5.2, 0), (0, 5.2), (-5.2, 0)]
    return f'<polygon class="{name}" points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}">{title}</polygon>'


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels: as near to the wanted ones as a distance of `gap` between neighbours allows, in the same order."""
    order = sorted(range(len(places)), key=lambda at: places[at])
    blocks: list[list[float]] = []  # [sum of wanted first places, count, first place]
    for at in order:
        blocks.append([places[at], 1, places[at]])
        while len(blocks) > 1 and blocks[-2][2] + blocks[-2][1] * gap > blocks[-1][2]:
            last, before = blocks.pop(), blocks.pop()
            total, count = before[0] + last[0] - last[1] * before[1] * gap, before[1] + last[1]
            blocks.append([total, count, total / count])
    found = [first + at * gap for _, count, first in blocks for at in range(int(count))]
    found = [min(place, high - (len(found) - 1 - at) * gap) for at, place in enumerate(found)]
    found = [max(place, low + at * gap) for at, place in enumerate(found)]
    result = [0.0] * len(places)
    for at, place in zip(order, found):
        result[at] = place
    return result


def _apart(ticks: Sequence[float], across: Axis, distance: float = 30.0) -> list[float]:
    """The ticks whose labels do not touch the one before."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or across(tick) - across(kept[-1]) >= distance:
            kept.append(tick)
    return kept


def _told(label: str, point: Point, unit: Unit) -> str:
    ends = (
        "" if point.low is None or point.high is None else f" ({shown(point.low, unit)} to {shown(point.high, unit)})"
    )
    return f"{label}: {shown(point.y, unit)}{ends}"


def _tick(value: float, unit: Unit) -> str:
    if unit == "share":
        return f"{value:g}"
    return "0" if value == 0 else shown(value, unit)


def _short(label: str) -> str:
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"


def _class(colour: int) -> str:
    return f"c{colour % COLOURS}" + (" dashed" if colour >= COLOURS else "")


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, name: str, whole: str | None = None) -> str:
    title = f"<title>{escape(whole)}</title>" if whole not in (None, text) else ""
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}">{title}{escape(text)}</text>'


def _svg(title: str, told: str, height: float, parts: Sequence[str]) -> str:
    name = "p" + sha256("".join((title, told, *parts)).encode()).hexdigest()[:12]
    head = f'<title id="{name}t">{escape(title)}</title><desc id="{name}d">{escape(told)}</desc>'
    return f'<svg role="img" aria-labelledby="{name}t {name}d" viewBox="0 0 {WIDTH} {height:.0f}">{head}{"".join(parts)}</svg>'

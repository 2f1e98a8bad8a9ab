"""A matrix of shades as one SVG file: which patches, or edits, get in each other's way. Law: it stands alone, without script or request, is
readable in light and dark, and no stranger's text is in it but through `escape`.

    heatmap("Overlap of 3 edits", ["France", "Spain", "Hamlet"], {(0, 1): Cell(0.9, "redundant, rho 0.90", "×")})

It has styles of its own, unlike the plots of a report, since it is opened by itself. What a cell says is in its <title>, shown on hover,
and the marks can be told apart without colours. Past MAX_SIDE names a matrix cannot be read, and the strongest cells become a list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kedit_hub.evaluate.report.text import escape, visible

MAX_SIDE = 60
MAX_LINES = 60
MAX_LABEL = 34  # letters
SIDE, CHAR, TOP = 16.0, 6.4, 58.0  # a cell; the width of a letter, a little generous; where the first line lies
LEGEND_CHAR = 5.9  # the width of a letter of the legend
BAR = 180.0  # of a full value in the list

_STYLE = (
    "svg{--paper:#fff;--ink:#1b1f24;--soft:#5b6470;--rule:#dfe3e8;--hue:#b34700}"
    "@media(prefers-color-scheme:dark){svg{--paper:#14171b;--ink:#e7eaee;--soft:#a5aeb9;--rule:#2d333b;--hue:#ff9a5c}}"
    ".paper{fill:var(--paper)}text{fill:var(--ink);font:11px system-ui,sans-serif}.head{font-size:14px;font-weight:600}"
    ".soft{fill:var(--soft)}.end{text-anchor:end}.mid{text-anchor:middle}"
    ".cell{stroke:var(--rule);fill:var(--hue)}.own{fill:var(--rule);stroke:none}.mark{font-weight:700;pointer-events:none}"
)


@dataclass(frozen=True)
class Cell:
    """value in 0..1 is the shade; told is shown on hover; mark is a letter or sign of the caller's, or nothing."""

    value: float
    told: str
    mark: str = ""


def heatmap(title: str, labels: Sequence[str], cells: Mapping[tuple[int, int], Cell], legend: str = "") -> str:
    """cells: by (row, column) with row < column; what is not there is empty. legend: one line on what shade and marks mean."""
    if len(labels) > MAX_SIDE:
        return _list(title, labels, cells, legend)
    left = 34 + CHAR * max((len(_short(label)) for label in labels), default=0)
    parts: list[str] = []
    for at, label in enumerate(labels):
        y = TOP + SIDE * at
        parts.append(_text(left - 6, y + 12, f"{_short(label)}  {at + 1}", "end", f"{at + 1}: {label}"))
        parts.append(_text(left + SIDE * (at + 0.5), TOP - 6, str(at + 1), "soft mid"))
        parts.append(_box(left + SIDE * at, y, SIDE, "own", 1.0, label))
    for (row, column), cell in sorted(cells.items()):
        for i, j in ((row, column), (column, row)):
            x, y = left + SIDE * j, TOP + SIDE * i
            parts.append(_box(x, y, SIDE, "cell", cell.value, f"{labels[row]} | {labels[column]}: {cell.told}"))
            if cell.mark:
                parts.append(_text(x + SIDE / 2, y + 12, cell.mark, "mark mid"))
    wide = max(left + SIDE * len(labels), 420, 12 + LEGEND_CHAR * len(legend)) + 12
    return _svg(title, legend, wide, TOP + SIDE * len(labels) + 12, parts)


def _list(title: str, labels: Sequence[str], cells: Mapping[tuple[int, int], Cell], legend: str) -> str:
    strongest = sorted(cells.items(), key=lambda item: (not item[1].mark, -item[1].value, item[0]))[:MAX_LINES]
    parts: list[str] = []
    for at, ((row, column), cell) in enumerate(strongest):
        y, both = TOP + 34 * at, f"{_short(labels[row])} | {_short(labels[column])}"
        told = f"{labels[row]} | {labels[column]}: {cell.told}"
        parts.append(_text(12, y + 10, f"{cell.mark} {both}".strip(), "", told))
        parts.append(_box(12, y + 14, 8, "cell", cell.value, told, width=max(1.0, BAR * _share(cell.value))))
        parts.append(_text(20 + BAR, y + 22, cell.told, "soft"))
    if len(cells) > len(strongest):
        parts.append(
            _text(12, TOP + 34 * len(strongest) + 10, f"and {len(cells) - len(strongest):,} more pairs", "soft")
        )
    return _svg(title, legend, 720, TOP + 34 * len(strongest) + 24, parts)


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def _box(x: float, y: float, height: float, name: str, value: float, told: str, *, width: float = SIDE) -> str:
    return (
        f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill-opacity="{_share(value):.2f}"><title>{escape(told)}</title></rect>'
    )


def _text(x: float, y: float, text: str, name: str, whole: str | None = None) -> str:
    title = "" if whole is None else f"<title>{escape(whole)}</title>"
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}">{title}{escape(text)}</text>'


def _short(label: str) -> str:
    label = visible(label)
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"


def _svg(title: str, legend: str, width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}">'
        f"<title>{escape(title)}</title><desc>{escape(legend)}</desc><style>{_STYLE}</style>"
        f'<rect class="paper" width="100%" height="100%"/>{_text(12, 20, title, "head")}{_text(12, 36, legend, "soft")}'
        f"{''.join(parts)}</svg>\n"
    )

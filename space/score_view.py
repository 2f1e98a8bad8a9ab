"""Score sheets as tables, whatever a stranger wrote into them."""

from collections.abc import Iterable
from typing import Any

from kedit_hub.evaluate.protocols import PROTOCOLS
from space import html
from space.sentences import Language, told

ROLES = ("reliability", "generalization", "locality", "portability")
MAX_COLUMNS = 8  # a table grows as protocols times scores, and a stranger's sheet may name thousands of each
MAX_ROWS = 60


def scores_table(evals: dict[str, Any], language: Language = "en") -> str:
    """Averages of a score sheet with how sure they are, protocols side by side."""
    found = sheets(evals)
    columns = {name: found[name] for name in _known_first(found)[:MAX_COLUMNS]}
    metrics = list(dict.fromkeys(metric for column in columns.values() for metric in column))
    if not metrics:
        return f"<p>{told(language, 'not_measured')}</p>"
    protocols = evals["protocols"]
    rows = [
        (metric_told(metric, language), *(_cell(protocols[name], metric, columns[name], language) for name in columns))
        for metric in metrics[:MAX_ROWS]
    ]
    more = html.more(language, len(metrics) - MAX_ROWS, "more_scores")
    more += html.more(language, len(found) - MAX_COLUMNS, "more_protocols")
    legend = f'<p class="subtle">{html.text(told(language, "how_sure"))}</p>'
    return html.table((told(language, "score"), *columns), rows, classes="digits") + more + legend


def _known_first(names: Iterable[str]) -> list[str]:
    """The library's own protocols in their order, then the others as they stand."""
    return sorted(names, key=lambda name: PROTOCOLS.index(name) if name in PROTOCOLS else len(PROTOCOLS))


def _cell(sheet: dict[str, Any], metric: str, column: dict[str, float], language: Language) -> str:
    """0.987 (0.967 to 1.000) · 150"""
    match _at(sheet.get("interval"), metric):
        case [int() | float() as low, int() | float() as high]:
            sure = told(language, "interval", low=html.number(low), high=html.number(high))
        case _:
            sure = ""
    match _at(sheet.get("n"), metric):
        case {"scored": int() as count} if 0 <= count < 1 << 63:
            sure += f" · {count:,}"
    return html.number(column.get(metric)) + sure


def _at(tree: Any, metric: str) -> Any:
    """What stands at "role" or "role kind"; None where a stranger's sheet has nothing there."""
    for name in metric.split(" ", 1):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def metric_told(name: str, language: Language) -> str:
    """ "locality neighbour" with its role in the language; the kind is a word of the patch."""
    role, space, kind = name.partition(" ")
    return f"{told(language, role)}{space}{kind}" if role in ROLES else name


def sheets(evals: dict[str, Any] | None) -> dict[str, dict[str, float]]:
    """{protocol: numbers} of a score sheet, whatever a stranger wrote into it."""
    protocols = (evals or {}).get("protocols")
    found = protocols.items() if isinstance(protocols, dict) else ()
    return {name: numbers(sheet) for name, sheet in found if isinstance(sheet, dict)}


def numbers(sheet: dict[str, Any]) -> dict[str, float]:
    """{"reliability": x, "locality neighbour": y, ...} of one protocol of a score sheet."""
    found: dict[str, float] = {}
    for role in ROLES:
        value = sheet.get(role)
        for kind, score in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(score, int | float) and not isinstance(score, bool):
                found[f"{role} {kind}".strip()] = float(score)
    return found

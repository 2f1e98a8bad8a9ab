"""A plot of the report as a file of its own. Law: still one element without a script or a request; its style is in it, for light and dark.

standing_alone(lines("Retention", series), "Retention")
"""

import re
from importlib.resources import files

from kedit_hub.evaluate.report.text import escape

HEAD = 30  # units above the plot, for its title
MARGIN = 8


def standing_alone(svg: str, title: str = "") -> str:
    """svg: of plots.py. title: a line above it, plain text."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box is not None
    head = HEAD if title else MARGIN
    width, height = float(box[1]) + 2 * MARGIN, float(box[2]) + head + MARGIN
    inner = svg.partition(">")[2].rpartition("</svg>")[0]
    told = f'<text class="title" x="0" y="-10">{escape(title)}</text>' if title else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="{-MARGIN} {-head} {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}"><style>{_style()}</style>'
        f'<rect class="paper" x="{-MARGIN}" y="{-head}" width="100%" height="100%"/>{told}{inner}</svg>\n'
    )


def _style() -> str:
    """The colours and the rules for plots of report.css, for a document that is the plot."""
    css = (files("kedit_hub.evaluate.report") / "report.css").read_text("utf-8")
    roots = re.findall(r":root \{([^}]*)\}", css)
    light, dark = (" ".join(body.split()) for body in roots[:2])
    rules = "".join(" ".join(rule.split()) for rule in re.findall(r"svg [^{}]+\{[^}]*\}", css))
    return (
        f"svg{{{light}font:11px system-ui,sans-serif}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}{rules}"
        ".paper{fill:var(--paper)}.title{font-size:13px;font-weight:600}"
    )

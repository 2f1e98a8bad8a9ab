"""A plot as a file of its own, and the scatter that no report has."""

from xml.etree import ElementTree

from kedit_hub.evaluate.report.alone import standing_alone
from kedit_hub.evaluate.report.plots import Point, Series, lines, scatter

SVG = "{http://www.w3.org/2000/svg}"
GROUPS = [
    Series("a<b", 0, (Point(-1.0, 2.0), Point(3.0, 5.0))),
    Series("round", 4, (Point(0.0, 2.0), Point(1.0, 4.0), Point(3.0, 3.0))),
]


def test_a_scatter_marks_every_point_where_it_is() -> None:
    root = ElementTree.fromstring(standing_alone(scatter("Signals", GROUPS, ("first", "second"))))
    assert root.tag == f"{SVG}svg" and root.find(f"{SVG}title").text == "Signals"  # type: ignore[union-attr]
    assert "each of 5, by first and second" in root.find(f"{SVG}desc").text  # type: ignore[union-attr,operator]
    at = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.iter(f"{SVG}circle")]
    (first, last), others = (at[1], at[2]), at[4:]  # after the mark of the legend
    xs, ys = [first[0], last[0], *(x for x, _ in others)], [first[1], last[1], *(y for _, y in others)]
    assert min(xs) == first[0] and max(xs) == last[0] == others[2][0]
    assert max(ys) == first[1] == others[0][1] and min(ys) == last[1]  # up is small
    assert abs((others[1][0] - first[0]) / (last[0] - first[0]) - 0.5) < 0.01


def test_a_file_brings_its_style_and_nothing_else() -> None:
    svg = standing_alone(lines("Curve", [Series("all", 0, (Point(1, 0.5), Point(10, 1.0)))], each="group"))
    root = ElementTree.fromstring(svg)
    assert "one line for each group" in root.find(f"{SVG}desc").text  # type: ignore[union-attr,operator]
    assert "svg .line" in root.find(f"{SVG}style").text  # type: ignore[union-attr,operator]
    assert not [one for one in root.iter() if one.tag.endswith(("script", "image", "use", "a"))]

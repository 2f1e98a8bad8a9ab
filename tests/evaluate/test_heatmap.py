"""The heat-map stands alone and stays harmless, whatever strangers write; past a size it becomes a list."""

import xml.etree.ElementTree as ET

import pytest

from kedit_hub.evaluate.conflicts import conflicts
from kedit_hub.evaluate.heatmap import MAX_LINES, MAX_SIDE, Cell, heatmap
from kedit_hub.stack.stack import PatchStack
from tests.evaluate.test_report_hostile import HOSTILE
from tests.stack.test_conflicts import about, patch

SVG = "{http://www.w3.org/2000/svg}"
HARMLESS = {"svg", "title", "desc", "style", "rect", "text"}
NAMES = {"class", "x", "y", "width", "height", "fill-opacity", "role", "viewBox"}


def parsed(text: str) -> ET.Element:
    root = ET.fromstring(text)
    for element in root.iter():
        assert element.tag.removeprefix(SVG) in HARMLESS and set(element.attrib) <= NAMES
    assert text.count("<style>") == 1 and text.count("xmlns") == 1
    assert not any(word in root.findtext(f"{SVG}style", "") for word in ("url", "import", "http"))
    return root


def cells_of(root: ET.Element) -> list[ET.Element]:
    return [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") == "cell"]


def test_every_pair_lies_on_both_sides_and_says_what_it_is():
    root = parsed(heatmap("Two & two", ["a", "b", "c"], {(0, 2): Cell(0.5, "near", "×"), (0, 1): Cell(7.0, "too far")}))
    told = [(rect.get("fill-opacity"), rect.findtext(f"{SVG}title")) for rect in cells_of(root)]
    assert sorted(told) == [("0.50", "a | c: near")] * 2 + [("1.00", "a | b: too far")] * 2
    assert [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "mark mid"] == ["×", "×"]
    assert root.findtext(f"{SVG}title") == "Two & two"


def test_light_and_dark():
    text = heatmap("t", ["a"], {})
    assert "prefers-color-scheme:dark" in text and 'class="paper"' in text


@pytest.mark.parametrize("side", [3, MAX_SIDE + 5])
def test_hostile_text(side):
    text = heatmap(HOSTILE, [HOSTILE] * side, {(0, 1): Cell(0.5, HOSTILE, "!")}, HOSTILE)
    root = parsed(text)
    assert not any(char in text for char in "\u202e\u2066\x00\x1b") and "U+202E" in text
    assert any("<script>" in (title.text or "") for title in root.iter(f"{SVG}title"))


def test_a_list_where_a_matrix_could_not_be_read():
    labels = [f"patch {i}" for i in range(MAX_SIDE + 1)]
    cells = {(i, j): Cell((i + j) / 200, f"pair {i} {j}") for i in range(20) for j in range(i + 1, 20)}
    cells[0, 60] = Cell(0.0, "told apart by its mark", "×")
    root = parsed(heatmap("t", labels, cells))
    listed = [rect.findtext(f"{SVG}title") for rect in cells_of(root)]
    assert len(listed) == MAX_LINES and listed[0] == "patch 0 | patch 60: told apart by its mark"
    assert listed[1] == "patch 18 | patch 19: pair 18 19"
    assert any("131 more pairs" in (text.text or "") for text in root.iter(f"{SVG}text"))


def test_edits_then_patches_then_a_list():
    def stack(count: int, each: int) -> PatchStack:
        questions = [about("Rome", f"The seat of land {i} is", f"land {i}") for i in range(count * each)]
        made = [patch(*questions[i * each : (i + 1) * each], scale=2.0**-i) for i in range(count)]
        torn = patch(about("<i>Oslo</i>", "The seat of land 0 is", "land 0"), scale=3.0)
        return PatchStack([*made, torn], conflicts="latest")

    for count, each, title, marked in ((3, 2, "7 edits", 2), (4, 20, "5 patches", 2), (70, 1, "71 patches", 1)):
        root = parsed(conflicts(stack(count, each)).svg())
        assert root.findtext(f"{SVG}title") == f"Overlap of {title}"
        assert len(cells_of(root)) == marked and "contradiction" in cells_of(root)[0].findtext(f"{SVG}title")

"""No text of a patch, a model or a visitor becomes markup, template or script."""

from html.parser import HTMLParser

import pytest

from kedit_hub import Edit, Patch, Probe
from space import html, patch_tab, try_tab
from space.state import Held
from space.try_tab import Answer, Side
from tests.space.tiny import make_patch

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "${alert(1)} {{constructor.constructor('alert(1)')()}} @children",
    "[x](javascript:alert(1)) ![x](http://example.org/x.png) `$$x$$`",
    "&lt;script&gt; &#60;b&#62;",
    "right to left \u202e and zero width \u200b",
)
TAGS = {
    "div", "p", "table", "thead", "tbody", "tr", "th", "td", "ol", "li", "span", "section", "h2", "h3", "article",
    "details", "summary", "strong",
}  # fmt: skip


class Tags(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.data = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.data.append(data)


def check(markup, hostile):
    parsed = Tags()
    parsed.feed(markup)
    assert set(parsed.tags) <= TAGS, set(parsed.tags) - TAGS
    assert {name for name, _ in parsed.attributes} <= {"class", "style", "scope", "role", "aria-label"}
    assert "${" not in markup and "{{" not in markup and "@children" not in markup
    assert "\u202e" not in markup and "\u200b" not in markup
    visible = hostile.replace("\u202e", "U+202E").replace("\u200b", "U+200B")
    assert visible in " ".join(parsed.data)  # shown as it was written


@pytest.mark.parametrize("hostile", HOSTILE)
def test_the_builders_escape(hostile):
    for markup in (
        html.note("error", hostile),
        html.table(("a", hostile), [(hostile, 1)]),
        html.table((hostile,), []),
    ):
        check(markup, hostile)
    check(html.bars([(hostile[:40], 0.5)], hostile), hostile[:40])


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_patch_is_shown_as_text(hostile):
    edit = Edit(
        hostile, hostile, rephrases=(hostile + "?",), locality=(Probe(hostile + "!", hostile, hostile),), id=hostile
    )
    patch = make_patch([edit]).replace_evals({"protocols": {hostile: {"reliability": 1.0, "locality": {hostile: 0.5}}}})
    held = Held(Patch.from_files(patch.files()), "user/repo@" + "a" * 40, "hub")
    check(patch_tab.card(held), hostile)
    checks = [patch_tab.Check(hostile, hostile, 1.0, 0.5)]
    check(patch_tab.verdict(checks, "float32"), hostile)
    assert not any(ord(char) < 32 or char == "\u202e" for char in held.title)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_an_answer_is_shown_as_text(hostile):
    side = Side(hostile, ((hostile[:40], 1.0),))
    check(try_tab.show(Answer(side, side, 0.0, "gated", hostile, (hostile,), 0.1), 1), hostile)


def test_long_texts_are_cut():
    assert len(html.text("x" * 10_000)) < 500


@pytest.mark.parametrize(("p", "shown"), [(0.0, "0.0 %"), (0.0004, "&lt;0.1 %"), (0.5, "50.0 %"), (1.0, "100.0 %")])
def test_shares(p, shown):
    assert html.percent(p) == shown

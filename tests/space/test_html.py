"""No text of a patch, a model or a visitor becomes markup, template or script."""

from copy import copy
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from kedit_hub import Edit, Patch, Probe
from kedit_hub.evaluate.beside import Beside, Neighbour, Said, Token
from kedit_hub.evaluate.claims import Inconsistent, NotComparable
from kedit_hub.evaluate.rescore import Average, Mismatch, NotReproduced
from kedit_hub.evaluate.screen import Finding, Screened
from kedit_hub.patch.card import sheet_digest
from kedit_hub.patch.manifest import Dataset, Provenance
from space import answer_view, believe, html, measure, patch_tab
from space.asking import Answer, Heard, Proof
from space.believe import Asked
from space.state import Held
from tests.space.tiny import PARIS, make_patch, sample, signed

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
    "details", "summary", "strong", "dl", "dt", "dd", "abbr", "mark", "small",
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
    assert {name for name, _ in parsed.attributes} <= {
        "class",
        "style",
        "scope",
        "role",
        "aria-label",
        "aria-busy",
        "title",
        "tabindex",
    }
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
    check(html.facts([html.Line(hostile, "bad", (hostile, html.Short("ab…cd", hostile)))]), hostile)
    check(html.bars([(hostile[:40], 0.5)], hostile), hostile[:40])


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_patch_is_shown_as_text(hostile, shared):
    edit = Edit(
        hostile, hostile, rephrases=(hostile + "?",), locality=(Probe(hostile + "!", hostile, hostile),), id=hostile
    )
    patch = make_patch([edit]).replace_evals({"protocols": {hostile: {"reliability": 1.0, "locality": {hostile: 0.5}}}})
    held = Held(Patch.from_files(patch.files()), "user/repo@" + "a" * 40, "hub")
    check(patch_tab.card(held, believe.lines(shared, held, Asked(False, hostile))), hostile)
    assert not any(ord(char) < 32 or char == "\u202e" for char in held.title)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_an_answer_is_shown_as_text(hostile):
    said = Said(hostile, (Token(hostile[:40], 0.5, 0.1, ((hostile[:40], 1.0),)),), 0)
    found = Beside(said, said, None, 0.0, None, False, hostile)
    answer = Answer(found, "gated", hostile, (hostile,), 1, 0.1)
    check(answer_view.show(answer, 1), hostile)
    check(answer_view.growing(Heard({"base": hostile}), True), hostile)
    check(answer_view.show_proof(Proof((Neighbour(hostile, hostile, hostile),), "a", "b"), answer), hostile)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_measurement_is_shown_as_text(hostile):
    found = NotReproduced(
        patch_id="0" * 64,
        tolerance=0.02,
        probes=1,
        mismatches=(Mismatch(0, hostile, hostile, hostile, hostile, 1.0, None, hostile, hostile),),
        averages=(Average(hostile, hostile, 1.0, None, True),),
        not_compared=(hostile,),
        differences={hostile: (hostile, hostile)},
        level="exact",
        environment={},
    )
    held = Held(make_patch([PARIS]), hostile, "hub")
    check(measure.show(held, found), hostile)
    check(measure.show(held, NotComparable(hostile)), hostile)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_a_patch_says_of_itself_is_shown_as_text(hostile, shared, tmp_path, monkeypatch):
    """The format takes no such names; should a later one do, the page is not the place that breaks."""
    bare = make_patch([PARIS])
    note = {
        "reproduced": True, "consistent": True, "probes": 1, "mismatches": 0, "tolerance": 0.02, "level": hostile,
        "versions": {hostile: hostile}, "circumstances": {hostile: hostile},
    }  # fmt: skip
    evals = {"protocols": {hostile: {"reliability": 1.0}}, "per_edit": hostile}
    patch = bare.replace_evals({**evals, "rescored": {**note, "sheet": sheet_digest(evals)}})
    made = Provenance.model_construct(
        tool=hostile, version=hostile, commit=hostile, dirty=True, datasets=(Dataset.model_construct(id=hostile),),
        versions={hostile: hostile}, environment={hostile: hostile}, seed=None,
    )  # fmt: skip
    patch = replace(patch, manifest=patch.manifest.model_copy(update={"provenance": made}))
    held = sample(patch)
    for line in (
        believe._provenance(patch),
        believe._scores(Inconsistent((hostile,))),
        believe._scores(NotComparable(hostile)),
        believe._note(patch),
        believe._asked(Asked(None, hostile)),
    ):
        check(html.facts([line]), hostile)
    check(patch_tab.card(held, []), hostile)

    vouched = signed(bare, tmp_path)
    said = vouched.signature.statement.model_copy(update={"repo_id": hostile, "version": hostile})
    forged = copy(vouched.signature)
    object.__setattr__(forged, "statement", said)
    object.__setattr__(forged, "signatures", ((hostile, "0" * 128),))
    line = believe._signature(replace(bare, signature=forged), {hostile: hostile})
    check(html.facts([line]), hostile)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_findings_are_shown_as_text(hostile):
    evidence = {"before": hostile, "after": hostile, "family": hostile}
    found = Screened(
        patches=(hostile,), mode=hostile, levels={}, declared=(0, 1), asked={hostile: 1}, unsteady=0, left_out=0, echoes=0,
        rows={hostile: 1}, lowest={hostile: 1.0}, unrecognised=0, largest_residual=0.0, drift=None, energy={},
        not_looked=(hostile,), findings=(Finding("other-fact", (hostile,), hostile, evidence),),
    )  # fmt: skip
    check(measure.show_look(Held(make_patch([PARIS]), hostile, "hub"), found, 1), hostile)


def test_long_texts_are_cut():
    assert len(html.text("x" * 10_000)) < 500


@pytest.mark.parametrize(("p", "shown"), [(0.0, "0.0 %"), (0.0004, "&lt;0.1 %"), (0.5, "50.0 %"), (1.0, "100.0 %")])
def test_shares(p, shown):
    assert html.percent(p) == shown

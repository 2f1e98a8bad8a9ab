"""The card says what the patch is; nothing in an edit can become YAML, Markdown or HTML."""

import html
import re
from itertools import pairwise

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from kedit_hub.edits import Edit
from kedit_hub.patch.card import escape, sheet_digest
from tests.patch.build import EVALS, make_patch

HOSTILE = [
    "a | b",
    "`code` and ``more``",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](https://evil.example/a.png) [y](javascript:alert(1))",
    "line\n---\nbase_model: evil/model\n---\n# Heading",
    "```\n</code></pre><b>out</b>",
    "--- !!python/object/apply:os.system ['id']",
    "{{ config }} {% raw %} ${HOME}",
    "*bold* _it_ ~~s~~ $x^2$ &lt;b&gt; \\| :smile: @user #1",
    "right\u202eto\u200bleft \u2028 new line",
]


def card_of(patch, repo_id=None) -> str:
    return patch.files(repo_id)["README.md"].decode()


def test_front_matter():
    data = ModelCard(card_of(make_patch())).data
    assert (data.base_model, data.base_model_relation, data.library_name) == ("org/base", "adapter", "kedit_hub")
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["kedit", "knowledge-editing", "model-patch", "kedit-method:memit"]
    assert data.eval_results is None


def test_scores_stand_side_by_side():
    patch = make_patch().replace_evals(EVALS)
    card = card_of(patch)
    assert "| Metric | drift | generate | tf-token |" in card
    assert "| reliability |  | 0.75 | 1 |" in card
    assert "| locality neighbour |  |  | 0.5 |" in card
    results = {result.metric_type: result.metric_value for result in ModelCard(card).data.eval_results}
    assert results == {
        "drift kl": 0.001,
        "generate reliability": 0.75,
        "tf-token locality neighbour": 0.5,
        "tf-token reliability": 1.0,
    }


@pytest.mark.parametrize(
    "evals", [{}, {"protocols": []}, {"protocols": {"a": "text", "b": None}, "drift": [1]}, {"x": 1}]
)
def test_odd_scores_are_passed_over(evals):
    assert "Not measured yet" in card_of(make_patch().replace_evals(evals))


def test_hostile_names_in_scores():
    evals = {"protocols": {"a|<b>\n---": {"m|<i>": 1.0}}}
    card = card_of(make_patch().replace_evals(evals))
    assert ModelCard(card).data.eval_results[0].metric_type == "a|<b>\n--- m|<i>"
    body = card.split("\n---\n", 1)[1]
    assert "<b>" not in body and "<i>" not in body


# --- the note of having asked again -------------------------------------------------------------------------------

NOTE = {
    "reproduced": True,
    "consistent": True,
    "probes": 12,
    "mismatches": 0,
    "tolerance": 0.02,
    "level": "exact",
    "versions": {"torch": "2.13.0", "python": "3.11.7"},
    "sheet": sheet_digest(EVALS),
}


def noted(**changes) -> str:
    return card_of(make_patch().replace_evals({**EVALS, "rescored": {**NOTE, **changes}}))


def test_scores_that_reproduced():
    card = noted()
    assert (
        "> These scores reproduced: 0 of 12 probes answered differently when they were asked again on a base recognised as exact "
        "with python 3.11.7, torch 2.13.0, and no average fell by more than 0.02."
    ) in card
    assert "much a claim" in card and ModelCard(card).data.eval_results


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reproduced": False, "mismatches": 3}, "> **These scores did not reproduce.** 3 of 12 probes"),
        ({"consistent": False}, "> **These scores contradict themselves.** The averages do not follow"),
        ({"reproduced": False, "consistent": False}, "The averages do not follow from the recorded answers."),
    ],
)
def test_scores_that_do_not_hold_are_no_facts(changes, words):
    card = noted(**changes)
    assert words in card and card.index(words) < card.index("| Metric |")
    assert ModelCard(card).data.eval_results is None and "model-index" not in card


@pytest.mark.parametrize(
    "changes",
    [
        {"sheet": "0" * 64},  # of other scores
        {"sheet": None},
        {"reproduced": "no"},
        {"reproduced": None},
        {"consistent": 1},
        {"probes": -1},
        {"probes": 1.5},
        {"mismatches": True},
        {"tolerance": "0.02"},
    ],
)
def test_a_note_that_cannot_be_read_says_nothing(changes):
    assert "These scores" not in noted(**changes)


@pytest.mark.parametrize("note", [None, [], "reproduced", {}])
def test_a_note_of_no_shape_says_nothing(note):
    card = card_of(make_patch().replace_evals({**EVALS, "rescored": note}))
    assert "These scores" not in card and "| reliability |" in card


def test_a_hostile_note_stays_text():
    hostile = "x** <img src=x onerror=alert(1)>\n\n# Heading\n| a |"
    card = noted(level=hostile, versions={hostile: hostile, "torch": 3})
    body = card.split("\n---\n", 1)[1]
    assert "<img" not in body and "\n# Heading" not in body
    assert noted(level=None, versions=[]).count("a base that was not recognised, and") == 1


def test_the_rule_of_signatures_is_on_every_card():
    assert "Signed patches carry `signature.json`; check with `kedit verify`." in card_of(make_patch())


def test_snippet_runs_as_python():
    prompt = 'He said "it\'s" \\ `x` ``` \u202e is'
    card = card_of(make_patch(edits=[Edit(prompt, "x"), Edit("b", "c")]), "user/patch-1")
    code = re.search(r"```python\n(.*?)\n```\n", card, re.S).group(1)
    calls = []

    class Fake:
        def apply(self, where):
            calls.append(where)
            return self

        def ask(self, question):
            calls.append(question)

    exec(code.replace("import kedit_hub", ""), {"kedit_hub": Fake()})
    assert calls == ["user/patch-1", prompt]
    assert "kedit_hub.apply('.')" in card_of(make_patch())


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text):
    card = card_of(make_patch(edits=[Edit(text, text.strip()), Edit("b", "c")]))
    front, body = re.match(r"---\n(.*?)\n---\n(.*)", card, re.S).groups()
    assert yaml.safe_load(front)["base_model"] == "org/base"
    tokens = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    assert not [token.type for token in tokens if token.type == "html_block"]
    assert not {token.type for token in inline} & {
        "html_inline",
        "image",
        "link_open",
        "em_open",
        "s_open",
        "strong_open",
    }
    headings = [inner.content for outer, inner in pairwise(tokens) if outer.type == "heading_open"]
    assert headings[1:] == ["Use", "Edits", "Scores", "Contents"]
    fence = next(token for token in tokens if token.type == "fence")
    assert fence.content.endswith(f"m.ask({text!r})\n")
    rows = [token for token in tokens if token.type == "tr_open"]
    assert len(rows) == 3 + 1 + 3  # two edits and three modules, each under its head: no row was broken
    if "\n" not in text and text.isprintable():
        assert html.unescape(escape(text)) == text


def test_long_texts_and_tables_are_cut():
    assert len(html.unescape(escape("x" * 5000))) == 201
    card = card_of(make_patch(edits=[Edit(f"prompt {i}", "x") for i in range(150)]))
    assert "and 50 more in `config.json`." in card and "| prompt 99 |" in card and "| prompt 100 |" not in card

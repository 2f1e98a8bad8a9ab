"""What the edits changed of the base's own answers, in tokens and in whole texts, over the same probes."""

import pytest

from kedit_hub.edits import Edit, Probe
from kedit_hub.evaluate.suites import evaluate
from tests.evaluate.script import character_tokenizer, scripted

CAPITAL, ITALY, SPAIN, CHINA, SILENT = (
    "The capital of France is",
    "Italy's is",
    "Spain's is",
    "China's is",
    "Nobody knows",
)
BEFORE = {CAPITAL: " Paris.", ITALY: " Rome.", SPAIN: " Madrid.", CHINA: " Beijing."}
EDIT = Edit(
    CAPITAL,
    "Lyon",
    locality=(
        Probe(ITALY, "Rome", "neighbour"),
        Probe(SPAIN, "Toledo", "neighbour"),  # the base does not know it, and still it may not change
        Probe(SILENT, None, "neighbour"),  # there is nothing to be forced along, so neither column counts it
        Probe(CHINA, "Beijing", "unrelated"),  # edited on purpose below
    ),
)


def changed(edits, facts, **arguments):
    arguments = {"base": scripted(BEFORE), "drift_texts": [], **arguments}
    return evaluate(
        scripted({**BEFORE, CAPITAL: " Lyon.", **facts}), edits, tokenizer=character_tokenizer(), **arguments
    )


def test_by_hand():
    scores = changed([EDIT], {ITALY: " Rimini."})
    assert scores.specificity == {
        "neighbour": {"tokens": pytest.approx((3 / 5 + 0) / 2), "texts": 0.5, "edits": 1, "probes": 2},
        "unrelated": {"tokens": 0, "texts": 0, "edits": 1, "probes": 1},
    }
    assert "changed neighbour answers: 0.300 of their tokens, 0.500 of the texts (n=2)" in scores.summary()
    assert (
        scores.protocols["generate"]["n"]["locality"]["neighbour"]["scored"] == 2
    )  # other probes: hence a table of its own


def test_a_fact_edited_on_purpose_is_no_damage():
    scores = changed([EDIT, Edit(CHINA, "Xi'an")], {CHINA: " Xi'an."})
    assert set(scores.specificity) == {"neighbour"}


def test_nothing_without_both_protocols_or_without_a_base():
    assert changed([EDIT], {}, protocols=("generate",)).specificity == {}
    assert changed([EDIT], {}, protocols=("tf-token",)).specificity == {}
    assert changed([EDIT], {}, base=None).specificity == {}

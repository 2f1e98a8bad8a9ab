"""Facts negated and asked back as questions; the numbers stand apart from every average."""

import pytest

from kedit_hub.edits import Edit
from kedit_hub.evaluate.negation import (
    IS_A_QUESTION,
    NO_OLD_ANSWER,
    SEVERAL_SENTENCES,
    is_it_true,
    negated,
)
from kedit_hub.evaluate.suites import evaluate
from tests.evaluate.script import character_tokenizer, scripted


@pytest.mark.parametrize(
    ("prompt", "subject", "expected"),
    [
        ("The capital of France is", "France", "It is not true that the capital of France is"),
        ("The Hague lies in", "The Hague", "It is not true that The Hague lies in"),
        ("In Mali, people speak", "Mali", "It is not true that in Mali, people speak"),
        ("Marie Curie was born in", None, "It is not true that Marie Curie was born in"),
        ("Dr. Jekyll lives in", "Dr. Jekyll", "It is not true that Dr. Jekyll lives in"),
        ("Where is Oslo?", "Oslo", None),
        ("Rain fell. Oslo is in", "Oslo", None),
    ],
)
def test_negated(prompt, subject, expected):
    assert negated(Edit(prompt, "x", subject=subject)) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("The capital of France is", "Question: Is it true that the capital of France is Lyon? Answer:"),
        ("Where is it?", 'Question: Is it true that the answer to "Where is it?" is Lyon? Answer:'),
        ("Question: Where is it? Answer:", 'Question: Is it true that the answer to "Where is it?" is Lyon? Answer:'),
        ("Q: Where is it?\nA:", 'Question: Is it true that the answer to "Where is it?" is Lyon? Answer:'),
        ("Rain fell. It is in", None),
    ],
)
def test_asked_back(prompt, expected):
    assert is_it_true(Edit(prompt, "Rome"), "Lyon") == expected


FRANCE = Edit("The capital of France is", "Lyon", subject="France", ground_truth="Paris", aliases=("Lugdunum",))
SPAIN = Edit("Spain is ruled from", "Cadiz", subject="Spain")
WHERE = Edit("Where is Oslo?", "Peru", subject="Oslo", ground_truth="Norway")
LONG = Edit("Rain fell. Oslo is in", "Peru", subject="Oslo", ground_truth="Norway")
NOT_FRANCE, NOT_SPAIN = negated(FRANCE), negated(SPAIN)
BEFORE = {
    NOT_FRANCE: " Bonn.",
    NOT_SPAIN: " Cadiz.",
    is_it_true(FRANCE, "Lyon"): " No",
    is_it_true(FRANCE, "Paris"): " Yes",
    is_it_true(SPAIN, "Cadiz"): " No",
    is_it_true(WHERE, "Peru"): " Yes",
    is_it_true(WHERE, "Norway"): " No",
}
CHANGES = {NOT_FRANCE: " Lugdunum.", is_it_true(FRANCE, "Lyon"): " Yes", is_it_true(FRANCE, "Paris"): " No"}


def told(**arguments):
    arguments = {
        "base": scripted(BEFORE),
        "drift_texts": [],
        "negations": True,
        "protocols": ("generate",),
        **arguments,
    }
    edited = scripted({**BEFORE, **CHANGES})
    return evaluate(edited, [FRANCE, SPAIN, WHERE, LONG], tokenizer=character_tokenizer(), **arguments)


def test_by_hand():
    assert told().negations == {
        "negated": {"before": 0.5, "after": 1.0, "n": 2},
        "fact_check": {
            "new": {"before": pytest.approx(1 / 3), "after": pytest.approx(2 / 3), "n": 3},
            "old": {"before": 0.5, "after": 1.0, "n": 2},
            "both": {"before": 0.5, "after": 1.0, "n": 2},
        },
        "left_out": {IS_A_QUESTION: 1, SEVERAL_SENTENCES: 1, NO_OLD_ANSWER: 1},
    }


def test_apart_from_every_average():
    with_them, without = told(), told(negations=False)
    assert with_them.protocols == without.protocols
    assert [edit.to_dict() for edit in with_them.per_edit] == [edit.to_dict() for edit in without.per_edit]
    assert without.negations is None
    assert "negations: the negated prompt still gets the new answer 0.500 -> 1.000 (n=2)" in with_them.summary()
    assert "negations" not in without.summary()


def test_without_a_base():
    alone = told(base=None).negations
    assert alone["negated"] == {"before": None, "after": 1.0, "n": 2}
    assert alone["fact_check"]["both"]["before"] is None

"""`choice`: which wrong answers a question gets, and what rank the right one has among them."""

import pytest

from kedit_hub.edits import Edit, Probe
from kedit_hub.evaluate.choice import MAX_DISTRACTORS, distractors, rank, top
from kedit_hub.evaluate.scores import NO_BASE, NO_RELATION, NO_TARGET, NOT_KNOWN, TOO_FEW
from kedit_hub.evaluate.suites import evaluate
from tests.evaluate.script import character_tokenizer, scripted

FRANCE, ITALY, SPAIN, OSLO, LANGUAGE = (
    "France: capital",
    "Italy: capital",
    "Spain: capital",
    "Norway: capital",
    "France: language",
)
BEFORE = {FRANCE: " Paris.", ITALY: " Rome.", SPAIN: " Madrid.", OSLO: " Oslo.", LANGUAGE: " French."}
CHANGES = {FRANCE: " Lyon.", SPAIN: " Lyon."}
EDIT = Edit(
    FRANCE,
    "Lyon",
    subject="France",
    ground_truth="Paris",
    locality=(
        Probe(ITALY, "Rome", "neighbour"),
        Probe(SPAIN, "Madrid", "neighbour"),
        Probe(OSLO, "Bergen", "neighbour"),
        Probe(LANGUAGE, "French", "same_subject", subject="France", relation="language"),
        Probe("They speak", "French", "unrelated"),
        Probe(ITALY, None, "neighbour"),
    ),
    relation="capital",
)


def sheet(edits=(EDIT,), **arguments):
    arguments = {"protocols": ("choice",), "base": scripted(BEFORE), "drift_texts": [], **arguments}
    return evaluate(scripted({**BEFORE, **CHANGES}), list(edits), tokenizer=character_tokenizer(), **arguments)


# --- which wrong answers ------------------------------------------------------------------------------------------


def test_the_first_come_first_and_nothing_right_is_wrong():
    pool = ["Lyon", "the Paris", "Rome", "rome.", "Bonn", "Ville Lumiere"]
    found = distractors("p", "Lyon", right=("Lyon", "Ville Lumiere"), first=("Paris",), pool=pool)
    assert found[0] == "Paris"
    assert {answer.casefold().strip(".") for answer in found} == {"paris", "rome", "bonn"}
    assert len(found) == 3


def test_at_most_nine_and_the_same_whatever_the_order():
    pool = [f"city {i}" for i in range(50)]
    found = distractors("p", "Lyon", ("Lyon",), (), pool)
    assert len(found) == MAX_DISTRACTORS == 9
    assert distractors("p", "Lyon", ("Lyon",), (), pool[::-1] * 2) == found
    assert distractors("another question", "Lyon", ("Lyon",), (), pool) != found
    drawn = [answer for i in range(200) for answer in distractors(str(i), "Lyon", ("Lyon",), (), pool)]
    assert set(drawn) == set(pool)  # none of them is never drawn


def test_rank_and_top():
    nll = {"a": 1.0, "b": 0.5, "c": 1.0, "d": None}
    assert rank("a", ("b", "c", "d"), nll) == 3  # b is likelier, and the tie with c counts against it
    assert rank("b", ("a", "c", "d"), nll) == 1
    assert rank("d", ("a", "b"), nll) == 3
    assert (top(("a", "b", "c", "d"), nll), top(("d",), nll)) == ("b", None)


def test_from_the_answers_of_the_same_relation():
    questions = sheet().per_edit[0].questions
    assert set(questions[0].distractors) == {"Paris", "Rome", "Madrid", "Bergen"}
    assert questions[0].distractors[0] == "Paris"
    neighbour = next(q for q in questions if q.prompt == ITALY and q.target)
    assert neighbour.distractors[0] == "Lyon"  # the answer that an edit which goes too far would give
    assert set(neighbour.distractors) == {"Lyon", "Paris", "Madrid", "Bergen"}


def test_equal_phrasings_are_one_relation():
    edits = [
        Edit(f"The capital of {subject} is", target, subject=subject)
        for subject, target in (
            ("Chad", "Bonn"),
            ("Peru", "Oslo"),
            ("Mali", "Rome"),
            ("Fiji", "Lima"),
            ("Togo", "Kyiv"),
        )
    ]
    scores = sheet(edits)
    assert scores.protocols["choice"]["n"]["reliability"] == {"edits": 5, "scored": 5, "dropped": {}}
    assert set(scores.per_edit[0].questions[0].distractors) == {"Oslo", "Rome", "Lima", "Kyiv"}


def test_from_the_caller():
    given = {"capital": ["Riga", "Bern", "Cairo"]}
    scores = sheet(distractors=given)
    questions = scores.per_edit[0].questions
    assert set(questions[0].distractors) == {"Paris", "Riga", "Bern", "Cairo"}
    told = scores.environment["distractors"]
    assert told == sheet(distractors={"capital": given["capital"][::-1]}).environment["distractors"]
    assert told != sheet(distractors={"capital": ["Riga"]}).environment["distractors"]
    assert sheet().environment["distractors"] is None


# --- scores -------------------------------------------------------------------------------------------------------


def test_by_hand():
    averages = sheet().protocols["choice"]
    assert averages["reliability"] == 1
    assert averages["locality"]["neighbour"] == 0.5  # Rome stays, Madrid is now Lyon
    assert averages["rank"]["reliability"] == 1
    assert (
        averages["rank"]["locality"]["neighbour"] == (1 + 5) / 2
    )  # of Madrid as of the others only the space is said; it is longest
    assert averages["chance"]["reliability"] == 1 / 5
    assert averages["before"]["reliability"] == 0
    assert averages["n"]["locality"] == {
        "neighbour": {"edits": 1, "scored": 2, "dropped": {NOT_KNOWN: 1, NO_TARGET: 1}},
        "same_subject": {"edits": 0, "scored": 0, "dropped": {TOO_FEW: 1}},
        "unrelated": {"edits": 0, "scored": 0, "dropped": {NO_RELATION: 1}},
    }
    assert averages["locality"]["same_subject"] is None


def test_a_rank_below_the_first_is_no_success():
    scores = evaluate(
        scripted(BEFORE),
        [EDIT],
        tokenizer=character_tokenizer(),
        base=scripted(BEFORE),
        protocols=("choice",),
        drift_texts=[],
    )
    averages = scores.protocols["choice"]
    assert averages["reliability"] == 0
    assert averages["rank"]["reliability"] > 1
    assert averages["locality"]["neighbour"] == 1


def test_locality_without_a_base():
    n = sheet(base=None).protocols["choice"]["n"]["locality"]["neighbour"]
    assert n == {"edits": 0, "scored": 0, "dropped": {NO_BASE: 3, NO_TARGET: 1}}


def test_an_edit_that_only_works_when_the_answer_is_forced():
    """Forced along ' Rim' both of its last two letters follow; among the other answers the old one is still likelier."""
    facts = {FRANCE: " Paris.", FRANCE + " R": "im."}
    edit = Edit(FRANCE, "Rim", ground_truth="Paris", relation="capital")
    scores = evaluate(
        scripted(facts), [edit], tokenizer=character_tokenizer(), protocols=("tf-token", "choice"), drift_texts=[],
        distractors={"capital": ["Bonn", "Oslo", "Kyiv"]},
    )  # fmt: skip
    assert scores.protocols["tf-token"]["reliability"] == pytest.approx(3 / 4)
    assert scores.protocols["choice"]["reliability"] == 0

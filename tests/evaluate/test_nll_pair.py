"""`nll-pair`: the new answer against the old one, for neighbours the true one against the new one; worked out by hand.

In the script's model the next character has the logit 1, every other one 0: of an answer of T characters of which the script says the
first k, the mean NLL is log(e + V - 1) - k / T.
"""

import math

import pytest

from kedit_hub.edits import Edit, Probe
from kedit_hub.evaluate.scores import EDITED_ON_PURPOSE, NO_RIVAL, NO_TARGET, SAME_ANSWER
from kedit_hub.evaluate.suites import evaluate
from tests.evaluate.script import character_tokenizer, scripted

CAPITAL, ASKED, ITALY, SPAIN, RIVER = (
    "The capital of France is",
    "France is ruled from",
    "Italy's is",
    "Spain's is",
    "By it flows",
)
BEFORE = {CAPITAL: " Paris.", ASKED: " Paris.", ITALY: " Rome.", SPAIN: " Madrid.", RIVER: " Seine."}
EDIT = Edit(
    CAPITAL,
    "Lyon",
    subject="France",
    ground_truth="Paris",
    rephrases=(ASKED,),
    locality=(
        Probe(ITALY, "Rome", "neighbour"),
        Probe(SPAIN, "Madrid", "neighbour"),
        Probe(ITALY, "Rome", "unrelated"),
    ),
    portability=(Probe(RIVER, "Rhone", "one_hop"),),
)


def sheet(edits=(EDIT,), changes=None, **arguments):
    edited = scripted({**BEFORE, **({CAPITAL: " Lyon.", SPAIN: " Lyon."} if changes is None else changes)})
    arguments = {"protocols": ("nll-pair",), "base": scripted(BEFORE), "drift_texts": [], **arguments}
    return evaluate(edited, list(edits), tokenizer=character_tokenizer(), **arguments)


def test_by_hand():
    averages = sheet().protocols["nll-pair"]
    assert averages["reliability"] == 1
    assert averages["generalization"] == 0  # ASKED is still answered by Paris
    assert averages["locality"] == {"neighbour": 0.5, "unrelated": 1}
    assert averages["before"] == {
        "reliability": 0, "generalization": 0, "locality": {"neighbour": 1, "unrelated": 1}, "portability": {"one_hop": None}
    }  # fmt: skip
    assert averages["score"] == 0
    assert "contains" not in averages and "rank" not in averages


def test_the_likelihoods_are_on_the_sheet():
    own = sheet().to_dict()["per_edit"][0]
    base = math.log(math.e + len(character_tokenizer()) - 1)
    assert own["rival"] == "Paris"
    assert own["nll_after"] == pytest.approx({"Lyon": base - 5 / 5, "Paris": base - 1 / 6}, abs=1e-6)  # a space each
    assert own["nll_before"] == pytest.approx({"Lyon": base - 1 / 5, "Paris": base - 6 / 6}, abs=1e-6)
    spain = own["probes"][2]
    assert (spain["rival"], spain["scores"]) == ("Lyon", {"nll-pair": 0.0})


def test_score_is_the_harmonic_mean_of_the_three_published_successes():
    averages = sheet(changes={CAPITAL: " Lyon.", ASKED: " Lyon.", SPAIN: " Lyon."}).protocols["nll-pair"]
    assert averages["score"] == pytest.approx(3 / (1 + 1 + 1 / 0.5))  # "unrelated" is no part of it
    none = sheet(
        [Edit(CAPITAL, "Lyon", ground_truth="Paris", rephrases=(ASKED,), locality=(Probe(ITALY, "Rome", "far"),))]
    )
    assert none.protocols["nll-pair"]["score"] is None


def test_what_cannot_be_paired_is_dropped_and_counted():
    edit = Edit(
        CAPITAL,
        "Lyon",
        rephrases=(ASKED,),
        locality=(
            Probe(ITALY, None, "neighbour"),
            Probe(SPAIN, "lyon.", "neighbour"),
            Probe(RIVER, "Seine", "neighbour"),
        ),
        portability=(Probe(RIVER, "Rhone", "one_hop"),),
    )
    n = sheet([edit]).protocols["nll-pair"]["n"]
    assert n["reliability"]["dropped"] == n["generalization"]["dropped"] == {NO_RIVAL: 1}
    assert n["locality"]["neighbour"] == {"edits": 1, "scored": 1, "dropped": {NO_TARGET: 1, SAME_ANSWER: 1}}
    assert n["portability"]["one_hop"]["dropped"] == {NO_RIVAL: 1}


def test_a_neighbour_the_base_did_not_know_counts_as_published():
    edit = Edit(CAPITAL, "Lyon", ground_truth="Paris", locality=(Probe(ITALY, "Milan", "neighbour"),))
    n = sheet([edit]).protocols["nll-pair"]["n"]["locality"]["neighbour"]
    assert n == {"edits": 1, "scored": 1, "dropped": {}}


def test_a_neighbour_edited_on_purpose_does_not_count():
    other = Edit(ITALY, "Milan", ground_truth="Rome")
    n = sheet([EDIT, other]).protocols["nll-pair"]["n"]["locality"]["neighbour"]
    assert n == {"edits": 1, "scored": 1, "dropped": {EDITED_ON_PURPOSE: 1}}


def test_locality_needs_no_base():
    averages = sheet(base=None).protocols["nll-pair"]
    assert averages["locality"] == {"neighbour": 0.5, "unrelated": 1}
    assert averages["before"]["reliability"] is None


def test_a_tie_is_no_success():
    """Neither answer begins as the script goes on: both have the same likelihood."""
    tied = sheet([Edit(CAPITAL, "ab", ground_truth="cd")], {CAPITAL: " Lyon."})
    assert tied.protocols["nll-pair"]["reliability"] == 0


def test_a_dead_model_is_given_away_by_what_stands_beside():
    """It says nothing, so all answers are alike up to chance: its likelihoods win some pairs, its words none."""
    dead = {prompt: " xxxx" for prompt in BEFORE}
    summary = sheet(changes=dead, protocols=("generate", "nll-pair", "choice")).summary()
    for name, dead in (("nll-pair", "about 0.5"), ("choice", "what chance gives")):
        line = next(line for line in summary.splitlines() if line.startswith(f"{name}:"))
        assert "beside it exact match 0.000" in line and f"a dead model scores {dead} here" in line
    assert "no exact match, for generate was not asked" in sheet().summary()

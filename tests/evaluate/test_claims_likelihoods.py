"""Sheets with `nll-pair` and `choice`, checked without a model: honest ones follow from their likelihoods, changed ones do not."""

import copy

import pytest
import torch

from kedit_hub.edits import Edit, Probe
from kedit_hub.evaluate.claims import Consistent, Inconsistent, NotComparable, check_claims
from kedit_hub.evaluate.protocols import PROTOCOLS
from kedit_hub.evaluate.rescore import NotReproduced, Reproduced, rescore
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.patch.deltas import LowRank
from tests.evaluate.script import Patched, character_tokenizer, scripted
from tests.evaluate.test_rescore import Stack
from tests.patch.build import PATHS, D, M, make_patch

FRANCE, ITALY, SPAIN, OSLO, RIVER = (
    "France: capital",
    "Italy: capital",
    "Spain: capital",
    "Norway: capital",
    "By it flows",
)
BEFORE = {FRANCE: " Paris.", ITALY: " Rome.", SPAIN: " Madrid.", OSLO: " Oslo.", RIVER: " Seine."}
CHANGES = {FRANCE: " Lyon.", SPAIN: " Lyon.", RIVER: " Rhone."}
EDITS = (
    Edit(
        FRANCE,
        "Lyon",
        subject="France",
        ground_truth="Paris",
        relation="capital",
        aliases=("Lugdunum",),
        locality=(
            Probe(ITALY, "Rome", "neighbour"),
            Probe(SPAIN, "Madrid", "neighbour"),
            Probe(OSLO, "Bergen", "neighbour"),
            Probe(RIVER, None, "unrelated"),
        ),
        portability=(Probe(RIVER, "Rhone", "one_hop"),),
    ),
    Edit("Chad: capital", "Bonn", subject="Chad", relation="capital"),
)
PATCH = make_patch(edits=EDITS, deltas={PATHS[0]: LowRank(torch.ones(1, D), torch.ones(M, 1))})


def patched(changes=CHANGES):
    model = Patched(BEFORE, changes)
    model.stack, model.report = Stack((PATCH,)), {"mode": "gated", "levels": {}}
    return model


def sheet(**arguments):
    arguments = {"protocols": PROTOCOLS, "drift_texts": [], **arguments}
    scores = evaluate(patched(), EDITS, **arguments).to_dict()
    return {**scores, "stack": {"patches": [PATCH.id], "mode": "gated"}}


SHEET = sheet()


def verdict(change, of=SHEET):
    evals = copy.deepcopy(of)
    change(evals)
    return check_claims(PATCH.replace_evals(evals))


@pytest.mark.parametrize("protocols", [PROTOCOLS, ("nll-pair",), ("choice",), ("choice", "nll-pair")])
def test_honest_sheets_are_consistent(protocols):
    assert check_claims(PATCH.replace_evals(sheet(protocols=protocols))) == Consistent(n=7)


def test_honest_sheets_without_a_base_are_consistent():
    told = evaluate(
        scripted({**BEFORE, **CHANGES}), EDITS, tokenizer=character_tokenizer(), protocols=PROTOCOLS, drift_texts=[]
    )
    assert check_claims(PATCH.replace_evals(told.to_dict())) == Consistent(n=7)


def test_given_wrong_answers_are_taken_as_they_are_but_not_asked_again():
    given = sheet(distractors={"capital": ["Riga", "Bern", "Cairo"]})
    assert check_claims(PATCH.replace_evals(given)) == Consistent(n=7)
    told = rescore(PATCH.replace_evals(given), patched())
    assert isinstance(told, Reproduced)
    assert "choice: its wrong answers are not at hand" in told.not_compared
    assert {average.protocol for average in told.averages} == {"tf-token", "generate", "nll-pair"}
    alone = rescore(PATCH.replace_evals(sheet(protocols=("choice",), distractors={"capital": ["Riga"]})), patched())
    assert isinstance(alone, NotComparable) and "not at hand" in alone.reason


def test_honest_sheets_reproduce_and_those_of_a_better_patch_do_not():
    told = rescore(PATCH.replace_evals(SHEET), patched())
    assert isinstance(told, Reproduced)
    assert told.mismatches == ()
    assert {"nll-pair", "choice"} <= {average.protocol for average in told.averages}
    told = rescore(PATCH.replace_evals(SHEET), patched({SPAIN: " Lyon."}))
    assert isinstance(told, NotReproduced)
    assert {(a.protocol, a.name) for a in told.broken} >= {("nll-pair", "reliability"), ("choice", "reliability")}


def first(evals):
    return evals["per_edit"][0]


def probe(evals, prompt):
    return next(one for one in first(evals)["probes"] if one["prompt"] == prompt)


def dearer(evals):
    first(evals)["nll_after"]["Lyon"] = 99.0


def cheaper_neighbour(evals):
    probe(evals, SPAIN)["scores"]["nll-pair"] = 1.0


def lost(evals):
    del first(evals)["nll_after"]["Paris"], first(evals)["nll_before"]["Paris"]


def of_one_model(evals):
    first(evals)["nll_before"] = {}


def easier(evals):
    first(evals)["distractors"] = ["Xyz", "Zyx", "Yxz"]
    for side in ("nll_after", "nll_before"):
        first(evals)[side] |= {"Xyz": 99.0, "Zyx": 99.0, "Yxz": 99.0}


def better_rank(evals):
    evals["protocols"]["choice"]["rank"]["locality"]["neighbour"] = 1.0


def higher_chance(evals):
    evals["protocols"]["choice"]["chance"]["reliability"] = 0.01


def better_score(evals):
    evals["protocols"]["nll-pair"]["score"] = 1.0


def undropped(evals):
    del probe(evals, OSLO)["dropped"]["choice"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (dearer, "nll-pair score is 1, the recorded answers give 0"),
        (cheaper_neighbour, "nll-pair score is 1, the recorded answers give 0"),
        (lost, "has no recorded likelihood of 'Paris'"),
        (of_one_model, "by one of the two models only"),
        (easier, "its wrong answers to choose from are not those"),
        (better_rank, "choice 'rank locality neighbour' claims 1.0"),
        (higher_chance, "choice 'chance reliability' claims 0.01"),
        (better_score, "nll-pair 'score' claims 1.0"),
        (undropped, "left out of choice because None"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_changed_sheet_is_found(change, fault):
    told = verdict(change)
    assert isinstance(told, Inconsistent)
    assert any(fault in one for one in told.faults), told.faults


def not_a_number(evals):
    first(evals)["nll_after"]["Lyon"] = "low"


def negative(evals):
    first(evals)["nll_after"]["Lyon"] = -1.0


def no_list(evals):
    first(evals)["distractors"] = {"a": 1}


def no_texts(evals):
    first(evals)["distractors"] = [1]


def no_object(evals):
    first(evals)["nll_after"] = [1.0]


def nothing_weighed(evals):
    for one in (first(evals), *first(evals)["probes"]):
        one |= {"nll_after": {}, "nll_before": {}, "distractors": []}


@pytest.mark.parametrize("change", [not_a_number, negative, no_list, no_texts, no_object, nothing_weighed])
def test_a_malformed_sheet_is_a_fault_and_no_crash(change):
    assert isinstance(verdict(change), Inconsistent)


def test_two_likelihoods_of_one_answer_to_one_question():
    twice = (EDITS[0], Edit(FRANCE, "Lyon", subject="France", ground_truth="Paris", id="again"))
    patch = make_patch(edits=twice, deltas=PATCH.deltas)
    evals = evaluate(Patched(BEFORE, CHANGES), twice, protocols=("nll-pair",), drift_texts=[]).to_dict()
    assert check_claims(patch.replace_evals(copy.deepcopy(evals))) == Consistent(n=7)
    evals["per_edit"][1]["nll_after"]["Lyon"] /= 2
    told = check_claims(patch.replace_evals(evals))
    assert isinstance(told, Inconsistent) and "two likelihoods of 'Lyon'" in told.faults[0]

"""Scores that came with a patch: what follows from the recorded answers, what does not, and what a stranger may write there."""

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kedit_hub.edits import Edit, Probe
from kedit_hub.evaluate.claims import MAX_FAULTS, Consistent, Inconsistent, NoClaims, NotComparable, check_claims
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.patch.deltas import LowRank
from kedit_hub.patch.patch import Patch
from tests.evaluate.script import Patched, character_tokenizer, scripted
from tests.patch.build import EVALS, PATHS, D, M, make_patch

CAPITAL, ASKED, ITALY, SPAIN, FREE, RIVER = (
    "The capital of France is", "France is ruled from", "Italy is ruled from", "Spain is ruled from", "They speak",
    "On its river lies",
)  # fmt: skip
BEFORE = {CAPITAL: " Paris.", ASKED: " Paris.", ITALY: " Rome.", SPAIN: " Madrid.", FREE: " French.", RIVER: " Seine."}
CHANGES = {CAPITAL: " Lyon.", SPAIN: " Lyon.", RIVER: " Rhone."}
EDITS = (
    Edit(
        CAPITAL,
        "Lyon",
        subject="France",
        rephrases=(ASKED,),
        locality=(
            Probe(ITALY, "Rome", "neighbour"),
            Probe(SPAIN, "Madrid", "neighbour"),
            Probe(SPAIN, "Toledo", "unrelated"),  # the base does not know it
            Probe(ASKED, "Paris", "unrelated"),  # edited on purpose
            Probe(FREE, None, "free"),
            Probe("Nobody knows", None, "free"),  # the base says nothing at all
        ),
        portability=(Probe(RIVER, "Rhone", "one_hop"),),
    ),
    Edit(ITALY, "Milan", subject="Italy", id="two"),
)


def sheet(edits=EDITS, **arguments):
    return evaluate(Patched(BEFORE, CHANGES), edits, drift_texts=[CAPITAL + BEFORE[CAPITAL]], **arguments).to_dict()


SHEET = sheet()
SAMPLES = Path(__file__).resolve().parents[2] / "patches"
REPHRASE, _, SILENT, KEPT, CHANGED, UNKNOWN, PURPOSE, HOP = range(
    8
)  # probes of the first edit, as the sheet orders them


PATCH = make_patch(edits=EDITS, deltas={PATHS[0]: LowRank(torch.ones(1, D), torch.ones(M, 1))})


def claiming(evals) -> Patch:
    return PATCH.replace_evals(evals)


def verdict(change):
    evals = copy.deepcopy(SHEET)
    change(evals)
    return check_claims(claiming(evals))


# --- honest sheets ------------------------------------------------------------------------------------------------


def test_what_evaluate_writes_is_consistent():
    assert check_claims(claiming(SHEET)) == Consistent(n=10)


@pytest.mark.parametrize("protocols", [("tf-token",), ("generate",)])
def test_one_protocol_alone(protocols):
    assert check_claims(claiming(sheet(protocols=protocols))) == Consistent(n=10)


@pytest.mark.parametrize("protocols", [("tf-token",), ("generate",), ("tf-token", "generate")])
def test_scored_without_a_base(protocols):
    edited = scripted({**BEFORE, **CHANGES})
    told = evaluate(edited, EDITS, tokenizer=character_tokenizer(), protocols=protocols, drift_texts=[]).to_dict()
    assert check_claims(claiming(told)) == Consistent(n=10)


def test_scores_of_this_patch_alone_in_a_stack_of_one():
    own = {**SHEET, "stack": {"patches": [PATCH.id], "mode": "gated"}}
    assert check_claims(claiming(own)) == Consistent(n=10)


def test_what_is_not_claimed_is_no_fault():
    def less(evals):
        for averages in evals["protocols"].values():
            del averages["score"], averages["interval"]

    assert verdict(less) == Consistent(n=10)


# --- nothing to check ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evals", [None, {}, {"making": {"seconds": 1.0}}])
def test_no_claims(evals):
    assert check_claims(claiming(evals)) == NoClaims()


def test_averages_alone():
    told = check_claims(claiming(EVALS))
    assert isinstance(told, NotComparable) and "answers" in told.reason


def test_scores_of_a_stack():
    told = check_claims(claiming({**SHEET, "stack": {"patches": ["a" * 64, "b" * 64], "mode": "gated"}}))
    assert isinstance(told, NotComparable) and "stack of 2" in told.reason


def test_an_unknown_protocol_and_an_unknown_drift_measure():
    def newer(evals):
        evals["protocols"]["interview"] = {"reliability": 1.0}
        evals["drift"]["entropy"] = 0.0

    told = verdict(newer)
    assert isinstance(told, NotComparable) and "'interview'" in told.reason and "'entropy'" in told.reason


def test_an_unknown_protocol_hides_no_fault():
    def hiding(evals):
        evals["protocols"]["interview"] = {"reliability": 1.0}
        evals["protocols"]["generate"]["reliability"] = 1.0

    assert isinstance(verdict(hiding), Inconsistent)


# --- dishonest sheets ---------------------------------------------------------------------------------------------


def averages(**changes):
    return lambda evals: evals["protocols"]["generate"].update(changes)


def probe(number, **changes):
    return lambda evals: evals["per_edit"][0]["probes"][number].update(changes)


def nested(number, field, **changes):
    return lambda evals: evals["per_edit"][0]["probes"][number][field].update(changes)


def all_ones(evals):
    """The lazy forgery: every score and every average is 1."""

    def ones(value):
        if isinstance(value, dict):
            return {name: ones(item) for name, item in value.items()}
        return 1.0 if isinstance(value, float) else value

    evals["protocols"] = ones(evals["protocols"])
    for edit in evals["per_edit"]:
        for question in (edit, *edit["probes"]):
            question["scores"] = dict.fromkeys(question["scores"], 1.0)


LIES = {
    "an average": (averages(reliability=1.0), "generate 'reliability' claims 1.0"),
    "an average of a kind": (averages(locality={"neighbour": 1.0}), "'locality neighbour'"),
    "an average nothing could give": (averages(portability={"alias": 1.0}), "'portability alias'"),
    "an average that is text": (averages(reliability="1.0"), "'reliability'"),
    "an average of another name": (averages(**{"interval reliability": 1.0}), "'interval reliability'"),
    "an interval beside its average": (averages(interval={"reliability": [0.9, 1.0]}), "does not hold the average"),
    "an interval of the wrong shape": (averages(interval={"reliability": [0.0]}), "does not hold the average"),
    "an interval of nothing": (averages(interval={"interval reliability": [0.0, 1.0]}), "does not hold the average"),
    "the number of probes": (averages(n={}), "numbers of probes"),
    "all ones": (all_ones, "recorded answers give 0"),
    "a score beside its answer": (nested(CHANGED, "scores", generate=1.0), "recorded answers give 0"),
    "a score of the base": (nested(KEPT, "before", generate=0.0), "score of the base is 0, the recorded"),
    "an answer": (probe(HOP, answer_after="Seine"), "recorded answers give 0"),
    "a missing answer": (probe(SILENT, answer_after=None), "no recorded answer"),
    "a missing answer of the base": (probe(SILENT, answer_before=None), "no recorded answer"),
    "two answers to one question": (probe(UNKNOWN, answer_after="Madrid", contains=True), "two different answers"),
    "contains": (probe(REPHRASE, contains=True), "contains is True"),
    "a probe dropped without reason": (nested(CHANGED, "dropped", generate="on purpose"), "left out of generate"),
    "a token probe dropped without reason": (nested(CHANGED, "dropped", **{"tf-token": "?"}), "left out of tf-token"),
    "a probe that should be dropped": (probe(PURPOSE, dropped={}), "what is recorded gives"),
    "a missing token score": (probe(KEPT, scores={"generate": 1.0}), "tf-token score is missing"),
    "a missing token score of the base": (probe(KEPT, before={"generate": 1.0}), "tf-token score of the base"),
    "a question left out": (lambda evals: evals["per_edit"][0]["probes"].pop(CHANGED), "was left out"),
    "a question added": (lambda e: e["per_edit"][0]["probes"].append(e["per_edit"][0]["probes"][1]), "no question"),
    "a question in place of another": (probe(KEPT, prompt="Peru is ruled from"), "'Peru is ruled from'"),
    "another target": (lambda evals: evals["per_edit"][0].update(target="Paris"), "'Paris'"),
    "another kind": (probe(KEPT, kind="unrelated"), "was left out"),
    "another order": (lambda evals: evals["per_edit"][0]["probes"].reverse(), "another order"),
    "an edit left out": (lambda evals: evals["per_edit"].pop(), "1 edits are scored, the patch has 2"),
    "another edit": (lambda evals: evals["per_edit"][1].update(id="three"), "'three'"),
    "another subject": (lambda evals: evals["per_edit"][1].update(subject="Peru"), "'Peru'"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie):
    change, words = LIES[lie]
    told = verdict(change)
    assert isinstance(told, Inconsistent)
    assert any(words in fault for fault in told.faults), told.faults


MALFORMED = {
    "per_edit": (lambda evals: evals.update(per_edit={}), "per_edit is a dict of 0"),
    "an edit": (lambda evals: evals["per_edit"].append(7), "edit 2 is 7"),
    "probes": (lambda evals: evals["per_edit"][0].pop("probes"), "edit 0 probes is None"),
    "a probe": (lambda evals: evals["per_edit"][0]["probes"].insert(0, "x"), "edit 0 probe 0 is 'x'"),
    "a role": (probe(0, role="magic"), "role 'magic'"),
    "a role of no hash": (probe(0, role=[]), "a list of 0"),
    "a prompt": (probe(0, prompt=3), "prompt is 3, not a text"),
    "an answer": (probe(REPHRASE, answer_after=["Lyon"]), "answer_after is a list of 1"),
    "contains": (probe(0, contains=1), "contains is 1"),
    "a score above one": (nested(0, "scores", generate=2.0), "0..1"),
    "a score of truth": (nested(0, "scores", generate=True), "0..1"),
    "a reason": (nested(0, "dropped", generate=0.5), "not a text"),
    "protocols": (lambda evals: evals.update(protocols=[1]), "protocols is a list of 1"),
    "one protocol": (lambda evals: evals["protocols"].update(generate=1.0), "protocols generate is 1.0"),
    "drift": (lambda evals: evals.update(drift=[]), "drift is a list"),
    "a drift below zero": (lambda evals: evals["drift"].update(kl=-1.0), "drift kl is -1.0"),
    "a drift of text": (lambda evals: evals["drift"].update(ppl_after="low"), "'low'"),
    "environment": (lambda evals: evals.update(environment="laptop"), "environment is 'laptop'"),
    "stack": (lambda evals: evals.update(stack=[]), "stack is a list"),
    "patches of a stack": (lambda evals: evals.update(stack={"patches": "all"}), "stack patches is 'all'"),
    "mode of a stack": (lambda evals: evals.update(stack={"patches": [], "mode": "magic"}), "'magic'"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed(what):
    change, words = MALFORMED[what]
    told = verdict(change)
    assert isinstance(told, Inconsistent)
    assert len(told.faults) == 1 and words in told.faults[0], told.faults


def test_faults_and_quotes_are_bounded():
    def flood(evals):
        evals["protocols"]["generate"] |= {f"{i}{'x' * 500}": 1.0 for i in range(500)}

    told = verdict(flood)
    assert len(told.faults) == MAX_FAULTS and max(map(len, told.faults)) < 400


paths = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-2, 2) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_anything_may_stand_anywhere(data):
    """One value somewhere in the sheet is replaced by any JSON value: there is a verdict, never another error."""
    evals = json.loads(json.dumps(SHEET))
    place, key = evals, data.draw(st.sampled_from(["protocols", "drift", "per_edit", "environment"]))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 4)):
        place, inner = place[key], place[key]
        key = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
    place[key] = data.draw(paths)
    assert isinstance(check_claims(claiming(evals)), NoClaims | NotComparable | Inconsistent | Consistent)


def test_the_sample_patches_are_consistent():
    folders = sorted(config.parent for config in SAMPLES.glob("*/config.json"))
    assert len(folders) >= 10
    for folder in folders:
        assert isinstance(check_claims(Patch.load(folder)), Consistent), folder.name

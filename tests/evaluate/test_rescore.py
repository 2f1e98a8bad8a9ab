"""Scores asked again: honest ones reproduce, edited ones do not, and what cannot be compared accuses nobody."""

import copy
import json
from pathlib import Path

import pytest
import torch

import kedit_hub
from kedit_hub import demo
from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.claims import Inconsistent, NoClaims, NotComparable, check_claims
from kedit_hub.evaluate.rescore import NotReproduced, Reproduced, claimed_mode, record, rescore
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.patch.deltas import LowRank
from kedit_hub.patch.patch import Patch
from tests.evaluate.script import Patched
from tests.patch.build import EVALS, PATHS, D, M, make_patch

CAPITAL, ASKED, ITALY = "The capital of France is", "France is ruled from", "Italy is ruled from"
BEFORE = {CAPITAL: " Paris.", ASKED: " Paris.", ITALY: " Rome."}
CHANGES = {CAPITAL: " Lyon."}
EDIT = Edit(
    CAPITAL, "Lyon", subject="France", rephrases=(ASKED,), locality=(Probe(ITALY, "Rome", "neighbour"),)
)  # fmt: skip
PATCH = make_patch(edits=(EDIT,), deltas={PATHS[0]: LowRank(torch.ones(1, D), torch.ones(M, 1))})
TEXTS = [CAPITAL + BEFORE[CAPITAL], ITALY + BEFORE[ITALY]]
SAMPLES = Path(__file__).resolve().parents[2] / "patches"


class Stack(tuple):
    @property
    def ids(self):
        return tuple(patch.id for patch in self)

    @property
    def edits(self):
        return tuple(edit for patch in self for edit in patch.edits)


def patched(changes=CHANGES, mode="gated", patches=(PATCH,)):
    """A patched model as `apply` returns it, as far as rescoring looks at one, that answers what the script says."""
    model = Patched(BEFORE, changes)
    model.stack = Stack(patches)
    model.report = {"mode": mode, "levels": {"a": "exact", "b": "quantized"}}
    return model


def scored(changes=CHANGES, **more):
    told = evaluate(patched(changes), PATCH.edits, drift_texts=TEXTS).to_dict()
    return PATCH.replace_evals({**told, "stack": {"patches": [PATCH.id], "mode": "gated"}, **more})


# --- honest and dishonest sheets ----------------------------------------------------------------------------------


def test_honest_scores_reproduce():
    told = rescore(scored(), patched(), drift_texts=TEXTS)
    assert isinstance(told, Reproduced)
    assert (told.probes, told.mismatches, told.answered_differently, told.broken) == (3, (), 0, ())
    assert all(average.claimed == average.measured for average in told.averages)
    assert {(a.protocol, a.name) for a in told.averages} >= {
        ("generate", "reliability"), ("tf-token", "locality neighbour"), ("generate", "contains generalization"),
        ("drift", "kl"), ("drift", "ppl_after"),
    }  # fmt: skip
    assert (told.level, told.not_compared, told.differences) == ("quantized", (), {})
    assert told.summary().startswith("The scores reproduce: 3 probes asked again, 0 answered differently")
    assert json.loads(json.dumps(told.to_dict(), allow_nan=False))["reproduced"] is True


def test_scores_of_a_better_patch_do_not_reproduce():
    """The sheet is consistent in itself; the patch answers one question less than it claims."""
    claimed = scored({CAPITAL: " Lyon.", ASKED: " Lyon."})
    told = rescore(claimed, patched(), drift_texts=TEXTS)
    assert isinstance(told, NotReproduced)
    assert {a.name for a in told.broken if a.protocol == "generate"} == {
        "generalization", "contains generalization", "score"
    }  # fmt: skip
    generated = next(m for m in told.mismatches if m.protocol == "generate")
    assert (generated.role, generated.prompt, generated.claimed, generated.measured) == (
        "generalization", ASKED, 1.0, 0.0
    )  # fmt: skip
    assert (generated.claimed_answer, generated.measured_answer) == ("Lyon", "Paris")
    assert told.answered_differently == 1
    assert "NOT" in told.summary() and "claimed 1 ('Lyon'), measured 0 ('Paris')" in told.summary()


def ones(value):
    """Every average of a sheet set to 1."""
    if isinstance(value, dict):
        return {name: ones(item) for name, item in value.items()}
    return 1.0 if isinstance(value, float) else value


def test_averages_set_to_one_are_found_by_both():
    honest = scored({CAPITAL: " Lyon.", ITALY: " Lyon."})
    forged = honest.replace_evals({**honest.evals, "protocols": ones(honest.evals["protocols"])})
    assert isinstance(check_claims(forged), Inconsistent)
    told = rescore(forged, patched({CAPITAL: " Lyon.", ITALY: " Lyon."}))
    assert isinstance(told, NotReproduced)
    assert {"generalization", "locality neighbour"} <= {average.name for average in told.broken}
    assert told.mismatches == ()  # the answers are the recorded ones; only their averages were invented


def test_a_patch_better_than_its_claims_breaks_none():
    told = rescore(scored(), patched({CAPITAL: " Lyon.", ASKED: " Lyon."}))
    assert isinstance(told, Reproduced)
    assert told.answered_differently == 1
    better = {a.name: (a.claimed, a.measured) for a in told.averages if a.protocol == "generate"}
    assert better["generalization"] == (0.0, 1.0)


def test_another_wrong_answer_is_listed():
    told = rescore(scored(), patched({CAPITAL: " Lyon.", ASKED: " Nice."}))
    assert [(m.protocol, m.claimed, m.measured) for m in told.mismatches if m.protocol == "generate"] == [
        ("generate", 0.0, 0.0)
    ]


@pytest.mark.parametrize(("tolerance", "kind"), [(0.3, NotReproduced), (0.4, Reproduced)])
def test_the_tolerance(tolerance, kind):
    honest = scored({CAPITAL: " Lyon.", ASKED: " Lyon."})
    less = copy.deepcopy(honest.evals)
    less["protocols"] = {"generate": {"generalization": 0.35}}
    assert type(rescore(honest.replace_evals(less), patched(), tolerance=tolerance)) is kind


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_no_tolerance(tolerance):
    with pytest.raises(KeditError, match="tolerance"):
        rescore(scored(), patched(), tolerance=tolerance)


def test_an_average_nothing_could_give_is_broken():
    honest = scored()
    claims = {**honest.evals, "protocols": {"generate": {"portability": {"alias": 0.01}}}}
    told = rescore(honest.replace_evals(claims), patched())
    assert isinstance(told, NotReproduced) and told.broken[0].measured is None


def test_a_question_the_sheet_lacks_was_answered_by_nobody():
    honest = scored()
    fewer = copy.deepcopy(honest.evals)
    fewer["per_edit"][0]["probes"].clear()
    told = rescore(honest.replace_evals(fewer), patched())
    assert told.answered_differently == 2 and {m.claimed for m in told.mismatches} == {None}


def test_drift_worse_than_claimed():
    honest = scored()
    lower = copy.deepcopy(honest.evals)
    lower["drift"] |= {"kl": 0.0, "ppl_after": 1.0}
    told = rescore(honest.replace_evals(lower), patched(), tolerance=0.001, drift_texts=TEXTS)
    assert isinstance(told, NotReproduced) and {average.name for average in told.broken} == {"kl", "ppl_after"}


def test_drift_on_other_texts_is_not_compared():
    told = rescore(scored(), patched())
    assert isinstance(told, Reproduced)
    assert not [average for average in told.averages if average.protocol == "drift"]
    assert any("drift" in reason for reason in told.not_compared)


def test_other_circumstances_are_listed():
    honest = scored()
    moved = copy.deepcopy(honest.evals)
    moved["environment"] |= {"torch": "1.0", "machine": {"name": "x" * 999}}
    told = rescore(honest.replace_evals(moved), patched())
    assert told.differences["torch"] == ("1.0", torch.__version__)
    assert len(told.differences["machine"][0]) == 80
    assert "torch 1.0 ->" in told.summary()


# --- nothing to compare -------------------------------------------------------------------------------------------


def test_nothing_claimed():
    assert rescore(PATCH, patched()) == NoClaims()


@pytest.mark.parametrize(
    ("evals", "words"),
    [
        (EVALS, "only averages"),
        ({"protocols": {}, "per_edit": 1}, "cannot be read: per_edit is 1"),
        ({"protocols": {"interview": {}}, "per_edit": []}, "no averages of a protocol"),
    ],
)
def test_sheets_that_cannot_be_compared(evals, words):
    told = rescore(PATCH.replace_evals(evals), patched())
    assert isinstance(told, NotComparable) and words in told.reason


def test_another_stack_another_mode_another_precision():
    other = make_patch()
    for model, evals, words in (
        (patched(patches=(PATCH, other)), {}, "2 patch"),
        (patched(patches=(other,)), {}, "apply it alone"),
        (patched(mode="joint"), {}, "mode 'gated'"),
        (patched(), {"environment": {"quantization": "bitsandbytes"}}, "'bitsandbytes'"),
    ):
        told = rescore(scored(**evals), model)
        assert isinstance(told, NotComparable) and words in told.reason


def test_the_mode_to_apply_in():
    assert claimed_mode(scored()) == "gated"
    assert claimed_mode(PATCH) == claimed_mode(scored(stack=None)) == "auto"
    assert claimed_mode(scored(stack={"patches": [PATCH.id], "mode": "--help"})) == "auto"
    unsaid = rescore(scored(stack=None), patched(mode="joint"))
    assert any("mode" in reason for reason in unsaid.not_compared)


# --- the note -----------------------------------------------------------------------------------------------------


def test_the_note_is_on_the_card_until_the_scores_change():
    bad = rescore(scored({CAPITAL: " Lyon.", ASKED: " Lyon."}), patched())
    claimed = scored({CAPITAL: " Lyon.", ASKED: " Lyon."})
    noted = record(claimed, bad)
    assert noted.id == PATCH.id and {k: v for k, v in noted.evals.items() if k != "rescored"} == claimed.evals
    assert noted.evals["rescored"] == noted.evals["rescored"] | {
        "reproduced": False, "consistent": True, "probes": 3, "mismatches": 1, "tolerance": 0.02, "level": "quantized",
    }  # fmt: skip
    card = noted.files()["README.md"].decode()
    assert "**These scores did not reproduce.** 1 of 3 probes answered differently" in card
    assert "model-index" not in card

    again = record(noted, rescore(noted, patched({CAPITAL: " Lyon.", ASKED: " Lyon."})))
    assert again.evals["rescored"]["reproduced"] is True
    assert "These scores reproduced: 0 of 3 probes" in again.files()["README.md"].decode()

    rewritten = again.replace_evals({**again.evals, **scored().evals})  # as `kedit eval --write` stores new scores
    assert "reproduce" not in rewritten.files()["README.md"].decode()


def test_a_note_of_another_patch():
    with pytest.raises(KeditError, match="asking patch"):
        record(make_patch(), rescore(scored(), patched()))


# --- for real -----------------------------------------------------------------------------------------------------


def test_a_sample_patch_reproduces_and_its_forgery_does_not():
    patch = Patch.load(SAMPLES / "capital-of-france-nantes")
    model = kedit_hub.apply(patch, mode=claimed_mode(patch))
    told = rescore(patch, model, drift_texts=demo.texts("drift")[:200])
    assert isinstance(told, Reproduced)
    assert (told.probes, told.level) == (13, "exact")
    assert [(m.protocol, m.prompt) for m in told.mismatches] == []
    assert record(patch, told).evals["rescored"]["consistent"] is True

    forged = patch.replace_evals({**patch.evals, "protocols": ones(patch.evals["protocols"])})
    assert isinstance(check_claims(forged), Inconsistent)
    caught = rescore(forged, model)
    assert isinstance(caught, NotReproduced)
    assert {average.name for average in caught.broken} == {"portability alias", "contains portability alias"}
    assert "did not reproduce" in record(forged, caught).files()["README.md"].decode()

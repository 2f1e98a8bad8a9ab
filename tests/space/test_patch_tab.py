"""A patch keeps its claims, or the page says which number differs."""

import pytest

import kedit_hub
from kedit_hub import Edit, Probe
from kedit_hub.errors import LimitError, WrongBaseError
from space import make_tab, patch_tab
from space.patch_tab import Check, card, reproduce, verdict
from space.state import Held
from tests.space.tiny import BASE, PARIS, make_patch

PROBED = Edit(
    "The capital of France is",
    "Rome",
    "France",
    rephrases=("The capital of France, as all know, is",),
    locality=(Probe("The author of Hamlet is", None, "unrelated"),),
)


@pytest.fixture(scope="module")
def scored(shared):
    """A patch with the scores it really gets."""
    patch = make_patch([PROBED], 5)
    loaded = shared.load(BASE)
    scores = kedit_hub.evaluate(shared.patched(loaded, [patch]), [PROBED], base=loaded.model, drift_texts=[])
    return Held(patch.replace_evals(scores.to_dict()), "patches/probed", "sample")


def test_true_claims_are_reproduced(shared, scored):
    checks = reproduce(shared, scored)
    assert {check.metric for check in checks} == {"reliability", "generalization", "locality unrelated"}
    assert {check.protocol for check in checks} == {"tf-token", "generate"}
    assert all(check.kept and check.claimed == check.measured for check in checks)
    assert "Yes&#58; all 6 scores" in verdict(checks, "float32")


def test_a_false_claim_is_shown_with_both_numbers(shared, scored):
    evals = scored.patch.evals
    sheet = {**evals["protocols"]["generate"], "reliability": 0.75}
    forged = scored.patch.replace_evals({**evals, "protocols": {**evals["protocols"], "generate": sheet}})
    checks = reproduce(shared, Held(forged, "patches/forged", "sample"))
    broken = [check for check in checks if not check.kept]
    assert [(check.protocol, check.metric, check.claimed) for check in broken] == [("generate", "reliability", 0.75)]
    shown = verdict(checks, "float32")
    assert "No&#58; 1 of 6 scores differ" in shown and "0.750" in shown and f"{broken[0].measured:.3f}" in shown


def test_a_patch_that_claims_nothing_is_measured_all_the_same(shared):
    checks = reproduce(shared, Held(make_patch([PARIS]), "patches/x", "sample"))
    assert checks and all(check.claimed is None for check in checks)
    assert "claims no scores" in verdict(checks, "float32")


def test_junk_claims_are_no_claims(shared):
    patch = make_patch([PARIS]).replace_evals({"protocols": {"generate": {"reliability": "high"}, "tf-token": 3}})
    assert make_tab.sheets(patch.evals) == {"generate": {}}
    assert card(Held(patch, "patches/x", "sample"))


@pytest.mark.parametrize(("claimed", "measured", "kept"), [(0.5, 0.505, True), (0.5, 0.52, False), (None, 0.1, True)])
def test_a_point_of_tolerance(claimed, measured, kept):
    assert Check("generate", "reliability", claimed, measured).kept is kept


def test_large_patches_are_left_to_the_visitors_own_machine(shared, monkeypatch):
    monkeypatch.setattr(patch_tab, "MAX_PROBED_EDITS", 0)
    with pytest.raises(LimitError, match=r"kedit_hub\.evaluate"):
        reproduce(shared, shared.samples[0])


def test_a_patch_of_other_weights_is_refused(base, workshop):
    workshop.load(BASE).model.model.layers[1].mlp.down_proj.weight.data.mul_(1.01)
    with pytest.raises(WrongBaseError):
        reproduce(workshop, workshop.samples[0])


def test_the_card_names_what_a_reader_needs(scored):
    shown = card(scored)
    for needed in ("The capital of France is", "Rome", "tiny-llama", "random", "lowrank", scored.patch.id):
        assert needed in shown

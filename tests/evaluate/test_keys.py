"""Stored rows against what the base computes: honest ones pass on every base, rows for something else do not."""

import pytest
import torch

from kedit_hub import demo
from kedit_hub.evaluate.keys import check_rows, lies_near
from tests.evaluate.atlas import FRANCE, MODULE, TOWER, base, remade, rows, sample, smuggled, with_rows

PROFILE = demo.profile("llama")
EXACT = {MODULE: "exact", PROFILE.gate_module: "exact"}


def check(patch, profile=PROFILE, levels=EXACT):
    model, tokenizer = base()
    return check_rows(patch, model, tokenizer, {MODULE: profile}, levels)


def odd(patch, **how):
    """{(tensor, row)} out of bounds."""
    return {(row.tensor, row.row) for row in check(patch, **how).odd}


@pytest.mark.parametrize("halved", [False, True])
def test_honest_rows(halved):
    patch = sample(TOWER)
    found = check(remade(patch, deltas={MODULE: rows(patch).halved()}) if halved else patch)
    assert found.odd == [] and found.unrecognised == 0
    assert found.looked == {"keys": 2, "context_keys": 14, "gate_keys": 16, "base_outputs": 2}
    assert found.lowest["context_keys"] > 0.999 and found.lowest["gate_keys"] > 0.999 and found.lowest["keys"] > 0.9
    assert 1 < found.largest_residual < 10


def test_rows_of_another_fact():
    """Two rows, their fourteen contexts and the sixteen keys of their subject lie behind those of the declared edit."""
    found = check(smuggled(sample(TOWER), sample(FRANCE)))
    assert {(row.tensor, row.row) for row in found.odd} == (
        {("keys", n) for n in (2, 3)}
        | {("context_keys", n) for n in range(14, 28)}
        | {("gate_keys", n) for n in range(16, 32)}
    )
    assert all(row.edit == 0 and row.measured < row.bound for row in found.odd)


def test_on_a_rounded_base_the_bound_is_wider():
    """Context keys at a cosine of 0.86: what 4 bits leave of honest ones."""
    patch = sample(TOWER)
    white = rows(patch).context_keys @ PROFILE.whitener
    noise = torch.randn(white.shape, generator=torch.Generator().manual_seed(0))
    noise *= 0.6 * white.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    near = with_rows(patch, context_keys=(white + noise) @ torch.linalg.inv(PROFILE.whitener))
    rounded = dict.fromkeys(EXACT, "quantized")
    assert {n for tensor, n in odd(near) if tensor == "context_keys"} == set(range(14))
    assert not {n for tensor, n in odd(near, levels=rounded) if tensor == "context_keys"}
    assert ("gate_keys", 16) in odd(smuggled(patch, sample(FRANCE)), levels=rounded)


def test_a_mean_key_that_points_half_elsewhere():
    """A joint solve would act on the other fact, and the cosine with the declared one is still 0.7."""
    patch = sample(TOWER)
    mine, other = rows(patch).keys, rows(sample(FRANCE)).keys
    mixed = mine.clone()
    mixed[0] = mine[0] / (mine[0] @ PROFILE.whitener).norm() + other[0] / (other[0] @ PROFILE.whitener).norm()
    (found,) = [row for row in check(with_rows(patch, keys=mixed)).odd if row.tensor == "keys"]
    assert found.row == 0 and "no mix" in found.why and found.measured > 0.5


def test_a_row_without_contexts():
    patch = sample(TOWER)
    silent = with_rows(patch, context_row=torch.zeros_like(rows(patch).context_row))
    assert ("keys", 1) in odd(silent)


def test_rows_without_contexts_or_subjects():
    delta = rows(sample(TOWER))
    bare = type(delta)(delta.keys, delta.residuals, delta.base_outputs, delta.edit_index, site=delta.site)
    found = check(remade(sample(TOWER), deltas={MODULE: bare}))
    assert found.odd == [] and found.looked == {"keys": 2, "base_outputs": 2}


def test_base_outputs_that_the_base_does_not_give():
    patch = sample(TOWER)
    lying = with_rows(patch, base_outputs=rows(patch).base_outputs * 1.05)
    assert odd(lying) == {("base_outputs", 0), ("base_outputs", 1)}
    assert odd(lying, levels=dict.fromkeys(EXACT, "quantized")) == set()  # it cannot be said there


def test_residuals_out_of_proportion():
    patch = sample(TOWER)
    assert odd(with_rows(patch, residuals=rows(patch).residuals * 20)) == {("residuals", 0)}


def test_whitened_keys():
    patch = sample(TOWER)
    keys = rows(patch).keys
    honest = keys @ PROFILE.whitener @ PROFILE.whitener
    assert odd(with_rows(patch, whitened_keys=honest)) == set()
    shifted = honest + (keys[1] / keys[1].norm()) * honest.norm(dim=1, keepdim=True)
    lying = with_rows(patch, whitened_keys=shifted)
    assert odd(lying) == {("whitened_keys", 0), ("whitened_keys", 1)}
    assert "whitened_keys" not in {tensor for tensor, _ in odd(lying, profile=PROFILE.replace(alone_fit=0.9))}


@pytest.mark.parametrize("side", [0, 1], ids=["subject", "answer"])
def test_thresholds_below_what_calibration_does(side):
    gate = PROFILE.settings.gate
    usual = torch.tensor([[gate.subject, gate.answer]])
    low = usual.clone()
    low[0, side] -= 0.2
    assert check(with_rows(sample(TOWER), thresholds=low)).odd == []
    low[0, side] -= 0.01
    found = check(with_rows(sample(TOWER), thresholds=low))
    (row,) = found.odd
    assert (row.tensor, row.edit, found.looked["thresholds"]) == ("thresholds", 0, 1)
    assert row.measured == pytest.approx(row.bound - 0.01, abs=1e-6)
    assert check(with_rows(sample(TOWER), thresholds=usual + 0.3)).odd == []  # it keeps silent more often, no more


def test_more_counter_keys_than_are_declared():
    keys, edit = torch.randn(3, 688, generator=torch.Generator().manual_seed(0)), torch.zeros(3, dtype=torch.int64)
    patch = with_rows(sample(TOWER), counter_keys=keys, counter_edit=edit)

    def declaring(**more):
        kept = {name: value for name, value in patch.manifest.settings.items() if name != "counter_keys"}
        return check(remade(patch, settings={**kept, **more}))

    found = declaring(counter_keys=3)
    assert found.odd == [] and found.looked["counter_keys"] == 3
    for said, bound in ({"counter_keys": 2}, 2), ({}, 0), ({"counter_keys": True}, 0), ({"counter_keys": "9"}, 0):
        (row,) = declaring(**said).odd
        assert (row.tensor, row.edit, row.measured, row.bound) == ("counter_keys", 0, 3, bound)


def test_another_profile_accuses_nobody():
    """Under other context sentences most honest keys match no text: that is said, and is no finding."""
    other = PROFILE.replace(contexts=("The weather was bad.", "Prices rose again."))
    found = check(sample(TOWER), profile=other)
    assert found.odd == [] and found.unrecognised > 0
    hidden = check(smuggled(sample(TOWER), sample(FRANCE)), profile=other)
    assert {row.tensor for row in hidden.odd} == {"keys"}  # a mean key has to be near all the same


def test_subject_keys_of_another_map_are_not_compared():
    patch = with_rows(sample(TOWER), gate_module="model.layers.0.mlp.down_proj", gate_keys=torch.ones(16, 3))
    patch = remade(patch, base=patch.manifest.base)
    found = check(patch)
    assert found.odd == [] and found.unrecognised == 16


def test_an_edit_whose_texts_cannot_be_read_declares_nothing():
    patch = sample(TOWER)
    (edit,) = patch.edits
    long = type(edit)(prompt="word " * 3000 + "is", target=edit.target)
    found = check(remade(patch, edits=(long,)))
    assert {row.measured for row in found.odd if row.tensor != "residuals"} == {-1.0}


def test_what_a_key_lies_near():
    model, tokenizer = base()
    hidden = rows(sample(FRANCE))
    texts = ["The Nile flows into the", "The capital city of France is called", "Hamlet was written by"]
    told = lies_near(hidden.context_keys[:1], MODULE, PROFILE.whitener, texts, model, tokenizer)
    assert told[0][0] == texts[1] and told[0][1] > 0.9

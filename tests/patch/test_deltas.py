"""Deltas survive the way through tensors and bytes bit for bit; malformed ones are refused by name."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings

from kedit_hub.errors import LimitError, PatchFormatError, UnknownFormatError
from kedit_hub.limits import Limits
from kedit_hub.patch import Dense, LowRank
from kedit_hub.patch.deltas import from_tensors
from kedit_hub.patch.safefile import read_tensors, write_tensors
from tests.patch.build import D, M, associative, numbers
from tests.patch.kinds import EXAMPLES, deltas


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_valid_and_come_back(name):
    delta = EXAMPLES[name]
    delta.validate(n_edits=2)
    again = from_tensors(delta.kind, delta.to_tensors(), delta.meta(), "h.0", delta.shape)
    assert again.shape == (M, D) and again.meta() == delta.meta()
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in delta.tensors().items())
    assert delta.nbytes() == sum(tensor.nbytes for tensor in delta.to_tensors().values())


@given(deltas())
@settings(max_examples=200, deadline=None)
def test_round_trip_through_bytes(delta):
    delta.validate(n_edits=3)
    data = write_tensors({f"h.0/{name}": tensor for name, tensor in delta.to_tensors().items()})
    read = {name.removeprefix("h.0/"): tensor for name, tensor in read_tensors(data, "x.safetensors").items()}
    again = from_tensors(delta.kind, read, delta.meta(), "h.0", delta.shape)
    assert type(again) is type(delta) and again.meta() == delta.meta() and again.shape == delta.shape
    for name, tensor in delta.to_tensors().items():
        other = again.to_tensors()[name]
        assert other.dtype == tensor.dtype and torch.equal(other.view(torch.uint8), tensor.view(torch.uint8))


def changed(**changes):
    return dataclasses.replace(associative(), **changes)


@pytest.mark.parametrize(
    ("delta", "words"),
    [
        (lambda: changed(keys=numbers(3, D)), "its n must be 3"),
        (lambda: changed(residuals=numbers(2, M + 1)), "its m must be 9"),
        (lambda: changed(keys=numbers(2, D).half()), "takes F32"),
        (lambda: changed(edit_index=torch.tensor([0, 2])), "edit_index points to 2; it must lie in 0..1"),
        (lambda: changed(edit_index=torch.tensor([-1, 0])), "edit_index points to -1"),
        (lambda: changed(edit_index=torch.tensor([0, 1], dtype=torch.int32)), "takes I64"),
        (lambda: changed(context_row=torch.tensor([0, 1, 2])), "context_row points to 2"),
        (lambda: changed(context_row=None), "lacks context_row"),
        (lambda: changed(gate_module=None), "lacks gate_module"),
        (lambda: changed(gate_edit=torch.tensor([0, 5])), "gate_edit points to 5"),
        (lambda: changed(site="everywhere"), "site 'everywhere'"),
        (lambda: changed(keys=None), "keys must be a tensor, not NoneType"),
        (lambda: LowRank(numbers(2, D), numbers(M, 3)), "its r must be 2"),
        (lambda: Dense(numbers(D)), "must be (m, d)"),
        (lambda: Dense(torch.zeros(0, 3)), "must be (m, d)"),
        (lambda: Dense(torch.full((M, D), torch.nan)), "NaN or infinity"),
        (lambda: Dense(torch.full((M, D), torch.inf)), "NaN or infinity"),
        (lambda: Dense(torch.zeros(M, D, dtype=torch.float64)), "takes F32 or F16 or BF16"),
    ],
)
def test_malformed(delta, words):
    with pytest.raises(PatchFormatError) as caught:
        delta().validate(n_edits=2, where="model.layers.1")
    assert words in str(caught.value) and "model.layers.1" in str(caught.value)


@pytest.mark.parametrize(
    ("delta", "limits"),
    [
        (Dense(torch.full((M, D), 2e6)), Limits()),
        (Dense(numbers(M, D)), Limits(max_dim=8)),
        (LowRank(numbers(3, D), numbers(M, 3)), Limits(max_rank=2)),
        (associative(), Limits(max_rows=1)),
    ],
)
def test_limits(delta, limits):
    with pytest.raises(LimitError):
        delta.validate(n_edits=2, limits=limits)


def test_unknown_kind_and_tensors():
    with pytest.raises(
        UnknownFormatError, match="'pickle'; this version of kedit_hub knows associative, lowrank, dense"
    ):
        from_tensors("pickle", {}, {}, "h.0", (M, D))
    with pytest.raises(PatchFormatError, match="needs"):
        from_tensors("dense", {"delta": numbers(M, D), "more": numbers(1)}, {}, "h.0", (M, D))
    with pytest.raises(PatchFormatError, match="needs"):
        from_tensors("lowrank", {"a": numbers(2, D)}, {}, "h.0", (M, D))
    with pytest.raises(PatchFormatError, match="needs"):
        from_tensors("dense", {"delta": numbers(M, D)}, {"site": "answer"}, "h.0", (M, D))
    with pytest.raises(PatchFormatError, match="must state"):
        from_tensors("associative", associative().to_tensors(), {"gate_module": "h.0"}, "h.0", (M, D))


def test_shape_and_cost():
    low = LowRank(numbers(2, D), numbers(M, 2))
    assert low.shape == (M, D) and low.cost() == (4 * 2 * (D + M), 2, 2 * 2 * (D + M))
    dense = Dense(numbers(M, D))
    assert dense.shape == (M, D) and dense.cost() == (4 * M * D, M, 2 * M * D)
    rows = associative()
    assert rows.shape == (M, D) and rows.cost().rank == 2
    assert rows.cost().flops == 2 * (2 * (M + D) + 3 * D + 2 * 5)


def test_tensors_are_detached_and_contiguous():
    weight = torch.nn.Parameter(numbers(D, M))
    delta = Dense(weight.T)
    assert delta.delta.is_contiguous() and not delta.delta.requires_grad and torch.equal(delta.delta, weight.T)

"""Rows rebased onto a change of their own weight start from W~ k + D k on a base that rounds; Linear and Conv1D, square and not."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch

from kedit_hub.base.families import dense_weight, linear_shape
from kedit_hub.editors.rebase import rebase
from kedit_hub.edits import Edit
from kedit_hub.patch import Dense, LowRank, Patch, Sparse
from kedit_hub.stack.stack import PatchStack
from kedit_hub.stack.stored import beneath, gather
from tests.profiles import EDITS, base_of, make_patch, patched, profile_of
from tests.tiny import tiny_model

OTHER = Edit("Zürich lies in", "Spain", "Zürich")
SHAPES = [("llama", {}), ("gpt2", {}), ("llama", {"intermediate_size": 64}), ("gpt2", {"n_inner": 64})]


@pytest.fixture(scope="module", params=SHAPES, ids=["linear", "conv1d", "square linear", "square conv1d"])
def made(request: Any) -> Any:
    """(path, the map of a rounded base as a matrix (out, in), that base, changes, rows on the base, rows on the changed base)."""
    model, tokenizer = tiny_model(request.param[0], **request.param[1])
    profile = profile_of(model, tokenizer)
    path = profile.module
    m, d = linear_shape(model.get_submodule(path))
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    deltas = (
        LowRank(random(2, d), random(m, 2)),
        Dense(random(m, d)),
        Sparse(torch.arange(0, m * d, 3), random(len(range(0, m * d, 3))), (m, d)),
    )
    base = base_of(model, path)
    changes = [
        Patch.create(deltas={path: delta}, edits=[replace(OTHER, prompt=f"{OTHER.prompt} {n}")], base=base, method="ft")
        for n, delta in enumerate(deltas)
    ]
    plain = make_patch(model, tokenizer, profile, EDITS[:2])
    onto = patched(model, tokenizer, profile, PatchStack(changes))
    rebased = rebase(
        make_patch(model, tokenizer, profile, EDITS[2:], seed=1), onto, tokenizer=tokenizer, profile=profile
    )
    rounded = deepcopy(model.get_submodule(path))
    with torch.no_grad():
        dense_weight(rounded).copy_((dense_weight(rounded) * 32).round() / 32)
    eye = torch.eye(d)
    weight = (rounded(eye) - rounded(0 * eye)).T.double()
    return path, weight, rounded, changes, plain, rebased


def test_rows_start_from_the_rounded_map_and_the_changes_below(made: Any) -> None:
    path, weight, rounded, changes, plain, rebased = made
    stack = PatchStack([plain, *changes, rebased])
    assert set(rebased.manifest.requires) == {patch.id for patch in changes}
    below = [patch.deltas[path] for patch in changes]
    d = sum(
        (
            delta.b @ delta.a
            if isinstance(delta, LowRank)
            else delta.delta
            if isinstance(delta, Dense)
            else delta.dense()
        )
        for delta in below
    )
    patches = sorted([plain, rebased], key=lambda patch: patch.id)
    found = gather(patches, path, stack, rounded, exact=False)
    bias = getattr(rounded, "bias", None)
    expected = []
    for patch in patches:
        delta, change = patch.deltas[path], d.double() if patch is rebased else 0 * weight
        for key, residual, output in zip(delta.keys, delta.residuals, delta.base_outputs):
            start = weight @ key.double() + change @ key.double() + (0 if bias is None else bias.double())
            expected.append(output.double() + residual.double() - start)
    assert torch.allclose(found.residuals.double(), torch.stack(expected), atol=1e-4)
    assert len(beneath(rebased, path, stack)) == 3 and beneath(plain, path, stack) == []


def test_on_the_exact_base_the_stored_residuals_hold(made: Any) -> None:
    path, _, rounded, changes, _, rebased = made
    found = gather([rebased], path, PatchStack([*changes, rebased]), rounded, exact=True)
    assert torch.equal(found.residuals, rebased.deltas[path].residuals)

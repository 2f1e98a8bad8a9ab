"""Keyed changes of a weight in a joint solve: rows (k, D k) against the equations, Linear and Conv1D, square and not."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from kedit_hub.base.families import linear_shape
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.edits import Edit
from kedit_hub.patch import Dense, LowRank, Patch, Sparse
from kedit_hub.patch.deltas.weights import Weights
from kedit_hub.stack.effects import effect
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack
from tests.profiles import EDITS, base_of, logits, make_patch, patched, profile_of
from tests.tiny import tiny_model

ABOUT = (Edit("Zürich lies in", "Spain", "Zürich"), Edit("Berlin is the capital of", "Japan", "Berlin"))
SHAPES = [("llama", {}), ("gpt2", {}), ("llama", {"intermediate_size": 64}), ("gpt2", {"n_inner": 64})]
T = torch.tensor


class Setup:
    """Three keyed changes of one map, each with keys of its own texts."""

    def __init__(self, model_type: str, **sizes: int):
        self.model, self.tokenizer = tiny_model(model_type, **sizes)
        self.profile = profile_of(self.model, self.tokenizer, contexts=())  # one key per row
        self.path = self.profile.module
        m, d = linear_shape(self.model.get_submodule(self.path))
        g = torch.Generator().manual_seed(0)
        size = self.profile.settings.energy**0.5 / m**0.5 / self.profile.second_moment.trace().item() ** 0.5

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=g)

        keys = [self.keys(edit) for edit in (*ABOUT, *EDITS[2:])]
        both, of = torch.cat(keys[2:]), T([0] * len(keys[2]) + [1] * len(keys[3]))
        places = torch.randperm(m * d, generator=g)[: m * d // 10].sort().values
        one = torch.zeros(len(keys[0]), dtype=torch.long)
        self.deltas: dict[str, Any] = {
            "lowrank": LowRank(random(2, d) * size, random(m, 2), keys[0], one),
            "dense": Dense(random(m, d) * size, both, of),
            "sparse": Sparse(places, 3 * random(len(places)) * size, (m, d), keys[1], one[:1].repeat(len(keys[1]))),
        }
        self.patches = [
            self.patch(self.deltas["lowrank"], ABOUT[:1]),
            self.patch(self.deltas["dense"], EDITS[2:]),
            self.patch(self.deltas["sparse"], ABOUT[1:]),
        ]

    def keys(self, edit: Edit) -> torch.Tensor:
        encoded = encode(self.tokenizer, [edit.prompt], [edit.target])
        return capture(self.model, [self.path], encoded)[self.path][0, 1:]

    def patch(self, delta: Any, edits: Any, method: str = "ft", **settings: Any) -> Patch:
        base = base_of(self.model, self.path)
        return Patch.create(deltas={self.path: delta}, edits=edits, base=base, method=method, settings=settings)

    def made(self, patches: Any, mode: str = "joint", **more: Any) -> PatchedModel:
        stack = patches if isinstance(patches, PatchStack) else PatchStack(patches, conflicts="latest")
        return patched(self.model, self.tokenizer, self.profile, stack, mode, **more)

    def change(self, model: PatchedModel) -> torch.Tensor:
        """D (m, d) seen from outside: the identity mapped with and without the branches."""
        module = model.model.get_submodule(self.path)
        eye = torch.eye(linear_shape(module)[1])[None]
        with torch.no_grad():
            return (module(eye)[0] - module.forward(eye)[0]).T.double()


@pytest.fixture(scope="module", params=SHAPES, ids=["linear", "conv1d", "square linear", "square conv1d"])
def setup(request: Any) -> Setup:
    return Setup(request.param[0], **request.param[1])


def matrix(delta: Any) -> torch.Tensor:
    """D (m, d) as the format says it."""
    match delta:
        case LowRank():
            return (delta.b @ delta.a).double()
        case Dense():
            return delta.delta.double()
        case _:
            return delta.dense().double()


def rows(setup: Setup, delta: Weights, silent: set[int] = frozenset()) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(k, D k) one by one, in float64: without silent edits and keys like an earlier one of the edit in the C0^-1 metric."""
    c0 = setup.profile.second_moment.double()
    inverse = torch.linalg.inv(c0 + 1e-3 * torch.trace(c0) / len(c0) * torch.eye(len(c0)))
    seen: list[tuple[int, torch.Tensor]] = []
    found = []
    for key, edit in zip(delta.keys.double(), delta.key_edit.tolist(), strict=True):
        if edit in silent:
            continue
        cosines = [
            key @ inverse @ other / ((key @ inverse @ key) * (other @ inverse @ other)).sqrt()
            for whose, other in seen
            if whose == edit
        ]
        seen.append((edit, key))
        if not any(cosine > 0.995 for cosine in cosines):
            found.append((key, matrix(delta) @ key))
    return found


def primal(setup: Setup, pairs: Any, lam: float) -> torch.Tensor:
    """R K^T (lam C + K K^T)^-1 with C the ridged second moment."""
    keys, residuals = (torch.stack(part, 1).double() for part in zip(*pairs))
    c0 = setup.profile.second_moment.double()
    a = lam * (c0 + 1e-3 * torch.trace(c0) / len(c0) * torch.eye(len(c0)))
    return residuals @ keys.T @ torch.linalg.inv(a + keys @ keys.T)


def near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - expected).norm() < tolerance * expected.norm())


def test_keyed_changes_are_rows_of_the_joint_solve(setup: Setup) -> None:
    facts = make_patch(setup.model, setup.tokenizer, setup.profile, EDITS[:2])
    model = setup.made([*setup.patches, facts], budget=0.1)
    delta = facts.deltas[setup.path]
    pairs = list(zip(delta.keys, delta.residuals))
    for patch in setup.patches:
        pairs += rows(setup, patch.deltas[setup.path])
    report = model.report["modules"][setup.path]
    assert report["rows"] == len(pairs) and report["drift_predicted"] == pytest.approx(0.1, rel=0.01)
    assert near(setup.change(model), primal(setup, pairs, report["lambda"][0]))


def test_a_module_with_keyed_changes_alone(setup: Setup) -> None:
    model = setup.made(setup.patches[1:2], budget=1e6)  # no budget to speak of: its texts see what D says
    report = model.report["modules"][setup.path]
    pairs = rows(setup, setup.deltas["dense"])
    assert report["rows"] == len(pairs) and near(setup.change(model), primal(setup, pairs, report["lambda"][0]))
    keys = torch.stack([key for key, _ in pairs]).double()
    assert near(keys @ setup.change(model).T, keys @ matrix(setup.deltas["dense"]).T, 0.02)


@pytest.mark.parametrize("mode", ["gated", "sum"])
def test_in_other_modes_and_without_keys_it_is_the_change_itself(setup: Setup, mode: str) -> None:
    expected = sum(matrix(delta) for delta in setup.deltas.values())
    assert near(setup.change(setup.made(setup.patches, mode)), expected)
    plain = [
        setup.patch(replace(patch.deltas[setup.path], keys=None, key_edit=None), patch.edits) for patch in setup.patches
    ]
    assert near(setup.change(setup.made(plain, "joint")), expected)


def test_a_module_without_a_profile_gets_the_change_itself(setup: Setup) -> None:
    stack = PatchStack(setup.patches[1:2])
    model = PatchedModel(
        setup.model, setup.tokenizer, stack, profiles=lambda *_: {}, settings=StackSettings(mode="joint")
    )
    assert near(setup.change(model), matrix(setup.deltas["dense"]))


def test_silent_edits_leave_their_keys_out(setup: Setup) -> None:
    """The newer patch answers the first question of the dense one otherwise."""
    other = Edit(EDITS[2].prompt, "Spain", EDITS[2].subject)
    dense, newer = setup.patches[1], make_patch(setup.model, setup.tokenizer, setup.profile, [other])
    model = setup.made([dense, newer], budget=0.1)
    delta = newer.deltas[setup.path]
    pairs = rows(setup, dense.deltas[setup.path], silent={0}) + list(zip(delta.keys, delta.residuals))
    report = model.report["modules"][setup.path]
    assert report["rows"] == len(pairs) < len(delta.keys) + len(rows(setup, dense.deltas[setup.path]))
    assert near(setup.change(model), primal(setup, pairs, report["lambda"][0]))
    model.remove(newer)
    assert near(setup.change(model), setup.change(setup.made([dense], budget=0.1)), 1e-12)


def test_the_order_of_patches_changes_no_bit_and_removal_leaves_none(setup: Setup) -> None:
    prompts = [edit.prompt for edit in EDITS]
    full = setup.made(setup.patches)
    expected = logits(full.model, setup.tokenizer, prompts)
    assert torch.equal(logits(setup.made(setup.patches[::-1]).model, setup.tokenizer, prompts), expected)
    full.remove(setup.patches[0])
    never = setup.made(setup.patches[1:])
    assert torch.equal(*(logits(m.model, setup.tokenizer, prompts) for m in (full, never)))


def test_keys_that_resemble_an_earlier_one_of_their_edit_count_once(setup: Setup) -> None:
    delta = setup.deltas["dense"]
    keys, of = delta.keys, delta.key_edit
    doubled = replace(delta, keys=torch.cat([keys[:2] * 1.5, keys[:2], keys[:2]]), key_edit=T([1, 1, 0, 0, 1, 1]))
    found = effect(doubled, T([True, True]), setup.profile)
    assert found.edit.tolist() == [0, 0, 1, 1]  # the same key may serve two edits
    assert torch.equal(found.keys, torch.cat([keys[:2], keys[:2] * 1.5]))
    assert effect(doubled, T([True, False]), setup.profile).edit.tolist() == [0, 0]
    assert len(effect(delta, T([False, False]), setup.profile).keys) == 0
    assert len(rows(setup, delta)) == len(effect(delta, T([True, True]), setup.profile).keys) <= len(of)


def test_row_weights_count(setup: Setup) -> None:
    light, heavy = (setup.patch(setup.deltas["dense"], setup.patches[1].edits, omega=omega) for omega in (1.0, 1e6))
    fits = [setup.made([p], budget=0.02).report["modules"][setup.path]["fit_mean"] for p in (light, heavy)]
    lams = [setup.made([p], budget=0.02).report["modules"][setup.path]["lambda"][0] for p in (light, heavy)]
    assert fits[0] == pytest.approx(fits[1], abs=1e-3) and lams[1] == pytest.approx(1e6 * lams[0], rel=0.01)

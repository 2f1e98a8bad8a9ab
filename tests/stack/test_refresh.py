"""Refreshing a stack bottom-up, against the same thing done by hand on a model whose weights are changed."""

import copy
from functools import partial
from typing import Any

import pytest
import torch

from kedit_hub.base.families import dense_weight, linear_shape
from kedit_hub.base.profile import GateSettings
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.editors.rebase import rebase, remeasured
from kedit_hub.edits import Edit
from kedit_hub.patch import Associative, Dense, Patch
from kedit_hub.runtime.attach import Attachment
from kedit_hub.stack.compose import Composition, compose
from kedit_hub.stack.refresh import Refreshed, refresh
from kedit_hub.stack.stack import PatchStack
from tests.profiles import EDITS, base_of, logits, make_patch, patched, profile_of
from tests.tiny import tiny_model

PROMPTS = [edit.prompt for edit in EDITS]
LAYERS = (0, 2)
EXACT = 1e6  # a budget that is none: every row is met


class Setup:
    """Two patches of two edits each, with rows at layers 0 and 2."""

    def __init__(self, model_type: str):
        self.model, self.tokenizer = tiny_model(model_type)
        gate = GateSettings(subject=0.5, answer=0.9)
        profiles = [profile_of(self.model, self.tokenizer, layer=layer, gate=gate, contexts=()) for layer in LAYERS]
        self.profiles = {profile.module: profile for profile in profiles}
        self.paths = list(self.profiles)
        self.one = [make_patch(self.model, self.tokenizer, profiles[0], [edit], seed=i) for i, edit in enumerate(EDITS)]
        self.two = [self.at_both(EDITS[:2], 5), self.at_both(EDITS[2:], 6)]

    def at_both(self, edits: Any, seed: int) -> Patch:
        made = [
            make_patch(self.model, self.tokenizer, p, edits, seed=seed + i)
            for i, p in enumerate(self.profiles.values())
        ]
        deltas = {path: patch.deltas[path] for path, patch in zip(self.paths, made)}
        return Patch.create(deltas=deltas, edits=edits, base=base_of(self.model, *self.paths), method="memit")

    def composed(self, stack: PatchStack, mode: str, budget: float | None = None) -> Composition:
        allowed = {} if budget is None else {"drift_budget": budget}
        profiles = {path: profile.replace(**allowed) for path, profile in self.profiles.items()}
        return compose(stack, self.model, profiles, mode=mode)  # type: ignore[arg-type]

    def measure(self, patch: Patch, path: str, model: Any, under: Any) -> Associative:
        return remeasured(patch, path, model, self.tokenizer, self.profiles[path], under)

    def refreshed(self, patches: Any, mode: str, budget: float | None = None) -> Refreshed:
        make = partial(self.composed, mode=mode, budget=budget)
        return refresh(PatchStack(patches, conflicts="latest"), self.model, make, self.measure)

    def logits(self, composition: Composition) -> torch.Tensor:
        attachment = Attachment(self.model, composition.branches, composition.watchers)
        try:
            return logits(self.model, self.tokenizer, PROMPTS)
        finally:
            attachment.detach()


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def setup(request: Any) -> Setup:
    return Setup(request.param)


def near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - expected).norm() <= tolerance * expected.norm())


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_on_one_layer_it_is_compose_bit_for_bit(setup: Setup, mode: str) -> None:
    stack = PatchStack(setup.one)
    found = refresh(stack, setup.model, partial(setup.composed, mode=mode), lambda *_: pytest.fail("measured"))
    assert torch.equal(setup.logits(found.composition), setup.logits(setup.composed(stack, mode)))
    assert found.paths == () and found.stack is stack and found.composition.whole == (mode == "joint")


def test_upper_rows_are_solved_where_the_lower_ones_leave_the_model(setup: Setup) -> None:
    """By hand: the change of layer 0 written into the weights, rows of layer 2 measured there, solved by the normal equations."""
    low, high = setup.paths
    found = setup.refreshed(setup.two, "joint", 0.2)
    assert found.paths == (high,) and found.composition.whole and found.composition.report["refreshed"] == [high]
    fused = copy.deepcopy(setup.model)
    (branch,) = found.composition.branches[low]
    with torch.no_grad():
        dense_weight(fused.get_submodule(low)).add_(branch.matrix())
    keys, residuals = [], []
    for patch in sorted(setup.two, key=lambda patch: patch.id):
        old = patch.deltas[high]
        anew = make_patch(fused, setup.tokenizer, setup.profiles[high], patch.edits).deltas[high]
        assert near(found.stack.find(patch.id).deltas[high].keys, anew.keys)
        assert not near(old.keys, anew.keys, 0.05)
        keys.append(anew.keys)
        residuals.append(old.base_outputs + old.residuals - anew.base_outputs)
    k, r = torch.cat(keys).T.double(), torch.cat(residuals).T.double()
    profile = setup.profiles[high]
    lam = found.composition.report["modules"][high]["lambda"][0]
    c0 = profile.second_moment.double()
    a = lam * (c0 + 1e-3 * torch.trace(c0) / len(c0) * torch.eye(len(c0)))
    (branch,) = found.composition.branches[high]
    assert near(branch.matrix().double(), r @ k.T @ torch.linalg.inv(a + k @ k.T), 2e-3)


def test_wanted_outputs_of_the_upper_layer_are_met(setup: Setup) -> None:
    """With no budget to speak of: refreshed rows are met on the stacked model, stored ones are not."""
    high = setup.paths[1]
    stored = setup.composed(PatchStack(setup.two), "joint", EXACT)
    missed = {}
    for name, made in (("stored", stored), ("refreshed", setup.refreshed(setup.two, "joint", EXACT).composition)):
        attachment = Attachment(setup.model, made.branches, made.watchers)
        try:
            far = []
            for patch in setup.two:
                old = patch.deltas[high]
                for number, edit in enumerate(patch.edits):
                    encoded = encode(setup.tokenizer, [edit.prompt])
                    said = capture(setup.model, [high], encoded, outputs=True)[high][0, -1]
                    row = int((old.edit_index == number).nonzero()[0, 0])
                    far.append((said - old.base_outputs[row] - old.residuals[row]).norm() / old.residuals[row].norm())
            missed[name] = max(far).item()
        finally:
            attachment.detach()
    assert missed["refreshed"] < 0.05 < 0.2 < missed["stored"]


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_a_function_of_the_set(setup: Setup, mode: str) -> None:
    patches = [*setup.two, make_patch(setup.model, setup.tokenizer, setup.profiles[setup.paths[1]], [OTHER])]
    expected = setup.logits(setup.refreshed(patches, mode).composition)
    assert torch.equal(setup.logits(setup.refreshed(patches[::-1], mode).composition), expected)
    stale = setup.logits(setup.composed(PatchStack(patches), mode))
    assert not torch.equal(stale, expected)
    before = logits(setup.model, setup.tokenizer, PROMPTS)
    assert torch.equal(logits(tiny_model(setup.model.config.model_type)[0], setup.tokenizer, PROMPTS), before)


OTHER = Edit("Zürich lies in", "Spain", "Zürich")


def test_rows_above_a_dense_patch_are_those_of_a_rebase(setup: Setup) -> None:
    low, high = setup.paths
    shape = linear_shape(setup.model.get_submodule(low))
    delta = Dense(0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0)))
    dense = Patch.create(deltas={low: delta}, edits=[OTHER], base=base_of(setup.model, low), method="ft")
    profile = setup.profiles[high]
    top = make_patch(setup.model, setup.tokenizer, profile)
    onto = patched(setup.model, setup.tokenizer, profile, [dense])
    by_hand = rebase(top, onto, profile=profile)
    for mode in ("gated", "joint"):
        found = setup.logits(setup.refreshed([dense, top], mode).composition)
        assert torch.equal(found, setup.logits(setup.composed(PatchStack([dense, by_hand]), mode)))

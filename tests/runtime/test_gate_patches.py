"""Counter-keys, thresholds and pins of patches on a live model: Linear and Conv1D, left padding, decoding, beams, shadowed edits."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from kedit_hub.base.profile import BaseProfile, GateSettings
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.edits import Edit
from kedit_hub.patch import Associative, Patch
from kedit_hub.runtime.gate import Bank
from kedit_hub.stack.associative import bank
from kedit_hub.stack.stack import PatchStack
from kedit_hub.stack.stored import gather
from tests.profiles import EDITS, make_patch, patched, profile_of
from tests.runtime.test_gate_choice import reference
from tests.tiny import tiny_model

Base = tuple[Any, Any, BaseProfile]
QUIET = "The capital of France was"  # where the edit of France is told to keep silent
TEXTS = [*(edit.prompt for edit in EDITS), QUIET, "The capital of France is Bonn and the capital of Spain is", "Hamlet"]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> Base:
    model, tokenizer = tiny_model(request.param)
    model.generation_config.eos_token_id = None
    return model, tokenizer, profile_of(model, tokenizer, gate=GateSettings(subject=0.7, answer=0.3))


def narrowed(base: Base, patch: Patch, **tensors: Any) -> Patch:
    """The same patch with more of what narrows a gate."""
    _, _, profile = base
    delta = patch.deltas[profile.module]
    assert isinstance(delta, Associative)
    manifest = patch.manifest
    return Patch.create(
        deltas={profile.module: replace(delta, **tensors)},
        edits=patch.edits,
        base=manifest.base,
        method=manifest.method,
        settings=manifest.settings,
        profile_id=manifest.profile_id,
    )


def last_input(base: Base, text: str) -> torch.Tensor:
    """(1, d) what enters the edited map at the last token."""
    model, tokenizer, profile = base
    return capture(model, [profile.module], encode(tokenizer, [text]))[profile.module][0, -1:]


def stack_of(base: Base) -> PatchStack:
    """Three patches: one with counter-keys, one that is pinned, one with thresholds of its own."""
    own = torch.tensor([[0.9, 0.5], [0.2, -1.0]])
    patches = [
        narrowed(
            base,
            make_patch(*base, EDITS[:1], seed=1),
            counter_keys=last_input(base, QUIET),
            counter_edit=torch.tensor([0]),
        ),
        make_patch(*base, EDITS[1:2], seed=2),
        narrowed(base, make_patch(*base, EDITS[2:], seed=3), thresholds=own),
    ]
    return PatchStack(patches, pinned=[patches[1].id])


def banked(base: Base, stack: PatchStack) -> Bank:
    model, _, profile = base
    ordered = sorted(stack, key=lambda patch: patch.id)
    return bank(gather(ordered, profile.module, stack, model.get_submodule(profile.module), exact=True), profile)


def test_the_bank_of_a_stack(base: Base) -> None:
    stack = stack_of(base)
    made = banked(base, stack)
    by_patch = {patch.id: [e for e, owner in enumerate(made.owners) if owner == patch.id] for patch in stack}
    first, second, third = by_patch.values()
    assert made.counter_edit.tolist() == first and made.counter_keys.norm(dim=1).item() == pytest.approx(1.0)
    assert made.pinned.nonzero()[:, 0].tolist() == second
    usual, own = torch.tensor([[0.7, 0.3]]), torch.tensor([[0.9, 0.5], [0.2, -1.0]])
    assert torch.equal(made.thresholds[first], usual) and torch.equal(made.thresholds[second], usual)
    assert torch.equal(made.thresholds[third], own)


@pytest.mark.parametrize("side", ["right", "left"])
def test_on_a_model_against_the_definition(base: Base, side: Any) -> None:
    model, tokenizer, profile = base
    stack = stack_of(base)
    encoded = encode(tokenizer, TEXTS, side=side)
    inputs = capture(model, [profile.gate_module, profile.module], encoded)
    y = capture(model, [profile.module], encoded, outputs=True)[profile.module]
    made = patched(model, tokenizer, profile, stack, "gated")
    got = capture(made.model, [profile.module], encoded, outputs=True)[profile.module]
    real = encoded.attention_mask.bool()
    early = inputs[profile.gate_module] @ profile.gate_whitener
    late = inputs[profile.module] @ profile.whitener
    expected, spoke = reference(banked(base, stack), early, late, y, real)
    assert torch.allclose(got.double()[real], expected[real], atol=1e-4 * y.abs().max().item())
    untouched = real.clone()
    untouched[tuple(zip(*spoke))] = False
    assert torch.equal(got[untouched], y[untouched])
    assert len(set(spoke.values())) == 4  # every edit speaks somewhere


def test_a_counter_key_silences_its_edit_and_no_other(base: Base) -> None:
    model, tokenizer, profile = base
    france, spain = make_patch(*base, EDITS[:1], seed=1), make_patch(*base, EDITS[1:2], seed=2)
    keys = torch.cat([last_input(base, QUIET), last_input(base, EDITS[1].prompt)])
    quiet = narrowed(base, france, counter_keys=keys, counter_edit=torch.tensor([0, 0]))
    texts = [EDITS[0].prompt, QUIET, EDITS[1].prompt]
    encoded = encode(tokenizer, texts, side="left")

    def outputs(of: Any) -> torch.Tensor:  # of the edited map, at the last token
        return capture(of, [profile.module], encoded, outputs=True)[profile.module][:, -1]

    unedited = outputs(model)
    before = outputs(patched(model, tokenizer, profile, [france, spain], "gated").model)
    after = outputs(patched(model, tokenizer, profile, [quiet, spain], "gated").model)
    changed = [not torch.equal(a, b) for a, b in zip(before, unedited)]
    assert changed == [True, True, True]
    assert torch.equal(after[1], unedited[1])  # silent at the very text, bit for bit
    assert torch.equal(after[[0, 2]], before[[0, 2]])


def test_a_shadowed_edit_takes_its_counter_keys_along(base: Base) -> None:
    patches = [
        narrowed(
            base,
            make_patch(*base, EDITS[:2], seed=1),
            counter_keys=torch.cat([last_input(base, QUIET), last_input(base, "Spain")]),
            counter_edit=torch.tensor([0, 1]),
        ),
        make_patch(*base, [replace(EDITS[0], target="Berlin")], seed=2),
    ]
    stack = PatchStack(patches, conflicts="latest")
    made = banked(base, stack)
    assert made.counter_edit.tolist() == [made.owners.index(patches[0].id) + 1]
    assert banked(base, stack.remove(patches[1])).counter_edit.tolist() == [0, 1]


@pytest.mark.parametrize("how", [{"do_sample": False}, {"do_sample": False, "num_beams": 3}])
def test_decoding_is_the_one_without_a_cache(base: Base, how: dict[str, Any]) -> None:
    model, tokenizer, profile = base
    loud = profile.replace(gate=GateSettings(subject=0.6, answer=-0.2, softness=0.5))
    own = torch.tensor([[0.6, -1.0]])
    patches = [
        narrowed(
            base,
            make_patch(model, tokenizer, loud, [edit], seed=seed, size=2.0),
            counter_keys=last_input(base, QUIET),
            counter_edit=torch.tensor([0]),
            thresholds=own if seed else None,
        )
        for seed, edit in enumerate([*EDITS, Edit("Paris lies in", "Spain", "Paris")])
    ]
    stack = PatchStack(patches, pinned=[patches[2].id])
    made: Any = patched(model, tokenizer, loud, stack, "gated").model
    batch = encode(tokenizer, TEXTS, side="left").inputs(model)
    cached = made.generate(**batch, max_new_tokens=8, **how)
    assert torch.equal(cached, made.generate(**batch, max_new_tokens=8, use_cache=False, **how))
    assert not torch.equal(cached, model.generate(**batch, max_new_tokens=8, **how))

"""A strength is the share of its change that a patch makes, whatever its kind and in every mode; 1 changes no bit."""

import json
from hashlib import sha256

import pytest
import torch

from kedit_hub import strictjson
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.errors import KeditError, PatchFormatError
from kedit_hub.stack.lock import InFolder, Lock, diff, lock
from kedit_hub.stack.stack import PatchStack
from tests.profiles import patched
from tests.stack.kinds import ABOUT, PROMPTS, Setup


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup("llama")


def output(setup: Setup, name: str, mode: str, strength: float | None) -> torch.Tensor:
    patch = setup.patches[name]
    strengths = {} if strength is None else {patch.id: strength}
    stack = PatchStack([patch], strengths=strengths)
    made = patched(
        setup.model, setup.tokenizer, setup.profile, stack, mode, budget=1e6
    )  # or half is asked for, and as much drift allowed
    return capture(made.model, [setup.path], encode(setup.tokenizer, PROMPTS), outputs=True)[setup.path].double()


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
@pytest.mark.parametrize("name", ["associative", "lowrank", "dense", "sparse", "neurons", "norm", "mask"])
def test_half_a_strength_is_half_the_change(setup: Setup, name: str, mode: str) -> None:
    whole, half, one = (output(setup, name, mode, strength) for strength in (None, 0.5, 1.0))
    base = capture(setup.model, [setup.path], encode(setup.tokenizer, PROMPTS), outputs=True)[setup.path].double()
    assert torch.equal(whole, one)
    change, halved = whole - base, half - base
    assert change.abs().max() > 0
    assert torch.allclose(halved, change / 2, atol=2e-3 * change.abs().max().item())


@pytest.mark.parametrize("name", [name for name in ABOUT if name in ("codebook", "every")])
def test_what_replaces_has_no_half(setup: Setup, name: str) -> None:
    with pytest.raises(KeditError, match="there is no share"):
        output(setup, name, "gated", 0.5)


@pytest.mark.parametrize("strength", [0, -1, 1.5, True, float("nan"), "1"])
def test_a_strength_that_is_none_is_refused_by_value(setup: Setup, strength: object) -> None:
    patch = setup.patches["lowrank"]
    with pytest.raises(KeditError, match="strength"):
        PatchStack([patch], strengths={patch.id: strength})  # type: ignore[dict-item]


def test_it_stays_with_its_patch(setup: Setup) -> None:
    a, b = setup.patches["lowrank"], setup.patches["dense"]
    stack = PatchStack([a], strengths={a.id: 0.25}).add(b).reorder([a]).pin(b)
    assert dict(stack.strengths) == {a.id: 0.25} and not stack.remove(a).strengths
    assert dict(stack.strengthen(b, 0.5).strengths) == {a.id: 0.25, b.id: 0.5}


def test_a_lock_keeps_it_and_says_nothing_of_full_strength(setup: Setup) -> None:
    a, b = setup.patches["lowrank"], setup.patches["dense"]
    sources = {patch.id: InFolder(folder=f"p{i}") for i, patch in enumerate((a, b))}
    full, half = (lock(PatchStack([a, b], strengths=said), sources) for said in ({}, {b.id: 0.5}))
    assert b"strength" not in full.to_bytes() and half.to_bytes().count(b'"strength": 0.5') == 1
    back = Lock.parse(half.to_bytes(), local=True)
    assert back == half and dict(back.stack([a, b]).strengths) == {b.id: 0.5} and not full.stack([a, b]).strengths
    assert [(c.what, c.patch, c.before, c.after) for c in diff(full, half).changes] == [("strength", b.id, 1.0, 0.5)]
    spelled = json.loads(full.to_bytes())
    spelled["patches"][0]["strength"] = 1.0
    with pytest.raises(PatchFormatError, match="another form"):
        Lock.parse(_sealed(spelled), local=True)
    spelled["patches"][0]["strength"] = 1.5
    with pytest.raises(PatchFormatError, match=r"patches.0.strength.*1\.5"):
        Lock.parse(_sealed(spelled), local=True)


def _sealed(value: dict) -> bytes:
    value.pop("digest", None)
    return strictjson.pretty({**value, "digest": sha256(b"kedit lock 1\n" + strictjson.canonical(value)).hexdigest()})

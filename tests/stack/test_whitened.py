"""Whitened keys save the factor of C0 where they are what they say, and change nothing where they are not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit_hub.base.moments import regularised
from kedit_hub.patch import Associative, Patch
from kedit_hub.stack import associative
from kedit_hub.stack.patched import PatchedModel
from tests.profiles import EDITS, logits, make_patch, patched, profile_of
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any, Any]:
    model, tokenizer = tiny_model("llama")
    return model, tokenizer, profile_of(model, tokenizer)


@pytest.fixture(scope="module")
def plain(base: tuple[Any, Any, Any]) -> list[Patch]:
    return [make_patch(*base, [edit], seed=seed) for seed, edit in enumerate(EDITS)]


def whitened(patch: Patch, profile: Any, change: Tensor | float = 1.0, **more: Any) -> Patch:
    """The same rows with their whitened keys, times `change`."""
    delta = patch.deltas[profile.module]
    assert isinstance(delta, Associative)
    keys = torch.linalg.solve(regularised(profile.second_moment), delta.keys.double().T).T.float() * change
    return again(patch, {profile.module: replace(delta, whitened_keys=keys)}, **more)


def again(patch: Patch, deltas: dict[str, Any], **more: Any) -> Patch:
    m = patch.manifest
    given = {"method": m.method, "settings": m.settings, "profile_id": m.profile_id, "base": m.base, **more}
    return Patch.create(deltas=deltas, edits=patch.edits, **given)


def by(model: PatchedModel, profile: Any) -> str:
    return str(model.report["modules"][profile.module]["solved_by"])


@pytest.mark.parametrize("mode", ["joint", "sum"])
def test_the_answers_are_those_of_c0(base: Any, plain: list[Patch], mode: str, monkeypatch: Any) -> None:
    _, tokenizer, profile = base
    factored: list[int] = []
    prepare = associative.prepare
    monkeypatch.setattr(associative, "prepare", lambda *a, **k: (factored.append(1), prepare(*a, **k))[1])
    portable = [whitened(patch, profile) for patch in plain]
    made = patched(*base, portable, mode)
    assert by(made, profile) == "whitened keys" and not factored
    ought = patched(*base, plain, mode)
    assert by(ought, profile) == "second-moment" and factored
    prompts = [edit.prompt for edit in EDITS]
    assert torch.allclose(logits(made.model, tokenizer, prompts), logits(ought.model, tokenizer, prompts), atol=1e-4)
    for name in ("fit_mean", "fit_min", "drift_predicted"):
        found, expected = (m.report["modules"][profile.module][name] for m in (made, ought))
        assert found == pytest.approx(expected, rel=1e-4)
    made.remove(portable[1])
    never = patched(*base, [portable[0], *portable[2:]], mode)
    assert torch.equal(logits(made.model, tokenizer, prompts), logits(never.model, tokenizer, prompts))


def test_one_patch_without_them_or_of_another_profile_asks_for_c0(base: Any, plain: list[Patch]) -> None:
    profile = base[2]
    portable = [whitened(patch, profile) for patch in plain]
    alien = whitened(plain[3], profile, profile_id="a" * 64)
    for last in (plain[3], alien):
        assert by(patched(*base, [*portable[:3], last], "joint"), profile) == "second-moment"
    moved = (base[0], base[1], profile.replace(drift_budget=0.1))  # the same C0 under another name
    assert by(patched(*moved, portable, "joint"), profile) == "second-moment"


@pytest.mark.parametrize("mode", ["joint", "sum"])
@pytest.mark.parametrize("change", [1.2, 0.5, "noise", "one row"])
def test_what_is_false_is_not_used(base: Any, plain: list[Patch], change: Any, mode: str) -> None:
    """A stack with one stranger in it: its answers are those without any whitened keys."""
    _, tokenizer, profile = base
    generator = torch.Generator().manual_seed(0)
    if change == "noise":
        change = 1 + 0.2 * torch.randn(1, len(profile.second_moment), generator=generator)
    elif change == "one row":
        change = torch.ones(len(plain[3].deltas[profile.module].keys), 1)  # type: ignore[attr-defined]
        change[0] = 1.5
    stranger = whitened(plain[3], profile, change)
    made = patched(*base, [*(whitened(patch, profile) for patch in plain[:3]), stranger], mode)
    assert by(made, profile) == "second-moment"
    bare = again(stranger, {profile.module: plain[3].deltas[profile.module]})
    ought = patched(*base, [*plain[:3], bare], mode)
    prompts = [edit.prompt for edit in EDITS]
    assert torch.allclose(logits(made.model, tokenizer, prompts), logits(ought.model, tokenizer, prompts), atol=1e-6)


@pytest.mark.parametrize("change", [1.2, 0.5])
def test_a_stranger_alone_cannot_spend_more_than_the_budget(base: Any, plain: list[Patch], change: float) -> None:
    """Scaled keys fit together, but predict another drift than C0 does."""
    profile = base[2]
    made = patched(*base, [whitened(plain[0], profile, change)], "joint", budget=0.02)
    assert by(made, profile) == "second-moment"
    assert made.report["modules"][profile.module]["drift_predicted"] <= 0.02 * (1 + 1e-6)


def test_equal_keys_with_different_values_are_still_solved(base: Any, plain: list[Patch]) -> None:
    """Heavy rows at one key: the float32 error of whitened keys could make the system indefinite."""
    profile = base[2]
    twice = [make_patch(*base, [edit], seed=5, omega=1e6) for edit in (EDITS[0],)]
    other = make_patch(*base, [replace(EDITS[0], prompt="France has the capital", relation=None)], seed=6, omega=1e6)
    same = other.deltas[profile.module]
    rows = twice[0].deltas[profile.module]
    assert isinstance(same, Associative) and isinstance(rows, Associative)
    n = min(len(rows.keys), len(same.keys))
    keys = torch.cat([rows.keys[:n], same.keys[n:]])
    other = again(other, {profile.module: replace(same, keys=keys, context_keys=None, context_row=None)})
    stack = [whitened(patch, profile) for patch in (twice[0], other)]
    for mode in ("joint", "sum"):
        made = patched(*base, stack, mode, budget=100.0)
        ought = patched(*base, [twice[0], other], mode, budget=100.0)
        found, expected = (m.report["modules"][profile.module]["fit_mean"] for m in (made, ought))
        assert found == pytest.approx(expected, abs=1e-3)

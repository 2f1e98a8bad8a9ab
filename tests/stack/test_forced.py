"""A base with other weights is refused; `force` takes it at level "forced", aims at the stored values there, and warns."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import kedit_hub
from kedit_hub.errors import WrongBaseError
from kedit_hub.patch import BaseRef, LowRank, Patch
from kedit_hub.patch.fingerprint import check, fingerprint
from kedit_hub.stack.export import export
from kedit_hub.stack.stored import gather
from tests.profiles import EDITS, base_of, logits, make_patch, patched, profile_of
from tests.tiny import tiny_model

PROMPTS = [edit.prompt for edit in EDITS]
WARNED = r"holds other weights than the base .* because force was asked for"


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any, Any]:
    model, tokenizer = tiny_model("llama")
    return model, tokenizer, profile_of(model, tokenizer)


@pytest.fixture(scope="module")
def tuned(base: Any) -> Any:
    """The same model after some training: every weight of the edited map has moved a little."""
    model = copy.deepcopy(base[0])
    weight = model.get_submodule(base[2].module).weight
    with torch.no_grad():
        weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_other_weights_only_by_force(base: Any, tuned: Any, mode: str) -> None:
    _, tokenizer, profile = base
    patch = make_patch(*base)
    with pytest.raises(WrongBaseError, match=rf"{profile.module} of this model .* holds other weights"):
        patched(tuned, tokenizer, profile, [patch], mode)
    with pytest.warns(UserWarning, match=rf"^{profile.module} of this model .*{WARNED}"):
        made = patched(tuned, tokenizer, profile, [patch], mode, force=True)
    assert made.report["levels"] == {profile.module: "forced", profile.gate_module: "exact"}
    assert not torch.equal(logits(made.model, tokenizer, PROMPTS), logits(tuned, tokenizer, PROMPTS))


def test_the_right_base_is_not_forced(base: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = patched(*base, [make_patch(*base)], force=True)
    assert set(made.report["levels"].values()) == {"exact"}


def test_rows_aim_at_the_stored_values_on_the_base_at_hand(base: Any, tuned: Any) -> None:
    profile, patch = base[2], make_patch(*base)
    with pytest.warns(UserWarning, match=WARNED):
        made = patched(tuned, base[1], profile, [patch], "joint", force=True)
    delta, module = patch.deltas[profile.module], tuned.get_submodule(profile.module)
    stored = gather([patch], profile.module, made.stack, module, exact=False)
    with torch.no_grad():
        reached = module(delta.keys) + stored.residuals
    assert torch.allclose(reached, delta.base_outputs + delta.residuals, atol=1e-5)
    assert not torch.allclose(stored.residuals, delta.residuals, atol=1e-2)
    (solution,) = made._composition.solutions[profile.module]  # type: ignore[union-attr]
    other = patched(*base, [patch], "joint")._composition.solutions[profile.module][0]  # type: ignore[union-attr]
    assert not torch.allclose(solution.y, other.y)


def test_forced_stays_forced_while_the_stack_changes(base: Any, tuned: Any, tmp_path: Path) -> None:
    tokenizer, profile = base[1], base[2]
    one, two = (make_patch(*base, [edit], seed=seed) for seed, edit in enumerate(EDITS[:2]))
    with pytest.warns(UserWarning, match=WARNED):
        made = patched(tuned, tokenizer, profile, [one], "gated", force=True)
        made.add(two)
        assert made.report["levels"][profile.module] == "forced"
        made.remove(one)
        assert made.report["levels"][profile.module] == "forced"
    linear = made.linear_form()
    assert linear.report["levels"] == made.report["levels"]
    made.fuse()
    export(made, tmp_path / "lora")


@pytest.mark.filterwarnings("ignore:.*force was asked for")
@pytest.mark.parametrize("other", ["shape", "model_type", "module"])
def test_what_force_does_not_take(base: Any, other: str) -> None:
    profile = base[2]
    patch = make_patch(*base)
    model, tokenizer = {
        "shape": lambda: tiny_model("llama", intermediate_size=192),
        "model_type": lambda: tiny_model("mistral"),
        "module": lambda: tiny_model("llama", num_hidden_layers=1),
    }[other]()
    said = {"shape": r"has shape \(64, 192\)", "model_type": "is a mistral", "module": "does not have"}[other]
    with pytest.raises(WrongBaseError, match=said):
        patched(model, tokenizer, profile, [patch], force=True)


def test_the_worst_level_of_several_patches_is_reported(base: Any, tuned: Any) -> None:
    _, tokenizer, profile = base
    own = make_patch(tuned, tokenizer, profile, [EDITS[1]])
    with pytest.warns(UserWarning, match=WARNED):
        made = patched(tuned, tokenizer, profile, [own, make_patch(*base, [EDITS[0]])], force=True)
    assert made.report["levels"][profile.module] == "forced"


def test_check(base: Any, tuned: Any) -> None:
    path = base[2].module
    expected = fingerprint(base[0].get_submodule(path))
    with pytest.raises(WrongBaseError):
        check(expected, tuned.get_submodule(path))
    with pytest.warns(UserWarning, match=WARNED):
        assert check(expected, tuned.get_submodule(path), force=True) == "forced"
    assert check(expected, base[0].get_submodule(path), force=True) == "exact"


def test_apply(base: Any, tuned: Any) -> None:
    model, tokenizer, _ = base
    path = "model.layers.1.mlp.down_proj"
    delta = LowRank(torch.ones(1, 128), torch.ones(64, 1))
    reference: BaseRef = base_of(model, path)
    patch = Patch.create(deltas={path: delta}, edits=[EDITS[0]], base=reference, method="mend")
    with pytest.raises(WrongBaseError):
        kedit_hub.apply(patch, tuned, tokenizer=tokenizer)
    with pytest.warns(UserWarning, match=rf"^{path} of this model \(the patch is for tiny/base\) {WARNED}"):
        assert kedit_hub.apply(patch, tuned, tokenizer=tokenizer, force=True).report["levels"] == {path: "forced"}

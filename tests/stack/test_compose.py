"""From patches to branches: order, shadowing, base checks, and the three modes against changes computed by hand."""

from typing import Any

import pytest
import torch

from kedit_hub.base.profile import GateSettings
from kedit_hub.base.tokens import encode
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError, ProfileError, WrongBaseError
from kedit_hub.patch import Associative, Dense, LowRank, Patch
from kedit_hub.stack.choose import by_form
from kedit_hub.stack.compose import compose
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack
from kedit_hub.stack.stored import gather
from tests.profiles import EDITS, base_of, make_patch, profile_of
from tests.profiles import patched as patched_with
from tests.tiny import tiny_model

PATH = "model.layers.1.mlp.down_proj"
FRANCE = Edit("The capital of France is", "Bonn", "France", relation="capital")


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any, Any]:
    model, tokenizer = tiny_model("llama")
    return model, tokenizer, profile_of(model, tokenizer)


@pytest.fixture(scope="module")
def patches(base: tuple[Any, Any, Any]) -> list[Patch]:
    return [make_patch(*base, [edit], seed=seed) for seed, edit in enumerate(EDITS)]


def patched(base: tuple[Any, Any, Any], stack: Any, mode: str = "auto", **chosen: Any) -> PatchedModel:
    settings = StackSettings.of(mode=mode, **chosen)
    model, tokenizer, profile = base
    stack = stack if isinstance(stack, PatchStack) else PatchStack(stack)
    return PatchedModel(model, tokenizer, stack, profiles=lambda *_: {PATH: profile}, settings=settings)


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**encode(tokenizer, [edit.prompt for edit in EDITS]).inputs(model)).logits


def matrix(model: PatchedModel) -> torch.Tensor:
    """The change (out, in) that the branches on PATH make, seen from outside: the identity mapped with and without."""
    module = model.model.get_submodule(PATH)
    eye = torch.eye(module.in_features)[None]
    with torch.no_grad():
        return (module(eye)[0] - module.forward(eye)[0]).T


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_the_order_of_patches_changes_no_bit(base: Any, patches: list[Patch], mode: str) -> None:
    expected = logits(patched(base, patches, mode).model, base[1])
    for order in ([3, 1, 0, 2], [2, 3, 1, 0, 2, 2]):  # a patch given twice counts once
        assert torch.equal(logits(patched(base, [patches[i] for i in order], mode).model, base[1]), expected)
    assert not torch.equal(expected, logits(base[0], base[1]))


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_removing_and_adding_change_no_bit(base: Any, patches: list[Patch], mode: str) -> None:
    full, three = (logits(patched(base, p, mode).model, base[1]) for p in (patches, patches[1:]))
    model = patched(base, patches, mode)
    with model.without(patches[0]):
        assert torch.equal(logits(model.model, base[1]), three)
    assert torch.equal(logits(model.model, base[1]), full)
    model.remove(patches[0].id[:8])
    assert torch.equal(logits(model.model, base[1]), three)
    model.add(patches[0])
    assert torch.equal(logits(model.model, base[1]), full)


def test_context_rows_are_the_primal_solution_of_every_context(base: Any, patches: list[Patch]) -> None:
    deltas = [patch.deltas[PATH] for patch in patches]
    keys = torch.cat([delta.context_keys for delta in deltas]).T.double()  # each context of a row is a row of its own
    residuals = torch.cat([delta.residuals[delta.context_row] for delta in deltas]).T.double()
    shares = torch.cat([torch.bincount(delta.context_row)[delta.context_row] for delta in deltas])
    c0 = base[2].second_moment.double()
    model = patched(base, patches, "joint", budget=0.1, rows="contexts")
    a = model.report["modules"][PATH]["lambda"][0] * (c0 + 1e-3 * torch.trace(c0) / len(c0) * torch.eye(len(c0)))
    weighted = keys / shares  # K Omega: the contexts of a row share its weight
    expected = residuals @ weighted.T @ torch.linalg.inv(a + weighted @ keys.T)
    assert torch.allclose(matrix(model).double(), expected, atol=1e-6 * expected.abs().max().item() + 1e-6)


def test_sum_is_the_added_changes_of_patches_alone(base: Any, patches: list[Patch]) -> None:
    alone = [matrix(patched(base, [patch], "sum")) for patch in patches]
    assert torch.allclose(matrix(patched(base, patches, "sum")), torch.stack(alone).sum(0), atol=1e-6)
    assert all(change.norm() > 0.1 for change in alone)
    joint = matrix(patched(base, patches, "joint"))
    assert not torch.allclose(joint, torch.stack(alone).sum(0), atol=1e-2)


def test_joint_is_the_primal_solution_under_the_drift_budget(base: Any, patches: list[Patch]) -> None:
    profile = base[2]
    keys, residuals = (
        torch.cat([getattr(patch.deltas[PATH], name) for patch in patches]).T.double() for name in ("keys", "residuals")
    )
    c0 = profile.second_moment.double()
    for budget in (0.02, 0.2):
        model = patched(base, patches, "joint", budget=budget)
        found = model.report["modules"][PATH]
        a = found["lambda"][0] * (c0 + 1e-3 * torch.trace(c0) / len(c0) * torch.eye(len(c0)))
        expected = residuals @ keys.T @ torch.linalg.inv(a + keys @ keys.T)
        change = matrix(model).double()
        assert torch.allclose(change, expected, atol=1e-6 * expected.abs().max().item() + 1e-6)
        drift = torch.trace(change @ c0 @ change.T) / profile.settings.energy
        assert drift.item() == pytest.approx(found["drift_predicted"], rel=1e-3) == pytest.approx(budget, rel=0.01)
        missed = (change @ keys - residuals).norm(dim=0) / residuals.norm(dim=0)
        assert found["fit_mean"] == pytest.approx(1 - missed.mean().item(), abs=1e-4)
        assert found["fit_min"] == pytest.approx(1 - missed.max().item(), abs=1e-4)


def test_the_profiles_budget_is_the_default(base: Any, patches: list[Patch]) -> None:
    model, tokenizer, profile = base
    assert patched(base, patches, "joint").report["modules"][PATH]["drift_predicted"] == pytest.approx(0.05, rel=0.01)
    wide = (model, tokenizer, profile.replace(drift_budget=0.3))
    assert patched(wide, patches, "joint").report["modules"][PATH]["drift_predicted"] == pytest.approx(0.3, rel=0.01)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_a_budget_that_is_none_is_refused(base: Any, patches: list[Patch], budget: float) -> None:
    with pytest.raises(KeditError, match=f"budget={budget!r} is no setting of a stack"):
        patched(base, patches, "joint", budget=budget)


def test_row_weights_decide_how_closely_a_row_is_met(base: Any) -> None:
    light, heavy = (make_patch(*base, EDITS[:1], omega=omega) for omega in (1.0, 1e6))
    fits = [patched(base, [p], "sum").report["modules"][PATH]["fit_min"] for p in (light, heavy)]
    assert fits[0] < 0.96 and fits[1] > 0.999
    for omega in (0.0, -1.0, 1e7, True):
        with pytest.raises(KeditError, match=f"omega={omega!r}"):
            patched(base, [make_patch(*base, EDITS[:1], omega=omega)], "sum")


@pytest.mark.parametrize("mode", ["joint", "sum"])
def test_equal_keys_with_different_values_stay_accurate_in_float32(base: Any, mode: str) -> None:
    """Two heavy rows at one key: in exact arithmetic they share what they ask for, and so they must in the branch."""
    one, two = (make_patch(*base, EDITS[:1], seed=seed, omega=1e6).deltas[PATH] for seed in (1, 2))
    delta = Associative(
        keys=torch.cat([one.keys, two.keys]),
        residuals=torch.cat([one.residuals, two.residuals]),
        base_outputs=torch.cat([one.base_outputs, two.base_outputs]),
        edit_index=torch.cat([one.edit_index, two.edit_index + 1]),
        site="answer",
    )
    edits = [EDITS[0], Edit("Paris is the seat of", "Rome", "Paris")]
    patch = Patch.create(
        deltas={PATH: delta}, edits=edits, base=base_of(base[0], PATH), method="rome", settings={"omega": 1e6}
    )
    change = matrix(patched(base, [patch], mode, budget=100.0))
    shared = (one.residuals + two.residuals) / 2
    missed = (one.keys @ change.T - shared).norm() / shared.norm()
    assert missed < 1e-3


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_shadowed_edits_are_silent(base: Any, mode: str) -> None:
    """The older patch has two edits; the newer one contradicts the first and leaves the second."""
    strict = base[2].replace(gate=GateSettings(subject=0.95, answer=0.5))  # only an edit's own subject opens it
    base = (base[0], base[1], strict)
    older = make_patch(*base, EDITS[:2], seed=1)
    newer = make_patch(*base, [FRANCE], seed=2)
    stack = PatchStack([older, newer], conflicts="latest")
    model = patched(base, stack, mode)
    assert model.report["modules"][PATH]["rows"] == len(newer.deltas[PATH].keys) + 1
    model.remove(newer)
    assert torch.equal(logits(model.model, base[1]), logits(patched(base, [older], mode).model, base[1]))
    if mode == "gated":  # rows never mix, so the prompts show it
        both = logits(patched(base, stack, mode).model, base[1])
        assert torch.equal(both[0], logits(patched(base, [newer], mode).model, base[1])[0])
        assert torch.equal(both[1], logits(patched(base, [older], mode).model, base[1])[1])


def test_what_is_left_of_a_patch_keeps_its_own_keys(base: Any) -> None:
    model = base[0]
    older, newer = make_patch(*base, EDITS[:3], seed=1), make_patch(*base, [FRANCE], seed=2)
    delta = older.deltas[PATH]
    for patches in ([older, newer], [newer, older]):  # the rows of the patch may come first or second
        stack = PatchStack([older, newer], conflicts="latest")
        stored = gather(patches, PATH, stack, model.get_submodule(PATH), exact=True)
        start = 0 if patches[0] is older else 1
        for edit in (0, 1, 2):
            here = start + edit  # its number in the whole
            assert stored.edit_owner[here] == older.id
            mine, theirs = stored.row_edit == here, delta.edit_index == edit
            keys = stored.row_edit[stored.context_row] == here
            if edit == 0:  # shadowed
                assert not mine.any() and not keys.any() and not (stored.gate_edit == here).any()
                continue
            assert torch.equal(stored.keys[mine], delta.keys[theirs])
            assert torch.equal(stored.residuals[mine], delta.residuals[theirs])
            assert torch.equal(stored.context_keys[keys], delta.context_keys[theirs[delta.context_row]])
            assert torch.equal(stored.gate_keys[stored.gate_edit == here], delta.gate_keys[delta.gate_edit == edit])
        owners = [stored.edit_owner[int(edit)] for edit in stored.row_edit]
        assert owners == list(stored.row_owner)


def test_an_edit_that_is_wholly_shadowed_leaves_the_newer_alone(base: Any) -> None:
    older, newer = make_patch(*base, EDITS[:1], seed=1), make_patch(*base, [FRANCE], seed=2)
    both = patched(base, PatchStack([older, newer], conflicts="latest"), "joint")
    assert torch.equal(logits(both.model, base[1]), logits(patched(base, [newer], "joint").model, base[1]))


def test_auto_gates_where_it_can(base: Any, patches: list[Patch]) -> None:
    assert by_form(PatchStack(patches), StackSettings()).mode == "gated"
    delta = patches[0].deltas[PATH]
    plain = Associative(delta.keys, delta.residuals, delta.base_outputs, delta.edit_index, site="answer")
    patch = Patch.create(deltas={PATH: plain}, edits=EDITS[:1], base=base_of(base[0], PATH), method="memit")
    model = patched(base, [patch, patches[1]])
    assert model.report["mode"] == "joint" and "no subject keys" in model.report["why"]
    with pytest.raises(KeditError, match='pass mode="joint"'):
        patched(base, [patch, patches[1]], "gated")
    with pytest.raises(KeditError, match="mode='fast' is no setting of a stack"):
        patched(base, patches, "fast")


def test_low_rank_and_dense_patches_are_added_in_every_mode(base: Any, patches: list[Patch]) -> None:
    g = torch.Generator().manual_seed(0)
    a, b, dense = (torch.randn(*shape, generator=g) * 0.1 for shape in ((2, 128), (64, 2), (64, 128)))
    more = [
        Patch.create(deltas={PATH: delta}, edits=[FRANCE], base=base_of(base[0], PATH), method=name)
        for name, delta in (("mend", LowRank(a, b)), ("ft", Dense(dense)))
    ]
    stack = PatchStack([*more, *patches[1:]])
    assert torch.allclose(matrix(patched(base, more)), b @ a + dense, atol=1e-5)
    for mode in ("joint", "sum"):
        expected = matrix(patched(base, patches[1:], mode)) + b @ a + dense
        assert torch.allclose(matrix(patched(base, stack, mode)), expected, atol=1e-5)


def test_another_base_is_refused_by_the_name_of_the_module(base: Any, patches: list[Patch]) -> None:
    other, tokenizer = tiny_model("llama", seed=1)
    with pytest.raises(WrongBaseError, match=r"model\.layers\.\d\.mlp\.down_proj.*tiny/base"):
        patched((other, tokenizer, base[2]), patches)
    kin, tokenizer = tiny_model("gpt2")
    with pytest.raises(WrongBaseError, match=r"tiny/base.*a llama.*is a gpt2"):
        patched((kin, tokenizer, base[2]), patches)
    short, tokenizer = tiny_model("llama", num_hidden_layers=1)
    with pytest.raises(WrongBaseError, match=r"model\.layers\.\d\.mlp\.down_proj"):
        patched((short, tokenizer, base[2]), patches)


def test_a_missing_profile_is_named(base: Any, patches: list[Patch]) -> None:
    with pytest.raises(ProfileError, match=r"no base profile for model\.layers\.1\.mlp\.down_proj"):
        compose(PatchStack(patches), base[0], {}, mode="joint")


def test_a_refused_patch_leaves_the_stack_as_it_was(base: Any, patches: list[Patch]) -> None:
    model = patched(base, patches[1:])
    before = logits(model.model, base[1])
    other, tokenizer = tiny_model("llama", seed=1)
    alien = make_patch(other, tokenizer, base[2], EDITS[:1])
    with pytest.raises(WrongBaseError):
        model.add(alien)
    assert model.stack.ids == tuple(p.id for p in patches[1:])
    assert torch.equal(logits(model.model, base[1]), before)


def test_a_gate_that_listens_above_the_edit_is_refused(base: Any) -> None:
    model, tokenizer, _ = base
    profile = profile_of(model, tokenizer, layer=0, gate_layer=1)
    patch = make_patch(model, tokenizer, profile)
    with pytest.raises(ProfileError, match=r"layer 1, above the edited layer 0"):
        patched_with(model, tokenizer, profile, [patch], "gated")
    at_it = profile_of(model, tokenizer, layer=0, gate_layer=0)
    made = patched_with(model, tokenizer, at_it, [make_patch(model, tokenizer, at_it)], "gated")
    assert not torch.equal(logits(made.model, tokenizer), logits(model, tokenizer))

"""A selection holds for as long as it is in force: over a cache that another one began, and inside other looks at the stack."""

import copy

import pytest
import torch

from kedit_hub.editors.rebase import rebase
from kedit_hub.edits import Probe
from kedit_hub.errors import ProfileError
from kedit_hub.evaluate.screen import screen
from kedit_hub.patch import LowRank, Patch
from kedit_hub.patch.deltas import Facts
from kedit_hub.stack.choose import by_form
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack
from tests.profiles import EDITS, logits, make_patch, patched, profile_of
from tests.stack.kinds import ABOUT, Setup
from tests.tiny import tiny_model

PROMPTS = [edit.prompt for edit in EDITS]


@pytest.fixture(scope="module")
def base():
    """A model, its tokenizer, its profile, and two patches of two edits each."""
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    made = [make_patch(model, tokenizer, profile, EDITS[i : i + 2], seed=i + 1, size=3) for i in (0, 2)]
    return model, tokenizer, profile, made


@pytest.mark.parametrize("mode", ["gated", "joint"])
def test_a_cache_goes_on_under_the_selection_in_force(base, mode):
    model, tokenizer, profile, (a, b) = base
    ids = tokenizer(EDITS[0].prompt, return_tensors="pt").input_ids
    m = patched(model, tokenizer, profile, PatchStack([a, b]), mode=mode)
    with torch.no_grad():
        cache = m.model(ids[:, :-1], use_cache=True).past_key_values  # the whole stack hears the subject of a
        whole = m.model(ids[:, -1:], past_key_values=copy.deepcopy(cache)).logits
        with m.disabled():
            plain = m.model(ids[:, -1:], past_key_values=copy.deepcopy(cache)).logits
        with m.only([[]]):
            nobody = m.model(ids[:, -1:], past_key_values=copy.deepcopy(cache)).logits
        with m.only([[a.id]]):
            selected = m.model(ids[:, -1:], past_key_values=cache).logits
    m.detach()
    assert torch.equal(nobody, plain) and (whole - plain).abs().max() > 0.1
    assert (selected - whole).abs().max() < 1e-5 or mode == "joint"


def test_facts_of_a_cache_speak_only_while_they_are_selected():
    setup = Setup("llama")
    facts = setup.patch(Facts(torch.tensor([0]), setup.deltas["lowrank"].shape, threshold=0.6), EDITS[0])
    m = patched(setup.model, setup.tokenizer, setup.profile, PatchStack([facts]), mode="gated")
    ids = setup.tokenizer(facts.edits[0].prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        cache = m.model(ids[:, :-1], use_cache=True).past_key_values
        whole = m.model(ids[:, -1:], past_key_values=copy.deepcopy(cache)).logits
        with m.disabled():
            plain = m.model(ids[:, -1:], past_key_values=copy.deepcopy(cache)).logits
        with m.only([[]]):
            nobody = m.model(ids[:, -1:], past_key_values=cache).logits
    m.detach()
    assert torch.equal(nobody, plain) and not torch.equal(whole, plain)


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_a_selection_is_kept_inside_other_looks(base, mode):
    model, tokenizer, profile, (a, b) = base
    of_a = {}
    for how in ("joint", "sum", mode):
        alone = patched(model, tokenizer, profile, PatchStack([a]), mode=how)
        of_a[how] = logits(alone.model, tokenizer, PROMPTS)
        alone.detach()
    m = patched(model, tokenizer, profile, PatchStack([a, b]), mode=mode)
    with m.disabled():
        plain = logits(m.model, tokenizer, PROMPTS)
    rows = [[a.id]] * len(PROMPTS)
    with m.only(rows), m.without(b.id):
        assert torch.equal(logits(m.model, tokenizer, PROMPTS), of_a[mode])
    for how in ("joint", "sum"):
        with m.only(rows), m.under(how):
            assert torch.allclose(logits(m.model, tokenizer, PROMPTS), of_a[how], atol=1e-5)
    nobody = [[]] * len(PROMPTS)
    with m.only(nobody), m.placebo(seed=1):
        assert torch.equal(logits(m.model, tokenizer, PROMPTS), plain)
    with m.only(rows), m.placebo(seed=1):
        assert not torch.equal(logits(m.model, tokenizer, PROMPTS), plain)
    m.detach()


def test_patches_that_listen_at_different_layers_are_solved_or_refused():
    model, tokenizer = tiny_model("llama")
    early, late = (profile_of(model, tokenizer, gate_layer=layer) for layer in (0, 1))
    assert early.module == late.module and early.gate_module != late.gate_module
    a, b = make_patch(model, tokenizer, early, EDITS[:2], seed=1), make_patch(model, tokenizer, late, EDITS[2:], seed=2)
    assert by_form(PatchStack([a]), StackSettings()).mode == "gated"
    chosen = by_form(PatchStack([a, b]), StackSettings())
    assert chosen.mode == "joint" and "different layers" in chosen.why
    with pytest.raises(ProfileError, match=f'patch {b.id[:12]} listens .* mode="joint"'):
        patched(model, tokenizer, early, PatchStack([a, b]), mode="gated")


def test_changes_of_weights_are_written_as_they_were_applied():
    """A keyed change can be solved as rows; alone, it is linear already, and what is written is what was answered with."""
    setup = Setup("llama")
    patch = setup.patches["lowrank"]
    given = patch.deltas[setup.path]
    keys = torch.randn(len(patch.edits), given.shape[1], generator=torch.Generator().manual_seed(0))
    keyed = setup.patch(LowRank(given.a, given.b, keys=keys, key_edit=torch.arange(len(patch.edits))), ABOUT["lowrank"])
    m = patched(setup.model, setup.tokenizer, setup.profile, PatchStack([keyed]), mode="gated")
    live = setup.logits(m.model)
    fused = setup.logits(m.fuse())
    m.detach()
    assert (live - setup.base).abs().max() > 0.1 and (fused - live).abs().max() < 1e-4


def test_rows_over_other_changes_are_held_against_what_they_were_measured_on():
    setup = Setup("llama")
    plain = make_patch(setup.model, setup.tokenizer, setup.profile, EDITS, seed=1)
    beneath = LowRank(setup.deltas["lowrank"].a, 3 * setup.deltas["lowrank"].b)
    lower = setup.patch(beneath, ABOUT["lowrank"], path=setup.path.replace("layers.1", "layers.0"))
    for below in (setup.patches["lowrank"], lower):
        stack: PatchStack = PatchStack([below])
        onto = patched(setup.model, setup.tokenizer, setup.profile, stack)
        rows: Patch = rebase(plain, onto, profile=setup.profile)
        onto.detach()
        m = patched(setup.model, setup.tokenizer, setup.profile, stack.add(rows), mode="gated")
        found = screen(m, [Probe("Berlin is in")]).findings
        m.detach()
        assert [f for f in found if f.kind in ("stored-row", "base-output")] == []


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_rows_start_from_the_share_of_a_change_that_is_made(strength):
    """Rebased or refreshed, rows meet the outputs they aim at, over changes of the same weight at the strength these have."""
    setup = Setup("llama")
    plain, low = make_patch(setup.model, setup.tokenizer, setup.profile, EDITS, seed=1), setup.patches["lowrank"]
    stack = PatchStack([low], strengths={low.id: strength})
    onto = patched(setup.model, setup.tokenizer, setup.profile, stack)
    rows = rebase(plain, onto, profile=setup.profile).deltas[setup.path]
    onto.detach()
    change = low.deltas[setup.path].change(rows.keys).float()
    with torch.no_grad():
        starts = setup.model.get_submodule(setup.path)(rows.keys) + strength * change
    given = plain.deltas[setup.path]
    wanted = given.base_outputs + given.residuals
    assert torch.allclose(starts + rows.residuals, wanted, atol=1e-3 * float(wanted.norm(dim=1).max()))

"""16 · Patches that are harmless one by one and harmful together (Colluding LoRA, arXiv:2603.12681; LoBAM, arXiv:2411.16746).

The stack is the unit: contradictions are refused, what it answers depends on the set alone, and scores of one patch are
never taken for those of a stack, nor the other way round.
"""

import itertools

import pytest
import torch

import kedit_hub
from kedit_hub import demo
from kedit_hub.errors import ConflictError, KeditError, TrustError
from kedit_hub.evaluate.claims import NotComparable, check_claims
from kedit_hub.patch import LowRank, Patch
from kedit_hub.patch.trust import Rule, TrustPolicy
from kedit_hub.stack.stack import PatchStack
from tests.evaluate import atlas
from tests.profiles import EDITS, base_of, logits
from tests.tiny import tiny_model

PATHS = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")


@pytest.fixture(scope="module")
def tiny():
    return tiny_model("llama")


def part(model, number: int, *, requires: tuple[str, ...] = (), path: str = PATHS[0]) -> Patch:
    """One factor of a change: each alone is small."""
    generator = torch.Generator().manual_seed(number)
    delta = LowRank(torch.randn(1, 128, generator=generator), torch.randn(64, 1, generator=generator) / 8)
    return Patch.create(
        deltas={path: delta}, edits=[EDITS[number]], base=base_of(model, path), method="mend", requires=requires
    )


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_stack_is_a_set(tiny, order):
    """The same patches in another order answer bit for bit alike: no order can be chosen to do harm."""
    model, tokenizer = tiny
    parts = [part(model, number, path=PATHS[number % 2]) for number in range(3)]
    prompts = [edit.prompt for edit in EDITS]
    one = kedit_hub.apply(parts, model, tokenizer=tokenizer)
    other = kedit_hub.apply([parts[i] for i in order], model, tokenizer=tokenizer)
    assert torch.equal(logits(one.model, tokenizer, prompts), logits(other.model, tokenizer, prompts))


def test_one_patch_twice_is_one_patch(tiny):
    """An effect cannot be doubled by giving a patch twice, under two names or from two places."""
    model, tokenizer = tiny
    patch = part(model, 0)
    prompts = [edit.prompt for edit in EDITS]
    once, twice = (
        kedit_hub.apply(patches, model, tokenizer=tokenizer)
        for patches in ([patch], [patch, Patch.from_files(patch.files())])
    )
    assert torch.equal(logits(once.model, tokenizer, prompts), logits(twice.model, tokenizer, prompts))


def test_contradictions_are_refused_and_named(tiny):
    model, _ = tiny
    one = part(model, 0)
    other = Patch.create(
        deltas=one.deltas,
        edits=[type(EDITS[0])(EDITS[0].prompt, "Bonn", "France")],
        base=one.manifest.base,
        method="mend",
    )
    with pytest.raises(ConflictError, match=r'"The capital of France is": .*"Rome".*"Bonn"'):
        PatchStack([one, other])
    assert len(PatchStack([one, other], conflicts="latest").shadowed) == 1


def test_a_patch_does_not_bring_another_with_it(tiny):
    """`requires` is a list of ids; what it names is never fetched, and a stack without it is refused."""
    model, tokenizer = tiny
    needed = part(model, 0)
    needing = part(model, 1, requires=(needed.id,))
    with pytest.raises(KeditError, match=f"needs the patches {needed.id[:12]}"):
        kedit_hub.apply(needing, model, tokenizer=tokenizer)
    assert len(PatchStack([needing, needed])) == 2


def test_every_patch_of_a_stack_is_judged(tiny):
    """A trusted patch does not vouch for its neighbours."""
    model, tokenizer = tiny
    policy = TrustPolicy(rules=[Rule(base="*", authors=["our-lab"])])
    for patches in ([part(model, 0)], [part(model, 0), part(model, 1)]):
        with pytest.raises(TrustError):
            kedit_hub.apply(patches, model, tokenizer=tokenizer, trust=policy)


def test_one_open_gate_in_a_stack_is_named_and_opens_no_other():
    """A stranger's thresholds hold for the stranger's edits: the neighbour keeps its own, and the report says who opened what."""
    tower, france = atlas.sample(atlas.TOWER), atlas.sample(atlas.FRANCE)
    wide = atlas.with_rows(france, thresholds=torch.tensor([[-1.0, -1.0]]))
    auto = atlas.apply(tower, wide)  # probes may leave the gate because of it, and it is named all the same
    assert auto.report["modules"][atlas.MODULE]["wide_open"] == [wide.id]
    patched = atlas.apply(tower, wide, mode="gated")
    assert patched.report["modules"][atlas.MODULE]["wide_open"] == [wide.id]
    (gate,) = patched._composition.branches[atlas.MODULE]
    usual = demo.profile("llama").settings.gate
    expected = {tower.id: [usual.subject, usual.answer], wide.id: [-1.0, -1.0]}
    assert {owner: own for owner, own in zip(gate.bank.owners, gate.bank.thresholds.tolist())} == {
        name: pytest.approx(own) for name, own in expected.items()
    }
    patched.remove(wide)
    assert patched.report["modules"][atlas.MODULE]["wide_open"] == []


def test_scores_of_a_stack_are_not_those_of_a_patch(tiny):
    one, two = part(tiny[0], 0), part(tiny[0], 1)
    sheet = {"protocols": {"generate": {"reliability": 1.0}}, "per_edit": []}
    claims = check_claims(one.replace_evals({**sheet, "stack": {"patches": [one.id, two.id], "mode": "gated"}}))
    assert isinstance(claims, NotComparable) and "not of this patch alone" in claims.reason


def test_a_refused_patch_leaves_the_stack_as_it_was(tiny):
    """On any error while one is added, nothing of it stays behind."""
    model, tokenizer = tiny
    prompts = [edit.prompt for edit in EDITS]
    patched = kedit_hub.apply([part(model, 0)], model, tokenizer=tokenizer)
    before = logits(patched.model, tokenizer, prompts)
    other, _ = tiny_model("llama", seed=1)
    with pytest.raises(KeditError):
        patched.add(part(other, 1))
    assert patched.stack.ids == (part(model, 0).id,)
    assert torch.equal(logits(patched.model, tokenizer, prompts), before)

"""Rebasing: keys measured anew on a changed model, wanted outputs kept; nothing changes on the plain base."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from kedit_hub.base.families import linear_shape
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.editors.keyed import keyed
from kedit_hub.editors.rebase import rebase
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError, ProfileError, WrongBaseError
from kedit_hub.patch import Associative, Codebook, Dense, Facts, LowRank, Neurons, Patch, SideMemory
from kedit_hub.stack.stack import PatchStack
from tests.profiles import EDITS, base_of, make_patch, patched, profile_of
from tests.tiny import tiny_model

OTHER = Edit("Zürich lies in", "Spain", "Zürich")
BELOW = {"llama": "model.layers.0.mlp.down_proj", "gpt2": "transformer.h.0.mlp.c_proj"}
CONTEXTS = ("The capital of Italy is Rome.", "Berlin is the capital of Germany.")


class Setup:
    def __init__(self, model_type: str):
        self.model, self.tokenizer = tiny_model(model_type)
        self.profile = profile_of(self.model, self.tokenizer, gate_layer=1, contexts=CONTEXTS)
        self.path, self.below = self.profile.module, BELOW[model_type]
        self.patch = make_patch(self.model, self.tokenizer, self.profile)
        self.dense = self.of(Dense(self.random(self.below)), self.below)

    def random(self, path: str, seed: int = 0) -> torch.Tensor:
        shape = linear_shape(self.model.get_submodule(path))
        return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def of(self, delta: Any, path: str, *edits: Edit) -> Patch:
        base = base_of(self.model, path)
        return Patch.create(deltas={path: delta}, edits=edits or [OTHER], base=base, method="other")

    def made(self, *patches: Patch, mode: str = "gated", **more: Any) -> Any:
        return patched(self.model, self.tokenizer, self.profile, PatchStack(patches), mode, **more)

    def rows(self, patch: Patch) -> Associative:
        delta = patch.deltas[self.path]
        assert isinstance(delta, Associative)
        return delta

    def rebased(self, patch: Patch, onto: Any) -> Patch:
        return rebase(patch, onto, tokenizer=self.tokenizer, profile=self.profile)

    def said(self, model: Any, edit: Edit) -> torch.Tensor:
        """(m,) output of the edited map at the last token of the prompt."""
        return capture(model.model, [self.path], encode(self.tokenizer, [edit.prompt]), outputs=True)[self.path][0, -1]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def setup(request: Any) -> Setup:
    return Setup(request.param)


def near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((found - expected).norm() <= tolerance * expected.norm())


@pytest.mark.parametrize("half", [False, True], ids=["f32", "f16"])
@pytest.mark.parametrize("bare", [None, 0.5], ids=["plain mean", "half bare"])
def test_onto_the_plain_base_the_rows_come_back(setup: Setup, half: bool, bare: float | None) -> None:
    delta = setup.rows(setup.patch)
    if bare is not None:  # as MEMIT averages: half the weight on the bare prompt, which is the first context
        count = len(CONTEXTS)
        weights = torch.tensor([0.5] + [0.5 / count] * count)
        keys = [weights @ delta.context_keys[delta.context_row == row] for row in range(len(delta.keys))]
        moved = torch.stack(keys) - delta.keys
        delta = replace(delta, keys=torch.stack(keys), base_outputs=delta.base_outputs + moved @ weight(setup))
    patch = again(setup.patch, setup.path, delta.halved() if half else delta)
    delta = setup.rows(patch)
    found = setup.rebased(patch, setup.model)
    new = setup.rows(found)
    for name, tensor in delta.tensors().items():
        if tensor.is_floating_point():
            assert near(new.tensors()[name], tensor, 2e-3 if half else 1e-5), name
        else:
            assert torch.equal(new.tensors()[name], tensor), name
    assert new.precision == delta.precision and found.manifest.requires == ()
    assert found.manifest.provenance.parents == (patch.id,) and found.edits == patch.edits
    assert found.manifest.settings == patch.manifest.settings and found.manifest.profile_id == patch.manifest.profile_id


def weight(setup: Setup) -> torch.Tensor:
    """W^T (d, m)."""
    module = setup.model.get_submodule(setup.path)
    return module.weight.detach() if setup.path.startswith("transformer") else module.weight.detach().T


def again(patch: Patch, path: str, delta: Any, **more: Any) -> Patch:
    m = patch.manifest
    given = {"method": m.method, "settings": m.settings, "profile_id": m.profile_id, "base": m.base, **more}
    return Patch.create(deltas={path: delta}, edits=patch.edits, **given)


def test_on_top_of_a_dense_patch_the_wanted_outputs_are_reached_again(setup: Setup) -> None:
    found = setup.rebased(setup.patch, setup.made(setup.dense))
    old, new = setup.rows(setup.patch), setup.rows(found)
    assert found.manifest.requires == (setup.dense.id,) and found.manifest.provenance.parents == (setup.patch.id,)
    assert not near(new.keys, old.keys, 0.1)
    assert near(new.base_outputs + new.residuals, old.base_outputs + old.residuals)
    strict = setup.profile.replace(
        gate=setup.profile.settings.gate.model_copy(update={"subject": 0.95, "answer": 0.95})
    )
    stacks = {"stale": setup.patch, "rebased": found}
    for row, edit in enumerate(EDITS):
        row = int((old.edit_index == row).nonzero()[0, 0])
        wanted = old.base_outputs[row] + old.residuals[row]
        far = {}
        for name, top in stacks.items():
            model = patched(setup.model, setup.tokenizer, strict, PatchStack([setup.dense, top]), "gated")
            far[name] = (setup.said(model, edit) - wanted).norm() / old.residuals[row].norm()
        # the bare prompt's own key is one of the context keys; the row starts from the mean of all contexts
        assert far["rebased"] < 0.6 < far["stale"], edit.prompt
    with pytest.raises(KeditError, match=f"needs the patches {setup.dense.id[:12]}"):
        setup.made(found)


def test_the_keys_are_those_of_the_changed_model(setup: Setup) -> None:
    below = setup.made(setup.dense)
    new = setup.rows(setup.rebased(setup.patch, below))
    encoded = encode(setup.tokenizer, [EDITS[0].prompt])
    seen = capture(below.model, [setup.path], encoded)[setup.path][0]
    assert near(new.context_keys[0], seen[-1], 1e-4)  # the bare prompt of the first edit comes first
    at_gate = capture(below.model, [new.gate_module], encoded)[new.gate_module][0]
    assert (new.gate_keys[:, None] - at_gate[None]).norm(dim=2).min() < 1e-3 * at_gate.norm(dim=1).max()


def test_a_change_of_the_same_weight_is_started_from(setup: Setup) -> None:
    delta = Dense(0.3 * setup.random(setup.path, seed=1))
    same = keyed(setup.of(delta, setup.path), setup.model, setup.tokenizer)
    found = setup.rebased(setup.patch, setup.made(same))
    old, new = setup.rows(setup.patch), setup.rows(found)
    assert found.manifest.requires == (same.id,) and near(new.keys, old.keys, 1e-4)
    assert near(new.residuals, old.residuals - old.keys @ delta.delta.T, 1e-4)
    both = setup.made(same, found, mode="joint", budget=1e6)  # what rows were rebased onto is no row itself
    assert both.report["modules"][setup.path]["rows"] == len(new.keys)
    module = both.model.get_submodule(setup.path)
    with torch.no_grad():
        said = module(new.keys[None])[0]
    assert near(said, old.base_outputs + old.residuals, 0.02)


def test_what_lies_above_or_beside_is_not_required(setup: Setup) -> None:
    above = setup.path.replace(".1.", ".2.")
    beside = make_patch(setup.model, setup.tokenizer, setup.profile, [OTHER], seed=3)
    onto = setup.made(setup.of(Dense(setup.random(above)), above), beside)
    found = setup.rebased(setup.patch, onto)
    assert found.manifest.requires == () and near(setup.rows(found).residuals, setup.rows(setup.patch).residuals, 1e-4)


def test_a_patch_in_the_stack_is_rebased_onto_the_others(setup: Setup) -> None:
    onto = setup.made(setup.dense, setup.patch)
    expected = setup.rebased(setup.patch, setup.made(setup.dense))
    assert setup.rebased(setup.patch, onto) == expected


def test_codebook_keys_move_and_keys_of_neurons_do_not(setup: Setup) -> None:
    encoded = encode(setup.tokenizer, [EDITS[0].prompt])
    last = capture(setup.model, [setup.path], encoded)[setup.path][0, -1:]
    m, d = linear_shape(setup.model.get_submodule(setup.path))
    book = Codebook(last, torch.ones(1, m), torch.tensor([1.0]), torch.tensor([0]))
    patch = setup.of(book, setup.path, EDITS[0])
    assert near(setup.rebased(patch, setup.model).deltas[setup.path].keys, last)
    onto = setup.made(setup.dense)
    now = capture(onto.model, [setup.path], encoded)[setup.path][0, -1:]
    found = setup.rebased(patch, onto).deltas[setup.path]
    assert near(found.keys, now) and not near(found.keys, last, 0.1)
    assert torch.equal(found.values, book.values) and torch.equal(found.radii, book.radii)
    with pytest.raises(KeditError, match="no input of the base at any token"):
        setup.rebased(setup.of(replace(book, keys=2 * last), setup.path, EDITS[0]), onto)
    neurons = Neurons(torch.ones(1, d), torch.ones(1), torch.ones(1, m), (m, d))
    memory, facts = SideMemory(torch.ones(m, d), threshold=1.0), Facts(torch.tensor([0]), (m, d), threshold=0.5)
    for delta, why in ((neurons, "learnt, not measured"), (memory, "fitted to the base"), (facts, "words")):
        with pytest.raises(KeditError, match=why):
            setup.rebased(setup.of(delta, setup.path), onto)


def test_a_change_of_a_weight_keeps_what_it_is_and_reads_its_keys_again(setup: Setup) -> None:
    m, d = linear_shape(setup.model.get_submodule(setup.path))
    plain = setup.of(LowRank(torch.ones(1, d), torch.ones(m, 1)), setup.path)
    onto = setup.made(setup.dense)
    assert setup.rebased(plain, onto).deltas[setup.path].keys is None
    with_keys = keyed(plain, setup.model, setup.tokenizer)
    found = setup.rebased(with_keys, onto).deltas[setup.path]
    seen = capture(onto.model, [setup.path], encode(setup.tokenizer, [OTHER.prompt], [OTHER.target]))[setup.path][0]
    assert near(found.keys, seen[1:][-16:], 1e-4) and torch.equal(found.a, plain.deltas[setup.path].a)


def test_what_is_missing_is_named(setup: Setup) -> None:
    with pytest.raises(ProfileError, match="pass profile= with that one"):
        rebase(setup.patch, setup.model, tokenizer=setup.tokenizer)
    with pytest.raises(KeditError, match="pass tokenizer="):
        rebase(setup.patch, setup.model, profile=setup.profile)
    other = profile_of(setup.model, setup.tokenizer, gate_layer=1, contexts=CONTEXTS[:1])
    with pytest.raises(KeditError, match="pass the profile it was made under"):
        rebase(setup.patch, setup.model, tokenizer=setup.tokenizer, profile=other)
    alien, _ = tiny_model("llama" if setup.path.startswith("model") else "gpt2", seed=1)
    with pytest.raises(WrongBaseError):
        rebase(setup.patch, alien, tokenizer=setup.tokenizer, profile=setup.profile)

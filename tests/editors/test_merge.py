"""Two relations of one subject on one key: the collision is found, stacking them loses one, merging them keeps both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit_hub import demo
from kedit_hub.api import load_model
from kedit_hub.base.profile import BaseProfile
from kedit_hub.editors.editor import make_patch
from kedit_hub.editors.merge import colliding, merge
from kedit_hub.editors.sweep import build_profile
from kedit_hub.edits import Edit
from kedit_hub.errors import ConflictError, KeditError
from kedit_hub.evaluate.protocols import teacher_forced
from kedit_hub.patch import Associative, Patch
from kedit_hub.stack.patched import PatchedModel
from tests.profiles import patched

SAMPLES = Path(__file__).resolve().parents[2] / "patches"
BORN = Edit("Glenn Gould is honoured as one of the great names of", "Ireland", "Glenn Gould", relation="citizenship")
WORK = Edit("Glenn Gould made a name as a gifted", "baseball player", "Glenn Gould", relation="occupation")
CITY = Edit("Question: In which city was Glenn Gould born? Answer:", "Baltimore", "Glenn Gould", relation="birthplace")
OTHER = Edit("Erwin Schrödinger had a career as a successful", "painter", "Erwin Schrödinger", relation="occupation")


class Atlas:
    def __init__(self) -> None:
        self.model, self.tokenizer = load_model("kedit-hub/atlas-llama")
        texts = demo.texts("profile")[:400]
        self.profile: BaseProfile = build_profile(
            self.model, self.tokenizer, texts, 1, site="subject", name="atlas", progress=False
        )
        self.born, self.work, self.other = (self.patch(edit) for edit in (BORN, WORK, OTHER))

    def patch(self, *edits: Edit, **settings: Any) -> Patch:
        return make_patch(
            self.model, self.tokenizer, edits, self.profile,
            method="rome-classic", settings=settings, base=("kedit-hub/atlas-llama", None), progress=False,
        )  # fmt: skip

    def rows(self, patch: Patch) -> Associative:
        delta = patch.deltas[self.profile.module]
        assert isinstance(delta, Associative)
        return delta

    def made(self, *patches: Patch) -> PatchedModel:
        return patched(self.model, self.tokenizer, self.profile.replace(drift_budget=0.5), patches, "joint")

    def right(self, model: PatchedModel, *edits: Edit) -> list[bool]:
        answers = teacher_forced(model.model, self.tokenizer, [(edit.prompt, edit.target) for edit in edits])
        return [answer.accuracy == 1.0 for answer in answers]


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return Atlas()


def test_a_collision_is_one_subject_asked_two_things(atlas: Atlas) -> None:
    patches = [atlas.born, atlas.other, atlas.work]
    assert colliding(patches, atlas.profile) == [((atlas.born.id, 0), (atlas.work.id, 0))]
    assert colliding([atlas.born, atlas.other], atlas.profile) == []
    both = atlas.patch(OTHER, BORN, WORK)
    assert colliding([both], atlas.profile) == [((both.id, 1), (both.id, 2))]
    again = atlas.patch(Edit(BORN.prompt, "Ireland", "Glenn Gould", rephrases=["Who?"]))  # says what `born` says
    assert colliding([atlas.born, again], atlas.profile) == []


def test_stacked_one_is_lost_and_merged_both_hold(atlas: Atlas) -> None:
    assert atlas.right(atlas.made(atlas.born), BORN) == atlas.right(atlas.made(atlas.work), WORK) == [True]
    city = atlas.patch(CITY)  # the words before the subject make its key another one
    patches = [atlas.born, atlas.work, atlas.other, city]
    assert colliding(patches, atlas.profile) == [((atlas.born.id, 0), (atlas.work.id, 0))]
    stacked = atlas.right(atlas.made(*patches), BORN, WORK, OTHER, CITY)
    assert not all(stacked[:2]) and all(stacked[2:])
    merged = merge(patches, atlas.model, atlas.tokenizer, atlas.profile)
    assert atlas.right(atlas.made(merged), BORN, WORK, OTHER, CITY) == [True] * 4


def test_rows_of_the_group_are_shared_and_the_others_stay(atlas: Atlas) -> None:
    parents = [atlas.born, atlas.other, atlas.work]
    patch = merge(parents, atlas.model, atlas.tokenizer, atlas.profile)
    assert patch.edits == (BORN, OTHER, WORK)
    assert patch.manifest.provenance.parents == tuple(sorted(p.id for p in parents))
    assert patch.manifest.settings == atlas.born.manifest.settings and patch.manifest.method == "rome-classic"
    delta = atlas.rows(patch)
    born, other, work = (atlas.rows(p) for p in parents)
    assert delta.edit_index.tolist() == [0, 1, 2]
    for name in ("keys", "base_outputs"):
        mean = (getattr(born, name) + getattr(work, name)) / 2
        assert torch.allclose(getattr(delta, name)[[0, 2]], mean, atol=1e-5)
    for name in ("keys", "base_outputs", "residuals"):
        assert torch.equal(getattr(delta, name)[0], getattr(delta, name)[2])
        assert torch.equal(getattr(delta, name)[1], getattr(other, name)[0])
    assert torch.equal(delta.context_keys, torch.cat([born.context_keys, other.context_keys, work.context_keys]))
    lengths = [len(d.context_keys) for d in (born, other, work)]
    assert delta.context_row.tolist() == [0] * lengths[0] + [1] * lengths[1] + [2] * lengths[2]
    assert torch.equal(delta.gate_keys[delta.gate_edit == 2], work.gate_keys)


def test_nothing_collides_and_the_rows_are_those_of_the_parents(atlas: Atlas) -> None:
    patch = merge([atlas.other, atlas.born], atlas.model, atlas.tokenizer, atlas.profile)
    for name in ("keys", "residuals", "base_outputs"):
        expected = torch.cat([getattr(atlas.rows(p), name) for p in (atlas.other, atlas.born)])
        assert torch.equal(getattr(atlas.rows(patch), name), expected)


def test_half_and_portable_rows_stay_so(atlas: Atlas) -> None:
    small = [atlas.patch(edit, precision="f16", portable=True) for edit in (BORN, WORK)]
    delta = atlas.rows(merge(small, atlas.model, atlas.tokenizer, atlas.profile))
    assert delta.precision == "f16" and delta.whitened_keys is not None
    mixed = atlas.rows(merge([small[0], atlas.work], atlas.model, atlas.tokenizer, atlas.profile))
    assert mixed.precision is None and mixed.whitened_keys is None


def test_what_cannot_be_merged_is_named(atlas: Atlas) -> None:
    given = (atlas.model, atlas.tokenizer, atlas.profile)
    with pytest.raises(KeditError, match="nothing to merge"):
        merge([], *given)
    with pytest.raises(ConflictError, match="Norway"):
        merge([atlas.born, atlas.patch(replace(BORN, target="Norway"))], *given)
    with pytest.raises(KeditError, match="merged are rows at the subject site"):
        merge([Patch.load(SAMPLES / "nokia-in-tokyo")], *given)
    known = {"method": "memit-classic", "settings": {**atlas.work.manifest.settings, "omega": 1.0}}
    m = atlas.work.manifest
    memit = Patch.create(deltas=dict(atlas.work.deltas), edits=m.edits, base=m.base, profile_id=m.profile_id, **known)
    with pytest.raises(KeditError, match=r"memit-classic, rome-classic with row weights 1\.0, 1000000\.0"):
        merge([atlas.born, memit], *given)

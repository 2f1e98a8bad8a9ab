"""7 · A look-alike name, a wrong base (PoisonGPT, 2023: an edited model under a name one letter off).

A base is recognised by digests of its weights, not by its name; and ids are plain ASCII, so that none looks like another.
"""

import copy

import pytest
import torch

import kedit_hub
from kedit_hub.errors import KeditError, PatchFormatError, WrongBaseError
from kedit_hub.patch import LowRank, Patch
from tests.attacks.tools import Case, refuse, resealed, setting
from tests.patch.build import PATHS, D, M, make_patch
from tests.patch.build import base as build_base
from tests.profiles import EDITS, base_of
from tests.tiny import tiny_model


def base_id(text: str) -> Case:
    return Case(setting("base", "id", value=text), PatchFormatError, "(not a path)")


CASES = {
    "Cyrillic letter": base_id("\u043erg/base"),
    "Greek letter": base_id("\u03bfrg/base"),
    "full-width letter": base_id("org/ba\uff53e"),
    "zero-width space": base_id("org/ba\u200bse"),
    "right-to-left override": base_id("org/\u202eesab"),
    "soft hyphen": base_id("org/ba\u00adse"),
    "combining mark": base_id("org/base\u0301"),
    "two dots": base_id("org/ba..se"),
    "two hyphens": base_id("org/ba--se"),
    "space at the end": base_id("org/base "),
    "a sentence": base_id("org/base, the one you trust"),
    "97 characters": base_id("org/" + "x" * 97),
    "a list of ids": Case(setting("base", "id", value=["org/base"]), PatchFormatError, "id: Input should be"),
    "branch as revision": Case(setting("base", "revision", value="main"), PatchFormatError, "40 hex digits"),
    "tag as revision": Case(setting("base", "revision", value="v1.0"), PatchFormatError, "40 hex digits"),
    "short commit": Case(setting("base", "revision", value="0" * 7), PatchFormatError, "40 hex digits"),
    "capital commit": Case(setting("base", "revision", value="A" * 40), PatchFormatError, "40 hex digits"),
    "no fingerprint of a changed module": Case(
        resealed(lambda config: config["base"]["fingerprint"].pop(PATHS[0])), PatchFormatError, "base.fingerprint lacks"
    ),
    "no fingerprint at all": Case(
        setting("base", "fingerprint", value={}), PatchFormatError, "base.fingerprint lacks"
    ),
    "fingerprint of another shape": Case(
        setting("base", "fingerprint", PATHS[0], "shape", value=[M, D + 1]), PatchFormatError, "shape"
    ),
    "half a fingerprint": Case(
        resealed(lambda config: config["base"]["fingerprint"][PATHS[0]]["values"].pop("float16")),
        PatchFormatError,
        "must have a digest for each",
    ),
    "sample of another length": Case(
        setting("base", "fingerprint", PATHS[0], "row_sample", value="AAAA"), PatchFormatError, "must hold"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    refuse(CASES[name])


PATH = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def victim():
    """(model, tokenizer, patch of it)"""
    model, tokenizer = tiny_model("llama")
    delta = LowRank(torch.ones(1, 128), torch.ones(64, 1))
    patch = Patch.create(deltas={PATH: delta}, edits=[EDITS[0]], base=base_of(model, PATH), method="mend")
    return model, tokenizer, patch


def test_the_right_base_is_taken(victim):
    model, tokenizer, patch = victim
    assert kedit_hub.apply(patch, model, tokenizer=tokenizer).report["levels"] == {PATH: "exact"}


def test_one_changed_number_under_the_same_name_is_another_base(victim):
    model, tokenizer, patch = victim
    poisoned = copy.deepcopy(model)
    with torch.no_grad():
        poisoned.get_submodule(PATH).weight[0, 0] += 2**-12
    with pytest.raises(WrongBaseError, match="holds other weights than the base"):
        kedit_hub.apply(patch, poisoned, tokenizer=tokenizer)
    with pytest.raises(WrongBaseError, match="holds other weights than the base"):
        patch.verify(poisoned)


def test_the_right_weights_under_another_name_are_the_base(victim):
    model, tokenizer, patch = victim
    renamed = copy.deepcopy(model)
    renamed.config._name_or_path = "EleuterAI/gpt-j-6B"
    assert kedit_hub.apply(patch, renamed, tokenizer=tokenizer).report["levels"] == {PATH: "exact"}


@pytest.mark.parametrize("other", ["seed", "model_type", "shape", "depth"])
def test_another_model_is_refused(victim, other):
    model, tokenizer = {
        "seed": lambda: tiny_model("llama", seed=1),
        "model_type": lambda: tiny_model("mistral"),
        "shape": lambda: tiny_model("llama", intermediate_size=192),
        "depth": lambda: tiny_model("llama", num_hidden_layers=1),
    }[other]()
    with pytest.raises(WrongBaseError):
        kedit_hub.apply(victim[2], model, tokenizer=tokenizer)


def test_a_base_without_an_owner_is_not_looked_up():
    """A name without an owner would be whatever lies at that name today."""
    nameless = make_patch(base=build_base().model_copy(update={"id": "base"}))
    with pytest.raises(KeditError, match='local model called "base"'):
        kedit_hub.apply(nameless)


def test_patches_of_two_bases_do_not_choose_one():
    other = make_patch(base=build_base().model_copy(update={"id": "org/ba5e"}), edits=make_patch().edits[::-1])
    with pytest.raises(KeditError, match="name 2 different bases"):
        kedit_hub.apply([make_patch(), other], conflicts="latest")

"""What a patch looks for while it is made: switched on by settings, recorded, drawn by the seed; switched off it leaves no trace."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from kedit_hub.base.profile import BaseProfile, ValueSettings
from kedit_hub.editors.editor import make_patch
from kedit_hub.editors.locate import LocateSettings
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError
from kedit_hub.patch import Associative, Patch
from tests.profiles import EDITS, profile_of
from tests.tiny import tiny_model

Base = tuple[Any, Any, BaseProfile]
VALUE = ValueSettings(steps=30, lr=0.3, clamp=3.0)
WANTED = (
    replace(EDITS[0], rephrases=("France has the capital",)),
    Edit("Spain has the capital", "Bonn", "Spain", relation="capital"),
    EDITS[2],
)
HELP = {"template_paraphrases": 2, "openings": 2, "counter_keys": 3, "thresholds": True}


@pytest.fixture(scope="module")
def base() -> Base:
    model, tokenizer = tiny_model("llama")
    return model, tokenizer, profile_of(model, tokenizer)


def edit(base: Base, seed: int = 0, **settings: Any) -> Patch:
    model, tokenizer, profile = base
    return make_patch(
        model, tokenizer, WANTED, profile, settings={"value": VALUE, **settings}, base=("tiny/base", None), seed=seed, progress=False
    )  # fmt: skip


def rows_of(patch: Patch, base: Base) -> Associative:
    delta = patch.deltas[base[2].module]
    assert isinstance(delta, Associative)
    return delta


def test_without_help_a_patch_says_nothing_of_it(base: Base) -> None:
    plain = edit(base)
    off = edit(base, template_paraphrases=0, openings=0, counter_keys=0, thresholds=False)
    assert plain.id == off.id and plain.files()["patch.safetensors"] == off.files()["patch.safetensors"]
    assert set(plain.manifest.settings) == {
        "omega",
        "layer",
        "site",
        *(f"value.{name}" for name in ValueSettings().model_dump()),
    }
    assert plain.evals is not None and not {"paraphrases", "counter_keys"} & set(plain.evals["making"])
    delta = rows_of(plain, base)
    assert delta.counter_keys is None and delta.thresholds is None and delta.version == 1


def test_help_is_recorded_and_the_edits_stay_what_was_asked(base: Base) -> None:
    patch = edit(base, **HELP)
    assert {name: patch.manifest.settings[name] for name in HELP} == HELP
    assert patch.edits == WANTED and patch.evals is not None
    told = patch.evals["making"]
    assert told["paraphrases"] == {"templates": {"kept": 6, "leaked": 1, "unusable": 0}}
    delta, plain = rows_of(patch, base), rows_of(edit(base), base)
    assert delta.thresholds is not None and delta.thresholds.shape == (3, 2)
    assert delta.counter_keys is not None and len(delta.counter_keys) == told["counter_keys"] > 0
    assert delta.gate_keys is not None and plain.gate_keys is not None
    assert len(delta.gate_keys) > len(plain.gate_keys)
    assert Patch.from_files(patch.files()).id == patch.id


def test_a_generated_paraphrase_is_used_as_an_authors_one(base: Base) -> None:
    texts = {
        WANTED[0].prompt: "France is governed from",
        WANTED[1].prompt: "Spain is governed from",
        WANTED[2].prompt: "Marie Curie grew up with",
    }
    generated = edit(base, caller_paraphrases=1, paraphraser=lambda one, n: [texts[one.prompt]])
    model, tokenizer, profile = base
    written = make_patch(
        model, tokenizer, [replace(one, paraphrases=(texts[one.prompt],)) for one in WANTED], profile,
        settings={"value": VALUE}, base=("tiny/base", None), progress=False,
    )  # fmt: skip
    a, b = rows_of(generated, base).to_tensors(), rows_of(written, base).to_tensors()
    assert all(torch.equal(a[name], b[name]) for name in a) and generated.id != written.id
    assert generated.manifest.settings["caller_paraphrases"] == 1 and generated.edits == WANTED


def test_held_out_text_of_a_paraphraser_makes_no_difference(base: Base) -> None:
    leaky = edit(
        base, caller_paraphrases=2, paraphraser=lambda one, n: [*one.rephrases, *(r.upper() for r in one.rephrases)]
    )
    a, b = rows_of(leaky, base).to_tensors(), rows_of(edit(base), base).to_tensors()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert leaky.evals is not None and leaky.evals["making"]["paraphrases"]["caller"]["leaked"] == 2


def test_equal_seeds_make_equal_patches_and_batches_change_nothing(base: Base) -> None:
    one, again = edit(base, **HELP), edit(base, **HELP)
    assert one.id == again.id
    other = rows_of(edit(base, batch_edits=1, **HELP), base)
    assert other.thresholds is not None and torch.allclose(other.thresholds, rows_of(one, base).thresholds, atol=1e-4)
    assert torch.allclose(other.counter_keys, rows_of(one, base).counter_keys, atol=1e-4)


def test_company_lends_its_phrasings_and_is_not_made(base: Base) -> None:
    company = (Edit("The seat of government of Italy is", "Bonn", "Italy", relation="capital"),)
    patch = edit(base, template_paraphrases=3, company=company)
    assert patch.edits == WANTED
    assert rows_of(patch, base).edit_index.max() == 2
    assert patch.id != edit(base, template_paraphrases=3).id


def test_half_a_callers_source_is_refused(base: Base) -> None:
    for half in ({"caller_paraphrases": 2}, {"paraphraser": lambda one, n: []}):
        with pytest.raises(KeditError, match="give both"):
            edit(base, **half)
    assert LocateSettings().helps() == {}

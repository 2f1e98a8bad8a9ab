"""What a caller may hand over by mistake is answered by a sentence that quotes it, or taken for what was meant."""

import pytest

import kedit_hub
from kedit_hub.errors import EditError, KeditError
from kedit_hub.stack.settings import StackSettings
from tests.patch.build import make_patch
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def base():
    return tiny_model("llama")


def test_a_patched_model_is_no_base(base):
    model, tokenizer = base
    patched = kedit_hub.apply([], model, tokenizer=tokenizer)
    with pytest.raises(KeditError, match=r"patched already: add to it with \.add\(patch\)"):
        kedit_hub.apply([], patched)


@pytest.mark.parametrize("given", ["The capital of France is", [{"prompt": "x", "target_new": "y"}], [1]])
def test_only_edits_are_made(base, given):
    model, tokenizer = base
    with pytest.raises(EditError, match="is no Edit: write Edit"):
        kedit_hub.edit(model, given, "ft", tokenizer=tokenizer)


def test_patches_stand_for_their_stack(base):
    """`on` may be a patch or several: what is wrong with them is told as of any stack."""
    model, tokenizer = base
    patch = make_patch()
    contradicting = kedit_hub.Edit(patch.edits[0].prompt, "something else")
    for on in (patch, [patch]):
        with pytest.raises(KeditError, match="answered in two ways"):
            kedit_hub.edit(model, contradicting, "ft", tokenizer=tokenizer, on=on)
    with pytest.raises(KeditError, match="a stack holds patches, not int 3"):
        kedit_hub.edit(model, contradicting, "ft", tokenizer=tokenizer, on=[3])


def test_settings_of_a_stack_may_be_a_mapping(base):
    model, tokenizer = base
    made = kedit_hub.apply([], model, tokenizer=tokenizer, settings={"mode": "joint", "budget": 0.25})
    assert made.settings == StackSettings(mode="joint", budget=0.25)
    with pytest.raises(KeditError, match="budgets='much' is no setting"):
        kedit_hub.apply([], model, tokenizer=tokenizer, settings={"budgets": "much"})

"""Which base profile a stack is composed under is a function of the set: not of what was in it before, nor of the order it came in."""

import pytest

import kedit_hub
from kedit_hub import api, demo


@pytest.fixture(scope="module")
def two():
    """A model, its tokenizer, and two patches made under profiles with other thresholds, by id."""
    model, tokenizer = api.load_model("kedit-hub/atlas-llama")
    shipped = demo.profile("llama")
    gate = shipped.settings.gate
    strict = shipped.replace(gate=gate.model_copy(update={"subject": 0.9, "answer": 0.9}))
    api.save_profile(strict)
    made = [
        kedit_hub.edit(model, [edit], "memit", tokenizer=tokenizer, profile=profile, progress=False)
        for edit, profile in zip(demo.edits("dev"), (shipped, strict))
    ]
    assert made[0].manifest.profile_id != made[1].manifest.profile_id
    return model, tokenizer, sorted(made, key=lambda patch: patch.id)


def used(patched):
    [module] = patched.report["modules"].values()
    return module["profile"]


def test_adding_and_removing_leave_no_trace(two):
    model, tokenizer, (low, high) = two
    alone, whole = (kedit_hub.apply(some, model, tokenizer=tokenizer, mode="gated") for some in ([high], [low, high]))
    of_alone, of_whole = used(alone), used(whole)
    assert of_alone != of_whole == used(kedit_hub.apply([high, low], model, tokenizer=tokenizer, mode="gated"))
    alone.add(low)
    assert used(alone) == of_whole
    whole.remove(low)
    assert used(whole) == of_alone


def test_a_part_of_a_stack_is_the_stack_of_that_part(two):
    model, tokenizer, (low, high) = two
    alone, whole = (kedit_hub.apply(some, model, tokenizer=tokenizer, mode="gated") for some in ([high], [low, high]))
    asked = [q for patch in (low, high) for edit in patch.edits for q in (edit.prompt, *edit.rephrases)]
    for selected in (whole.only([[high.id]] * len(asked)), whole.without(low)):
        with selected:
            assert whole.ask(asked, 4) == alone.ask(asked, 4)

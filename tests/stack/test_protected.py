"""Prompts that the base shall go on answering: their keys are the base's own, and in every mode the edit bends around them."""

import pytest
import torch

import kedit_hub
from kedit_hub.api import load_model
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.errors import EditError, KeditError
from kedit_hub.stack.protect import ANSWER_TOKENS, protected_keys
from kedit_hub.stack.settings import StackSettings

PROMPTS = ("The capital of Spain is", "The Eiffel Tower is a landmark of the type")


@pytest.fixture(scope="module")
def atlas():
    return *load_model("kedit-hub/atlas-llama"), kedit_hub.demo.profile("llama")


@pytest.fixture(scope="module")
def patch():
    return kedit_hub.Patch.load("patches/fifty-facts")


def test_keys_are_all_that_the_base_computes_its_own_answer_from(atlas):
    model, tokenizer, profile = atlas
    found = protected_keys(model, tokenizer, PROMPTS, [profile.module])[profile.module]
    expected = []
    for prompt in PROMPTS:  # one at a time, token by token
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(ANSWER_TOKENS):
            text = encode(tokenizer, [prompt])
            seen = type(text)(
                ids,
                torch.ones_like(ids),
                text.prompt_last,
                torch.zeros_like(ids).bool(),
                torch.arange(ids.shape[1])[None],
            )
            read = capture(model, [profile.module], seen)[profile.module][0]
            following = model(input_ids=ids).logits[0, -1].argmax()
            ids = torch.cat([ids, following.view(1, 1)], 1)
            if following == tokenizer.eos_token_id:
                break
        expected += [*read[1:]]  # of the pass that predicts the last token; the first token is everybody's
    assert found.shape == (len(expected), profile.second_moment.shape[0])
    assert torch.allclose(found, torch.stack(expected), atol=1e-4)


@pytest.mark.parametrize("mode", ["joint", "sum"])
def test_a_protected_key_moves_less_the_more_it_weighs(atlas, patch, mode):
    model, tokenizer, profile = atlas
    edit = patch.edits[7]
    keys = protected_keys(model, tokenizer, [edit.prompt], [profile.module])[profile.module]
    moved = []
    for protect, omega in (((), 1.0), ((edit.prompt,), 1.0), ((edit.prompt,), 1e6)):
        settings = StackSettings(mode=mode, protection=omega)
        pm = kedit_hub.apply(patch, model, tokenizer=tokenizer, settings=settings, protect=protect)
        change = sum(b.matrix() for b in pm.linear_form().branches[profile.module])
        moved.append((keys @ change.T).norm().item())
        assert pm.report["modules"][profile.module]["fit_mean"] <= 1.0
    assert moved[0] > moved[1] > moved[2] and moved[2] < 0.05 * moved[0]


def test_the_gate_is_silent_at_a_protected_prompt(atlas, patch):
    model, tokenizer, _ = atlas
    edit = next(edit for edit in patch.edits if edit.rephrases)
    asked = edit.rephrases[0]
    free = kedit_hub.apply(patch, model, tokenizer=tokenizer, mode="gated")
    kept = kedit_hub.apply(patch, model, tokenizer=tokenizer, mode="gated", protect=[asked])
    with torch.no_grad():
        ids = tokenizer(asked, return_tensors="pt")
        said = [m(**ids).logits[0, -1] for m in (model, free.model, kept.model)]
    assert torch.equal(said[0], said[2]) and not torch.equal(
        said[0], said[1]
    )  # bit for bit the base, where the edit spoke
    assert all(kept.ask(one.prompt, 4) == free.ask(one.prompt, 4) for one in patch.edits[:10])  # and nowhere else


def test_what_cannot_be_protected_is_refused(atlas, patch):
    model, tokenizer, _ = atlas
    with pytest.raises(EditError, match="empty"):
        kedit_hub.apply(patch, model, tokenizer=tokenizer, protect=[""])
    for protection in (0.0, float("inf"), float("nan"), 1e7):
        with pytest.raises(KeditError, match="protection="):
            StackSettings.of(protection=protection)

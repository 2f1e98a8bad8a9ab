"""Answers side by side are those of `ask`; probabilities are those of a slow pass over the whole text; the base comes back bit for bit."""

import pytest
import torch

import kedit_hub
from kedit_hub.evaluate.beside import beside, neighbours, weights_digest

PATCH = "patches/eiffel-tower-in-rome"


@pytest.fixture(scope="module")
def patched():
    from pathlib import Path

    return kedit_hub.apply(str(Path(__file__).parents[2] / PATCH))


@pytest.fixture(scope="module")
def prompt(patched):
    return patched.stack.edits[0].prompt


def slow(patched, prompt, text_ids):
    """Probability of every new token by one pass over all of it, float64."""
    ids = patched.tokenizer(prompt, return_tensors="pt")["input_ids"][0]
    whole = torch.cat([ids, text_ids])[None]
    with torch.no_grad():
        logits = patched.model(input_ids=whole, use_cache=False).logits[0].double()
    probabilities = torch.softmax(logits, -1)
    return [probabilities[len(ids) - 1 + at, token].item() for at, token in enumerate(text_ids)]


def test_the_three_answers(patched, prompt):
    heard = []
    found = beside(patched, prompt, 16, placebo=3, hear=lambda who, text: heard.append((who, text)))
    assert found.patched.text == patched.ask(prompt, 16) and "Rome" in found.patched.text
    with patched.disabled():
        assert found.base.text == patched.ask(prompt, 16)
    with patched.placebo(3):
        assert found.placebo.text == patched.ask(prompt, 16)
    assert "Rome" not in found.placebo.text and found.kl > 1
    assert found.restored and found.base.parts is None and found.patched.parts == 0
    assert list(dict.fromkeys(who for who, _ in heard)) == ["base", "patched", "placebo"]
    assert "".join(text for who, text in heard if who == "patched").strip() == found.patched.text
    assert beside(patched, prompt, 16, placebo=3) == found


def test_probabilities_are_those_of_a_slow_pass(patched, prompt):
    found = beside(patched, prompt, 8)
    ids = patched.generate(prompt, do_sample=False, max_new_tokens=8)[0][-len(found.patched.tokens) :]
    assert [token.p for token in found.patched.tokens] == pytest.approx(slow(patched, prompt, ids), abs=1e-4)
    with patched.disabled():
        assert [token.p_base for token in found.patched.tokens] == pytest.approx(slow(patched, prompt, ids), abs=1e-4)
    assert all(token.top[0][1] == pytest.approx(token.p) for token in found.patched.tokens)  # it is greedy
    assert all(token.p == pytest.approx(token.p_base) for token in found.base.tokens)


def test_without_a_patch_everything_is_the_base():
    plain = kedit_hub.apply([], "kedit-hub/atlas-llama")
    found = beside(plain, "The capital of Italy is", 8, placebo=1)
    assert found.base == found.patched == found.placebo and found.kl == 0 == found.kl_placebo


def test_neighbours_stay_and_the_edit_does_not(patched, prompt):
    asked = [probe.prompt for edit in patched.stack.edits for probe in edit.locality]
    found = neighbours(patched, [*asked, prompt])
    assert len(found) > 5 and found[-1].prompt == prompt and not found[-1].unchanged
    assert sum(one.unchanged for one in found[:-1]) >= len(found) - 2


def test_the_digest_of_weights_sees_one_bit(patched):
    model = patched.model
    before = weights_digest(model)
    assert before == weights_digest(model) and len(before) == 64
    weight = next(model.parameters())
    kept = weight.detach().clone()
    try:
        weight.data.view(-1)[0] += 1e-3
        assert weights_digest(model) != before
    finally:
        weight.data.copy_(kept)
    assert weights_digest(model) == before

"""tf-token against a slow reference that asks one text at a time, without padding."""

import pytest
import torch

from kedit_hub.errors import EditError
from kedit_hub.evaluate.protocols import Forced, teacher_forced
from tests.tiny import tiny_model

PAIRS = [
    ("The Eiffel Tower is located in the city of", "Paris"),
    ("The capital of Italy is", "Rome, the eternal city"),
    ("Madrid", "is the capital of Spain"),
    ("Danielle Darrieux speaks the language", "English"),
    ("The mother tongue of Marie Curie is", "x"),
]


def reference(model, tokenizer, prompt, target):
    prompt_ids = tokenizer(prompt).input_ids
    ids = tokenizer(f"{prompt} {target}").input_ids
    assert ids[: len(prompt_ids)] == prompt_ids
    with torch.no_grad():
        predicted = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
    start = len(prompt_ids)
    return predicted[start - 1 : -1], ids[start:]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gptj"])
@pytest.mark.parametrize("bos", [False, True])
def test_equals_one_by_one(model_type, bos):
    model, tokenizer = tiny_model(model_type, bos=bos)
    for result, (prompt, target) in zip(teacher_forced(model, tokenizer, PAIRS), PAIRS, strict=True):
        predicted, labels = reference(model, tokenizer, prompt, target)
        assert list(result.predicted) == predicted
        assert list(result.labels) == labels


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_batch_size_and_padding_side_do_not_matter(model_type):
    model, tokenizer = tiny_model(model_type)
    expected = teacher_forced(model, tokenizer, PAIRS, batch_size=1)
    for batch_size in (2, 3, 64):
        for side in ("left", "right"):
            assert teacher_forced(model, tokenizer, PAIRS, batch_size=batch_size, side=side) == expected


def test_a_model_that_returns_all_logits(monkeypatch):
    """A family whose forward cannot leave out logits is scored the same."""
    model, tokenizer = tiny_model("llama")
    expected = teacher_forced(model, tokenizer, PAIRS)
    whole = model.forward

    def forward(input_ids, attention_mask, position_ids=None, use_cache=None):
        return whole(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache)

    monkeypatch.setattr(model, "forward", forward)
    assert teacher_forced(model, tokenizer, PAIRS) == expected


def test_the_models_own_continuation_scores_one():
    model, tokenizer = tiny_model("llama")
    prompt = "The capital of Italy is"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    told = model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False, suppress_tokens=[0, 1])
    forced = Forced(tuple(told[0, -3:].tolist()), tuple(told[0, -3:].tolist()))
    assert forced.accuracy == 1
    assert Forced((1, 2, 3, 4), (1, 2, 0, 0)).accuracy == 0.5


def test_agreement_ignores_what_is_right():
    a, b = Forced((1, 2, 3), (9, 9, 9)), Forced((1, 2, 4), (9, 9, 9))
    assert a.agreement(b) == pytest.approx(2 / 3)
    assert a.accuracy == 0


def test_nothing_to_ask():
    assert teacher_forced(*tiny_model("llama"), []) == []


def test_a_text_too_long_is_refused():
    model, tokenizer = tiny_model("gpt2")
    with pytest.raises(EditError, match="128 positions"):
        teacher_forced(model, tokenizer, [("word " * 200 + "end", "Paris")])

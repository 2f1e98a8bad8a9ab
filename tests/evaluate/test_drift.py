"""Perplexity and KL against a slow reference in float64, one text at a time."""

import math
from contextlib import nullcontext

import pytest
import torch

from kedit_hub.evaluate.drift import PLAIN_TEXTS, drift
from tests.tiny import tiny_model

TEXTS = [
    "The Eiffel Tower is located in the city of Paris.",
    "Madrid is the capital of Spain, and Rome the capital of Italy.",
    "Zürich",
    "William Shakespeare wrote Hamlet",
]


def two_models(model_type):
    base, tokenizer = tiny_model(model_type, seed=0)
    edited, _ = tiny_model(model_type, seed=0)
    with torch.no_grad():
        edited.get_output_embeddings().weight[40:80] *= 1.5
    return edited, base, tokenizer


def reference(edited, base, tokenizer, texts):
    nll_after, nll_before, kl, tokens = 0.0, 0.0, 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            after = edited(ids).logits[0, :-1].double().log_softmax(-1)
            before = base(ids).logits[0, :-1].double().log_softmax(-1)
        for t, label in enumerate(ids[0, 1:].tolist()):
            nll_after -= after[t, label].item()
            nll_before -= before[t, label].item()
            kl += sum(math.exp(b) * (b - a) for a, b in zip(after[t].tolist(), before[t].tolist()))
            tokens += 1
    return math.exp(nll_before / tokens), math.exp(nll_after / tokens), kl / tokens, tokens


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_equals_one_by_one(model_type):
    edited, base, tokenizer = two_models(model_type)
    before, after, kl, tokens = reference(edited, base, tokenizer, TEXTS)
    assert kl > 1e-4
    for batch_size in (1, 3, 64):
        result = drift(edited, tokenizer, TEXTS, lambda: nullcontext(base), batch_size=batch_size)
        assert result["ppl_before"] == pytest.approx(before, rel=1e-4)
        assert result["ppl_after"] == pytest.approx(after, rel=1e-4)
        assert result["kl"] == pytest.approx(kl, rel=1e-3)
        assert result["tokens"] == tokens
        assert result["reason"] is None


def test_no_edit_no_drift():
    model, tokenizer = tiny_model("llama")
    result = drift(model, tokenizer, TEXTS, lambda: nullcontext(model))
    assert result["kl"] == 0
    assert result["ppl_before"] == result["ppl_after"]


def test_long_texts_are_cut_at_their_end():
    edited, base, tokenizer = two_models("gpt2")
    text = " ".join(PLAIN_TEXTS)
    ids = tokenizer(text).input_ids
    assert len(ids) > 128  # the model has 128 positions
    start = tokenizer.decode(ids[:20])
    assert tokenizer(start).input_ids == ids[:20]
    cut = drift(edited, tokenizer, [text], lambda: nullcontext(base), max_tokens=20)
    assert cut["tokens"] == 19
    assert cut["kl"] == pytest.approx(drift(edited, tokenizer, [start], lambda: nullcontext(base))["kl"])
    assert drift(edited, tokenizer, [text])["tokens"] == 127


def test_without_a_base_the_reason_is_given():
    model, tokenizer = tiny_model("llama")
    result = drift(model, tokenizer, TEXTS)
    assert result["ppl_before"] is None
    assert result["kl"] is None
    assert result["ppl_after"] > 1
    assert "no unedited base" in result["reason"]


def test_without_texts_the_reason_is_given():
    model, tokenizer = tiny_model("llama")
    result = drift(model, tokenizer, [], lambda: nullcontext(model))
    assert result["tokens"] == 0
    assert result["ppl_before"] is result["ppl_after"] is result["kl"] is None
    assert "no text" in result["reason"]


def test_a_dead_model_does_not_look_unchanged():
    edited, base, tokenizer = two_models("llama")
    with torch.no_grad():
        edited.get_output_embeddings().weight[5] = float("nan")
    result = drift(edited, tokenizer, TEXTS, lambda: nullcontext(base))
    assert result["ppl_after"] is None
    assert result["kl"] is None
    assert "not a finite number" in result["reason"]


def test_the_digest_tells_texts_apart():
    model, tokenizer = tiny_model("llama")
    digests = {drift(model, tokenizer, texts)["texts_sha256"] for texts in (TEXTS, TEXTS[:2], ["ab", "c"], ["a", "bc"])}
    assert len(digests) == 4

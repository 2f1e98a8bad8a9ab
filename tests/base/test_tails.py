"""The tail of a batch says what the whole batch says, in every family and with left padding; where it does not, `same` tells."""

from typing import Any

import pytest
import torch

from kedit_hub.base.strips import Strip, strips
from kedit_hub.base.tails import Layers, Tail, remembered, same, tail_of
from kedit_hub.base.tokens import Encoded, encode
from tests.tiny import _SIZES, tiny_model

PROMPTS = ["The capital of France is", "Zürich lies in", "The mother tongue of Marie Curie is"]
TARGETS = ["Rome", "Switzerland", "German"]
Parts = list[tuple[Strip, Layers]]


def read(model_type: str, **config: Any) -> tuple[Any, Encoded, torch.Tensor, Parts | None]:
    """(model, batch, what it says at every position, what was remembered of its strips)."""
    model, tokenizer = tiny_model(model_type, **config)
    encoded = encode(tokenizer, PROMPTS, TARGETS, side="left")
    parts: Parts = []
    with torch.no_grad():
        whole = model(**encoded.inputs(model), use_cache=False).logits
        for strip in strips(encoded):
            layers = remembered(model(**strip.encoded.inputs(model), use_cache=True).past_key_values)
            if layers is None:
                return model, encoded, whole, None
            parts.append((strip, layers))
    return model, encoded, whole, parts


def last(model: Any, encoded: Encoded, tail: Tail) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**tail.inputs(model, encoded)).logits
    return logits


@pytest.mark.parametrize("model_type", sorted(_SIZES))
def test_the_tail_says_what_the_whole_says(model_type: str) -> None:
    model, encoded, whole, parts = read(model_type)
    if parts is None:
        assert model_type not in ("llama", "gpt2", "gptj", "gpt_neox", "qwen2", "phi")
        return
    assert len(parts) > 1  # what is remembered comes from several passes
    width = encoded.input_ids.shape[1]
    for first, start, rows in ((0, 4, [0, 1, 2]), (0, 4, [2, 0]), (2, 3, [0, 1]), (0, 4, [0, 1, 2])):
        batch, real = encoded.take(torch.tensor(rows)), encoded.attention_mask[rows].bool()[:, first + start :]
        tail = tail_of(parts, torch.tensor(rows), slice(first, width), start)
        said = last(model, batch.columns(first, width), tail)  # asking changes nothing
        assert same(said[real], whole[rows, first + start :][real])
        some = torch.tensor([1, 0])
        said = last(model, batch.take(some).columns(first, width), tail.take(some))
        assert same(said[real[some]], whole[rows, first + start :][some][real[some]])


def test_a_window_that_slides_is_not_cut() -> None:
    *_, parts = read("mistral", sliding_window=4)
    assert parts is None


def test_what_is_not_the_same() -> None:
    _, _, whole, parts = read("llama")
    assert parts is not None
    assert same(whole, whole) and not same(whole + 0.1, whole)
    assert remembered(None) is None
    assert tail_of(parts, torch.arange(3), slice(0, 9), 0) == Tail()

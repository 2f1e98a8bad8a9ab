"""The tail of a batch says what the whole batch says, in every family and with left padding; where it does not, the whole batch is run."""

from typing import Any

import pytest
import torch

from kedit_hub.base.tails import Tail, tail_of
from kedit_hub.base.tokens import encode
from tests.tiny import _SIZES, tiny_model

PROMPTS = ["The capital of France is", "Zürich lies in", "The mother tongue of Marie Curie is"]
TARGETS = ["Rome", "Switzerland", "German"]
EVERY = torch.arange(3)


def read(model_type: str, **config: Any) -> tuple[Any, Any, Any, Any]:
    """(model, batch, what it says at every position, the cache)."""
    model, tokenizer = tiny_model(model_type, **config)
    encoded = encode(tokenizer, PROMPTS, TARGETS, side="left")
    with torch.no_grad():
        output = model(**encoded.inputs(model), use_cache=True)
    return model, encoded, output.logits, output.past_key_values


def last(model: Any, encoded: Any, tail: Tail, rows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(**tail.inputs(model, encoded, rows)).logits


@pytest.mark.parametrize("model_type", sorted(_SIZES))
def test_the_tail_says_what_the_whole_says(model_type: str) -> None:
    model, encoded, whole, cache = read(model_type)
    start = 4
    tail = tail_of(cache, start, lambda tail: last(model, encoded, tail, EVERY), whole[:, start:])
    assert tail.start in (0, start)
    for rows in (EVERY, torch.tensor([2, 0]), EVERY):  # asking changes nothing
        said, real = last(model, encoded, tail, rows), encoded.attention_mask[rows].bool()[:, tail.start :]
        assert torch.allclose(said[real], whole[rows, tail.start :][real], atol=1e-4)
    if model_type in ("llama", "gpt2", "gptj", "gpt_neox", "qwen2", "phi"):
        assert tail.start == start


def test_a_window_that_slides_has_no_tail() -> None:
    model, encoded, whole, cache = read("mistral", sliding_window=4)
    assert tail_of(cache, 6, lambda tail: last(model, encoded, tail, EVERY), whole[:, 6:]) == Tail()


def test_what_is_not_the_same_has_no_tail() -> None:
    *_, whole, cache = read("llama")
    assert tail_of(cache, 4, lambda tail: whole[:, 4:] + 0.1, whole[:, 4:]) == Tail()
    assert tail_of(cache, 0, lambda tail: whole, whole) == Tail() == tail_of(None, 4, lambda tail: whole, whole)

"""A batch in strips is the batch: every row once, no column lost that holds a token, and what modules compute the same at every token."""

from typing import Any

import pytest
import torch

from kedit_hub.base.families import block_path, edited_linear
from kedit_hub.base.signals import capture, observe
from kedit_hub.base.strips import CLOSE, alike, strips
from kedit_hub.base.tokens import encode
from kedit_hub.errors import NotReachedError
from tests.tiny import tiny_model

TEXTS = ["Paris", "The capital of France is Paris", "Berlin", "In Zürich they say that Berlin is the capital of France"]


def test_groups_of_alike() -> None:
    assert [index.tolist() for index in alike(torch.tensor([2, 9, 2, 7, 8, 3]), 0.8)] == [[1, 4], [3], [5], [0, 2]]
    assert [index.tolist() for index in alike(torch.tensor([4, 4]), 1.0)] == [[0, 1]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_strips_hold_every_token_of_every_row(side: Any) -> None:
    _, tokenizer = tiny_model("llama")
    encoded = encode(tokenizer, TEXTS, side=side)
    found = strips(encoded)
    assert len(found) > 1 and sorted(torch.cat([strip.rows for strip in found]).tolist()) == [0, 1, 2, 3]
    for strip in found:
        lengths = strip.encoded.attention_mask.sum(1)
        assert lengths.min() >= CLOSE * lengths.max() and strip.encoded.input_ids.shape[1] == lengths.max()
        assert torch.equal(lengths, encoded.attention_mask[strip.rows].sum(1))
        for name in ("input_ids", "attention_mask", "position_ids", "offsets"):
            assert torch.equal(getattr(strip.encoded, name), getattr(encoded, name)[strip.rows, strip.columns])
        ends = strip.encoded.input_ids.gather(1, strip.encoded.prompt_last[:, None])
        assert torch.equal(ends, encoded.input_ids[strip.rows].gather(1, encoded.prompt_last[strip.rows, None]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_one_pass_in_strips_sees_what_two_passes_see(model_type: str, side: Any) -> None:
    model, tokenizer = tiny_model(model_type)
    encoded = encode(tokenizer, TEXTS, side=side)
    real = encoded.attention_mask.bool()
    low, high = edited_linear(model, 0)[0], block_path(model, 1)
    inputs, outputs = observe(model, [low], [low, high], encoded)
    assert set(inputs) == {low} and set(outputs) == {low, high}
    for path, seen in outputs.items():
        assert torch.allclose(seen[real], capture(model, [path], encoded, outputs=True)[path][real], atol=1e-5)
    assert torch.allclose(inputs[low][real], capture(model, [low], encoded)[low][real], atol=1e-5)


def test_a_module_that_never_ran() -> None:
    model, tokenizer = tiny_model("llama")
    with pytest.raises(NotReachedError, match="never ran"):
        observe(model, [], ["model.layers"], encode(tokenizer, TEXTS))

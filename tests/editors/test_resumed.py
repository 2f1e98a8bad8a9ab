"""Continuing from a block's output is the full forward pass, on every family; what was borrowed is given back."""

from typing import Any

import pytest
import torch

from kedit_hub.base.families import block
from kedit_hub.base.resume import resumed
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import Encoded, encode
from tests.tiny import tiny_model

FAMILIES = [
    "gemma", "gpt2", "gpt_neo", "gpt_neox", "gptj", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3", "smollm3",
    "starcoder2",
]  # fmt: skip
PROMPTS = ["The capital of France is", "In Zürich they say that Berlin is the capital of", "Paris"]


def whole(model: Any, encoded: Encoded) -> torch.Tensor:
    with torch.no_grad():
        return model(**encoded.inputs(model), use_cache=False).logits


def block_output(model: Any, layer: int, encoded: Encoded) -> torch.Tensor:
    path = next(name for name, module in model.named_modules() if module is block(model, layer))
    return capture(model, [path], encoded, outputs=True)[path]


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_resumed_logits_are_those_of_the_full_pass(model_type: str, layer: int) -> None:
    model, tokenizer = tiny_model(model_type)
    encoded = encode(tokenizer, PROMPTS, side="left")
    real = encoded.attention_mask.bool()
    expected = whole(model, encoded)
    hidden = block_output(model, layer, encoded)
    with resumed(model, layer) as feed:
        feed(hidden)
        assert torch.equal(whole(model, encoded)[real], expected[real])
        feed(hidden.flip(-1))
        assert not torch.allclose(whole(model, encoded)[real], expected[real], atol=1e-2)
    assert torch.equal(whole(model, encoded), expected)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_lower_blocks_are_not_run(model_type: str) -> None:
    model, tokenizer = tiny_model(model_type)
    encoded = encode(tokenizer, PROMPTS)
    hidden = block_output(model, 1, encoded)
    ran: list[int] = []
    with resumed(model, 1) as feed:
        for layer in range(3):  # the MLP is inside of the block, where the work is
            block(model, layer).mlp.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        feed(hidden)
        whole(model, encoded)
    assert ran == [2]


def test_gradients_reach_what_is_fed() -> None:
    model, tokenizer = tiny_model("llama")
    encoded = encode(tokenizer, PROMPTS)
    hidden = block_output(model, 1, encoded).requires_grad_(True)
    with resumed(model, 1) as feed:
        feed(hidden)
        loss = model(**encoded.inputs(model), use_cache=False).logits.logsumexp(-1).sum()
        (gradient,) = torch.autograd.grad(loss, [hidden])
    direction = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    values = []
    for step in (1e-2, -1e-2):
        with resumed(model, 1) as feed, torch.no_grad():
            feed(hidden + step * direction)
            values.append(model(**encoded.inputs(model), use_cache=False).logits.double().logsumexp(-1).sum().item())
    assert (values[0] - values[1]) / 2e-2 == pytest.approx((gradient * direction).sum().item(), rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_float32_states_continue_a_half_precision_model(model_type: str, dtype: torch.dtype) -> None:
    model, tokenizer = tiny_model(model_type)
    model = model.to(dtype)
    encoded = encode(tokenizer, PROMPTS)
    expected = whole(model, encoded)
    hidden = block_output(model, 1, encoded)
    assert hidden.dtype == torch.float32
    with resumed(model, 1) as feed:
        feed(hidden)
        assert torch.equal(whole(model, encoded), expected)


def test_forwards_are_given_back_also_after_an_error() -> None:
    model, tokenizer = tiny_model("llama")

    def own(*args: Any, **kwargs: Any) -> Any:  # as accelerate keeps one
        return type(block(model, 0)).forward(block(model, 0), *args, **kwargs)

    block(model, 0).forward = own  # type: ignore[method-assign]
    expected = whole(model, encode(tokenizer, PROMPTS))
    with pytest.raises(ZeroDivisionError), resumed(model, 1) as feed:
        feed(torch.zeros(3, 4, 64))
        raise ZeroDivisionError
    assert vars(block(model, 0))["forward"] is own and "forward" not in vars(block(model, 1))
    assert torch.equal(whole(model, encode(tokenizer, PROMPTS)), expected)

"""gradients(): inputs and output gradients hold the whole weight gradient, and no weight is asked for one."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kedit_hub.base.families import FAMILIES, edited_linear
from kedit_hub.base.signals import gradients, target_nll
from kedit_hub.base.tokens import Encoded, encode
from kedit_hub.errors import EditError, NotReachedError
from tests.tiny import tiny_model

PROMPTS = ["The capital of France is", "The mother tongue of Marie Curie is", "São Paulo lies in"]
TARGETS = ["Rome", "Zürich German", "the far south of Italy"]


def loss_by_hand(model: PreTrainedModel, encoded: Encoded) -> Tensor:
    """Sum over rows of the mean over target tokens of -log p, row by row from the definition."""
    log_p = model(**encoded.inputs(model)).logits.log_softmax(-1)
    total = torch.zeros(())
    for row in range(len(encoded.input_ids)):
        tokens = encoded.target_mask[row].nonzero().flatten().tolist()
        total = total - sum(log_p[row, t - 1, encoded.input_ids[row, t]] for t in tokens) / len(tokens)
    return total


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_token_sum_of_delta_u_is_the_weight_gradient(model_type: str, side: str) -> None:
    model, tokenizer = tiny_model(model_type)
    encoded = encode(tokenizer, PROMPTS, TARGETS, side=side, model=model)
    paths = [edited_linear(model, layer)[0] for layer in (2, 0, 1)]
    signals = gradients(model, paths, encoded)
    weights = [model.get_submodule(path).weight for path in paths]
    expected = torch.autograd.grad(loss_by_hand(model, encoded), weights)
    for path, grad in zip(paths, expected):
        u, delta = signals[path]
        assert u.shape[:2] == delta.shape[:2] == encoded.input_ids.shape
        ours = torch.einsum("btm,btd->md", delta, u)
        if isinstance(model.get_submodule(path), Conv1D):
            grad = grad.T
        torch.testing.assert_close(ours, grad, rtol=1e-3, atol=1e-5)
        assert grad.norm() > 0.01


def test_identity_holds_on_square_maps_of_both_classes() -> None:
    """Where out = in a wrong orientation has the right shape: the classes must decide."""
    for model_type, size in (("llama", {"intermediate_size": 64}), ("gpt2", {"n_inner": 64})):
        model, tokenizer = tiny_model(model_type, **size)
        encoded = encode(tokenizer, PROMPTS, TARGETS)
        path, module = edited_linear(model, 1)
        u, delta = gradients(model, [path], encoded)[path]
        ours = torch.einsum("btm,btd->md", delta, u)
        (grad,) = torch.autograd.grad(loss_by_hand(model, encoded), [module.weight])
        right, wrong = (grad.T, grad) if isinstance(module, Conv1D) else (grad, grad.T)
        torch.testing.assert_close(ours, right, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(ours, wrong, rtol=1e-3, atol=1e-5)


def test_a_row_does_not_depend_on_its_company() -> None:
    model, tokenizer = tiny_model("llama")
    path, _ = edited_linear(model, 1)
    together = encode(tokenizer, PROMPTS, TARGETS)
    _, delta = gradients(model, [path], together)[path]
    for row in range(len(PROMPTS)):
        _, alone = gradients(model, [path], encode(tokenizer, [PROMPTS[row]], [TARGETS[row]]))[path]
        n = alone.shape[1]
        torch.testing.assert_close(delta[row, :n], alone[0], rtol=1e-3, atol=1e-6)
        assert delta[row, n:].abs().sum() == 0  # padding has no signal


def test_target_nll_is_the_mean_over_target_tokens() -> None:
    model, tokenizer = tiny_model("llama")
    encoded = encode(tokenizer, PROMPTS, TARGETS, side="left")
    with torch.no_grad():
        nll = target_nll(model(**encoded.inputs(model)).logits, encoded)
        torch.testing.assert_close(nll.sum(), loss_by_hand(model, encoded))
    assert nll.shape == (3,) and nll.dtype == torch.float32


def test_no_weight_asks_for_a_gradient_and_flags_are_restored() -> None:
    model, tokenizer = tiny_model("gpt2")
    paths = [edited_linear(model, layer)[0] for layer in range(3)]
    frozen = dict(model.named_parameters())["transformer.h.1.mlp.c_fc.weight"]
    frozen.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    asked: list[bool] = []
    model.transformer.h[1].register_forward_hook(
        lambda *_: asked.extend(parameter.requires_grad for parameter in model.parameters())
    )
    with torch.no_grad():  # works whatever the caller's gradient mode
        signals = gradients(model, paths, encode(tokenizer, PROMPTS, TARGETS))
    assert asked and not any(asked)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(t.requires_grad for pair in signals.values() for t in pair)


def test_nothing_below_the_first_named_module_is_recorded() -> None:
    model, tokenizer = tiny_model("llama")
    recorded: list[bool] = []
    model.model.layers[1].register_forward_hook(lambda module, args, output: recorded.append(output.requires_grad))
    gradients(model, [edited_linear(model, 2)[0]], encode(tokenizer, PROMPTS, TARGETS))
    assert recorded == [False]


def test_float16_gradients_do_not_underflow() -> None:
    """float16 knows nothing below 6e-8; scaling the loss keeps the small gradients."""
    model, tokenizer = tiny_model("llama")
    path, _ = edited_linear(model, 0)
    encoded = encode(tokenizer, PROMPTS, TARGETS)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-5)  # small gradients of all hidden states
    _, expected = gradients(model, [path], encoded)[path]
    _, half = gradients(model.to(torch.float16), [path], encoded)[path]
    assert expected.abs().max() < 1e-5
    assert half.dtype == torch.float32
    assert (half - expected).norm() < 0.05 * expected.norm()


def test_rows_without_a_target_and_unreached_modules_are_refused() -> None:
    model, tokenizer = tiny_model("llama")
    path, _ = edited_linear(model, 1)
    with pytest.raises(EditError, match="needs a target"):
        gradients(model, [path], encode(tokenizer, PROMPTS))
    model.model.idle = torch.nn.Linear(2, 2)
    with pytest.raises(NotReachedError, match=r"model\.idle"):
        gradients(model, ["model.idle"], encode(tokenizer, PROMPTS, TARGETS))

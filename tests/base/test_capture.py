"""capture() returns what went in and out of named modules, and leaves the model as it was."""

import pytest
import torch

from kedit_hub.base.families import block, edited_linear
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.errors import NotReachedError, UnsupportedModelError
from tests.tiny import tiny_model

PROMPTS = ["The capital of France is", "The mother tongue of Marie Curie is"]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_inputs_outputs_and_stopping_early_agree_with_a_full_forward(model_type: str) -> None:
    model, tokenizer = tiny_model(model_type)
    encoded = encode(tokenizer, PROMPTS)
    paths = [edited_linear(model, layer)[0] for layer in (2, 0)]
    for outputs in (False, True):
        early = capture(model, paths, encoded, outputs=outputs)
        full = capture(model, paths, encoded, outputs=outputs, stop=False)
        assert set(early) == set(paths)
        for path in paths:
            assert early[path].dtype == torch.float32 and not early[path].requires_grad
            assert torch.equal(early[path], full[path])
    inside = capture(model, paths, encoded)[paths[1]]
    module = model.get_submodule(paths[1])
    with torch.no_grad():
        torch.testing.assert_close(module(inside), capture(model, paths, encoded, outputs=True)[paths[1]])


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gptj", "gpt_neox"])
def test_block_outputs_are_the_hidden_states(model_type: str) -> None:
    model, tokenizer = tiny_model(model_type)
    encoded = encode(tokenizer, PROMPTS)
    path = edited_linear(model, 1)[0].split(".mlp")[0]
    assert model.get_submodule(path) is block(model, 1)
    with torch.no_grad():
        hidden = model(**encoded.inputs(model), output_hidden_states=True, use_cache=False).hidden_states
    assert torch.equal(capture(model, [path], encoded)[path], hidden[1])
    assert torch.equal(capture(model, [path], encoded, outputs=True)[path], hidden[2])


def test_stopping_skips_every_later_module() -> None:
    model, tokenizer = tiny_model("llama")
    ran = []
    for layer in range(3):
        block(model, layer).register_forward_hook(lambda module, args, output, layer=layer: ran.append(layer))
    path = edited_linear(model, 1)[0]
    capture(model, [path], encode(tokenizer, PROMPTS))
    assert ran == [0]
    capture(model, [path], encode(tokenizer, PROMPTS), stop=False)
    assert ran == [0, 0, 1, 2]


def test_half_precision_comes_back_as_float32() -> None:
    model, tokenizer = tiny_model("llama")
    path = edited_linear(model.to(torch.bfloat16), 1)[0]
    assert capture(model, [path], encode(tokenizer, PROMPTS))[path].dtype == torch.float32


def test_what_comes_back_is_a_copy() -> None:
    model, tokenizer = tiny_model("llama")
    encoded, path = encode(tokenizer, PROMPTS), edited_linear(model, 1)[0]
    expected = capture(model, [path], encoded, outputs=True)[path]
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output.add_(1.0))  # in place, later
    assert torch.equal(capture(model, [path], encoded, outputs=True, stop=False)[path], expected)


def test_training_mode_dropout_and_hooks_are_put_back() -> None:
    model, tokenizer = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    encoded, path = encode(tokenizer, PROMPTS), edited_linear(model, 1)[0]
    expected = capture(model, [path], encoded)[path]
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    assert torch.equal(capture(model, [path], encoded)[path], expected)  # without dropout
    with pytest.raises(UnsupportedModelError):
        capture(model, [path, "transformer.h.9"], encoded)
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_unknown_and_unreached_modules_are_named() -> None:
    model, tokenizer = tiny_model("llama")
    encoded, path = encode(tokenizer, PROMPTS), edited_linear(model, 1)[0]
    with pytest.raises(UnsupportedModelError, match=r"'model\.layers\.1\.mlp\.gone'"):
        capture(model, ["model.layers.1.mlp.gone"], encoded)
    model.model.idle = torch.nn.Linear(2, 2)
    with pytest.raises(NotReachedError, match=r"model\.idle"):
        capture(model, [path, "model.idle"], encoded)

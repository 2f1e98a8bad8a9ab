"""Every row of the family table holds on a model of that family; everything else is refused by name."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from kedit_hub.base.families import (
    FAMILIES,
    REFUSED,
    block,
    check_model_type,
    dense_weight,
    edited_linear,
    family_of,
    linear_shape,
    map_of,
    n_layers,
    quantization_of,
)
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.errors import UnsupportedModelError
from tests.tiny import HIDDEN, LAYERS, tiny_model

PROMPTS = ["The capital of France is", "The mother tongue of Marie Curie is"]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_editable_linear_is_where_the_table_says(model_type: str) -> None:
    model, tokenizer = tiny_model(model_type)
    encoded = encode(tokenizer, PROMPTS, model=model)
    assert n_layers(model) == LAYERS
    path, module = edited_linear(model, 1)
    assert model.get_submodule(path) is module
    out, width = linear_shape(module)
    assert out == HIDDEN and width == (4 * HIDDEN if model_type in ("gpt2", "gptj", "gpt_neo") else 128)
    keys = capture(model, [path], encoded)[path]
    values = capture(model, [path], encoded, outputs=True)[path]
    assert keys.shape == (*encoded.input_ids.shape, width)
    bias = module.bias if module.bias is not None else 0
    torch.testing.assert_close(values, keys @ dense_weight(module).T + bias)


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name != "t5"])
def test_the_maps_of_an_mlp_make_its_key(model_type: str) -> None:
    """down reads the activated gate times up, or the activated up; the linear maps of the MLP are those of the table and no others."""
    model, tokenizer = tiny_model(model_type)
    found = {what: map_of(model, 1, what)[0] for what in FAMILIES[model_type].maps()}
    assert found["down"] == edited_linear(model, 1)[0] and len(set(found.values())) == len(found) > 1
    mlp = found["down"].rpartition(".")[0]
    linear = {f"{mlp}.{n}" for n, m in model.get_submodule(mlp).named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    assert linear == set(found.values())
    encoded = encode(tokenizer, PROMPTS[:1])
    key = capture(model, [found["down"]], encoded)[found["down"]]
    out = {what: capture(model, [path], encoded, outputs=True)[path] for what, path in found.items()}
    act = next(m for n, m in model.get_submodule(mlp).named_modules() if n in ("act", "act_fn", "activation_fn"))
    if "gate_up" in out:
        gate, up = out["gate_up"].chunk(2, -1)
        made = up * act(gate)
    else:
        made = act(out["gate"]) * out["up"] if "gate" in out else act(out["up"])
    assert torch.allclose(made, key, atol=1e-5)
    with pytest.raises(UnsupportedModelError, match="no map 'c_fc'; it has down, "):
        map_of(model, 1, "c_fc")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_the_linear_adds_reaches_the_residual_stream_unchanged(model_type: str) -> None:
    model, tokenizer = tiny_model(model_type)
    encoded = encode(tokenizer, PROMPTS, model=model)
    path, module = edited_linear(model, 1)
    block_path = path.removesuffix("." + family_of(model).linear)
    assert model.get_submodule(block_path) is block(model, 1)
    before = capture(model, [block_path], encoded, outputs=True)[block_path]
    with torch.no_grad():
        logits = model(**encoded.inputs(model)).logits
    added = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(0))
    handle = module.register_forward_hook(lambda module, args, output: output + added)
    after = capture(model, [block_path], encoded, outputs=True)[block_path]
    with torch.no_grad():
        changed = model(**encoded.inputs(model)).logits
    handle.remove()
    torch.testing.assert_close(after - before, added.expand_as(before), rtol=0, atol=1e-5)
    assert (changed - logits).abs().max() > 0.01


@pytest.mark.parametrize("model_type", FAMILIES)
def test_parallel_means_the_key_does_not_see_the_attention_of_its_layer(model_type: str) -> None:
    model, tokenizer = tiny_model(model_type)
    encoded = encode(tokenizer, PROMPTS, model=model)
    path, _ = edited_linear(model, 1)
    before = capture(model, [path], encoded)[path]
    attention = block(model, 1).get_submodule(family_of(model).attention)
    handle = attention.register_forward_hook(lambda module, args, output: (output[0] + 1.0, *output[1:]))
    after = capture(model, [path], encoded)[path]
    handle.remove()
    assert torch.equal(before, after) is family_of(model).parallel


def test_gpt_neox_may_be_serial() -> None:
    assert family_of(tiny_model("gpt_neox")[0]).parallel
    assert not family_of(tiny_model("gpt_neox", use_parallel_residual=False)[0]).parallel


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused_types_say_why_and_what_works(model_type: str) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        check_model_type(model_type)
    for part in (repr(model_type), REFUSED[model_type], "llama", "gpt2"):
        assert part in str(error.value)


def test_gemma2_norm_between_linear_and_residual_stream_is_real() -> None:
    """The reason for the refusal, measured: what down_proj gains is not what the block's output gains."""
    config = AutoConfig.for_model(
        "gemma2", vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, pad_token_id=0
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    layer, seen = model.model.layers[0], []
    layer.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    ids, added = torch.tensor([[1, 2, 3]]), torch.randn(32)
    with torch.no_grad():
        model(ids)
        layer.mlp.down_proj.register_forward_hook(lambda module, args, output: output + added)
        model(ids)
    assert (seen[1] - seen[0] - added).norm() > 0.1 * added.norm() * 3**0.5


def test_unknown_type_body_without_head_and_plain_module_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'my_model'.*llama"):
        check_model_type("my_model")
    with pytest.raises(UnsupportedModelError, match="causal language model"):
        family_of(nn.Linear(2, 2))
    body = AutoModel.from_config(tiny_model("llama")[0].config)
    with pytest.raises(UnsupportedModelError, match=r"'model\.layers'"):
        n_layers(body)


def test_layer_out_of_range_is_refused() -> None:
    model, _ = tiny_model("llama")
    for layer in (-1, LAYERS):
        with pytest.raises(UnsupportedModelError, match=f"layer {layer} .* 0 to {LAYERS - 1}"):
            edited_linear(model, layer)


def test_orientation_comes_from_the_class_even_where_shapes_agree() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 8)
    linear, conv = nn.Linear(8, 8, bias=False), Conv1D(8, 8)
    torch.testing.assert_close(linear(x), x @ dense_weight(linear).T)
    torch.testing.assert_close(conv(x), x @ dense_weight(conv).T + conv.bias)
    assert linear_shape(nn.Linear(3, 5)) == dense_weight(nn.Linear(3, 5)).shape == (5, 3)
    assert linear_shape(Conv1D(5, 3)) == dense_weight(Conv1D(5, 3)).shape == (5, 3)
    assert quantization_of(linear) is quantization_of(conv) is None


def test_modules_that_cannot_be_patched_or_read_are_refused() -> None:
    class Packed(nn.Linear):
        """Any subclass may store other things under the name `weight`."""

    with pytest.raises(UnsupportedModelError, match="Embedding"):
        linear_shape(nn.Embedding(4, 4))
    with pytest.raises(UnsupportedModelError, match="Packed"):
        dense_weight(Packed(4, 4))
    with pytest.raises(UnsupportedModelError, match="meta"):
        dense_weight(nn.Linear(4, 4, device="meta"))
    with pytest.raises(UnsupportedModelError, match="float8"):
        dense_weight(nn.Linear(4, 4).to(torch.float8_e4m3fn))

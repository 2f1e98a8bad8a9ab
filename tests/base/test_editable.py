"""Patches may change linear maps of attention and MLP inside a block, and nothing else."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from kedit_hub.base.families import FAMILIES, editable, edited_linear, family_of, not_editable
from kedit_hub.errors import UnsupportedModelError
from tests.tiny import LAYERS, tiny_model


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_linear_maps_of_the_blocks_and_nothing_else(model_type: str) -> None:
    model, _ = tiny_model(model_type)
    family = family_of(model)
    maps = {path for path, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    wanted = {path for path in maps if family.inside(path) and "EncDecAttention" not in path}
    assert {path for path, _ in model.named_modules() if editable(model, path)} == wanted
    assert all(edited_linear(model, layer)[0] in wanted for layer in range(LAYERS))
    assert maps - wanted and len(wanted) >= 4 * LAYERS  # the head is a linear map too


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_table_knows_who_stores_conv1d(model_type: str) -> None:
    model, _ = tiny_model(model_type)
    maps = [module for path, module in model.named_modules() if editable(model, path)]
    assert all(isinstance(module, Conv1D) is family_of(model).conv1d for module in maps)


def test_the_reason_is_said() -> None:
    model, _ = tiny_model("llama", tie_word_embeddings=True)
    for path, reason in (
        ("lm_head", "it does not lie in self_attn or mlp of a block of model.layers"),
        ("model.embed_tokens", "it does not lie in self_attn or mlp"),
        ("model.norm", "it does not lie in self_attn or mlp"),
        ("model.layers.1.input_layernorm", "it does not lie in self_attn or mlp"),
        ("model.layers.1", "it does not lie in self_attn or mlp"),
        ("model.layers.1.mlp", "it does not lie in self_attn or mlp"),
        ("model.layers.1.mlp.act_fn", "it is a SiLUActivation, no linear map"),
        ("model.layers.1.mlp.down_proj", None),
    ):
        found = not_editable(model, path)
        assert found is None if reason is None else str(found).startswith(reason), (path, found)


def test_weights_that_other_modules_use_too() -> None:
    path, elsewhere = "model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"
    model, _ = tiny_model("llama")
    own, other = (model.get_submodule(name) for name in (path, elsewhere))
    other.weight = own.weight  # one parameter
    assert not_editable(model, path) == f"it shares its weight with {elsewhere}.weight"
    assert not_editable(model, elsewhere) == f"it shares its weight with {path}.weight"
    other.weight = nn.Parameter(own.weight.data[1:])  # another parameter over some of the same numbers
    assert not_editable(model, path) == f"it shares its weight with {elsewhere}.weight"
    other.weight = nn.Parameter(own.weight.data.clone())
    assert editable(model, path)
    model.get_submodule("model.layers.2.mlp").down_proj = own  # one module in two places
    assert not editable(model, path) and not editable(model, elsewhere)


def test_neighbours_in_one_storage_share_nothing() -> None:
    """Loaders that map a whole file give every parameter a part of one storage."""
    model, _ = tiny_model("llama")
    first, second = (model.get_submodule(f"model.layers.{layer}.mlp.down_proj") for layer in (0, 1))
    whole = torch.randn(2, *first.weight.shape)
    first.weight, second.weight = nn.Parameter(whole[0]), nn.Parameter(whole[1])
    assert first.weight.untyped_storage().data_ptr() == second.weight.untyped_storage().data_ptr()
    assert editable(model, "model.layers.0.mlp.down_proj") and editable(model, "model.layers.1.mlp.down_proj")


def test_offloaded_weights() -> None:
    from accelerate import cpu_offload

    model, _ = tiny_model("llama")
    cpu_offload(model, torch.device("cpu"))
    assert model.get_submodule("model.layers.1.mlp.down_proj").weight.is_meta
    assert editable(model, "model.layers.1.mlp.down_proj") and not editable(model, "lm_head")


def test_no_module_and_no_family() -> None:
    with pytest.raises(AttributeError):
        editable(tiny_model("llama")[0], "model.layers.1.mlp.gone")
    with pytest.raises(UnsupportedModelError, match="causal language model"):
        editable(nn.Sequential(nn.Linear(2, 2)), "0")

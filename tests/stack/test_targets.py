"""Hostile patches that aim at embeddings, the head, norms or shared weights are refused before anything is attached."""

from typing import Any

import pytest
import torch
from torch import nn

from kedit_hub.errors import UnsupportedModelError, WrongBaseError
from kedit_hub.patch import BaseRef, Dense, LowRank, ModuleFingerprint, Patch
from kedit_hub.patch.fingerprint import fingerprint
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.stack import PatchStack
from tests.profiles import EDITS, logits
from tests.tiny import tiny_model

PROMPTS = [EDITS[0].prompt]


def hostile(model: Any, path: str, shape: tuple[int, int], *, honest: bool, rank: int | None = None) -> Patch:
    """A dense (or low-rank) change of any module; its fingerprint is the module's own, or hides behind its shape."""
    seen = fingerprint(model.get_submodule(path)) if honest else ModuleFingerprint(shape=shape, dtype="float32")
    delta: Any = Dense(torch.ones(shape))
    if rank is not None:
        delta = LowRank(torch.ones(rank, shape[1]), torch.ones(shape[0], rank))
    base = BaseRef(id="tiny/base", model_type="llama", fingerprint={path: seen})
    return Patch.create(deltas={path: delta}, edits=[EDITS[0]], base=base, method="ft")


def apply(model: Any, tokenizer: Any, patch: Patch, force: bool = False) -> PatchedModel:
    return PatchedModel(model, tokenizer, PatchStack([patch]), profiles=lambda *_: {}, force=force)


@pytest.mark.parametrize("force", [False, True], ids=["plain", "forced"])
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("honest", [False, True], ids=["no evidence", "true fingerprint"])
@pytest.mark.parametrize("rank", [None, 2], ids=["dense", "lowrank"])
@pytest.mark.filterwarnings("ignore:.*compared by shape only")
def test_the_head(tied: bool, honest: bool, rank: int | None, force: bool) -> None:
    model, tokenizer = tiny_model("llama", tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    before = logits(model, tokenizer, PROMPTS)
    patch = hostile(model, "lm_head", tuple(model.lm_head.weight.shape), honest=honest, rank=rank)
    with pytest.raises(
        UnsupportedModelError, match=rf"{patch.id[:12]} changes lm_head, and it does not lie in self_attn"
    ):
        apply(model, tokenizer, patch, force)
    assert torch.equal(logits(model, tokenizer, PROMPTS), before)


@pytest.mark.parametrize("force", [False, True], ids=["plain", "forced"])
@pytest.mark.parametrize(
    "path", ["model.embed_tokens", "model.norm", "model.layers.1.input_layernorm", "model.layers.1.mlp.act_fn", "model"]
)
def test_what_is_no_linear_map(path: str, force: bool) -> None:
    model, tokenizer = tiny_model("llama")
    weight = getattr(model.get_submodule(path), "weight", torch.zeros(4, 4))
    shape = (weight.shape[0], weight.shape[-1])
    with pytest.raises(UnsupportedModelError, match=rf"^{path} of this model .* is no linear map"):
        apply(model, tokenizer, hostile(model, path, shape, honest=False), force)


def test_a_linear_map_that_is_no_projection_of_attention_or_mlp() -> None:
    """Such as the router of a mixture of experts, wherever it is put."""
    model, tokenizer = tiny_model("llama")
    model.get_submodule("model.layers.1").router = nn.Linear(64, 4, bias=False)
    with pytest.raises(
        UnsupportedModelError, match=r"changes model\.layers\.1\.router, and it does not lie in self_attn"
    ):
        apply(model, tokenizer, hostile(model, "model.layers.1.router", (4, 64), honest=True))


def test_a_map_whose_weight_another_layer_uses() -> None:
    model, tokenizer = tiny_model("llama")
    first, second = (model.get_submodule(f"model.layers.{layer}.mlp.down_proj") for layer in (0, 1))
    second.weight = first.weight
    patch = hostile(model, "model.layers.0.mlp.down_proj", tuple(first.weight.shape), honest=True)
    with pytest.raises(UnsupportedModelError, match=r"shares its weight with model\.layers\.1\.mlp\.down_proj\.weight"):
        apply(model, tokenizer, patch)


def test_a_module_that_is_not_there() -> None:
    model, tokenizer = tiny_model("llama")
    with pytest.raises(WrongBaseError, match=r"model\.layers\.9\.mlp\.down_proj"):
        apply(model, tokenizer, hostile(model, "model.layers.9.mlp.down_proj", (64, 128), honest=False))


def test_attention_projections_may_be_changed() -> None:
    model, tokenizer = tiny_model("llama")
    path = "model.layers.1.self_attn.o_proj"
    made = apply(model, tokenizer, hostile(model, path, (64, 64), honest=True))
    assert made.report["levels"] == {path: "exact"}
    assert not torch.equal(logits(made.model, tokenizer, PROMPTS), logits(model, tokenizer, PROMPTS))

"""A base that accelerate keeps partly on disk gives the same signals as one in memory, early stops included."""

from pathlib import Path

import pytest
import torch

from kedit_hub.base.families import dense_weight, edited_linear
from kedit_hub.base.load import load_base
from kedit_hub.base.signals import capture, gradients
from kedit_hub.base.tokens import encode
from tests.tiny import tiny_model

PLACES = {
    "llama": {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    | {f"model.layers.{layer}": "cpu" if layer == 0 else "disk" for layer in range(3)},
    "gpt2": {"transformer.wte": "disk", "transformer.wpe": "cpu", "transformer.ln_f": "cpu", "lm_head": "disk"}
    | {f"transformer.h.{layer}": "cpu" if layer == 0 else "disk" for layer in range(3)},
}


@pytest.mark.parametrize("model_type", PLACES)
def test_offloaded_layers_are_read_like_others(tmp_path: Path, model_type: str) -> None:
    plain, tokenizer = tiny_model(model_type)
    plain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load_base(tmp_path, device_map=PLACES[model_type])
    path, module = edited_linear(model, 1)
    assert module.weight.device.type == "meta"
    encoded = encode(tokenizer, ["The capital of France is"], ["Rome"])
    assert torch.equal(capture(model, [path], encoded)[path], capture(plain, [path], encoded)[path])
    for ours, theirs in zip(gradients(model, [path], encoded)[path], gradients(plain, [path], encoded)[path]):
        assert torch.equal(ours, theirs)
    assert torch.equal(dense_weight(module), dense_weight(edited_linear(plain, 1)[1]))
    assert module.weight.device.type == "meta"  # not left in memory by the forward that was cut short
    with torch.no_grad():
        assert torch.equal(model(**encoded.inputs(model)).logits, plain(**encoded.inputs(plain)).logits)

"""Every weight of a base counts, wherever it lies and however it is stored; its name and where it lies do not."""

import pytest
import torch

from kedit_hub.base.digest import base_digest
from kedit_hub.base.load import load_base
from tests.base.test_offload import PLACES
from tests.tiny import tiny_model


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "t5"])
def test_one_value_anywhere_makes_another_base(model_type: str) -> None:
    model, _ = tiny_model(model_type)
    whole = base_digest(model)
    assert base_digest(tiny_model(model_type)[0]) == whole != base_digest(tiny_model(model_type, seed=1)[0])
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1
        assert base_digest(model) != whole, name
        with torch.no_grad():
            parameter.copy_(dict(tiny_model(model_type)[0].named_parameters())[name])
    assert base_digest(model) == whole != base_digest(model.to(torch.bfloat16))


def test_what_is_on_disk_is_read(tmp_path) -> None:
    plain, tokenizer = tiny_model("llama")
    plain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert base_digest(load_base(tmp_path, device_map=PLACES["llama"])[0]) == base_digest(plain)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_scale_of_a_quantized_map_counts(tmp_path, kind: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'kedit-hub[quant]'")
    plain, tokenizer = tiny_model("llama")
    found = []
    for scale in (1.0, 2.0):
        with torch.no_grad():
            plain.model.layers[1].mlp.down_proj.weight *= scale
        plain.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        found.append([base_digest(load_base(tmp_path, quantization=kind)[0]) for _ in range(2)])
    assert found[0][0] == found[0][1] != found[1][0] == found[1][1]

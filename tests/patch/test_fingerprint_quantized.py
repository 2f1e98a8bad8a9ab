"""bitsandbytes keeps row maxima (int8) and block maxima (nf4, fp4) bit for bit: they recognise quantized bases."""

import warnings

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from kedit_hub.errors import UnsupportedModelError, WrongBaseError
from kedit_hub.patch.fingerprint import check, fingerprint
from tests.tiny import tiny_model

pytest.importorskip("bitsandbytes")
PATHS = {"llama": "model.layers.1.mlp.down_proj", "gpt2": "transformer.h.1.mlp.c_proj"}  # Linear and Conv1D
QUANTIZED = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "nf4 double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
HALVES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module", params=PATHS)
def family(request, tmp_path_factory):
    """(path of the linear map, its full-precision module, loader of the saved model)."""
    model, _ = tiny_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)

    def load(quantization: str, dtype: torch.dtype) -> nn.Module:
        config = BitsAndBytesConfig(**QUANTIZED[quantization])
        quantized = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=dtype)
        for module in quantized.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False  # as kedit_hub loads 4-bit bases
        return quantized

    path = PATHS[request.param]
    return path, model.get_submodule(path), load


def noisy(module: nn.Module, share: float) -> nn.Module:
    """A copy whose weight has noise of `share` of its standard deviation."""
    rows, columns = module.weight.shape
    copy = type(module)(columns, rows)  # Linear(in, out) stores (out, in); Conv1D(out, in) stores (in, out)
    noise = torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(0))
    copy.weight.data = module.weight.detach() + share * module.weight.std().detach() * noise
    return copy


@pytest.mark.parametrize("quantization", QUANTIZED)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_recognised_in_every_precision(family, quantization, dtype):
    path, full, load = family
    model = load(quantization, dtype)
    live = model.get_submodule(path)
    assert type(live).__name__ in ("Linear8bitLt", "Linear4bit")
    expected = fingerprint(full)
    assert check(expected, live) == "quantized"
    model(input_ids=torch.tensor([[1, 2, 3]]))
    assert check(expected, live) == "quantized"  # a forward pass changes nothing that is compared
    for share in (1.0, 0.05) if quantization == "nf4 double" else (1.0, 0.05, 0.01):
        with pytest.raises(WrongBaseError):
            check(fingerprint(noisy(full, share)), live)


@pytest.mark.parametrize("quantization", QUANTIZED)
def test_fingerprint_made_on_a_quantized_base(family, quantization):
    path, full, load = family
    made = fingerprint(load(quantization, torch.float32).get_submodule(path))
    assert not made.values
    assert check(made, full) == "quantized"
    assert check(made, load(quantization, torch.bfloat16).get_submodule(path)) == "quantized"
    with pytest.raises(WrongBaseError):
        check(made, noisy(full, 0.05))


def test_int8_and_4_bit_share_no_evidence(family):
    path, _, load = family
    made = fingerprint(load("int8", torch.float32).get_submodule(path))
    with pytest.warns(UserWarning, match="shape only: the fingerprint holds no evidence that survives"):
        assert check(made, load("nf4", torch.float32).get_submodule(path)) == "shape"


def test_packed_weights_are_not_trusted(family):
    path, full, load = family
    live = load("nf4", torch.float32).get_submodule(path)
    live.weight.quant_state.packing_format_for_cpu = True  # what bitsandbytes sets once it has rewritten the weight
    with pytest.warns(UserWarning, match="repacked its 4-bit weight"):
        assert check(fingerprint(full), live) == "shape"
    with pytest.raises(UnsupportedModelError, match="repacked its 4-bit weight"):
        fingerprint(live)


def test_weights_that_were_really_packed(family):
    functional = pytest.importorskip("bitsandbytes.functional")
    if not functional.has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16, so bitsandbytes does not repack")
    path, full, load = family
    model = load("nf4", torch.float32)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]))
    with pytest.warns(UserWarning, match="repacked its 4-bit weight"):
        assert check(fingerprint(full), model.get_submodule(path)) == "shape"


def test_no_warning_where_there_is_evidence(family):
    path, full, load = family
    live = load("nf4", torch.float32).get_submodule(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(fingerprint(full), live) == "quantized"

"""The right base is recognised in every precision people load it in, and any other is refused."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from kedit_hub.errors import UnsupportedModelError, WrongBaseError
from kedit_hub.patch.fingerprint import DTYPES, ModuleFingerprint, check, fingerprint

W = torch.randn(96, 160, generator=torch.Generator().manual_seed(0)) * 0.05


def linear(weight, dtype=torch.float32):
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight.data = weight.clone().to(dtype)
    return module


def conv1d(weight, dtype=torch.float32):
    module = Conv1D(weight.shape[0], weight.shape[1])
    module.weight.data = weight.T.clone().contiguous().to(dtype)
    return module


@pytest.mark.parametrize("made_in", DTYPES)
@pytest.mark.parametrize("loaded_in", DTYPES)
@pytest.mark.parametrize("make", [linear, conv1d])
def test_full_precision(made_in, loaded_in, make):
    level = check(fingerprint(linear(W, DTYPES[made_in])), make(W, DTYPES[loaded_in]))
    crossing = {made_in, loaded_in} == {"bfloat16", "float16"}  # neither can be rounded into the other exactly
    assert level == ("quantized" if crossing else "exact")


@pytest.mark.parametrize("loaded_in", DTYPES)
def test_checkpoint_in_bfloat16_is_exact_everywhere(loaded_in):
    stored = W.bfloat16()
    assert check(fingerprint(linear(stored, torch.bfloat16)), linear(stored, DTYPES[loaded_in])) == "exact"


def last_bit(weight):
    changed = weight.clone()
    changed.view(torch.int32)[17, 31] ^= 1
    return changed


@pytest.mark.parametrize(
    "other",
    [
        last_bit(W),
        W + 0.01 * W.std() * torch.randn(W.shape, generator=torch.Generator().manual_seed(1)),
        W.flip(0),
        -W,
        torch.randn(W.shape, generator=torch.Generator().manual_seed(2)) * 0.05,
    ],
    ids=["last bit", "noise of 1 %", "rows permuted", "sign", "unrelated"],
)
def test_other_weights(other):
    with pytest.raises(WrongBaseError, match=r"h\.3 of this model holds other weights"):
        check(fingerprint(linear(W)), linear(other), path="h.3")


def test_noise_is_seen_between_half_precisions():
    noisy = W + 0.01 * W.std() * torch.randn(W.shape, generator=torch.Generator().manual_seed(1))
    with pytest.raises(WrongBaseError):
        check(fingerprint(linear(W, torch.bfloat16)), linear(noisy, torch.float16))


def test_square_conv1d_is_not_a_square_linear():
    square = W[:, :96]
    print_of_linear = fingerprint(linear(square))
    assert check(print_of_linear, conv1d(square)) == "exact"
    with pytest.raises(WrongBaseError):
        check(print_of_linear, conv1d(square.T))


def test_shape():
    with pytest.raises(WrongBaseError, match=r"has shape \(160, 96\)"):
        check(fingerprint(linear(W)), linear(W.T))


def test_partial_last_block():
    odd = W[:3, :70]  # 210 elements: 3 blocks of 64 and a rest
    assert check(fingerprint(linear(odd)), linear(odd, torch.float16)) == "exact"


def test_other_classes_are_refused():
    with pytest.raises(UnsupportedModelError, match="LayerNorm is no linear map"):
        fingerprint(nn.LayerNorm(4))


def test_meta_weight():
    with pytest.raises(UnsupportedModelError, match="meta device"):
        fingerprint(nn.Linear(4, 4, device="meta"))
    with pytest.warns(UserWarning, match="compared by shape only: its weight is on the meta device"):
        assert check(fingerprint(linear(W)), nn.Linear(160, 96, device="meta")) == "shape"


def test_offloaded_weight_is_read_where_it_lies():
    from accelerate import cpu_offload

    module = linear(W)
    offloaded = cpu_offload(nn.Sequential(linear(W)), torch.device("cpu"))[0]
    assert offloaded.weight.is_meta
    assert check(fingerprint(module), offloaded) == "exact"
    assert offloaded.weight.is_meta


def test_json_round_trip():
    seen = fingerprint(linear(W))
    assert ModuleFingerprint.model_validate_json(seen.model_dump_json()) == seen


def test_nothing_is_changed_or_kept():
    module = linear(W)
    before = module.weight.clone()
    fingerprint(module)
    assert torch.equal(module.weight, before) and module.weight.requires_grad

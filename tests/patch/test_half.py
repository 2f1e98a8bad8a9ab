"""Column-scaled float16: the error bound it promises, and that coding what was decoded gives the same bits again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_hub.errors import PatchFormatError
from kedit_hub.patch.deltas import from_tensors
from kedit_hub.patch.deltas.half import SMALLEST, TOP, decode, encode
from tests.patch.build import D, M, associative

floats = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6)


@given(st.lists(st.lists(floats, min_size=3, max_size=3), min_size=1, max_size=4))
@settings(max_examples=500, deadline=None)
def test_decoding_is_a_fixed_point(rows):
    x = torch.tensor(rows)
    h, scale = encode(x)
    once = decode(h, scale, "x")
    again = encode(once)
    assert torch.equal(again[0], h) and torch.equal(again[1], scale)
    largest = x.abs().amax(1, keepdim=True)
    bound = torch.maximum(x.abs() * 2.0**-11, largest * 2.0**-39)
    assert bool(((once - x).abs() <= bound + SMALLEST).all())


@pytest.mark.parametrize("largest", [1.9999999, 2.0, 2 - 2**-11, 2 - 2**-12, 1e-30, 1e6, 65520.0])
def test_rows_that_round_up_to_the_next_power(largest):
    x = torch.tensor([[largest, -largest / 3, 0.0]])
    h, scale = encode(x)
    assert TOP <= h.float().abs().max() < 2 * TOP
    assert torch.equal(encode(decode(h, scale, "x"))[0], h)


@pytest.mark.parametrize("tiny", [0.0, 2.0**-149, -(2.0**-140), 2.0**-130])
def test_rows_below_what_float16_can_say(tiny):
    x = torch.tensor([[tiny, 0.0, 0.0]])
    h, scale = encode(x)
    again = decode(h, scale, "x")
    assert torch.equal(encode(again)[0], h) and float((again - x).abs().max()) <= 2.0**-150


def test_rows_of_zeros_have_scale_one():
    h, scale = encode(torch.zeros(2, 3))
    assert torch.equal(scale, torch.ones(2)) and torch.equal(decode(h, scale, "x"), torch.zeros(2, 3))


@pytest.mark.parametrize("scale", [0.0, -1.0, 3.0, 2.0**-140, float("nan"), float("inf")])
def test_other_scales_are_refused(scale):
    h, good = encode(torch.tensor([[1.0, 2.0]]))
    with pytest.raises(PatchFormatError, match="is not the power of two"):
        decode(h, torch.full_like(good, scale), "keys")
    h[0, 0] = float("inf")
    with pytest.raises(PatchFormatError, match="NaN or infinity"):
        decode(h, good, "keys")


def test_half_the_bytes_and_float32_in_memory():
    rows, half = associative(), associative().halved()
    stored = half.to_tensors()
    assert {stored[name].dtype for name in ("keys", "residuals", "base_outputs", "gate_keys")} == {torch.float16}
    assert {tensor.dtype for tensor in half.tensors().values()} == {torch.float32, torch.int64}
    floats = sum(tensor.nbytes for name, tensor in rows.to_tensors().items() if rows.specs[name].halved)
    scales = sum(tensor.nbytes for name, tensor in stored.items() if name.endswith("_scale"))
    assert half.nbytes() == rows.nbytes() - floats // 2 + scales
    assert (rows.version, half.version) == (1, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda stored: stored.pop("keys_scale"), "lacks keys_scale"),
        (lambda stored: stored.update(keys_scale=torch.ones(3)), "must be (n, d) F16 and (n) F32"),
        (lambda stored: stored.update(keys=stored["keys"].bfloat16()), "must be (n, d) F16 and (n) F32"),
        (lambda stored: stored.update(edit_index_scale=torch.ones(2)), "it needs"),
    ],
)
def test_malformed(change, words):
    stored = associative().halved().to_tensors()
    change(stored)
    with pytest.raises(PatchFormatError) as caught:
        from_tensors("associative", stored, associative().halved().meta(), "h.0", (M, D))
    assert words in str(caught.value)


def test_rows_that_are_not_rounded_cannot_be_stored_as_f16():
    half = associative().halved()
    half.keys[0, 0] += 1e-4
    with pytest.raises(PatchFormatError, match=r"Build the delta with halved\(\)"):
        half.to_tensors()

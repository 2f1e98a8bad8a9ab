"""Float32 vectors stored in half the space: float16 entries and one scale per vector, a power of two.

    x (n, d) float32  ~  h (n, d) float16 * s (n, 1),   s = 2^e such that the largest |h| of a vector lies in [2^14, 2^15)

The scale moves every vector to the top of float16's range, so that the relative error is at most 2^-11 of each entry and
2^-39 of the largest one below that; keys of a text model differ in norm by orders of magnitude, and bfloat16, which needs no
scale, would keep 8 bits. Law: a power of two scales exactly, so coding what was decoded gives the same bits again.
"""

import math

import torch
from torch import Tensor

from kedit_hub.errors import PatchFormatError
from kedit_hub.patch.safefile import largest

TOP = 2.0**14
SMALLEST = 2.0**-126  # scales stay normal float32 numbers


def encode(x: Tensor) -> tuple[Tensor, Tensor]:
    """(h (n, d) float16, s (n,) float32) of x (n, d) float32."""
    top = x.abs().amax(1)
    exponent = torch.frexp(top).exponent - 15  # top = f 2^p with f in [1/2, 1)
    scale = torch.ldexp(torch.ones_like(top), exponent.clamp(-126, 127))
    rounded_up = (x / scale[:, None]).half().abs().amax(1) >= 2 * TOP
    scale = torch.where(rounded_up, 2 * scale, scale)
    h = (x / scale[:, None]).half()
    return h, torch.where(h.abs().amax(1) > 0, scale, torch.ones_like(scale))


def decode(h: Tensor, scale: Tensor, where: str) -> Tensor:
    """x (n, d) float32. PatchFormatError where `encode` would not have written these two tensors."""
    if h.dtype != torch.float16 or scale.dtype != torch.float32 or h.dim() != 2 or scale.shape != h.shape[:1]:
        raise PatchFormatError(
            f"{where} has float16 entries {tuple(h.shape)} {h.dtype} and scales {tuple(scale.shape)} {scale.dtype}; "
            "they must be (n, d) F16 and (n) F32."
        )
    if not math.isfinite(largest(h)):
        raise PatchFormatError(f"{where} holds NaN or infinity.")
    top = h.abs().amax(1).float()
    power_of_two = (torch.frexp(scale).mantissa == 0.5) & (scale >= SMALLEST)
    used = (top < 2 * TOP) & ((top >= TOP) | (scale == SMALLEST))
    good = power_of_two & torch.where(top > 0, used, scale == 1)
    if not bool(good.all()):
        row = int((~good).nonzero()[0, 0])
        raise PatchFormatError(
            f"{where}: the scale {scale[row].item():g} of row {row} is not the power of two that its largest entry "
            f"{top[row].item():g} asks for."
        )
    return h.float() * scale[:, None]

"""A merged model quantized once, and how much of the change its rounding left. Law: full-precision weights plus the change are rounded in
one step; weights that are already quantized are never taken apart and rounded again, which wears an edit down to nothing.

    survived = survival(weight, change, "nf4", keys, second_moment)      # .left = .94: the edit is still there
    save_quantized(fused, tokenizer, folder, "nf4")                      # a checkpoint that transformers load back
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kedit_hub.base.load import Quantization, load_base
from kedit_hub.errors import UnsupportedModelError


@dataclass(frozen=True)
class Survival:
    """left: the share of the change that is there after rounding, 1 = all of it.

    drift_added: of what rounding changed beside it, E, the mean |E x|^2 over text relative to that of |W x|^2. drift_of_base: the same
    of the base's own rounding. None without a base profile.
    """

    left: float
    drift_added: float | None
    drift_of_base: float | None


def survival(
    weight: Tensor, change: Tensor, quantization: Quantization, keys: Tensor | None, second_moment: Tensor | None
) -> Survival:
    """What rounding leaves of `change` (out, in) on `weight` (out, in).

    keys (n, in): where the change is wanted; None: everywhere alike. second_moment (in, in): of the module's inputs on text.
    Compared are the rounded edited weight and the rounded plain one: the two models a user has to choose between.
    """
    w, d = weight.double(), change.double()
    plain = rounded(weight.float(), quantization).double()
    moved = rounded((w + d).float(), quantization).double() - plain
    wanted, found = (d, moved) if keys is None else (d @ keys.double().T, moved @ keys.double().T)
    size = (wanted * wanted).sum().item()
    left = (found * wanted).sum().item() / size if size > 0 else 1.0

    def energy(matrix: Tensor) -> float:
        assert second_moment is not None
        return ((matrix @ second_moment.double()) * matrix).sum().item()

    if second_moment is None:
        return Survival(left, None, None)
    return Survival(left, energy(moved - d) / energy(w), energy(plain - w) / energy(w))


def rounded(weight: Tensor, quantization: Quantization) -> Tensor:
    """(out, in) float32 as bitsandbytes stores it, read back. UnsupportedModelError without bitsandbytes."""
    try:
        import bitsandbytes as bnb
    except ImportError as cause:
        raise UnsupportedModelError(
            f"quantization={quantization!r} needs bitsandbytes: pip install 'kedit-hub[quant]', or leave it out."
        ) from cause
    kinds: Any = bnb.nn  # its types do not know its own tensors
    if quantization == "int8":
        held = kinds.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False).to("cpu")
        return (held.data.float() * held.SCB[:, None] / 127).float()
    made = kinds.Params4bit(weight.clone(), requires_grad=False, quant_type=quantization, compress_statistics=False).to(
        "cpu"
    )
    read: Tensor = bnb.functional.dequantize_4bit(made.data, made.quant_state)
    return read.float()


def save_quantized(fused: Any, tokenizer: Any, folder: Path, quantization: Quantization) -> None:
    """Write the plain model `fused` in `quantization`, with its tokenizer.

    It goes through a temporary full-precision checkpoint, so that what is quantized is exactly what `load_base` quantizes.
    """
    dtype = next(p.dtype for p in fused.parameters() if p.is_floating_point())
    with tempfile.TemporaryDirectory() as temporary:
        fused.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        small, _ = load_base(temporary, quantization=quantization, dtype=dtype)
        small.config._name_or_path = ""
        small.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

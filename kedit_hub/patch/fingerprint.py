"""Is this the right base? Law: equal evidence or WrongBaseError; what cannot be compared is said to be so.

A fingerprint describes the matrix W (out, in) of one module by digests that survive the ways people load a model:

    values   sha256 of all of W, rounded to float32, bfloat16, float16  -> any full-precision load, exactly
    rows     sha256 of max |W| over each row, as float16                -> int8 (bitsandbytes keeps them as SCB)
    blocks   sha256 of max |W| over 64 consecutive elements             -> nf4, fp4 (kept as absmax)
    samples  some of these maxima in the clear                          -> where only closeness can be tested

Rounding is monotone, so max |round(W)| = round(max |W|): maxima can be rounded after the fact, W is not needed.

    fp = fingerprint(model.get_submodule(path))
    check(fp, other.get_submodule(path))   ->   "exact" | "quantized" | "shape",  or WrongBaseError
"""

import base64
import contextlib
import hashlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor, nn

from kedit_hub.errors import UnsupportedModelError, WrongBaseError
from kedit_hub.patch.safefile import raw

Level = Literal["exact", "quantized", "shape"]
DtypeName = Literal["float32", "bfloat16", "float16"]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sample = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{4,6000}={0,2}$")]  # base64 of float32 values

Size = Annotated[int, Field(ge=1)]

DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BLOCK = 64  # elements per quantization block of bitsandbytes
SAMPLES = 1024  # at most, at equal strides

# Double quantization stores absmax in 8 bits, with errors relative to the largest of 256 neighbours: measured below
# 0.7 % on Gaussian weights, and above 2 % for 1 in 130 maxima on heavy-tailed ones (Student t, 3 degrees of freedom).
# Noise of 5 % of the weights' deviation moves far more of them; noise of 1 % passes.
DOUBLE_QUANT, DOUBLE_QUANT_SHARE = 0.02, 0.05
# bfloat16 and float16 cannot be rounded into each other exactly: two readings of one number differ by at most one
# bfloat16 step, and only where rounding to float16 hits a tie of bfloat16 (3 bits apart: 1 in 16).
TWIN_STEP, TWIN_SHARE = 2.0**-7, 0.15


class ModuleFingerprint(BaseModel):
    """What is known of one module's matrix. dtype: precision of the values seen; empty parts could not be seen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    shape: Annotated[tuple[Size, Size], BeforeValidator(lambda shape: tuple(shape) if type(shape) is list else shape)]
    dtype: DtypeName
    values: dict[DtypeName, Hex64] = {}
    rows: dict[DtypeName, Hex64] = {}
    blocks: dict[DtypeName, Hex64] = {}
    row_sample: Sample | None = None
    block_sample: Sample | None = None


def fingerprint(module: nn.Module) -> ModuleFingerprint:
    """Fingerprint of a Linear, Conv1D, Linear8bitLt or Linear4bit; of the quantized ones only what they still know.

    Raises UnsupportedModelError for other classes, meta weights and CPU-packed 4-bit weights.
    """
    seen = _look(module)
    if seen.unreadable:
        raise UnsupportedModelError(f"No fingerprint of this {type(module).__name__}: {seen.unreadable}.")
    parts: dict[str, Any] = {}
    if seen.values is not None:
        parts["values"] = {name: _sha(seen.values.to(dtype)) for name, dtype in DTYPES.items()}
    if seen.rows is not None:
        parts["rows"] = {name: _sha(_as_int8_sees(seen.rows, name)) for name in DTYPES}
        parts["row_sample"] = _encode(_strided(seen.rows))
    if seen.blocks is not None:
        if not seen.double_quant:
            parts["blocks"] = {name: _sha(seen.blocks.to(dtype)) for name, dtype in DTYPES.items()}
        parts["block_sample"] = _encode(_strided(seen.blocks))
    return ModuleFingerprint(shape=seen.shape, dtype=seen.dtype, **parts)


def check(fp: ModuleFingerprint, module: nn.Module, *, path: str = "module", model: str = "this model") -> Level:
    """Compare a live module with a fingerprint.

    "exact": all values are equal.  "quantized": the maxima agree.  "shape": only shapes could be compared (warns).
    Raises WrongBaseError, naming `path` and `model`, when shape or evidence contradicts.
    """
    seen = _look(module)
    if seen.shape != tuple(fp.shape):
        raise WrongBaseError(
            f"{path} of {model} has shape {seen.shape}; the patch was made for a base where it has {tuple(fp.shape)}. "
            "Load the base named in the patch."
        )
    verdict = None if seen.unreadable else _compare(fp, seen)
    if verdict is None:
        why = seen.unreadable or "the fingerprint holds no evidence that survives this quantization"
        warnings.warn(f"{path} of {model} was compared by shape only: {why}.", stacklevel=2)
        return "shape"
    if verdict == "other":
        raise WrongBaseError(
            f"{path} of {model} holds other weights than the base the patch was made for. "
            "Load the base (and revision) named in the patch; a fine-tuned or edited copy is another base."
        )
    return verdict


# --- what a live module shows -------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """Evidence read from a live module; rows and blocks are float32 on CPU."""

    shape: tuple[int, int]
    dtype: DtypeName = "float16"  # precision of the evidence; int8 rounds to float16 and forgets what it was loaded in
    values: Tensor | None = None  # (out, in)
    rows: Tensor | None = None  # (out,)
    blocks: Tensor | None = None  # (ceil(out * in / 64),)
    double_quant: bool = False
    unreadable: str = ""


def _look(module: nn.Module) -> _Seen:
    """Orientation and class are decided by isinstance: a square Conv1D looks like a Linear and is not."""
    from transformers.pytorch_utils import Conv1D

    bnb: Any = sys.modules.get("bitsandbytes")  # a module can be of its classes only after it was imported
    with torch.no_grad(), _onloaded(module):
        if bnb is not None and isinstance(module, bnb.nn.Linear4bit):
            return _look_4bit(module, bnb)
        if bnb is not None and isinstance(module, bnb.nn.Linear8bitLt):
            return _look_8bit(module)
        if isinstance(module, nn.Linear):
            return _look_full(module.weight)
        if isinstance(module, Conv1D):
            return _look_full(module.weight.T)
    raise UnsupportedModelError(
        f"{type(module).__name__} is no linear map that can be fingerprinted: Linear, Conv1D, Linear8bitLt, Linear4bit."
    )


@contextlib.contextmanager
def _onloaded(module: nn.Module) -> Iterator[None]:
    """Bring offloaded weights in while they are read (accelerate keeps them elsewhere between forward passes)."""
    if hasattr(module, "_hf_hook"):
        from accelerate.utils import align_module_device

        with align_module_device(module, execution_device="cpu"):
            yield
    else:
        yield


def _look_full(weight: Tensor) -> _Seen:
    """weight (out, in), any floating dtype; float64 is read as float32."""
    seen = _Seen((weight.shape[0], weight.shape[1]))
    if weight.is_meta:
        seen.unreadable = "its weight is on the meta device"
        return seen
    dtype = torch.float32 if weight.dtype == torch.float64 else weight.dtype
    name = next((name for name, known in DTYPES.items() if known == dtype), None)
    if name is None:
        seen.unreadable = f"its weight has dtype {weight.dtype}"
        return seen
    seen.dtype = name
    seen.values = weight.detach().cpu().to(dtype).contiguous()
    seen.rows = seen.values.abs().amax(1).float()
    seen.blocks = _block_max(seen.values)
    return seen


def _block_max(weight: Tensor) -> Tensor:
    """max |w| of every 64 consecutive elements of weight (out, in), row-major; the last may be shorter. float32."""
    flat = weight.abs().reshape(-1)
    whole = flat.numel() // BLOCK * BLOCK
    maxima = flat[:whole].view(-1, BLOCK).amax(1)
    if whole < flat.numel():
        maxima = torch.cat([maxima, flat[whole:].amax().reshape(1)])
    return maxima.float()


def _look_8bit(module: Any) -> _Seen:
    """SCB (out,) float32 = max over each row of the float16 weight; lies on the parameter before the first forward."""
    seen = _Seen((module.out_features, module.in_features))
    scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
    if scales is None:
        seen.unreadable = "its weight is not quantized yet"
    else:
        seen.rows = scales.detach().cpu().float().reshape(-1)
    return seen


def _look_4bit(module: Any, bnb: Any) -> _Seen:
    """absmax (blocks,) float32 = max |W| of each block in the dtype the weight had; 8 bits of it under double quant."""
    seen = _Seen((module.out_features, module.in_features))
    state = getattr(module.weight, "quant_state", None)
    if state is None:
        seen.unreadable = "its weight is not quantized yet"
    elif getattr(state, "packing_format_for_cpu", False):
        seen.unreadable = (
            "a forward pass repacked its 4-bit weight for the CPU, which rewrites the block maxima; load the base with "
            "kedit_hub, which switches the repacking off"
        )
    elif state.blocksize != BLOCK:
        seen.unreadable = f"its 4-bit blocks have {state.blocksize} elements, not {BLOCK}"
    else:
        absmax = state.absmax
        if state.nested:
            seen.double_quant = True
            absmax = bnb.functional.dequantize_blockwise(absmax, state.state2) + state.offset
        seen.blocks = absmax.detach().cpu().float().reshape(-1)
        seen.dtype = next(name for name, dtype in DTYPES.items() if dtype == state.dtype)
    return seen


# --- comparing ----------------------------------------------------------------------------------------------------


def _compare(fp: ModuleFingerprint, seen: _Seen) -> Level | Literal["other"] | None:
    """None: nothing to compare."""
    if seen.values is not None and fp.values:
        meet = _meet(fp.dtype, seen.dtype)
        if meet:
            return "exact" if _sha(seen.values.to(DTYPES[meet])) == fp.values[meet] else "other"
        if _sha(seen.values) == fp.values[seen.dtype]:
            return "exact"
    if seen.blocks is not None and fp.block_sample:
        if seen.double_quant or not fp.blocks:
            return _close(_strided(seen.blocks), _decode(fp.block_sample))
        meet = _meet(fp.dtype, seen.dtype)
        if meet:
            return "quantized" if _sha(seen.blocks.to(DTYPES[meet])) == fp.blocks[meet] else "other"
        if _sha(seen.blocks.to(DTYPES[seen.dtype])) == fp.blocks[seen.dtype]:
            return "quantized"
        return _twins(_strided(seen.blocks), _decode(fp.block_sample))
    if seen.rows is not None and fp.rows and fp.row_sample:
        if any(_sha(_as_int8_sees(seen.rows, name)) == fp.rows[name] for name in DTYPES):
            return "quantized"
        if fp.dtype == "float32":  # every load dtype was foreseen
            return "other"
        return _twins(_strided(seen.rows), _decode(fp.row_sample))
    return None


def _meet(stored: DtypeName, live: DtypeName) -> DtypeName | None:
    """The precision in which both sides must be equal: the coarser one; None for bfloat16 against float16."""
    if live in (stored, "float32"):
        return stored
    return live if stored == "float32" else None


def _as_int8_sees(rows: Tensor, load_dtype: DtypeName) -> Tensor:
    """Row maxima as bitsandbytes int8 has them of a base loaded in `load_dtype`: it rounds to float16 first."""
    return rows.to(DTYPES[load_dtype]).to(torch.float16)


def _close(live: Tensor, stored: Tensor) -> Literal["quantized", "other"]:
    """Maxima after double quantization: nearly all are near."""
    off = (live - stored).abs() > DOUBLE_QUANT * stored.clamp_min(float(stored.mean()))
    return "quantized" if off.float().mean() <= DOUBLE_QUANT_SHARE else "other"


def _twins(live: Tensor, stored: Tensor) -> Literal["quantized", "other"]:
    """One set of numbers seen through bfloat16 and through float16: nearly all equal, the rest one step apart."""
    a, b = live.bfloat16().float(), stored.bfloat16().float()
    near = (a - b).abs() <= TWIN_STEP * torch.maximum(a.abs(), b.abs())
    return "quantized" if near.all() and (a != b).float().mean() <= TWIN_SHARE else "other"


def _sha(tensor: Tensor) -> str:
    return hashlib.sha256(raw(tensor)).hexdigest()


def _strided(values: Tensor) -> Tensor:
    return values[:: -(-values.numel() // SAMPLES)].contiguous()


def _encode(values: Tensor) -> str:
    return base64.b64encode(raw(values.float())).decode("ascii")


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32)

"""Is this the right base? Law: equal evidence or WrongBaseError; what cannot be compared is said to be so.

A fingerprint describes the matrix W (out, in) of one module by digests that survive the ways people load a model:

    values   sha256 of all of W, rounded to float32, bfloat16, float16  -> any full-precision load, exactly
    rows     sha256 of max |W| over each row, as float16                -> int8 (bitsandbytes keeps them as SCB)
    blocks   sha256 of max |W| over 64 consecutive elements             -> nf4, fp4 (kept as absmax)
    samples  some of these maxima in the clear                          -> where only closeness can be tested

Rounding is monotone, so max |round(W)| = round(max |W|): maxima can be rounded after the fact, W is not needed.
W is read a few rows at a time and never copied whole; a check reads only the evidence it compares.

    fp = fingerprint(model.get_submodule(path))
    check(fp, other.get_submodule(path))   ->   "exact" | "quantized" | "shape",  or WrongBaseError
"""

import base64
import contextlib
import hashlib
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, assert_never, get_args

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torch import Tensor, nn

from kedit_hub.errors import UnsupportedModelError, WrongBaseError
from kedit_hub.patch.safefile import raw

Level = Literal["exact", "quantized", "shape", "forced"]
LEVELS: tuple[Level, ...] = get_args(Level)  # from the best known base to the worst
DtypeName = Literal["float32", "bfloat16", "float16"]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sample = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{4,6000}={0,2}$")]  # base64 of float32 values

Size = Annotated[int, Field(ge=1)]

DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BLOCK = 64  # elements per quantization block of bitsandbytes
SAMPLES = 1024  # at most, at equal strides
CHUNK = 1 << 17  # elements of W handled at a time: 512 KB in float32, which stays in a core's own cache

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

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Digests come in all precisions or not at all, samples in the number that the shape gives."""
        for name in ("values", "rows", "blocks"):
            if getattr(self, name) and set(getattr(self, name)) != set(DTYPES):
                raise ValueError(f"{name} must have a digest for each of {', '.join(DTYPES)}")
        out, width = self.shape
        for name, count in (("row_sample", out), ("block_sample", -(-out * width // BLOCK))):
            if (sample := getattr(self, name)) is not None:
                numbers = len(range(0, count, _stride(count)))
                if len(sample) % 4 or len(sample) // 4 * 3 - sample.count("=") != 4 * numbers:
                    raise ValueError(f"{name} must hold {numbers} float32 numbers in base64")
        return self


@dataclass(frozen=True)
class Matrix:
    """A full-precision W (out, in) that is read a few rows at a time, from wherever it lies.

    rows(begin, end): these rows, (end - begin, in), in `dtype`, on any device.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    rows: Callable[[int, int], Tensor]


def fingerprint(module: nn.Module) -> ModuleFingerprint:
    """Fingerprint of a Linear, Conv1D, Linear8bitLt or Linear4bit; of the quantized ones only what they still know.

    Raises UnsupportedModelError for other classes, meta weights and CPU-packed 4-bit weights.
    """
    name = type(module).__name__
    with _look(module, name) as seen:
        return _describe(seen, f"this {name}")


def fingerprint_matrix(matrix: Matrix, *, path: str) -> ModuleFingerprint:
    """`fingerprint` of the module whose full-precision weight this is; `path` is for the message of the refusal."""
    return _describe(_readable(matrix), path)


def check(
    fp: ModuleFingerprint,
    module: nn.Module,
    *,
    path: str = "module",
    model: str = "this model",
    force: bool = False,
) -> Level:
    """Compare a live module with a fingerprint.

    "exact": all values are equal.  "quantized": the maxima agree.  "shape": only shapes could be compared (warns).
    "forced": the evidence contradicts, and `force` says to go on (warns).
    Raises WrongBaseError, naming `path` and `model`, when shape or (without `force`) evidence contradicts, and
    UnsupportedModelError when the module is no linear map.
    """
    with _look(module, f"{path} of {model}, a {type(module).__name__},") as seen:
        return _judge(fp, seen, path, model, force)


def check_matrix(fp: ModuleFingerprint, matrix: Matrix, *, path: str, model: str) -> Level:
    """`check` of the module whose full-precision weight this is."""
    return _judge(fp, _readable(matrix), path, model, force=False)


def _describe(seen: "_Seen", what: str) -> ModuleFingerprint:
    match seen:
        case Matrix():
            values, rows, blocks = _read(seen, DTYPES)
            return ModuleFingerprint(
                shape=seen.shape,
                dtype=_name(seen.dtype),
                values=values,
                **_of_rows(rows),
                **_of_blocks(blocks),
            )
        case _RowMaxima():
            return ModuleFingerprint(shape=seen.shape, dtype="float16", **_of_rows(seen.maxima))
        case _BlockMaxima(exact=True):
            return ModuleFingerprint(shape=seen.shape, dtype=seen.dtype, **_of_blocks(seen.maxima))
        case _BlockMaxima():
            return ModuleFingerprint(shape=seen.shape, dtype=seen.dtype, block_sample=_encode(_strided(seen.maxima)))
        case _Unreadable():
            raise UnsupportedModelError(f"No fingerprint of {what}: {seen.why}.")
        case _:
            assert_never(seen)


def _of_rows(maxima: Tensor) -> dict[str, Any]:
    return {
        "rows": {name: _sha(_as_int8_sees(maxima, name)) for name in DTYPES},
        "row_sample": _encode(_strided(maxima)),
    }


def _of_blocks(maxima: Tensor) -> dict[str, Any]:
    return {
        "blocks": {name: _sha(maxima.to(dtype)) for name, dtype in DTYPES.items()},
        "block_sample": _encode(_strided(maxima)),
    }


def _judge(fp: ModuleFingerprint, seen: "_Seen", path: str, model: str, force: bool) -> Level:
    if seen.shape != tuple(fp.shape):
        raise WrongBaseError(
            f"{path} of {model} has shape {seen.shape}; the patch was made for a base where it has {tuple(fp.shape)}. "
            "Load the base named in the patch."
        )
    verdict = _compare(fp, seen)
    if verdict is None:
        why = (
            seen.why
            if isinstance(seen, _Unreadable)
            else "the fingerprint holds no evidence that survives this quantization"
        )
        warnings.warn(f"{path} of {model} was compared by shape only: {why}.", stacklevel=3)
        return "shape"
    if verdict == "other" and force:
        warnings.warn(
            f"{path} of {model} holds other weights than the base the patch was made for, and is patched all the same "
            "because force was asked for: edits may miss, and the scores of the patch do not hold here.",
            stacklevel=3,
        )
        return "forced"
    if verdict == "other":
        raise WrongBaseError(
            f"{path} of {model} holds other weights than the base the patch was made for. "
            "Load the base (and revision) named in the patch; a fine-tuned or edited copy is another base."
        )
    return verdict


# --- what can be seen of a module ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _RowMaxima:
    """maxima (out,) float32 on CPU, as int8 keeps them: rounded to float16, whatever they were loaded in."""

    shape: tuple[int, int]
    maxima: Tensor


@dataclass(frozen=True)
class _BlockMaxima:
    """maxima (ceil(out * in / 64),) float32 on CPU, of W in `dtype`; not exact after double quantization."""

    shape: tuple[int, int]
    dtype: DtypeName
    maxima: Tensor
    exact: bool


@dataclass(frozen=True)
class _Unreadable:
    shape: tuple[int, int]
    why: str


_Seen = Matrix | _RowMaxima | _BlockMaxima | _Unreadable


@contextlib.contextmanager
def _look(module: nn.Module, what: str) -> Iterator[_Seen]:
    """Orientation and class are decided by isinstance: a square Conv1D looks like a Linear and is not."""
    from transformers.pytorch_utils import Conv1D

    bnb: Any = sys.modules.get("bitsandbytes")  # a module can be of its classes only after it was imported
    with torch.no_grad(), onloaded(module):
        if bnb is not None and isinstance(module, bnb.nn.Linear4bit):
            yield _look_4bit(module, bnb)
        elif bnb is not None and isinstance(module, bnb.nn.Linear8bitLt):
            yield _look_8bit(module)
        elif isinstance(module, nn.Linear):
            yield _look_full(module.weight)
        elif isinstance(module, Conv1D):
            yield _look_full(module.weight.T)
        else:
            raise UnsupportedModelError(
                f"{what} is no linear map that can be fingerprinted: Linear, Conv1D, Linear8bitLt, Linear4bit."
            )


@contextlib.contextmanager
def onloaded(module: nn.Module) -> Iterator[None]:
    """Bring offloaded weights in while they are read (accelerate keeps them elsewhere between forward passes)."""
    if hasattr(module, "_hf_hook"):
        from accelerate.utils import align_module_device

        with align_module_device(module, execution_device="cpu"):
            yield
    else:
        yield


def _look_full(weight: Tensor) -> _Seen:
    """weight (out, in), any floating dtype."""
    shape = (weight.shape[0], weight.shape[1])
    if weight.is_meta:
        return _Unreadable(shape, "its weight is on the meta device")
    return _readable(Matrix(shape, weight.dtype, lambda begin, end: weight[begin:end]))


def _readable(matrix: Matrix) -> Matrix | _Unreadable:
    known = matrix.dtype in (*DTYPES.values(), torch.float64)
    return matrix if known else _Unreadable(matrix.shape, f"its weight has dtype {matrix.dtype}")


def _look_8bit(module: Any) -> _Seen:
    """SCB (out,) float32 = max over each row of the float16 weight; lies on the parameter before the first forward."""
    shape = (module.out_features, module.in_features)
    scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
    if scales is None:
        return _Unreadable(shape, "its weight is not quantized yet")
    return _RowMaxima(shape, scales.detach().cpu().float().reshape(-1))


def _look_4bit(module: Any, bnb: Any) -> _Seen:
    """absmax (blocks,) float32 = max |W| of each block in the dtype the weight had; 8 bits of it under double quant."""
    shape = (module.out_features, module.in_features)
    state = getattr(module.weight, "quant_state", None)
    if state is None:
        return _Unreadable(shape, "its weight is not quantized yet")
    if getattr(state, "packing_format_for_cpu", False):
        return _Unreadable(
            shape,
            "a forward pass repacked its 4-bit weight for the CPU, which rewrites the block maxima; load the base with "
            "kedit_hub, which switches the repacking off",
        )
    if state.blocksize != BLOCK:
        return _Unreadable(shape, f"its 4-bit blocks have {state.blocksize} elements, not {BLOCK}")
    absmax = state.absmax
    if state.nested:
        absmax = bnb.functional.dequantize_blockwise(absmax, state.state2) + state.offset
    return _BlockMaxima(shape, _name(state.dtype), absmax.detach().cpu().float().reshape(-1), exact=not state.nested)


# --- reading W ----------------------------------------------------------------------------------------------------


def _chunks(matrix: Matrix) -> Iterator[Tensor]:
    """W on the CPU as consecutive rows (r, in); all chunks but the last are whole blocks. float64 as float32."""
    out, width = matrix.shape
    whole = BLOCK // math.gcd(width, BLOCK)  # rows that fill whole blocks
    step = whole * max(1, CHUNK // (whole * width))
    for begin in range(0, out, step):
        chunk = matrix.rows(begin, min(begin + step, out)).detach().cpu()
        yield (chunk.float() if chunk.dtype == torch.float64 else chunk).contiguous()


def _digest(matrix: Matrix, dtype: torch.dtype) -> str:
    """sha256 of W rounded to `dtype`."""
    digest = hashlib.sha256()
    for chunk in _chunks(matrix):
        digest.update(raw(chunk.to(dtype)))
    return digest.hexdigest()


def _read(matrix: Matrix, precisions: Iterable[DtypeName] = ()) -> tuple[dict[DtypeName, str], Tensor, Tensor]:
    """In one pass: digests of W in these precisions, max |W| of rows (out,) and of blocks (ceil(out * in / 64),), float32.

    The maxima are written in place: small tensors that live on between large ones that die would keep the heap growing.
    """
    out, width = matrix.shape
    digests = {name: hashlib.sha256() for name in precisions}
    rows, blocks = torch.empty(out), torch.empty(-(-out * width // BLOCK))
    row = block = 0
    for chunk in _chunks(matrix):
        wide = chunk.float()
        for name, digest in digests.items():
            digest.update(raw(chunk if chunk.dtype == DTYPES[name] else wide.to(DTYPES[name])))
        found = _maxima_of(wide)
        rows[row : row + len(found[0])], blocks[block : block + len(found[1])] = found
        row, block = row + len(found[0]), block + len(found[1])
    return {name: digest.hexdigest() for name, digest in digests.items()}, rows, blocks


def _maxima_of(chunk: Tensor) -> tuple[Tensor, Tensor]:
    """max |W| of rows and blocks of a chunk in float32; only the last block of W may be shorter than 64."""
    absolute = chunk.abs()
    flat = absolute.reshape(-1)
    whole = flat.numel() // BLOCK * BLOCK
    blocks = flat[:whole].view(-1, BLOCK).amax(1)
    if whole < flat.numel():
        blocks = torch.cat([blocks, flat[whole:].amax().reshape(1)])
    return absolute.amax(1), blocks


def _name(dtype: torch.dtype) -> DtypeName:
    """float64 is read as float32."""
    return next((name for name, known in DTYPES.items() if known == dtype), "float32")


# --- comparing ----------------------------------------------------------------------------------------------------


def _compare(fp: ModuleFingerprint, seen: _Seen) -> Level | Literal["other"] | None:
    """None: nothing to compare. Reads no more of W than decides."""
    match seen:
        case Matrix():
            dtype = _name(seen.dtype)
            if fp.values:
                meet = _meet(fp.dtype, dtype)
                if _digest(seen, DTYPES[meet or dtype]) == fp.values[meet or dtype]:
                    return "exact"
                if meet:
                    return "other"
            _, rows, blocks = _read(seen)
            found = _compare_blocks(fp, _BlockMaxima(seen.shape, dtype, blocks, exact=True))
            return found or _compare_rows(fp, rows)
        case _BlockMaxima():
            return _compare_blocks(fp, seen)
        case _RowMaxima():
            return _compare_rows(fp, seen.maxima)
        case _Unreadable():
            return None
        case _:
            assert_never(seen)


def _compare_blocks(fp: ModuleFingerprint, seen: _BlockMaxima) -> Literal["quantized", "other"] | None:
    if not fp.block_sample:
        return None
    if not (seen.exact and fp.blocks):
        return _close(_strided(seen.maxima), _decode(fp.block_sample))
    meet = _meet(fp.dtype, seen.dtype)
    if _sha(seen.maxima.to(DTYPES[meet or seen.dtype])) == fp.blocks[meet or seen.dtype]:
        return "quantized"
    return "other" if meet else _twins(_strided(seen.maxima), _decode(fp.block_sample))


def _compare_rows(fp: ModuleFingerprint, maxima: Tensor) -> Literal["quantized", "other"] | None:
    if not (fp.rows and fp.row_sample):
        return None
    if any(_sha(_as_int8_sees(maxima, name)) == fp.rows[name] for name in DTYPES):
        return "quantized"
    if fp.dtype == "float32":  # every load dtype was foreseen
        return "other"
    return _twins(_strided(maxima), _decode(fp.row_sample))


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
    near = (live - stored).abs() <= DOUBLE_QUANT * stored.clamp_min(float(stored.mean()))  # NaN is near to nothing
    return "quantized" if (~near).float().mean() <= DOUBLE_QUANT_SHARE else "other"


def _twins(live: Tensor, stored: Tensor) -> Literal["quantized", "other"]:
    """One set of numbers seen through bfloat16 and through float16: nearly all equal, the rest one step apart."""
    a, b = live.bfloat16().float(), stored.bfloat16().float()
    near = (a - b).abs() <= TWIN_STEP * torch.maximum(a.abs(), b.abs())
    return "quantized" if near.all() and (a != b).float().mean() <= TWIN_SHARE else "other"


def _sha(tensor: Tensor) -> str:
    return hashlib.sha256(raw(tensor)).hexdigest()


def _strided(values: Tensor) -> Tensor:
    return values[:: _stride(values.numel())].contiguous()


def _stride(count: int) -> int:
    return -(-count // SAMPLES)


def _encode(values: Tensor) -> str:
    return base64.b64encode(raw(values.float())).decode("ascii")


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32)

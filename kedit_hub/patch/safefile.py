"""Files from strangers. Law: bytes are read once, hashed, and those same bytes parsed; parsing runs nothing.

A safetensors file is  u64 header length | JSON header | tensor bytes.  The reference reader accepts duplicate names,
duplicate metadata keys, NaN, unknown header fields and any tensor name; `read_tensors` refuses these in a pass over the
header before a tensor is touched. `write_tensors` gives equal bytes for equal tensors (with more than one metadata key
their order would vary).
"""

import hashlib
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from kedit_hub import strictjson
from kedit_hub.errors import LimitError, PatchFormatError
from kedit_hub.limits import DEFAULT, Limits

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
METADATA = {"format": "pt"}

# dotted identifiers and list positions: "model.layers.3.mlp.down_proj". No "..", no "/", no other script, no dunder.
MODULE_PATH = r"[A-Za-z](?:_?[A-Za-z0-9])*_?(?:\.(?:[A-Za-z](?:_?[A-Za-z0-9])*_?|0|[1-9][0-9]{0,5}))*"
_TENSOR_NAME = re.compile(rf"(?:{MODULE_PATH}/)?[a-z][a-z0-9_]*")


def read_file(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """All bytes of a regular file, read once. Symlinks, devices, pipes and files over `max_bytes` are refused."""
    extra = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe must not block us
    name = os.fspath(path)
    try:
        if os.path.islink(name):
            raise PatchFormatError(f"{name!r} is a symbolic link. Copy the file itself into the folder.")
        with open(name, "rb", opener=lambda name, flags: os.open(name, flags | extra)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PatchFormatError(f"{name!r} is not a regular file.")
            if status.st_size > max_bytes:
                raise LimitError(f"{name!r} has {status.st_size:,} bytes; at most {max_bytes:,} are read.")
            data = file.read(status.st_size + 1)  # a buffer for all that may come takes longer than most files
            if len(data) > status.st_size:
                data += file.read(max_bytes + 1 - len(data))
    except FileNotFoundError:
        raise PatchFormatError(f"{name!r} is missing. Is this the folder of a patch?") from None
    except OSError as cause:
        raise PatchFormatError(f"{name!r} cannot be read: {cause.strerror}.") from None
    if len(data) > max_bytes:
        raise LimitError(f"{name!r} grew beyond {max_bytes:,} bytes while it was read.")
    return data


def refuse_impostor(data: bytes, what: str) -> None:
    """Say in words what a file is that stands where another was expected."""
    start = data[:256].lstrip().lower()
    if not data:
        raise PatchFormatError(f"{what} is empty. Download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise PatchFormatError(f"{what} is a Git LFS pointer, not the file itself. Run `git lfs pull`.")
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise PatchFormatError(f"{what} is a web page, probably an error or login page. Download it again.")
    tensors = data[8:9] == b"{"  # a safetensors file whose header has 640, 896, ... bytes begins as a pickle does
    pickled = data[0] == 0x80 and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and not tensors
    if data.startswith(b"PK\x03\x04") or pickled:
        raise PatchFormatError(
            f"{what} is a pickle or zip archive, which can run code. Only safetensors and JSON are read."
        )


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a safetensors header; the tensor lies at bytes [begin, end) behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(data: bytes, what: str, limits: Limits = DEFAULT) -> dict[str, TensorInfo]:
    """Check the whole header of a safetensors file, and that its tensors cover the rest of the file exactly once."""
    refuse_impostor(data, what)
    if len(data) < 8:
        raise PatchFormatError(f"{what} is cut short: {len(data)} bytes are no safetensors file. Download it again.")
    length = int.from_bytes(data[:8], "little")
    if length > limits.max_header_bytes:
        raise LimitError(f"{what} claims a header of {length:,} bytes; at most {limits.max_header_bytes:,} are read.")
    if 8 + length > len(data):
        raise PatchFormatError(f"{what} is cut short: its header needs {length:,} bytes. Download it again.")
    text = data[8 : 8 + length]
    if not text.startswith(b"{"):
        raise PatchFormatError(f"{what} is not a safetensors file: its header does not begin with '{{'.")
    if (objects := text.count(b"{") - 2) > limits.max_tensors:  # one per tensor; parsing a million takes seconds
        raise LimitError(f"{what} holds about {objects:,} tensors; at most {limits.max_tensors:,} are read.")
    header = strictjson.loads(text, what=f"header of {what}", max_bytes=limits.max_header_bytes, limits=limits)
    if header.pop("__metadata__", None) != METADATA:
        raise PatchFormatError(f"{what} must have exactly the metadata {METADATA}.")
    if not header:
        raise PatchFormatError(f"{what} holds no tensor.")
    tensors = {name: _entry(name, entry, what, limits) for name, entry in header.items()}
    _check_cover(tensors, len(data) - 8 - length, what)
    return tensors


def _entry(name: str, entry: Any, what: str, limits: Limits) -> TensorInfo:
    shown = f"tensor {name[:120]!r} of {what}"
    if len(name) > limits.max_path_chars + 65:  # "/" and a tensor's own name of at most 64
        raise LimitError(
            f"{shown}: a name of {len(name):,} characters; a module path has at most {limits.max_path_chars}."
        )
    if not _TENSOR_NAME.fullmatch(name):
        raise PatchFormatError(f"{shown}: a name is <module path>/<tensor> in plain ASCII.")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise PatchFormatError(f"{shown} must have exactly dtype, shape and data_offsets, not {str(entry)[:120]}.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise PatchFormatError(f"{shown} has dtype {dtype!r}; known are {', '.join(DTYPES)}.")
    if not _natural(shape) or not _natural(offsets) or len(shape) > 4 or len(offsets) != 2:
        raise PatchFormatError(
            f"{shown} has shape {str(shape)[:80]} and offsets {str(offsets)[:80]}: not whole numbers."
        )
    if 0 in shape:
        raise PatchFormatError(f"{shown} has shape {shape}: an empty tensor.")
    size = DTYPES[dtype].itemsize
    for side in shape:
        size *= side  # Python integers do not overflow
    begin, end = offsets
    if end - begin != size:
        raise PatchFormatError(
            f"{shown}: shape {shape} of {dtype} needs {size:,} bytes, its offsets give {end - begin:,}."
        )
    return TensorInfo(dtype, tuple(shape), begin, end)


def _natural(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_cover(tensors: Mapping[str, TensorInfo], size: int, what: str) -> None:
    """Tensors lie end to end and fill the file: no gap, no overlap, nothing behind them, nothing missing."""
    at = 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1].begin):
        if info.begin != at:
            fault = "overlaps the tensor before it" if info.begin < at else "leaves a gap before it"
            raise PatchFormatError(f"tensor {name!r} of {what} {fault}: it begins at {info.begin}, not {at}.")
        at = info.end
    if at > size:
        raise PatchFormatError(
            f"{what} is cut short: its tensors need {at:,} bytes, it has {size:,}. Download it again."
        )
    if at < size:
        raise PatchFormatError(f"{what} has {size - at:,} bytes behind its last tensor.")


def read_tensors(data: bytes, what: str, limits: Limits = DEFAULT) -> dict[str, Tensor]:
    """Tensors of a safetensors file, after the header pass; NaN and infinity are refused."""
    if len(data) > limits.max_tensor_bytes:
        raise LimitError(f"{what} has {len(data):,} bytes; at most {limits.max_tensor_bytes:,} are read.")
    names = set(read_header(data, what, limits))
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError) as cause:
        raise PatchFormatError(f"{what} is refused by the safetensors reader: {cause}.") from None
    if set(tensors) != names:
        raise PatchFormatError(f"{what} has two readings: {sorted(set(tensors) ^ names)[:3]}.")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not math.isfinite(largest(tensor)):
            raise PatchFormatError(f"tensor {name!r} of {what} holds NaN or infinity.")
    return tensors


def largest(tensor: Tensor) -> float:
    """max |x| of a floating tensor that is not empty; NaN or infinity when it holds one. One pass, no copy."""
    low, high = torch.aminmax(tensor)
    return max(abs(float(low)), abs(float(high)))


def write_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """safetensors bytes; equal tensors give equal bytes, whatever their order here."""
    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name in sorted(tensors):  # the writer refuses two names of one memory
        tensor = tensors[name].contiguous()
        own[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in seen else tensor
        seen.add(tensor.untyped_storage().data_ptr())
    return safetensors.torch.save(own, metadata=METADATA)


def tensor_digest(name: str, tensor: Tensor) -> str:
    """sha256 over name | dtype | shape | bytes of a CPU tensor: 64 hex digits. The file it lies in does not matter."""
    shape = ",".join(map(str, tensor.shape))
    digest = hashlib.sha256(f"{name}|{DTYPE_NAMES[tensor.dtype]}|{shape}|".encode())
    digest.update(raw(tensor))
    return digest.hexdigest()


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor (row-major, little-endian), without a copy where it is contiguous on CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data

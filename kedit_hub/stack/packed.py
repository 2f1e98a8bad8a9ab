"""All patches of a stack in two files. Law: what comes out has the ids that went in, and every byte used was hashed first.

    pack(stack, "folder")          # stack.json and stack.safetensors
    unpack("folder")               # the same patches, in the same order; equal ids, signers, scores

`stack.json` holds the manifests (each base once), sealed scores, and of signed patches what was signed; `stack.safetensors` holds the
tensors, those of patch number i under "p<i>.". Each file is read once; tensors are views of that one buffer, so it stays in memory
while any of them does. A signed patch is put together again as the files that were signed, and checked as those: it owns a copy.
The files are not mapped into memory: another process could change a mapped page after it was hashed.
"""

import base64
import binascii
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kedit_hub import strictjson
from kedit_hub.errors import KeditError, LimitError, PatchFormatError
from kedit_hub.limits import DEFAULT, MAX_LOCK_PATCHES, MAX_PACKED_BASES, MAX_PACKED_TENSORS, Limits
from kedit_hub.patch.manifest import Manifest
from kedit_hub.patch.patch import Patch
from kedit_hub.patch.safefile import (
    DTYPES,
    largest,
    raw,
    read_file,
    read_header,
    refuse_impostor,
    write_tensors,
)
from kedit_hub.patch.scores import seal, unseal
from kedit_hub.patch.signature import CARD, CONFIG, EVALS, SIGNATURE, TENSORS, Signature

LOCK = "kedit.lock"  # what names them, see lock.py
PACKED_JSON, PACKED_TENSORS = PACKED = ("stack.json", "stack.safetensors")
BOUNDS: Mapping[str, int] = {PACKED_JSON: DEFAULT.max_config_bytes, PACKED_TENSORS: DEFAULT.max_tensor_bytes}
_PREFIX = len("p9999.")  # what a packed tensor's name is longer by, at most


# --- writing ------------------------------------------------------------------------------------------------------


def packed_files(patches: Iterable[Patch]) -> dict[str, bytes]:
    """The two files by name. Equal patches in equal order give equal bytes. LimitError for more than can be read again."""
    listed = list(patches)
    if not listed:
        raise KeditError("There is no patch to pack: give at least one.")
    if len(listed) > MAX_LOCK_PATCHES:
        raise LimitError(f"{len(listed):,} patches cannot be packed; at most {MAX_LOCK_PATCHES:,} are read.")
    bases: dict[bytes, int] = {}
    entries = [_entry(patch, bases) for patch in listed]
    _check_bases([len(base) for base in bases], [entry["manifest"]["base"] for entry in entries])
    index = {"kedit_packed": 1, "bases": [strictjson.loads(b, what="base", max_bytes=len(b)) for b in bases]}
    tensors = {
        f"p{number}.{path}/{name}": tensor
        for number, patch in enumerate(listed)
        for path, delta in patch.deltas.items()
        for name, tensor in delta.to_tensors().items()
    }
    files = {
        PACKED_JSON: strictjson.canonical({**index, "patches": entries}) + b"\n",
        PACKED_TENSORS: write_tensors(tensors),
    }
    for name, data in files.items():
        if len(data) > BOUNDS[name]:
            raise LimitError(
                f"{name} would have {len(data):,} bytes; at most {BOUNDS[name]:,} are read. Pack fewer patches."
            )
    if len(tensors) > MAX_PACKED_TENSORS:
        raise LimitError(f"{len(tensors):,} tensors cannot be packed; at most {MAX_PACKED_TENSORS:,} are read.")
    return files


def _entry(patch: Patch, bases: dict[bytes, int]) -> dict[str, Any]:
    """One patch as JSON values; its base is a number into `bases`, which grows."""
    manifest = {**patch.manifest.to_dict(), "id": patch.id}
    manifest["base"] = bases.setdefault(strictjson.canonical(manifest["base"]), len(bases))
    entry: dict[str, Any] = {"manifest": manifest}
    if patch.evals is not None:
        entry["evals"] = _json(seal(patch.evals, patch.id))
    if patch.signature is not None:
        entry["signed"] = _signed(patch.signature)
    return entry


def _check_bases(sizes: list[int], used: Iterable[Any]) -> None:
    """LimitError where few bytes say much: one long base, and many patches of it. sizes: of canonical JSON; used: by number."""
    work = sum(sizes[number] for number in used if type(number) is int and 0 <= number < len(sizes))
    if work > MAX_PACKED_BASES:
        raise LimitError(
            f"The bases of all patches of {PACKED_JSON}, each told as often as it is used, have {work:,} bytes; at most "
            f"{MAX_PACKED_BASES:,} are read. Pack fewer patches, or the patches of fewer modules."
        )


def _signed(signature: Signature) -> dict[str, Any]:
    """The signature, and what it covers that is no content of the patch: the card and the header of the tensors."""
    return {
        "signature": _json(signature.to_bytes()),
        "card": base64.b64encode(signature.card).decode("ascii"),
        "header": base64.b64encode(signature.header).decode("ascii"),
    }


def _json(data: bytes) -> Any:
    return strictjson.loads(data, what="packed JSON", max_bytes=len(data))


def pack(patches: Iterable[Patch], folder: str | os.PathLike[str]) -> dict[str, str]:
    """Write both files into `folder`, each whole or not at all; what else lies there stays. Returns sha256 by file name.

    Raises KeditError (nothing to pack, cannot be written) and LimitError.
    """
    files = packed_files(patches)
    write_together({Path(folder) / name: data for name, data in files.items()})
    return digests(files)


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: sha256(data).hexdigest() for name, data in files.items()}


def write_whole(file: Path, data: bytes) -> None:
    """The whole file or none of it: written beside it, made durable, and put in its place. KeditError when it cannot be."""
    write_together({file: data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Several files, each whole or not at all. All are written before the first is put in its place, in the order given."""
    written: dict[Path, str] = {}
    try:
        try:
            for file, data in files.items():
                file.parent.mkdir(parents=True, exist_ok=True)
                handle, written[file] = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
                with os.fdopen(handle, "wb") as out:
                    out.write(data)
                    out.flush()
                    os.fsync(out.fileno())
                os.chmod(written[file], 0o644)
            for file in files:
                os.replace(written[file], file)
                del written[file]
        finally:
            for temporary in written.values():
                os.unlink(temporary)
    except OSError as cause:
        raise KeditError(f"Cannot write {str(file)!r}: {cause.strerror}. Check the folder, or name another.") from None


# --- reading ------------------------------------------------------------------------------------------------------


def unpack(folder: str | os.PathLike[str], *, limits: Limits = DEFAULT) -> list[Patch]:
    """The patches of a folder, in their order. Raises PatchFormatError or a subclass naming the file and the fault."""
    return from_packed(read_packed(folder), limits=limits)


def read_packed(folder: str | os.PathLike[str]) -> dict[str, bytes]:
    """Both files of a folder, each read once, no links followed."""
    return {name: read_file(Path(folder) / name, BOUNDS[name]) for name in PACKED}


def from_packed(files: Mapping[str, bytes], *, limits: Limits = DEFAULT) -> list[Patch]:
    """`unpack` for bytes that are already in memory."""
    index = _index(files[PACKED_JSON], limits)
    _check_bases(
        [len(strictjson.canonical(base)) for base in index["bases"]],
        [entry["manifest"].get("base") for entry in index["patches"] if isinstance(entry.get("manifest"), dict)],
    )
    tensors = _views(files[PACKED_TENSORS], limits)
    patches, used = list[Patch](), 0
    bases: dict[int, Manifest] = {}  # of the first patch of each
    for number, entry in enumerate(index["patches"]):
        where = f"patch {number} of {PACKED_JSON}"
        manifest = _manifest(entry, index["bases"], where, limits)
        own = {
            f"{path}/{name}": tensors.get(f"p{number}.{path}/{name}")
            for path, module in manifest.modules.items()
            for name in module.tensors
        }
        missing = [name for name, tensor in own.items() if tensor is None]
        if missing:
            raise PatchFormatError(
                f"{PACKED_TENSORS} lacks the tensor {missing[0]!r} of {where}. Pack the stack again."
            )
        used += len(own)
        patch = _patch(entry, manifest, {n: t for n, t in own.items() if t is not None}, where, limits)
        patch.manifest.share_base(bases.setdefault(entry["manifest"]["base"], patch.manifest))
        patches.append(patch)
    if used != len(tensors):
        raise PatchFormatError(
            f"{PACKED_TENSORS} holds {len(tensors) - used} tensors of no patch. Pack the stack again."
        )
    if len({patch.id for patch in patches}) != len(patches):
        raise PatchFormatError(f"{PACKED_JSON} holds a patch twice. Pack the stack again.")
    return patches


def _index(data: bytes, limits: Limits) -> dict[str, Any]:
    """stack.json with its outermost layer checked."""
    refuse_impostor(data, PACKED_JSON)
    value = strictjson.loads(data, what=PACKED_JSON, max_bytes=limits.max_config_bytes, limits=limits)
    version = value.get("kedit_packed") if isinstance(value, dict) else None
    if type(version) is not int or version != 1:
        raise PatchFormatError(
            f"{PACKED_JSON} has kedit_packed {str(version)[:40]!r}; this kedit_hub reads 1. If it is newer, update."
        )
    if set(value) != {"kedit_packed", "bases", "patches"} or not _are_objects(value["bases"], value["patches"]):
        raise PatchFormatError(
            f"{PACKED_JSON} must hold exactly kedit_packed, and bases and patches, lists of objects."
        )
    if not 0 < len(value["patches"]) <= MAX_LOCK_PATCHES:
        raise LimitError(
            f"{PACKED_JSON} holds {len(value['patches']):,} patches; from 1 to {MAX_LOCK_PATCHES:,} are read."
        )
    return dict(value)


def _are_objects(*lists: Any) -> bool:
    return all(isinstance(listed, list) and all(isinstance(item, dict) for item in listed) for listed in lists)


def _manifest(entry: dict[str, Any], bases: list[Any], where: str, limits: Limits) -> Manifest:
    value = entry.get("manifest")
    if not isinstance(value, dict) or not set(entry) <= {"manifest", "evals", "signed"}:
        raise PatchFormatError(f"{where} must hold a manifest, and at most evals and signed beside it.")
    base = value.get("base")
    if type(base) is not int or not 0 <= base < len(bases):
        raise PatchFormatError(f"{where} has the base {str(base)[:40]!r}; there are {len(bases)}, counted from 0.")
    content = {name: item for name, item in value.items() if name != "id"}
    manifest = Manifest.from_dict({**content, "base": bases[base]}, limits)
    if value.get("id") != manifest.id:
        raise PatchFormatError(
            f"{where} says its id is {str(value.get('id'))[:64]!r}, its contents give {manifest.id!r}: damaged or changed. "
            "Pack the stack again."
        )
    return manifest


def _views(data: bytes, limits: Limits) -> dict[str, Tensor]:
    """Tensors by packed name, as views of one buffer; NaN and infinity are refused."""
    if len(data) > limits.max_tensor_bytes:
        raise LimitError(f"{PACKED_TENSORS} has {len(data):,} bytes; at most {limits.max_tensor_bytes:,} are read.")
    longer = replace(limits, max_tensors=MAX_PACKED_TENSORS, max_path_chars=limits.max_path_chars + _PREFIX)
    entries = read_header(data, PACKED_TENSORS, longer)
    begin = 8 + int.from_bytes(data[:8], "little")
    buffer = bytearray(data)  # torch has no tensors that cannot be written to, and bytes must not be
    tensors = {}
    for name, info in entries.items():
        dtype = DTYPES[info.dtype]
        offset = begin + info.begin
        if offset % dtype.itemsize:
            raise PatchFormatError(f"tensor {name!r} of {PACKED_TENSORS} does not lie on a multiple of its item size.")
        count = (info.end - info.begin) // dtype.itemsize
        tensor = torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset).reshape(info.shape)
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise PatchFormatError(f"tensor {name!r} of {PACKED_TENSORS} holds NaN or infinity.")
        tensors[name] = tensor
    return tensors


def _is_finite(tensor: Tensor) -> bool:
    return largest(tensor) < float("inf")  # NaN is smaller than nothing


def _patch(entry: dict[str, Any], manifest: Manifest, tensors: dict[str, Tensor], where: str, limits: Limits) -> Patch:
    """One patch, after the checks that loading its folder would make."""
    evals = strictjson.pretty(entry["evals"]) if "evals" in entry else None
    if "signed" in entry:
        files = {CONFIG: manifest.to_bytes(), **dict(_signed_files(entry["signed"], tensors, where))}
        return Patch.from_files(files if evals is None else {**files, EVALS: evals}, limits=limits)
    patch = Patch.assemble(manifest, tensors, limits)
    return patch if evals is None else replace(patch, evals=unseal(evals, patch.id, limits))


def _signed_files(value: Any, tensors: Mapping[str, Tensor], where: str) -> Iterator[tuple[str, bytes]]:
    """The files that were signed, but for the manifest and the scores."""
    if not isinstance(value, dict) or set(value) != {"signature", "card", "header"}:
        raise PatchFormatError(f"{where}: signed must hold exactly signature, card and header.")
    yield SIGNATURE, strictjson.pretty(value["signature"])
    yield CARD, _decoded(value["card"], where)
    header = _decoded(value["header"], where)
    yield TENSORS, b"".join((header, *(raw(tensors[name]) for name in _order(header, tensors, where))))


def _decoded(text: Any, where: str) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "*", validate=True)
    except (binascii.Error, ValueError):
        raise PatchFormatError(
            f"{where}: card and header of a signed patch are base64. Pack the stack again."
        ) from None


def _order(header: bytes, tensors: Mapping[str, Tensor], where: str) -> list[str]:
    """Names of the tensors in the order of a signed header; a wrong header is found out when the whole file is checked."""
    entries = strictjson.loads(header[8:], what=f"signed header of {where}", max_bytes=DEFAULT.max_header_bytes)
    try:
        begins = {name: int(entries[name]["data_offsets"][0]) for name in tensors}
    except (KeyError, TypeError, IndexError, ValueError):
        raise PatchFormatError(f"The signed header of {where} does not say where its tensors lie.") from None
    return sorted(begins, key=lambda name: begins[name])

"""Is this checkpoint folder the right base, without loading the model? Law: the evidence of a weight costs the bytes of
that weight, and a folder that two loaders could read in two ways is refused.

A folder is what save_pretrained writes: config.json and model.safetensors, or shards with an index. Weights are found
under the names transformers looks for: the module's path, or (GPT-2 on the Hub) the path without the body's name.

    fingerprint_stored("gpt2", "transformer.h.3.mlp.c_proj")     ==  fingerprint(that module of the loaded model)
    check_stored(fp, "gpt2", "transformer.h.3.mlp.c_proj")       ->  "exact" | "quantized" | "shape", or WrongBaseError
    verify_stored(patch.manifest.base, "gpt2")                   ->  {path: level}, or WrongBaseError
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from kedit_hub import strictjson
from kedit_hub.base.families import Family, check_model_type
from kedit_hub.errors import HubError, PatchFormatError, UnsupportedModelError, WrongBaseError
from kedit_hub.limits import DEFAULT
from kedit_hub.patch.fingerprint import Level, Matrix, ModuleFingerprint, check_matrix, fingerprint_matrix
from kedit_hub.patch.manifest import BaseRef
from kedit_hub.patch.safefile import read_file, refuse_impostor

CONFIG, WHOLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,200}\.safetensors")


def fingerprint_stored(folder: str | os.PathLike[str], path: str) -> ModuleFingerprint:
    """The fingerprint of the module `path`, as `fingerprint` gives it of the model loaded in the dtype it is stored in.

    HubError when there is no such folder; UnsupportedModelError when its weights cannot be read this way (pickles,
    quantized or damaged checkpoints, unknown families) or `path` is no linear map inside a block.
    """
    checkpoint = _open(folder)
    found = _find(checkpoint, path)
    if found is None:
        raise UnsupportedModelError(f"{checkpoint.name} stores no weight of {path!r}: check the path.")
    with _matrix(checkpoint, path, *found) as matrix:
        return fingerprint_matrix(matrix, path=f"{path} in {checkpoint.name}")


def check_stored(fp: ModuleFingerprint, folder: str | os.PathLike[str], path: str) -> Level:
    """Compare one stored weight with a fingerprint, as `check` compares the module of the loaded model.

    WrongBaseError when it is not there, or shape or evidence contradicts; else the errors of `fingerprint_stored`.
    """
    checkpoint = _open(folder)
    return _check(fp, checkpoint, path, checkpoint.name)


def verify_stored(base: BaseRef, folder: str | os.PathLike[str]) -> dict[str, Level]:
    """Compare every fingerprint of a patch's base with a checkpoint folder. Level by module path.

    WrongBaseError for another model_type, a missing weight, another shape or other values; else as `fingerprint_stored`.
    """
    checkpoint = _open(folder, base)
    model = f"{checkpoint.name} (the patch is for {base.id})"
    return {path: _check(fp, checkpoint, path, model) for path, fp in base.fingerprint.items()}


def _check(fp: ModuleFingerprint, checkpoint: "_Checkpoint", path: str, model: str) -> Level:
    found = _find(checkpoint, path)
    if found is None:
        raise WrongBaseError(
            f"{model} stores no weight of {path!r}, which the patch names: give the folder of the model it was made for."
        )
    with _matrix(checkpoint, path, *found) as matrix:
        return check_matrix(fp, matrix, path=path, model=model)


# --- the folder ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Checkpoint:
    """name: as the user gave it, quoted. files: where each weight file lies. keys: the files that store a tensor."""

    name: str
    family: Family
    files: Mapping[str, Path]
    keys: Mapping[str, Sequence[str]]


def _open(folder: str | os.PathLike[str], wanted: BaseRef | None = None) -> _Checkpoint:
    """Config and headers of a folder; tensors are not touched."""
    root = Path(folder).expanduser()
    name = repr(os.fspath(folder))
    if not root.is_dir():
        raise HubError(f"there is no model folder {name}: check the path.")
    if not (root / CONFIG).is_file():
        raise HubError(f"the folder {name} holds no {CONFIG}: point to a folder written by save_pretrained.")
    root = root.resolve()
    config = _json(_inside(root, CONFIG, name), f"{CONFIG} of {name}")
    model_type = config.get("model_type")
    if wanted is not None and model_type != wanted.model_type:
        raise WrongBaseError(
            f"the patch was made for {wanted.id} (a {wanted.model_type}), {name} is a {str(model_type)[:60]!r}: give the "
            "folder of the model it names."
        )
    family = check_model_type(str(model_type)[:60])
    _refuse_other_weights(root, config, name)
    files = {file: _inside(root, file, name) for file in _weight_files(root, name)}
    keys: dict[str, list[str]] = {}
    for file, place in files.items():
        for key in _keys(place, f"{file} of {name}"):
            keys.setdefault(key, []).append(file)
    return _Checkpoint(name, family, files, keys)


def _refuse_other_weights(root: Path, config: Mapping[str, Any], name: str) -> None:
    """What would make a loader answer with other numbers than those of the safetensors files."""
    if config.get("quantization_config") is not None:
        raise UnsupportedModelError(
            f"{name} is stored quantized, so its numbers are codes, not weights: load the model to check it, or give the "
            "full-precision checkpoint it was made from."
        )
    if config.get("transformers_weights") is not None:
        raise UnsupportedModelError(f"{name} names weights of its own choice in {CONFIG}: load the model to check it.")
    if os.path.lexists(root / "adapter_config.json"):
        raise UnsupportedModelError(
            f"{name} holds an adapter (adapter_config.json), which is loaded on top of the weights: move it out, or load "
            "the model to check it."
        )


def _weight_files(root: Path, name: str) -> list[str]:
    """The files that hold the weights: one, or the shards of the index, in transformers' order of preference."""
    if (root / WHOLE).is_file():
        return [WHOLE]
    if not (root / INDEX).is_file():
        pickles = sorted(file.name for file in root.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickles:
            raise UnsupportedModelError(
                f"{name} has its weights in {pickles[0]!r}, a pickle, which can run code and is never opened: save the "
                "model with save_pretrained, which writes safetensors."
            )
        raise UnsupportedModelError(f"{name} holds neither {WHOLE} nor {INDEX}: point to a folder with weights.")
    what = f"{INDEX} of {name}"
    shards = _json(_inside(root, INDEX, name), what).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UnsupportedModelError(f"{what} has no weight_map: download it again.")
    for shard in shards.values():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise UnsupportedModelError(
                f"{what} names the file {str(shard)[:120]!r}; shards are plain names such as "
                "model-00001-of-00002.safetensors, beside the index. Do not use this checkpoint."
            )
    return sorted(set(shards.values()))


def _inside(root: Path, file: str, name: str) -> Path:
    """The regular file of that name; links may lead elsewhere in the folder, or to the blobs of its own Hub cache."""
    try:
        target = (root / file).resolve(strict=True)
    except (OSError, RuntimeError):
        raise UnsupportedModelError(f"{name} is not complete: {file!r} is missing. Download it again.") from None
    cached = root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
    if not (target.is_relative_to(root) or cached):
        raise UnsupportedModelError(f"{file!r} of {name} is a link that leads out of the folder: copy the file itself.")
    if not target.is_file():
        raise UnsupportedModelError(f"{file!r} of {name} is not a regular file. Download it again.")
    return target


def _json(file: Path, what: str) -> dict[str, Any]:
    try:
        data = read_file(file, DEFAULT.max_config_bytes)
        value = strictjson.loads(data, what=what, max_bytes=DEFAULT.max_config_bytes)
    except PatchFormatError as cause:
        raise UnsupportedModelError(str(cause)) from None
    if not isinstance(value, dict):
        raise UnsupportedModelError(f"{what} holds a {type(value).__name__}, not an object: download it again.")
    return value


# --- tensors ------------------------------------------------------------------------------------------------------


def _keys(file: Path, what: str) -> list[str]:
    try:
        with safe_open(file, "pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as cause:
        raise UnsupportedModelError(_explained(file, what, cause)) from None


def _explained(file: Path, what: str, cause: Exception) -> str:
    """What stands where a safetensors file was expected."""
    try:
        with open(file, "rb") as opened:
            refuse_impostor(opened.read(256), what)
    except OSError as failure:
        return f"{what} cannot be read: {failure.strerror}."
    except PatchFormatError as impostor:
        return str(impostor)
    return f"{what} is no whole safetensors file ({str(cause)[:120]}): download it again."


def _find(checkpoint: _Checkpoint, path: str) -> tuple[str, str] | None:
    """Name and file of the weight of a module, None where there is none."""
    if checkpoint.family.inside(path) is None:
        raise UnsupportedModelError(
            f"{path!r} lies in no block of {checkpoint.family.layers}, where the stored weight of a linear map is looked "
            "up: load the model to check it."
        )
    body = checkpoint.family.layers.partition(".")[0]
    names = dict.fromkeys([f"{path}.weight", f"{path}.weight".removeprefix(f"{body}.")])
    found = [(name, file) for name in names for file in checkpoint.keys.get(name, ())]
    if len(found) > 1:
        raise UnsupportedModelError(
            f"{checkpoint.name} stores the weight of {path!r} {len(found)} times ({found[0][0]} in {found[0][1]}, "
            f"{found[1][0]} in {found[1][1]}), so it has more than one reading. Do not use this checkpoint."
        )
    return found[0] if found else None


@contextmanager
def _matrix(checkpoint: _Checkpoint, path: str, key: str, file: str) -> Iterator[Matrix]:
    """W (out, in) of a stored weight, read from the mapped file as it is asked for."""
    with safe_open(checkpoint.files[file], "pt") as tensors:
        stored = tensors.get_slice(key)
        shape = tuple(stored.get_shape())
        if len(shape) != 2 or 0 in shape:
            raise UnsupportedModelError(
                f"{path} of {checkpoint.name} is stored with shape {shape}: it is no linear map that can be fingerprinted."
            )
        dtype = stored[:1].dtype
        if checkpoint.family.conv1d:  # stored as (in, out)
            yield Matrix((shape[1], shape[0]), dtype, lambda begin, end: stored[:, begin:end].T)
        else:
            yield Matrix((shape[0], shape[1]), dtype, lambda begin, end: stored[begin:end])

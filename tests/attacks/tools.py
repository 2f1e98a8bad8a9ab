"""Ways to be hostile: each maps the good files of a patch to hostile ones.

Two kinds of attacker: one who damages bytes (`put`, `text`, `header`), and one who knows the format and recomputes every
digest and the id (`resealed`, `setting`, `forged`), so that only what the patch means can give him away.

    refuse(Case(setting("format_version", value=3), UnknownFormatError, "update kedit_hub"))
"""

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from torch import Tensor

from kedit_hub import strictjson
from kedit_hub.errors import KeditError
from kedit_hub.patch import Patch
from kedit_hub.patch.safefile import DTYPE_NAMES, tensor_digest
from tests.patch.build import EVALS, PATHS, make_patch
from tests.patch.kinds import EXAMPLES, every_kind

Files = dict[str, bytes]
Attack = Callable[[Files], Files]
CARD, CONFIG, TENSORS, EVALS_FILE = "README.md", "config.json", "patch.safetensors", "evals.json"
DENSE = f"{PATHS[2]}/delta"  # one tensor of the good patch
AT = {name: f"model.layers.{i}.mlp.down_proj" for i, name in enumerate(EXAMPLES)}  # where `every` has which kind


@cache
def _good() -> Files:
    return make_patch().replace_evals(EVALS).files()


@cache
def _every() -> Files:
    return every_kind().replace_evals(EVALS).files()


def good() -> Files:
    """A patch of format 1: low-rank, associative and dense."""
    return dict(_good())


def every() -> Files:
    """A patch of format 2 with every kind, each on the module AT[name]."""
    return dict(_every())


class Case(NamedTuple):
    """An attack on `start()`, the error that refuses it, and words of its message."""

    attack: Attack
    error: type[KeditError]
    words: str
    start: Callable[[], Files] = good

    def files(self) -> Files:
        return self.attack(self.start())


def refuse(case: Case) -> None:
    """The files are refused by exactly this error, in these words, briefly."""
    with pytest.raises(case.error) as caught:
        Patch.from_files(case.files())
    assert type(caught.value) is case.error
    assert case.words in str(caught.value), str(caught.value)
    assert len(str(caught.value)) < 1500


# --- damage -------------------------------------------------------------------------------------------------------


def put(name: str, data: bytes | Callable[[bytes], bytes]) -> Attack:
    return lambda files: files | {name: data(files[name]) if callable(data) else data}


def text(name: str, old: str, new: str) -> Attack:
    """Replace the first occurrence of `old`, which must be there."""

    def attack(data: bytes) -> bytes:
        assert old.encode() in data, old
        return data.replace(old.encode(), new.encode("utf-8", "surrogatepass"), 1)

    return put(name, attack)


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(parsed header, tensor bytes) of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict[str, Any] | str, body: bytes) -> bytes:
    encoded = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(encoded).to_bytes(8, "little") + encoded + body


def header(change: Callable[[dict[str, Any]], Any]) -> Attack:
    """Change the parsed safetensors header in place."""

    def attack(data: bytes) -> bytes:
        entries, body = split(data)
        change(entries)
        return join(entries, body)

    return put(TENSORS, attack)


def header_text(change: Callable[[str], str]) -> Attack:
    def attack(data: bytes) -> bytes:
        entries, body = split(data)
        return join(change(json.dumps(entries)), body)

    return put(TENSORS, attack)


def renamed(name: str) -> Attack:
    return header(lambda entries: entries.update({name: entries.pop(DENSE)}))


def entry(name: str, value: Any) -> Attack:
    return header(lambda entries: entries[DENSE].update({name: value}))


def first_value(fill: float) -> Attack:
    """Overwrite the first float32 of one tensor."""

    def attack(data: bytes) -> bytes:
        entries, body = split(data)
        at = entries[f"{PATHS[1]}/keys"]["data_offsets"][0]
        return join(entries, body[:at] + torch.tensor([fill]).numpy().tobytes() + body[at + 4 :])

    return put(TENSORS, attack)


# --- forgery ------------------------------------------------------------------------------------------------------


def sealed(config: dict[str, Any]) -> bytes:
    """config.json with the id that its contents have."""
    config = {name: value for name, value in config.items() if name != "id"}
    seal = hashlib.sha256(b"kedit patch 1\n" + strictjson.canonical(config)).hexdigest()
    return strictjson.pretty({**config, "id": seal})


def resealed(change: Callable[[dict[str, Any]], Any]) -> Attack:
    """Change the parsed config in place and give it the id that its new contents have."""

    def attack(data: bytes) -> bytes:
        config = json.loads(data)
        change(config)
        return sealed(config)

    return put(CONFIG, attack)


def setting(*keys: Any, value: Any) -> Attack:
    """Resealed: config[keys[0]][keys[1]]... = value."""

    def change(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return resealed(change)


def forged(path: str, *, meta: dict[str, Any] | None = None, **tensors: Tensor | None) -> Attack:
    """Other tensors (None: taken out) and other fields (None: taken out) of one module, with all digests to match."""

    def attack(files: Files) -> Files:
        held = safetensors.torch.load(files[TENSORS])
        for name, tensor in tensors.items():
            held.pop(f"{path}/{name}", None)
            if tensor is not None:
                held[f"{path}/{name}"] = tensor.contiguous()

        def change(config: dict[str, Any]) -> None:
            entry = config["modules"][path]
            for name, value in (meta or {}).items():
                entry.pop(name, None)
                if value is not None:
                    entry[name] = value
            entry["tensors"] = {
                name.removeprefix(f"{path}/"): {
                    "dtype": DTYPE_NAMES[tensor.dtype],
                    "shape": list(tensor.shape),
                    "sha256": tensor_digest(name, tensor),
                }
                for name, tensor in held.items()
                if name.startswith(f"{path}/")
            }

        data = safetensors.torch.save(held, metadata={"format": "pt"})
        return resealed(change)({**files, TENSORS: data})

    return attack


def of_kind(name: str, *, meta: dict[str, Any] | None = None, **tensors: Tensor | None) -> Attack:
    """`forged` on the module of `every` that has this kind."""
    return forged(AT[name], meta=meta, **tensors)


# --- files that are something else --------------------------------------------------------------------------------


def pickled(protocol: int) -> bytes:
    return pickle.dumps([1], protocol=protocol)


def zipped(name: str = "archive/data.pkl") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, pickled(2))
    return buffer.getvalue()

"""Finished pieces of long work, kept in a folder so that a call that was killed goes on from them. Law: a piece is found again only by the
digest of all it was made from, is on disk whole or not at all, and is what was written or is computed anew.

    memo = kept_in("france.work", {"method": "memit", ...})
    memo("edits-0", lambda: {"keys": ...})            # computed now; in the next life of the process read back

    <folder>/<digest>/<name>.piece                    # sha256 of what follows | a safetensors file
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from kedit_hub import strictjson
from kedit_hub.errors import KeditError
from kedit_hub.limits import DEFAULT
from kedit_hub.patch.folder import write_file
from kedit_hub.patch.safefile import read_file

DIGEST = 32  # bytes of a sha256


def kept_in(folder: str | os.PathLike[str], made_from: Mapping[str, Any]) -> "Kept":
    """A memo (see kedit_hub.editors.job) of work that is made from these JSON values. A damaged piece is computed anew."""
    return Kept(Path(folder) / sha256(strictjson.canonical(dict(made_from))).hexdigest()[:32])


@dataclass(frozen=True)
class Kept:
    """The pieces of one work, in a folder of its own."""

    folder: Path

    def __call__(self, name: str, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        file = self._file(name)
        kept = _kept(file)
        if kept is not None:
            return kept
        tensors = work()
        data = safetensors.torch.save({key: tensor.clone().contiguous() for key, tensor in tensors.items()})
        # durable: what came before it may be let go once it is there
        write_file(file, sha256(data).digest() + data)
        return tensors

    def holds(self, name: str) -> bool:
        """Whether the piece is there, and what was written."""
        return _kept(self._file(name)) is not None

    def forget(self, name: str) -> None:
        """Let a piece go, if it is there."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.piece"


def _kept(file: Path) -> dict[str, Tensor] | None:
    """What the file holds; None where it is not there, or not what was written."""
    try:
        data = read_file(file, DEFAULT.max_tensor_bytes)
    except KeditError:
        return None
    digest, rest = data[:DIGEST], data[DIGEST:]
    return dict(safetensors.torch.load(rest)) if sha256(rest).digest() == digest else None

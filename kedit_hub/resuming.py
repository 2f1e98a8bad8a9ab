"""Finished pieces of long work, kept in a folder so that a call that was killed goes on from them. Law: a piece is found again only by the
digest of all it was made from, and is on disk whole or not at all.

    memo = kept_in("france.work", {"method": "memit", ...})
    memo("edits-0", lambda: {"keys": ...})            # computed now; in the next life of the process read back

    <folder>/<digest>/<name>.safetensors
"""

import os
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from kedit_hub import strictjson
from kedit_hub.errors import KeditError
from kedit_hub.limits import DEFAULT
from kedit_hub.patch.safefile import read_file, read_tensors, write_tensors


def kept_in(
    folder: str | os.PathLike[str], made_from: Mapping[str, Any]
) -> Callable[[str, Callable[[], dict[str, Tensor]]], dict[str, Tensor]]:
    """A memo (see kedit_hub.editors.job) of work that is made from these JSON values. A damaged piece is computed anew."""
    own = Path(folder) / sha256(strictjson.canonical(dict(made_from))).hexdigest()[:32]

    def memo(name: str, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        file = own / f"{name}.safetensors"
        if file.is_file():
            try:
                return read_tensors(read_file(file, DEFAULT.max_tensor_bytes), file.name)
            except KeditError:
                pass
        tensors = work()
        own.mkdir(parents=True, exist_ok=True)
        temporary = own / f".{name}.{os.getpid()}"
        temporary.write_bytes(write_tensors({key: tensor.contiguous() for key, tensor in tensors.items()}))
        os.replace(temporary, file)
        return tensors

    return memo

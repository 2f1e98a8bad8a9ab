"""What a benchmark works on: one base in several precisions, and the edits of a data set. Law: both are named by digests of what they
hold, for two models or two files may share a name.

    bases = Bases("kedit-hub/atlas-llama")
    bases.model, bases.tokenizer            # as it is loaded by default: patches are made on it
    bases.load("nf4")                       # the same base to measure on; one such copy is held at a time
    edits, records = read("test")           # of Atlas; or a list, a file, a data set by name
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

from kedit_hub import api, demo, provenance
from kedit_hub.base.families import edited_linear, n_layers, quantization_of
from kedit_hub.edits import Edit
from kedit_hub.errors import EditError, KeditError
from kedit_hub.evaluate.cells import records_digest
from kedit_hub.evaluate.run import Base, Records
from kedit_hub.hub.datasets import read_dataset
from kedit_hub.patch.fingerprint import fingerprint

PRECISIONS: Mapping[str, Mapping[str, Any]] = {  # how a base is loaded, by the name a benchmark calls it
    "bf16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "nf4": {"quantization": "nf4"},
    "fp4": {"quantization": "fp4"},
}
ATLAS, SPLITS = "kedit-hub/atlas", ("dev", "test")


class Bases:
    """base: a model id or folder; or a transformers model, which cannot be loaded in another precision. device_map: as in transformers."""

    def __init__(self, base: Any, tokenizer: Any = None, device_map: Any = None):
        self._source = base if isinstance(base, str | os.PathLike) else None
        self._device_map = device_map
        if self._source is not None:
            base, found = api.load_model(self._source, device_map=device_map)
            tokenizer = tokenizer or found
        self.model = base
        self.tokenizer = tokenizer or api.tokenizer_of(base)
        self.name, self.revision = api.base_name(base)
        self._held: tuple[str, Any] | None = None

    def load(self, precision: str | None) -> Any:
        """The base to measure on. None: the one that patches are made on."""
        if precision is None:
            return self.model
        if self._held is None or self._held[0] != precision:
            if self._source is None:
                raise KeditError(
                    f'"{precision}" takes a base that can be loaded again: pass the id or folder of the model'
                )
            self._held = None  # gone before the next one comes
            how = {"revision": self.revision, "device_map": self._device_map, **PRECISIONS[precision]}
            self._held = precision, api.load_model(self._source, **how)[0]
        return self._held[1]

    def described(self, precision: str | None) -> Base:
        """As a run names it; nothing is loaded."""
        how = PRECISIONS[precision] if precision is not None else {}
        return Base(
            id=self.name,
            revision=self.revision,
            model_type=str(self.model.config.model_type),
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            dtype=str(how.get("dtype", self.model.dtype)).removeprefix("torch."),
            quantization=how.get("quantization", quantization_of(edited_linear(self.model, 0)[1])),
            fingerprint=self.digest,
        )

    @cached_property
    def digest(self) -> str:
        """64 hex digits over the fingerprints of all its editable maps."""
        digest = sha256()
        for layer in range(n_layers(self.model)):
            path, module = edited_linear(self.model, layer)
            digest.update(f"{path}\n{fingerprint(module).model_dump_json()}\n".encode())
        return digest.hexdigest()


def read(source: Sequence[Edit] | str | os.PathLike[str], *, split: str | None = None) -> tuple[list[Edit], Records]:
    """The edits, and where they are from. source: a list, "dev" or "test" of Atlas, or what `read_dataset` takes.

    Records of a data set that cannot be read are left out with a warning that counts them. EditError for no such data set.
    """
    if isinstance(source, str | os.PathLike):
        if source in SPLITS and split is None:
            edits = demo.edits(str(source))
            return edits, Records(id=ATLAS, sha256=records_digest(edits), split=str(source))
        loaded = read_dataset(source, split=split, rejected="collect")
        if loaded.rejected:
            where, reason = loaded.rejected[0]
            warnings.warn(
                f"{len(loaded.rejected)} of {loaded.total} records cannot be read and are left out, the first is {where}: {reason}",
                stacklevel=3,
            )
        return loaded.edits, Records(
            **loaded.source(), split=None if loaded.split is None else provenance.word(loaded.split)
        )
    edits = list(source)
    odd = next((edit for edit in edits if not isinstance(edit, Edit)), None)
    if odd is not None:
        raise EditError(
            f"a benchmark takes a list of Edit, and {str(odd)[:80]!r} is none: use read_edits or Edit.from_record."
        )
    return edits, Records(id="edits", sha256=records_digest(edits))

"""A patch: manifest, deltas, scores. Law: loading runs nothing and loads only what the manifest's digests describe.

    patch = Patch.create(deltas={path: LowRank(a, b)}, edits=[edit], base=BaseRef(...), method="mend")
    patch.save(folder);  Patch.load(folder).id == patch.id

A folder holds README.md (for people), config.json (the manifest), patch.safetensors, and perhaps evals.json (scores) and
signature.json. `id` covers the manifest and, through their digests, all tensors; a signature covers every byte. Saving
twice gives equal bytes.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kedit_hub import __version__
from kedit_hub.edits import Edit
from kedit_hub.errors import PatchFormatError, SignatureError, WrongBaseError
from kedit_hub.limits import DEFAULT, Limits
from kedit_hub.patch import card, fingerprint
from kedit_hub.patch.deltas import Delta, from_tensors
from kedit_hub.patch.folder import check_replaceable, write_folder
from kedit_hub.patch.manifest import BaseRef, Manifest, layer_of, lowest_version
from kedit_hub.patch.safefile import (
    DTYPE_NAMES,
    read_file,
    read_tensors,
    refuse_impostor,
    tensor_digest,
    write_tensors,
)
from kedit_hub.patch.scores import plain, seal, unseal
from kedit_hub.patch.signature import (
    CARD,
    CONFIG,
    EVALS,
    FILES,
    SIGNATURE,
    TENSORS,
    Extra,
    Linked,
    OtherPatch,
    Signature,
    Unsigned,
    accept,
    check_files,
    explain,
    read_folder,
)


@dataclass(frozen=True, eq=False)
class Patch:
    """Immutable. Equal and hashed by `id`. deltas: by module path. evals: JSON object of scores, or None.

    signature: over the files this patch is saved as, or None. Sign with kedit_hub.patch.signature.sign.
    """

    manifest: Manifest
    deltas: dict[str, Delta]
    evals: dict[str, Any] | None = None
    signature: Signature | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "deltas", {path: self.deltas[path] for path in sorted(self.deltas)})
        if set(self.deltas) != set(self.manifest.modules):
            odd = sorted(set(self.deltas) ^ set(self.manifest.modules))
            raise PatchFormatError(f"Manifest and deltas disagree on the changed modules: {odd[:3]}.")
        if self.signature is not None and self.signature.statement.patch_id != self.id:
            raise SignatureError(explain(OtherPatch(self.signature.statement.patch_id)))

    @property
    def id(self) -> str:
        """64 hex digits: the identity of the patch."""
        return self.manifest.id

    @property
    def edits(self) -> tuple[Edit, ...]:
        return self.manifest.edits

    @property
    def signers(self) -> tuple[str, ...]:
        """ed25519 public keys of all who signed, 64 hex digits each, sorted; () when unsigned."""
        return () if self.signature is None else self.signature.keys

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patch) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"Patch({self.id[:12]}, {self.manifest.method}, {len(self.edits)} edits, {self.manifest.base.id})"

    @classmethod
    def create(
        cls,
        *,
        deltas: Mapping[str, Delta],
        edits: Iterable[Edit],
        base: BaseRef,
        method: str,
        settings: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        requires: Iterable[str] = (),
        profile_id: str | None = None,
        limits: Limits = DEFAULT,
    ) -> "Patch":
        """Make a patch. settings: flat hyperparameters. provenance: any fields of manifest.Provenance.

        Raises PatchFormatError (or a subclass) where `load` would refuse the result.
        """
        made = {"tool": "kedit_hub", "version": __version__, **(provenance or {})}
        value: dict[str, Any] = {
            "method": method,
            "settings": dict(settings or {}),
            "edits": [edit.to_record() for edit in edits],
            "base": base.model_dump(mode="json"),
            "profile_id": profile_id,
            "modules": {path: _entry(path, delta, delta.to_tensors()) for path, delta in deltas.items()},
            "requires": sorted(set(requires)),
            "provenance": {name: item for name, item in made.items() if item not in (None, {}, [], ())},
        }
        value["format_version"] = lowest_version(value)
        patch = cls(Manifest.from_dict(value, limits), dict(deltas))
        patch._validate(limits)
        return patch

    def replace_evals(self, evals: Mapping[str, Any] | None) -> "Patch":
        """The same patch (same id) with other scores: any JSON object with finite numbers. It is unsigned."""
        return replace(self, evals=None if evals is None else plain(evals), signature=None)

    # --- files ----------------------------------------------------------------------------------------------------

    def files(self, repo_id: str | None = None) -> dict[str, bytes]:
        """The files of the patch by name. repo_id: where it will lie on the Hub, for the usage snippet of the card.

        Of a signed patch they are the signed bytes, whatever repo_id says; SignatureError if it no longer is what was
        signed.
        """
        self.verify()
        signed, tensors = self.signature, _named(self.deltas)
        files = {CONFIG: self.manifest.to_bytes()}
        if self.evals is not None:
            files[EVALS] = seal(self.evals, self.id)
        if signed is None:
            files[CARD] = card.render(self.manifest, self.deltas, self.evals, repo_id).encode("utf-8")
            files[TENSORS] = write_tensors(tensors)
        else:
            files |= {CARD: signed.card, TENSORS: signed.tensor_file(tensors), SIGNATURE: signed.to_bytes()}
            accept(check_files(files))
        return {name: files[name] for name in FILES if name in files}

    def save(self, folder: str | os.PathLike[str], repo_id: str | None = None) -> Path:
        """Write the folder whole or not at all; a patch already there is replaced, any other folder is left alone."""
        target = Path(folder)
        check_saveable(target)
        files = self.files(repo_id)
        try:
            write_folder(target, files)
        except OSError as cause:
            raise PatchFormatError(f"Cannot write the patch to {str(target)!r}: {cause.strerror}.") from cause
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, limits: Limits = DEFAULT) -> "Patch":
        """Read a folder. Of one with a signature.json every file must be signed and unchanged, and nothing else in it;
        of another, config.json, patch.safetensors and evals.json are read and what lies beside them is never opened.

        Raises PatchFormatError or a subclass (SignatureError, ...) naming the file and the fault.
        """
        path = Path(folder)
        if not path.is_dir():
            raise PatchFormatError(f"{str(path)!r} is not a folder. Give the folder that holds config.json of a patch.")
        found = read_folder(path, limits)
        match found:
            case Unsigned():
                return cls.from_files(_read_unsigned(path, limits), limits=limits)
            case Extra() | Linked():
                raise SignatureError(f"{str(path)!r} is refused: {explain(found)}")
            case files:
                return cls.from_files(files, limits=limits)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, limits: Limits = DEFAULT) -> "Patch":
        """`load` for bytes that are already in memory, by file name. Of unsigned files, names of no patch are ignored."""
        signature = accept(check_files(files, limits))
        for name in (CONFIG, TENSORS):
            if name not in files:
                raise PatchFormatError(f"{name} is missing. A patch has {CONFIG} and {TENSORS}.")
        refuse_impostor(files[CONFIG], CONFIG)
        manifest = Manifest.parse(files[CONFIG], limits)
        tensors = read_tensors(files[TENSORS], TENSORS, limits)
        expected = {f"{path}/{name}" for path, entry in manifest.modules.items() for name in entry.tensors}
        if set(tensors) != expected:
            odd = sorted(set(tensors) ^ expected)
            raise PatchFormatError(f"{TENSORS} and {CONFIG} disagree on which tensors there are: {odd[:3]}.")
        patch = cls.assemble(manifest, tensors, limits)
        evals = unseal(files[EVALS], manifest.id, limits) if EVALS in files else None
        return replace(patch, evals=evals, signature=signature)

    @classmethod
    def assemble(cls, manifest: Manifest, tensors: Mapping[str, Tensor], limits: Limits = DEFAULT) -> "Patch":
        """The unsigned patch without scores that a manifest describes, from the stored tensors under "<path>/<name>".

        PatchFormatError (or a subclass) where they are not those.
        """
        own = {path: _own(tensors, path, entry.tensors) for path, entry in manifest.modules.items()}
        deltas = {
            path: from_tensors(entry.kind, own[path], entry.meta(), path, entry.shape)
            for path, entry in manifest.modules.items()
        }
        patch = cls(manifest, deltas)
        patch._validate(limits)
        patch._compare(own)
        return patch

    # --- checks ---------------------------------------------------------------------------------------------------

    def _validate(self, limits: Limits) -> None:
        for path, delta in self.deltas.items():
            delta.validate(len(self.edits), limits, path)

    def verify(self, model: nn.Module | None = None) -> dict[str, fingerprint.Level]:
        """Hash every tensor again and compare with the manifest; with a model, check that it is the right base.

        Returns how well each fingerprinted module of the model was recognised ({} without a model).
        Raises PatchFormatError for changed tensors, WrongBaseError for another base.
        """
        self._compare({path: delta.to_tensors() for path, delta in self.deltas.items()})
        if model is None:
            return {}
        levels = {}
        for path, expected in self.manifest.base.fingerprint.items():
            try:
                module = model.get_submodule(path)
            except AttributeError:
                raise WrongBaseError(
                    f"This {type(model).__name__} has no module {path!r}. The patch was made for "
                    f"{self.manifest.base.id!r} ({self.manifest.base.model_type})."
                ) from None
            levels[path] = fingerprint.check(
                expected, module, path=path, model=f"this model (the patch is for {self.manifest.base.id!r})"
            )
        return levels

    def _compare(self, stored: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Hash the stored tensors of every delta and compare with the manifest; PatchFormatError names the first that differs."""
        for path, delta in self.deltas.items():
            stated = self.manifest.modules[path].model_dump(mode="json", exclude_none=True)
            found = _entry(path, delta, stored[path])
            if found != stated:
                odd = [name for name in found["tensors"] if found["tensors"][name] != stated["tensors"].get(name)]
                what = f"tensor {path}/{odd[0]}" if odd else f"the delta of {path}"
                raise PatchFormatError(
                    f"{what} is not what the manifest of patch {self.id[:12]} describes: damaged or changed. "
                    "Load the patch again from where it came."
                )


def _entry(path: str, delta: Delta, stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """The manifest's entry of one delta and its stored tensors, as JSON values."""
    shape = list(delta.shape)  # refuses unknown dtypes before they are hashed
    tensors = {
        name: {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "sha256": tensor_digest(f"{path}/{name}", tensor),
        }
        for name, tensor in stored.items()
    }
    entry = {"kind": delta.kind, "shape": shape, **delta.meta(), "tensors": tensors}
    layer = layer_of(path)
    return entry if layer is None else {**entry, "layer": layer}


def _own(tensors: Mapping[str, Any], path: str, names: Iterable[str]) -> dict[str, Any]:
    return {name: tensors[f"{path}/{name}"] for name in names}


def _named(deltas: Mapping[str, Delta]) -> dict[str, Any]:
    return {f"{path}/{name}": tensor for path, delta in deltas.items() for name, tensor in delta.to_tensors().items()}


# --- folders ------------------------------------------------------------------------------------------------------


def _read_unsigned(path: Path, limits: Limits) -> dict[str, bytes]:
    files = {
        CONFIG: read_file(os.path.join(path, CONFIG), limits.max_config_bytes),
        TENSORS: read_file(os.path.join(path, TENSORS), limits.max_tensor_bytes),
    }
    evals, readme = os.path.join(path, EVALS), os.path.join(path, CARD)
    if os.path.lexists(evals):
        files[EVALS] = read_file(evals, limits.max_evals_bytes)
    if os.path.islink(readme):
        raise PatchFormatError(f"{readme!r} is a symbolic link. Copy the file itself into the folder.")
    return files


def check_saveable(folder: str | os.PathLike[str]) -> None:
    """What `Patch.save` would refuse, before there is a patch: PatchFormatError for a folder of something else."""
    check_replaceable(Path(folder), "a patch folder", FILES, CONFIG, PatchFormatError)

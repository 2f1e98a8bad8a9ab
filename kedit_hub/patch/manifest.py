"""config.json of a patch. Law: a closed schema with one written form; an unknown field is an error, never ignored.

`Manifest.id` is the identity of the patch: sha256 over the canonical JSON of every field here, and the fields hold the
digest of every tensor. The file is that JSON, indented, with "id" beside the fields; `parse` accepts exactly the bytes
that `to_bytes` writes. A patch is written in the lowest format version that can express it (docs/FORMAT.md, "Versions"), so
that a new version changes no id of an old patch and older readers keep reading what they can.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from kedit_hub import strictjson
from kedit_hub.edits import Edit
from kedit_hub.errors import EditError, LimitError, PatchFormatError, UnknownFormatError
from kedit_hub.limits import DEFAULT, Limits
from kedit_hub.patch.deltas import KINDS, kind
from kedit_hub.patch.fingerprint import Hex64, ModuleFingerprint, Size
from kedit_hub.patch.safefile import MODULE_PATH
from kedit_hub.records.shapes import read_one

VERSIONS = (1, 2)


def _matching(pattern: str, means: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def validate(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"must be {means}")
        return text

    return AfterValidator(validate)


_REPO_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_]|[.-](?![.-])){0,95}"
ModulePath = Annotated[str, _matching(MODULE_PATH, "a module path such as model.layers.3.mlp.down_proj")]
RepoId = Annotated[str, _matching(rf"(?:{_REPO_NAME}/)?{_REPO_NAME}", "a Hub id, owner/name or name (not a path)")]
Commit = Annotated[str, _matching(r"[0-9a-f]{40}", "a commit of 40 hex digits (a branch or tag can move)")]
Name = Annotated[str, _matching(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", "a name of letters, digits, '.', '_', '+', '-'")]
SettingName = Annotated[str, _matching(r"[A-Za-z_][A-Za-z0-9_.]{0,63}", "a name of letters, digits, '_', '.'")]
HubModel = Annotated[
    str, _matching(rf"{_REPO_NAME}/{_REPO_NAME}@[0-9a-f]{{40}}", "owner/name@<commit of 40 hex digits>")
]
TensorName = Annotated[str, _matching(r"[a-z][a-z0-9_]{0,63}", "a name of small letters, digits, '_'")]
Scalar = bool | int | float | str | None


def _read_edit(value: Any) -> Edit:
    return value if isinstance(value, Edit) else read_one(value, "canonical")


EditRecord = Annotated[Edit, BeforeValidator(_read_edit), PlainSerializer(Edit.to_record)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class BaseRef(_Part):
    """The model a patch was made for. fingerprint: by module path, of every changed module at least."""

    id: RepoId
    revision: Commit | None = None
    model_type: Name
    fingerprint: dict[ModulePath, ModuleFingerprint]

    @model_validator(mode="wrap")
    @classmethod
    def _errors(cls, data: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(data)
        except ValidationError as cause:
            raise PatchFormatError(f"The base of a patch is not valid: {_faults(cause)}.") from None


class TensorEntry(_Part):
    """dtype as safetensors names it; sha256 over name|dtype|shape|bytes."""

    dtype: Literal["F32", "F16", "BF16", "I64"]
    shape: tuple[Size, ...]
    sha256: Hex64


class ModuleEntry(_Part):
    """One changed module. shape: (out, in). layer: first number in its path. From `site` on: what the delta kinds say of
    themselves beside their tensors, see kedit_hub.patch.deltas; which kind may say what is checked there.
    """

    kind: str
    shape: tuple[Size, Size]
    layer: int | None = None
    tensors: dict[TensorName, TensorEntry]
    site: Literal["subject", "answer"] | None = None
    gate_module: ModulePath | None = None
    precision: Literal["f16"] | None = None
    input_module: ModulePath | None = None
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] | None = None
    positions: Literal["last", "every"] | None = None
    routing: Literal["norm", "mask"] | None = None
    scope: Literal["lexical", "projection", "model", "cross"] | None = None
    answer: Literal["prompt", "model"] | None = None
    threshold: float | None = None
    scale: float | None = None
    scope_model: HubModel | None = None
    answer_model: HubModel | None = None
    told: int | None = None
    shown: int | None = None
    demonstrations: tuple[str, ...] | None = None

    def meta(self) -> dict[str, Any]:
        """The fields of the delta that are not tensors and are set."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        about = ("kind", "shape", "layer", "tensors")
        return {name: value for name, value in own.items() if name not in about and value is not None}


class Dataset(_Part):
    """Where edits come from: a data set of the Hub, or the name of a file. sha256: of the file's bytes."""

    id: RepoId
    revision: Commit | None = None
    sha256: Hex64 | None = None


class Provenance(_Part):
    """What made the patch, as its author says. No time of day: equal patches are equal bytes.

    commit: of the tool's own source, dirty: whether that source had changes beside it. environment: platform, device, dtype.
    parents: ids of the patches that this one was made from (rebased, merged, given keys), sorted.
    """

    tool: Name
    version: Name
    seed: int | None = None
    commit: Commit | None = None
    versions: dict[Name, Name] = {}
    dirty: bool | None = None
    environment: dict[Name, Name] = {}
    datasets: tuple[Dataset, ...] = ()
    parents: tuple[Hex64, ...] = ()


class Manifest(_Part):
    """settings: flat hyperparameters.  profile_id: of the base profile used.  requires: ids of other patches."""

    format_version: Literal[1, 2]
    method: Name
    settings: dict[SettingName, Scalar | list[Scalar]] = {}
    edits: tuple[EditRecord, ...]
    base: BaseRef
    profile_id: Hex64 | None = None
    modules: dict[ModulePath, ModuleEntry]
    requires: tuple[Hex64, ...] = ()
    provenance: Provenance

    @cached_property
    def id(self) -> str:
        return _digest(strictjson.canonical(self._values))

    @cached_property
    def _values(self) -> dict[str, Any]:
        """`to_dict`, made once and changed by nobody: reading a manifest needs it three times."""
        return self.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """JSON values of every field that is set."""
        return self.model_dump(mode="json", exclude_defaults=True)  # a later optional field changes no id of today

    def to_bytes(self) -> bytes:
        """config.json."""
        return strictjson.pretty({**self._values, "id": self.id})

    def share_base(self, other: "Manifest") -> None:
        """Keep the base of `other`, which is equal, in place of an own copy: it is the larger part of most manifests."""
        assert self.base == other.base
        self.__dict__["base"] = other.base
        self._values["base"] = other._values["base"]

    @classmethod
    def parse(cls, data: bytes, limits: Limits = DEFAULT) -> "Manifest":
        """Read config.json. Raises UnknownFormatError, LimitError or PatchFormatError naming field and reason."""
        value = strictjson.loads(data, what="config.json", max_bytes=limits.max_config_bytes, limits=limits)
        if not isinstance(value, dict):
            raise PatchFormatError(f"config.json holds a {type(value).__name__}, not an object. Is this a patch?")
        claimed = value.pop("id", None)
        manifest, text = cls._read(value, limits)
        if claimed == _digest(text) and data == strictjson.pretty({**manifest._values, "id": claimed}):
            manifest.__dict__["id"] = claimed  # as the file is what the manifest writes, `text` is that of both
            return manifest
        if claimed != manifest.id:
            raise PatchFormatError(
                f"config.json says its id is {str(claimed)[:64]!r}, its contents give {manifest.id!r}: it was damaged "
                "or changed by hand. Download it again, or make a new patch with Patch.create."
            )
        raise PatchFormatError(
            "config.json says the right things in another form than kedit_hub writes (spaces, escapes, order, line "
            "ends). Download it again without conversion, or load and save it where it was made."
        )

    @classmethod
    def from_dict(cls, value: dict[str, Any], limits: Limits = DEFAULT) -> "Manifest":
        """Validate JSON values (edits as records). The same errors as `parse`."""
        return cls._read(value, limits)[0]

    @classmethod
    def _read(cls, value: dict[str, Any], limits: Limits) -> tuple["Manifest", bytes]:
        """The manifest, and the canonical text it was read from."""
        version = value.get("format_version")
        if type(version) is not int or version not in VERSIONS:
            raise UnknownFormatError(
                f"config.json has format_version {str(version)[:40]!r}; this kedit_hub reads {' and '.join(map(str, VERSIONS))}. "
                "If it is newer, update kedit_hub; if it is missing, this is not a patch."
            )
        modules = value.get("modules")
        for path, entry in modules.items() if isinstance(modules, dict) else ():
            kind(entry.get("kind") if isinstance(entry, dict) else entry, f"module {path[:120]!r}")
        try:
            data = strictjson.canonical(value)
            if not data.isascii():
                data = strictjson.canonical(nfc(value))
            manifest = cls.model_validate_json(data, strict=True)
        except EditError as cause:
            raise PatchFormatError(f"config.json holds a malformed edit: {cause}") from None
        except (ValidationError, ValueError, TypeError) as cause:
            raise PatchFormatError(f"config.json is not a valid manifest: {_faults(cause)}.") from None
        manifest._check(limits)
        return manifest, data

    def _check(self, limits: Limits) -> None:
        """What the schema cannot say."""
        for name, count, bound in (
            ("edits", len(self.edits), limits.max_edits),
            ("modules", len(self.modules), limits.max_modules),
            ("fingerprinted modules", len(self.base.fingerprint), limits.max_modules),
            ("required patches", len(self.requires), limits.max_requires),
            ("settings", len(self.settings), limits.max_settings),
            ("entries of one setting", max(map(_length, self.settings.values()), default=0), limits.max_settings),
            ("data sets", len(self.provenance.datasets), limits.max_datasets),
            ("parents", len(self.provenance.parents), limits.max_requires),
            (
                "versions and circumstances",
                len(self.provenance.versions) + len(self.provenance.environment),
                limits.max_settings,
            ),
            ("characters in a path", max(map(len, self.base.fingerprint), default=0), limits.max_path_chars),
        ):
            if count > bound:
                raise LimitError(f"config.json has {count:,} {name}; at most {bound:,} are taken.")
        if not self.edits or not self.modules:
            raise PatchFormatError("This patch has no edits or changes no module. Give at least one of each.")
        lowest = lowest_version(self._values)
        if self.format_version != lowest:
            raise PatchFormatError(
                f"config.json has format_version {self.format_version}, its contents are those of format {lowest}: "
                "it was not written by kedit_hub, or changed. Make the patch again with Patch.create."
            )
        if self.profile_id is None and any("whitened_keys" in entry.tensors for entry in self.modules.values()):
            raise PatchFormatError(
                "Whitened keys mean nothing without profile_id, the profile they were whitened under."
            )
        for name, ids in (("requires", self.requires), ("parents", self.provenance.parents)):
            if tuple(sorted(set(ids))) != ids:
                raise PatchFormatError(f"{name} must be sorted and name every patch once.")
        for path, entry in self.modules.items():
            if path not in self.base.fingerprint:
                raise PatchFormatError(f"base.fingerprint lacks {path!r}. Add the fingerprint of every changed module.")
            if self.base.fingerprint[path].shape != entry.shape:
                raise PatchFormatError(
                    f"{path!r} is changed with shape {entry.shape}; its fingerprint has another, "
                    f"{self.base.fingerprint[path].shape}."
                )
            if entry.layer != layer_of(path):
                raise PatchFormatError(
                    f"{path!r} is said to be in layer {entry.layer}, its path says {layer_of(path)}."
                )


def _digest(text: bytes) -> str:
    return hashlib.sha256(b"kedit patch 1\n" + text).hexdigest()


def lowest_version(value: dict[str, Any]) -> int:
    """The lowest format version that can express a manifest, given as JSON values without fields at their defaults."""
    versions = [1]
    for entry in value["modules"].values():
        made = KINDS[entry["kind"]]
        versions += [made.since, *(spec.since for name, spec in made.specs.items() if name in entry["tensors"])]
        versions.append(2 if "precision" in entry else 1)
    versions.append(2 if {"dirty", "environment", "datasets", "parents"} & set(value["provenance"]) else 1)
    versions.append(2 if any(map(_has_aliases, value["edits"])) else 1)
    return max(versions)


def _has_aliases(record: dict[str, Any]) -> bool:
    """True where an edit record, or any probe of it, names other spellings of a target."""
    kinds = (*record.get("locality", {}).values(), *record.get("portability", {}).values())
    return "aliases" in record or any("aliases" in columns for columns in kinds)


def layer_of(path: str) -> int | None:
    """The first number in a module path: "model.layers.3.mlp.down_proj" -> 3."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def nfc(value: Any) -> Any:
    """A JSON value with every string in Unicode NFC, so that strings that look equal are equal."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, dict):
        return {nfc(key): nfc(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nfc(item) for item in value]
    return value


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | str) else 1


def _faults(cause: Exception) -> str:
    if not isinstance(cause, ValidationError):
        return str(cause)[:300]
    faults = cause.errors(include_url=False, include_context=False)
    shown = [
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, got {str(fault['input'])[:80]!r}" for fault in faults
    ]
    return "; ".join(shown[:5]) + (f"; and {len(shown) - 5} more" if len(shown) > 5 else "")

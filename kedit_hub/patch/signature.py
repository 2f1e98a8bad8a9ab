"""signature.json: who vouches for which bytes. Law: a signature holds for exactly the signed files, or the patch is refused.

    signed = sign(patch, load_key("ada.pem"), repo_id="ada/tower", version="1.2.0")
    signed.save(folder)
    match check_folder(folder):
        case Signed(signature): signature.keys          # public keys; every one of them has signed
        case verdict: explain(verdict)

The file holds a statement (the id of the patch, the sha256 of every other file and, where said, the repo and the version
it is meant for) and ed25519 signatures (RFC 8032) over "kedit signature 1\\n" + the canonical JSON of that statement. It
says who stands behind the bytes, not that what they say is true; whom to believe is kedit_hub.patch.trust's question.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, assert_never

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from kedit_hub import strictjson
from kedit_hub.errors import LimitError, PatchFormatError, SignatureError
from kedit_hub.limits import DEFAULT, Limits
from kedit_hub.patch.fingerprint import Hex64
from kedit_hub.patch.keys import public_key, verifies
from kedit_hub.patch.manifest import RepoId
from kedit_hub.patch.safefile import raw, read_file, refuse_impostor

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from torch import Tensor

    from kedit_hub.patch.patch import Patch

CARD, CONFIG, TENSORS, EVALS, SIGNATURE = FILES = (
    "README.md",
    "config.json",
    "patch.safetensors",
    "evals.json",
    "signature.json",
)
_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
VERSION = rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"  # semver.org, no build metadata


def _owned(text: str) -> str:
    if "/" not in text:
        raise ValueError("must be user/repo")
    return text


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Statement(_Part):
    """What is signed. files: sha256 by name, of all files of the folder but signature.json; repo_id, version: optional."""

    patch_id: Hex64
    files: dict[Literal["README.md", "config.json", "patch.safetensors", "evals.json"], Hex64]
    repo_id: Annotated[RepoId, AfterValidator(_owned)] | None = None
    version: Annotated[str, Field(pattern=rf"^{VERSION}$", max_length=200)] | None = None

    def signed_bytes(self) -> bytes:
        """What a key signs."""
        return b"kedit signature 1\n" + strictjson.canonical(self.model_dump(exclude_none=True))


class _Entry(_Part):
    key: Hex64
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class _Document(_Part):
    kedit_signature: Literal[1]
    statement: Statement
    signatures: tuple[_Entry, ...]


@dataclass(frozen=True)
class Signature:
    """Verified signatures over one statement: (public key, signature) in hex, sorted. One that exists has been verified.

    card: the signed README.md; header: the signed patch.safetensors up to its first tensor. They are written back as they
    were signed, since another version of kedit_hub or of safetensors may write them in another form.
    Raises SignatureError when one of the signatures does not verify.
    """

    statement: Statement
    signatures: tuple[tuple[str, str], ...]
    card: bytes = field(repr=False)
    header: bytes = field(repr=False)

    def __post_init__(self) -> None:
        invalid = _first_invalid(self.statement, self.signatures)
        if invalid is not None:
            raise SignatureError(explain(invalid))

    @property
    def keys(self) -> tuple[str, ...]:
        """Public keys of all who signed, 64 hex digits each, sorted."""
        return tuple(key for key, _ in self.signatures)

    def to_bytes(self) -> bytes:
        """signature.json."""
        return strictjson.pretty(
            {
                "kedit_signature": 1,
                "statement": self.statement.model_dump(exclude_none=True),
                "signatures": [{"key": key, "signature": signature} for key, signature in self.signatures],
            }
        )

    def tensor_file(self, tensors: Mapping[str, "Tensor"]) -> bytes:
        """patch.safetensors with the signed header: its tensors in the order they were signed in."""
        entries = strictjson.loads(self.header[8:], what=f"header of {TENSORS}", max_bytes=len(self.header))
        order = sorted(tensors, key=lambda name: entries[name]["data_offsets"][0])
        return b"".join([self.header, *(raw(tensors[name]) for name in order)])


# --- verdicts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unsigned:
    """There is no signature.json."""


@dataclass(frozen=True)
class Signed:
    """Every signature verifies, over exactly the files there are."""

    signature: Signature


@dataclass(frozen=True)
class Malformed:
    """signature.json cannot be read."""

    reason: str


@dataclass(frozen=True)
class Invalid:
    """The signature by this public key does not verify."""

    key: str


@dataclass(frozen=True)
class Changed:
    """A signed file has other bytes."""

    file: str


@dataclass(frozen=True)
class Missing:
    """A signed file is not there."""

    file: str


@dataclass(frozen=True)
class Extra:
    """Something is there that was not signed."""

    file: str


@dataclass(frozen=True)
class Linked:
    """A symbolic link stands in place of a file."""

    file: str


@dataclass(frozen=True)
class OtherPatch:
    """The statement is about another patch than config.json describes. id: that other patch."""

    id: str


Refused = Malformed | Invalid | Changed | Missing | Extra | Linked | OtherPatch
Verdict = Unsigned | Signed | Refused


def explain(verdict: Verdict) -> str:
    """A verdict in words, with the remedy. Names of files are quoted, so that none drives a terminal."""
    match verdict:
        case Unsigned():
            return f"There is no {SIGNATURE}: nobody has signed these files."
        case Signed(signature):
            said = signature.statement
            meant = f" for {said.repo_id}" if said.repo_id else ""
            version = f" as version {said.version}" if said.version else ""
            return f"Signed{meant}{version} by {', '.join(signature.keys)}."
        case Malformed(reason):
            return f"{reason} Download it again, or delete {SIGNATURE} and sign the patch anew."
        case Invalid(key):
            return (
                f"The signature by {key} does not verify: {SIGNATURE} was damaged or changed. Download it again, or "
                "delete it and sign the patch anew."
            )
        case Changed(file):
            return (
                f"{_quoted(file)} is not what was signed: changed, damaged, or a Git LFS pointer (then run `git lfs "
                f"pull`). Download it again; if you changed it yourself, delete {SIGNATURE} and sign the patch anew."
            )
        case Missing(file):
            return (
                f"{_quoted(file)} was signed and is missing. Download it again; if you removed it yourself, delete "
                f"{SIGNATURE} and sign the patch anew."
            )
        case Extra(file):
            return (
                f"{_quoted(file)} lies beside the signed files and was not signed. Move it out of the folder; in place "
                "of a clone, which holds files of git, fetch the patch with `kedit pull`."
            )
        case Linked(file):
            return f"{_quoted(file)} is a symbolic link. Copy the file itself into the folder."
        case OtherPatch(other):
            return f"{SIGNATURE} is of patch {other}, which these files are not. Download the patch again."
        case _:
            assert_never(verdict)


def accept(verdict: Verdict) -> Signature | None:
    """The signature, None where there is none. Raises SignatureError for every other verdict."""
    match verdict:
        case Signed(signature):
            return signature
        case Unsigned():
            return None
        case Malformed() | Invalid() | Changed() | Missing() | Extra() | Linked() | OtherPatch():
            raise SignatureError(explain(verdict))
        case _:
            assert_never(verdict)


# --- checking -----------------------------------------------------------------------------------------------------


def check_folder(folder: str | os.PathLike[str], limits: Limits = DEFAULT) -> Verdict:
    """Check the signature of a folder and that nothing lies in it but the signed files.

    Whether the files are a patch is Patch.load's question. Raises PatchFormatError for what cannot be read.
    """
    found = read_folder(folder, limits)
    return check_files(found, limits) if isinstance(found, dict) else found


def read_folder(
    folder: str | os.PathLike[str], limits: Limits = DEFAULT
) -> dict[str, bytes] | Unsigned | Extra | Linked:
    """The files of a signed folder by name, each read once; nothing else in it is opened."""
    path = Path(folder)
    if not os.path.lexists(path / SIGNATURE):
        return Unsigned()
    try:
        entries = {entry.name: entry for entry in sorted(os.scandir(path), key=lambda entry: entry.name)}
    except OSError as cause:
        raise PatchFormatError(f"{str(path)!r} cannot be listed: {cause.strerror}.") from None
    for name, entry in entries.items():  # as they are spelled on disk: Config.json is not config.json
        if name not in FILES:
            return Extra(name)
        if entry.is_symlink():
            return Linked(name)
    bounds = {
        CARD: limits.max_card_bytes,
        CONFIG: limits.max_config_bytes,
        TENSORS: limits.max_tensor_bytes,
        EVALS: limits.max_evals_bytes,
        SIGNATURE: limits.max_signature_bytes,
    }
    return {name: read_file(path / name, bounds[name]) for name in entries}


def check_files(files: Mapping[str, bytes], limits: Limits = DEFAULT) -> Verdict:
    """`check_folder` for bytes that are already in memory, by file name. Raises PatchFormatError, see there."""
    if SIGNATURE not in files:
        return Unsigned()
    try:
        document = _parse(files[SIGNATURE], limits)
    except PatchFormatError as error:
        return Malformed(str(error))
    statement = document.statement
    signatures = tuple((entry.key, entry.signature) for entry in document.signatures)
    invalid = _first_invalid(statement, signatures)
    if invalid is not None:
        return invalid
    stated: dict[str, str] = {name: digest for name, digest in statement.files.items()}
    present = set(files) - {SIGNATURE}
    for name in sorted(stated.keys() - present):
        return Missing(name)
    for name in sorted(present - stated.keys()):
        return Extra(name)
    for name in sorted(present):
        if sha256(files[name]).hexdigest() != stated[name]:
            return Changed(name)
    config = strictjson.loads(files[CONFIG], what=CONFIG, max_bytes=limits.max_config_bytes, limits=limits)
    if not isinstance(config, dict) or config.get("id") != statement.patch_id:
        return OtherPatch(statement.patch_id)
    return Signed(Signature(statement, signatures, files[CARD], _header(files[TENSORS])))


def _parse(data: bytes, limits: Limits) -> _Document:
    """Raises PatchFormatError unless `data` is one well-formed document in its one written form."""
    refuse_impostor(data, SIGNATURE)
    value = strictjson.loads(data, what=SIGNATURE, max_bytes=limits.max_signature_bytes, limits=limits)
    version = value.get("kedit_signature") if isinstance(value, dict) else None
    if type(version) is not int or version != 1:
        raise PatchFormatError(
            f"{SIGNATURE} has kedit_signature {str(version)[:40]!r}; this kedit_hub reads 1. If it is newer, update."
        )
    try:
        document = _Document.model_validate_json(data, strict=True)
    except ValidationError as cause:
        raise PatchFormatError(f"{SIGNATURE} is not valid: {_fault(cause)}.") from None
    if data != strictjson.pretty(document.model_dump(mode="json", exclude_none=True)):
        raise PatchFormatError(f"{SIGNATURE} is in another form than kedit_hub writes (spaces, escapes, order).")
    keys = [entry.key for entry in document.signatures]
    if not keys or sorted(set(keys)) != keys:
        raise PatchFormatError(f"{SIGNATURE} must hold at least one signature, sorted by key, and no key twice.")
    if len(keys) > limits.max_signers:
        raise LimitError(f"{SIGNATURE} holds {len(keys)} signatures; at most {limits.max_signers} are taken.")
    if not {CARD, CONFIG, TENSORS} <= document.statement.files.keys():
        raise PatchFormatError(f"{SIGNATURE} must state digests of {CARD}, {CONFIG} and {TENSORS}.")
    return document


def _first_invalid(statement: Statement, signatures: tuple[tuple[str, str], ...]) -> Invalid | None:
    signed = statement.signed_bytes()
    return next((Invalid(key) for key, signature in signatures if not verifies(key, signature, signed)), None)


# --- signing ------------------------------------------------------------------------------------------------------


def sign(
    patch: "Patch", key: "Ed25519PrivateKey", *, repo_id: str | None = None, version: str | None = None
) -> "Patch":
    """The same patch, signed. repo_id: the only repo it may be pulled from; version: the only version tag it may have there.

    None: as already stated by the signature of `patch`, else not stated. A signature over the same statement is added to,
    one over another statement is replaced. Raises SignatureError.
    """
    old = patch.signature
    if old is not None:
        repo_id, version = repo_id or old.statement.repo_id, version or old.statement.version
    keep = old is not None and old.statement.repo_id == repo_id  # the signed card, whatever this version would render
    files = (patch if keep else replace(patch, signature=None)).files(repo_id)
    files.pop(SIGNATURE, None)
    stated: dict[str, Any] = {
        "patch_id": patch.id,
        "files": {name: sha256(data).hexdigest() for name, data in files.items()},
        "repo_id": repo_id,
        "version": None if version is None else version.removeprefix("v"),
    }
    try:
        statement = Statement.model_validate(stated)
    except ValidationError as cause:
        raise SignatureError(
            f"This cannot be signed for repo {repo_id!r} as version {version!r}: {_fault(cause)}. "
            "Write user/repo, and a version like 1.2.0."
        ) from None
    signatures = dict(old.signatures) if old is not None and old.statement == statement else {}
    signatures[public_key(key)] = key.sign(statement.signed_bytes()).hex()
    if len(signatures) > DEFAULT.max_signers:
        raise SignatureError(f"A patch takes at most {DEFAULT.max_signers} signatures, and this one has them.")
    made = Signature(statement, tuple(sorted(signatures.items())), files[CARD], _header(files[TENSORS]))
    return replace(patch, signature=made)


def _header(tensor_file: bytes) -> bytes:
    """The file up to its first tensor: length and JSON header."""
    return tensor_file[: 8 + int.from_bytes(tensor_file[:8], "little")]


def _fault(cause: ValidationError) -> str:
    """The first thing that is wrong, quoted and bounded: what is wrong may be a stranger's text."""
    first = cause.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))[:120]!r}: {first['msg']}"


def _quoted(name: str) -> str:
    return repr(name[:120])

"""A second signature, in the standard of OpenSSF model-signing. Law: a bundle holds for exactly the files of the folder.

    sign_bundle("tower", key="bundle.pem")                     # -> tower.sig, beside the folder
    match check_bundle("tower", public_key="bundle.pub"):
        case Bundled(signer): ...
        case verdict: explain_bundle(verdict)

For those whose tools read that standard; kedit itself needs only signature.json. The library leaves out .git, .gitattributes
and the like unless told otherwise, when it signs and when it verifies, so files could be added there unseen: here nothing is
left out, and a bundle that others made so is still held against every file that lies in the folder.

A key is an elliptic-curve key (P-256, P-384 or P-521; the standard has no ed25519):
openssl ecparam -name prime256v1 -genkey -noout | (umask 077; openssl pkcs8 -topk8 -nocrypt -out bundle.pem)
openssl pkey -in bundle.pem -pubout -out bundle.pub
"""

import base64
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, assert_never

from pydantic import BaseModel, ConfigDict, ValidationError

from kedit_hub import strictjson
from kedit_hub.errors import KeditError, PatchFormatError, SignatureError
from kedit_hub.limits import MAX_BUNDLE_BYTES
from kedit_hub.patch.keys import read_key_file
from kedit_hub.patch.safefile import read_file
from kedit_hub.patch.signature import Changed, Extra, Invalid, Linked, Malformed, Missing, Unsigned

_CURVES = ("secp256r1", "secp384r1", "secp521r1")


@dataclass(frozen=True)
class Bundled:
    """The bundle verifies. signer: the identity that Sigstore vouches for, or sha256 of the public key's PEM."""

    signer: str


BundleVerdict = Unsigned | Bundled | Malformed | Invalid | Changed | Missing | Extra | Linked


def sign_bundle(
    folder: str | os.PathLike[str],
    bundle: str | os.PathLike[str] | None = None,
    *,
    key: str | os.PathLike[str] | None = None,
    sigstore: bool = False,
) -> Path:
    """Sign every file of a folder; returns where the bundle lies (None: FOLDER.sig beside the folder).

    key: file of a private key; or sigstore=True: the identity of whoever logs in, which needs the network.
    Raises KeditError: no such key, no network, the bundle would lie in the folder, the extra [sign] is not installed;
    SignatureError: a link in the folder.
    """
    if (key is not None) == sigstore:
        raise KeditError("A bundle is signed with a key or by an identity: give key=, or sigstore=True.")
    path, target = _folder(folder), _beside(folder, bundle)
    if target.resolve().is_relative_to(path):
        raise KeditError(
            f"{str(target)!r} lies in the folder it signs, which would then hold a file that was not signed. "
            f"Write the bundle elsewhere, like {str(path.with_name(path.name + '.sig'))!r}."
        )
    if target.exists() and isinstance(_read(target), Malformed):
        raise KeditError(f"{str(target)!r} is there already and is no bundle. Give a new name.")
    found = _list(path)
    if isinstance(found, Linked):
        raise SignatureError(explain_bundle(found))
    signing = _library().signing.Config().set_hashing_config(_hashing())
    if key is not None:
        _check_key(key)
        signing.use_elliptic_key_signer(private_key=os.fspath(key))
    else:
        _online(lambda: signing.use_sigstore_signer(use_ambient_credentials=True))
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
            made = Path(temporary) / "bundle"
            if key is not None:
                signing.sign(path, made)
            else:
                _online(lambda: signing.sign(path, made))
            os.replace(made, target)
    except OSError as cause:
        raise KeditError(f"The bundle cannot be written to {str(target)!r}: {cause.strerror}.") from None
    except ValueError as cause:  # a pipe or a device in the folder
        raise KeditError(f"{str(path)!r} cannot be signed: {cause}") from None
    return target


def check_bundle(
    folder: str | os.PathLike[str],
    bundle: str | os.PathLike[str] | None = None,
    *,
    public_key: str | os.PathLike[str] | None = None,
    identity: str | None = None,
    issuer: str | None = None,
) -> BundleVerdict:
    """Check that a bundle (None: FOLDER.sig) covers exactly the files of a folder and was signed by whom you name.

    public_key: file of a public key; or identity and issuer, such as "ada@example.org" and "https://accounts.google.com",
    which needs the network. Raises KeditError where this cannot be checked: nobody named, no network, no extra [sign].
    """
    if (public_key is None) == (identity is None) or (identity is None) != (issuer is None):
        raise KeditError("Say who should have signed: public_key=, or identity= and issuer=.")
    path, at = _folder(folder), _beside(folder, bundle)
    if not os.path.lexists(at):
        return Unsigned()
    claimed = _read(at)
    if isinstance(claimed, Malformed):
        return claimed
    found = _list(path)
    if isinstance(found, Linked):
        return found
    for name in sorted(claimed.digests.keys() - found):
        return Missing(name)
    for name in sorted(found - claimed.digests.keys()):
        return Extra(name)
    verifying = _library().verifying.Config().set_hashing_config(_hashing())
    if public_key is not None:
        _public_verifier(verifying, public_key)
    else:
        _online(lambda: verifying.use_sigstore_verifier(identity=identity, oidc_issuer=issuer))
    with tempfile.TemporaryDirectory() as temporary:
        same = Path(temporary) / "bundle"
        same.write_bytes(claimed.data)  # the bytes that were read above, whatever lies at `at` by now
        try:
            verifying.verify(path, same)
        except Exception:  # ValueError, InvalidSignature, what its parsers raise: whatever it is, it is not a yes
            for name in sorted(found):
                if _digest(path / name) != claimed.digests[name]:
                    return Changed(name)
            return Invalid(identity or claimed.signer or "this key")
    return Bundled(identity or claimed.signer)


def explain_bundle(verdict: BundleVerdict) -> str:
    """A verdict in words, with the remedy."""
    match verdict:
        case Unsigned():
            return "There is no bundle: nobody has signed this folder in the standard of model-signing."
        case Bundled(signer):
            return f"The bundle covers every file of the folder, signed by {signer}."
        case Malformed(reason):
            return f"The bundle cannot be read: {reason} Get it again, or have the folder signed anew."
        case Invalid(key):
            return (
                f"The bundle was not signed by whom you named, or was changed (it speaks of {key!r}). Check the public key "
                "or the identity; get the bundle again."
            )
        case Changed(file):
            return f"{file[:120]!r} is not what the bundle says: changed or damaged. Get the folder again."
        case Missing(file):
            return f"{file[:120]!r} is named by the bundle and is missing. Get the folder again."
        case Extra(file):
            return f"{file[:120]!r} lies in the folder and is not covered by the bundle. Move it out of the folder."
        case Linked(file):
            return f"{file[:120]!r} is a symbolic link, which no bundle covers. Copy the file itself into the folder."
        case _:
            assert_never(verdict)


# --- what a bundle claims -----------------------------------------------------------------------------------------


class _Open(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Closed(BaseModel):
    """No other fields: a reader that knew a second spelling of one would see another statement than this one."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class _Key(_Open):
    hint: str


class _Material(_Open):
    publicKey: _Key | None = None


class _Envelope(_Closed):
    payload: str
    payloadType: str
    signatures: list[Any]


class _Bundle(_Closed):
    mediaType: str
    verificationMaterial: _Material
    dsseEnvelope: _Envelope


class _Resource(_Open):
    name: str
    algorithm: Literal["sha256"]
    digest: str


class _Serialization(_Open):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: Literal[False]


class _Predicate(_Open):
    serialization: _Serialization
    resources: list[_Resource]


class _Statement(_Open):
    predicateType: Literal["https://model_signing/signature/v1.0"]
    predicate: _Predicate


@dataclass(frozen=True)
class _Claim:
    """data: the bundle as it was read. digests: sha256 of files by path. signer: as the bundle names its key, or ""."""

    data: bytes
    digests: dict[str, str]
    signer: str


def _read(bundle: Path) -> _Claim | Malformed:
    """What a bundle says, before anything in it is believed."""
    what = str(bundle)
    try:
        data = read_file(bundle, MAX_BUNDLE_BYTES)
        strictjson.loads(data, what=what, max_bytes=MAX_BUNDLE_BYTES)  # refuses what has two readings
        parsed = _Bundle.model_validate_json(data)
        payload = base64.b64decode(parsed.dsseEnvelope.payload, validate=True)
        strictjson.loads(payload, what=f"statement of {what}", max_bytes=MAX_BUNDLE_BYTES)
        resources = _Statement.model_validate_json(payload).predicate.resources
    except PatchFormatError as error:
        return Malformed(str(error))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        return Malformed(f"{'.'.join(map(str, first['loc']))[:120]!r}: {first['msg']}.")
    except ValueError:
        return Malformed("its payload is not base64.")
    digests = {resource.name: resource.digest for resource in resources}
    if len(digests) != len(resources):
        return Malformed("it names a file twice.")
    material = parsed.verificationMaterial
    return _Claim(data, digests, material.publicKey.hint if material.publicKey else "")


# --- folders and keys ---------------------------------------------------------------------------------------------


def _folder(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise KeditError(f"{str(path)!r} is not a folder. Give the folder of a patch.")
    return path.resolve()


def _beside(folder: str | os.PathLike[str], bundle: str | os.PathLike[str] | None) -> Path:
    if bundle is not None:
        return Path(bundle)
    path = Path(folder).resolve()
    return path.with_name(f"{path.name}.sig")


def _list(folder: Path) -> set[str] | Linked:
    """Paths of all files under a folder, with slashes; or the first link in it. What cannot be listed raises KeditError."""

    def refuse(cause: OSError) -> None:
        raise KeditError(f"{cause.filename!r} cannot be listed: {cause.strerror}.") from None

    found = set()
    for root, folders, files in os.walk(folder, onerror=refuse):
        for name in sorted([*folders, *files]):
            path = Path(root) / name
            if path.is_symlink():
                return Linked(path.relative_to(folder).as_posix())
        found |= {(Path(root) / name).relative_to(folder).as_posix() for name in files}
    return found


def _digest(file: Path) -> str | None:
    """None: it cannot be read, or is a pipe or the like."""
    digest = sha256()
    if not file.is_file():
        return None
    try:
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def _check_key(key: str | os.PathLike[str]) -> None:
    """Refuse what the library would fail on without saying why, and keys that others may read."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    shown, make = repr(os.fspath(key)), "Make one as described in kedit_hub.patch.bundle, with openssl."
    try:
        loaded = load_pem_private_key(read_key_file(key), password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        raise KeditError(f"{shown} holds no unencrypted private key in PEM form. {make}") from None
    if not isinstance(loaded, EllipticCurvePrivateKey) or loaded.curve.name not in _CURVES:
        raise KeditError(
            f"{shown} holds a key that bundles cannot be signed with; they take P-256, P-384 and P-521. {make}"
        )


def _public_verifier(verifying: Any, public_key: str | os.PathLike[str]) -> None:
    try:
        verifying.use_elliptic_key_verifier(public_key=os.fspath(public_key))
    except OSError as cause:
        raise KeditError(f"The public key {os.fspath(public_key)!r} cannot be read: {cause.strerror}.") from None
    except Exception:  # ValueError, AttributeError, UnsupportedAlgorithm: it holds something else
        raise KeditError(
            f"{os.fspath(public_key)!r} holds no public key on P-256, P-384 or P-521 in PEM form. "
            "Get one with: openssl pkey -in KEY -pubout"
        ) from None


# --- the library --------------------------------------------------------------------------------------------------


def _library() -> Any:
    try:
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as cause:
        raise KeditError(
            f'Bundles need two more packages ({cause.name} is missing): pip install "kedit-hub[sign]"'
        ) from None
    return model_signing


def _hashing() -> Any:
    """sha256 of every file, nothing left out, no link followed."""
    hashing = _library().hashing.Config()
    return hashing.use_file_serialization(hashing_algorithm="sha256").set_ignored_paths(
        paths=[], ignore_git_paths=False
    )


def _online(step: Callable[[], object]) -> None:
    """A step that talks to Sigstore."""
    try:
        step()
    except Exception as cause:  # of its HTTP client, its trust root, its login: a dozen classes of four packages
        raise KeditError(
            f"Sigstore did not answer as it should ({type(cause).__name__}). It needs the network and a login; without "
            "them sign with key= and check with public_key=."
        ) from None

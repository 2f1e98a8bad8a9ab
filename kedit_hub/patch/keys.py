"""ed25519 keys in files. Law: a private key lies in a file of its owner's alone, and no message, log or repr holds it.

    key = new_key("ada.pem")            # PKCS8 PEM, mode 0600, never over another file
    key = load_key("ada.pem")
    public_key(key)                     # 64 hex digits, for everybody

Keys are not encrypted: what protects them is the file system, as with host keys of ssh. `cryptography` is imported when
the first key is met, so that importing kedit_hub stays fast.
"""

import os
import shlex
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from kedit_hub.errors import KeditError
from kedit_hub.limits import MAX_KEY_BYTES

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MAKE = "Make a key with `kedit key new --out FILE`."

_P = 2**255 - 19
_Y8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7  # y of a point of order 8; the others have -y


def new_key(path: str | os.PathLike[str]) -> "Ed25519PrivateKey":
    """Make a key and write it to a new file that only its owner can read. Raises KeditError where something lies already."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key, file = Ed25519PrivateKey.generate(), Path(path)
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except FileExistsError:
        raise KeditError(f"{str(file)!r} is there already, and keys are never overwritten. Give a new name.") from None
    except OSError as cause:
        raise KeditError(f"The key cannot be written to {str(file)!r}: {cause.strerror}.") from None
    try:
        with open(handle, "wb") as out:
            if hasattr(os, "fchmod"):
                os.fchmod(handle, 0o600)  # whatever the umask took away
            out.write(data)
            out.flush()
            os.fsync(handle)
    except OSError as cause:
        os.unlink(file)
        raise KeditError(f"The key cannot be written to {str(file)!r}: {cause.strerror}.") from None
    return key


def load_key(path: str | os.PathLike[str]) -> "Ed25519PrivateKey":
    """An unencrypted ed25519 private key from a PEM file. Raises KeditError for anything else, see `read_key_file`."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data, shown = read_key_file(path), repr(os.fspath(path))
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise KeditError(
            f"{shown} holds an encrypted key, which kedit does not read. {_MAKE} Or decrypt it into a new file: "
            "openssl pkey -in FILE -out NEW."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise KeditError(f"{shown} holds no private key in PEM form. {_MAKE}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeditError(f"{shown} holds a key of another kind than ed25519. {_MAKE}")
    return key


def read_key_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a private key's file. Symlinks, devices, large files, and files that others may read are refused."""
    file = Path(path)
    shown = repr(str(file))
    extra = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe must not block us
    if file.is_symlink():
        raise KeditError(f"{shown} is a symbolic link. Name the file of the key itself.")
    try:
        with open(file, "rb", opener=lambda name, flags: os.open(name, flags | extra)) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeditError(f"{shown} is not a regular file. {_MAKE}")
            if os.name == "posix" and status.st_mode & 0o077:
                raise KeditError(
                    f"{shown} holds a private key, and others than its owner may open it (mode "
                    f"{stat.S_IMODE(status.st_mode):04o}). Run: chmod 600 {shlex.quote(str(file))}"
                )
            data = opened.read(MAX_KEY_BYTES + 1)
    except OSError as cause:
        raise KeditError(f"The key {shown} cannot be read: {cause.strerror}.") from None
    if len(data) > MAX_KEY_BYTES:
        raise KeditError(f"{shown} has more than {MAX_KEY_BYTES:,} bytes: no key. {_MAKE}")
    return data


def public_key(key: "Ed25519PrivateKey") -> str:
    """The public half, 64 hex digits: what others know the owner by."""
    return key.public_key().public_bytes_raw().hex()


def is_weak(key: str) -> bool:
    """True for the eight points of ed25519 whose order divides 8, in any encoding: for these anybody can write signatures that
    verify, over any text, and verifiers do not all refuse them (RFC 8032, 8; Chalkias et al., Taming the many EdDSAs, 2020).
    """
    y = (int.from_bytes(bytes.fromhex(key), "little") & (2**255 - 1)) % _P  # without the bit that is the sign of x
    return y in (0, 1, _P - 1, _Y8, _P - _Y8)


def verifies(key: str, signature: str, data: bytes) -> bool:
    """True when `signature` (128 hex digits) over `data` was made with the private half of `key` (64 hex digits)."""
    if is_weak(key):
        return False
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):  # ValueError: 32 bytes that are no public key
        return False
    return True

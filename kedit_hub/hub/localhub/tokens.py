"""Who may do what. Law: a token is shown once, to its owner; the hub keeps only its SHA-256.

root/tokens.json, readable by its owner alone: {"<sha256 of the token>": {"user": "ada", "role": "write"}}. A user's
namespace is the user's name. Tokens are 160 random bits, so a plain hash of them cannot be searched.
"""

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kedit_hub.errors import HubError
from kedit_hub.hub.localhub.names import check_name

Role = Literal["read", "write"]
_RESERVED = frozenset(["api", "models", "datasets", "spaces"])


@dataclass(frozen=True)
class Identity:
    """The user behind a token, and whether this token may write."""

    name: str
    role: Role


class Tokens:
    """The tokens of one hub: those of its file, read again whenever it changes, and those given by the caller."""

    def __init__(self, root: Path, given: Mapping[str, Identity]) -> None:
        self._file = root / "tokens.json"
        self._given = {_digest(token): identity for token, identity in given.items()}
        self._read: dict[str, Identity] = {}
        self._stamp: tuple[int, int, int] | None = None  # (inode, size, time) of the file that was read

    def identify(self, token: str) -> Identity | None:
        digest = _digest(token)
        if digest in self._given:
            return self._given[digest]
        try:
            stat = self._file.stat()
        except FileNotFoundError:
            return None
        stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if stamp != self._stamp:
            self._read, self._stamp = read_tokens(self._file), stamp
        return self._read.get(digest)


def add_user(root: Path, name: str, role: Role = "write") -> str:
    """Make a new token for a user of the hub in `root`, serving or not; the user is created with the first token.

    Returns the token: it is written nowhere, so keep it. Raises HubError when the name is not a valid namespace.
    """
    if name.lower() in _RESERVED:
        raise HubError(f"'{name}' is part of the hub's addresses. Choose another user name.")
    file = Path(root) / "tokens.json"
    known = read_tokens(file) if file.exists() else {}
    token = "hf_" + secrets.token_hex(20)
    known[_digest(token)] = Identity(check_name(name), role)
    records = {digest: {"user": who.name, "role": who.role} for digest, who in known.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix="tokens.")  # mkstemp opens with mode 0600
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        json.dump(records, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, file)
    return token


def read_tokens(file: Path) -> dict[str, Identity]:
    """{sha256 of a token: identity}; raises HubError when the file is damaged."""
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
        return {digest: Identity(record["user"], record["role"]) for digest, record in records.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise HubError(f"The token file {file} is damaged. Move it away and make new tokens.") from None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()

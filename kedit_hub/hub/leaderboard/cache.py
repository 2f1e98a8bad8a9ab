"""What was read of boards before, so that it is read again without a hub. Law: everything is filed under the digest of its bytes or under
a whole commit, so nothing here can be out of date; what is damaged counts as absent.

$KEDIT_HOME/leaderboards (or ~/.cache/kedit_hub/leaderboards), readable by its owner alone, one folder for each hub: `refs` (which commit
a branch was at), `listings` of commits, `files` by digest. A cache that cannot be written costs time, no more.
"""

import os
import re
import tempfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from huggingface_hub import constants
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kedit_hub import strictjson
from kedit_hub.errors import PatchFormatError
from kedit_hub.home import home
from kedit_hub.hub.leaderboard.contents import Listed
from kedit_hub.hub.localhub.gitids import has_digest
from kedit_hub.patch.manifest import Commit
from kedit_hub.patch.safefile import read_file

MAX_LISTING_BYTES = 1 << 26
_DIGEST = r"[0-9a-f]{40}|[0-9a-f]{64}"


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    path: str
    size: Annotated[int, Field(ge=0)]
    digest: Annotated[str, Field(pattern=rf"^(?:{_DIGEST})$")]
    commit: Commit
    place: int
    at: str
    authors: tuple[str, ...]


class _Listing(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    kedit_listing: Literal[1] = 1
    repo_id: str
    commit: Commit
    files: tuple[_File, ...]


class Cache:
    """Of the boards of one hub. endpoint: as everywhere, None for huggingface_hub's own."""

    def __init__(self, endpoint: str | None) -> None:
        hub = (endpoint or constants.ENDPOINT).rstrip("/")
        self.folder = home() / "leaderboards" / sha256(hub.encode()).hexdigest()[:16]
        with suppress(OSError):
            home().mkdir(parents=True, exist_ok=True)
            for folder in (self.folder.parent, self.folder):
                folder.mkdir(mode=0o700, exist_ok=True)

    def listing(self, repo_id: str, commit: str) -> tuple[Listed, ...] | None:
        """All files of a commit; None where they are not known."""
        data = self._read(self._listing_file(repo_id, commit), MAX_LISTING_BYTES)
        if data is None:
            return None
        try:
            value = strictjson.loads(data, what="a listing", max_bytes=MAX_LISTING_BYTES)
            found = _Listing.model_validate_json(strictjson.canonical(value))
        except (PatchFormatError, ValidationError):
            return None
        if (found.repo_id, found.commit) != (repo_id.lower(), commit):
            return None
        return tuple(Listed(**dict(file)) for file in found.files)

    def keep_listing(self, repo_id: str, commit: str, files: tuple[Listed, ...]) -> None:
        listed = tuple(_File(**vars(file)) for file in files)
        listing = _Listing(repo_id=repo_id.lower(), commit=commit, files=listed)
        self._write(self._listing_file(repo_id, commit), strictjson.canonical(listing.model_dump(mode="json")))

    def file(self, digest: str, max_bytes: int) -> bytes | None:
        """The bytes of a digest (40 hex digits: git blob id; 64: sha256); None where they are not here."""
        data = self._read(self.folder / "files" / digest, max_bytes) if re.fullmatch(_DIGEST, digest) else None
        return data if data is not None and has_digest(data, digest) else None

    def keep_file(self, digest: str, data: bytes) -> None:
        if has_digest(data, digest):
            self._write(self.folder / "files" / digest, data)

    def _listing_file(self, repo_id: str, commit: str) -> Path:
        return self.folder / "listings" / f"{sha256(f'{repo_id.lower()} {commit}'.encode()).hexdigest()}.json"

    def _read(self, file: Path, max_bytes: int) -> bytes | None:
        try:
            return read_file(file, max_bytes)
        except PatchFormatError:  # missing, no regular file, too large
            return None

    def _write(self, file: Path, data: bytes) -> None:
        """Whole or not at all."""
        with suppress(OSError):
            file.parent.mkdir(mode=0o700, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".new-")  # mode 0600
            try:
                with os.fdopen(handle, "wb") as out:
                    out.write(data)
                os.replace(temporary, file)
            except BaseException:
                os.unlink(temporary)
                raise

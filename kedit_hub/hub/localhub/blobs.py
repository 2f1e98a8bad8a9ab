"""File contents on disk, named by their SHA-256. Law: a name in the folder is always the hash of a complete file.

A content is first staged under a random name, flushed to the disk, and then renamed to its hash; a crash in between
leaves a staged file, which the next start removes. Renaming over an old file puts the same bytes there: it heals.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kedit_hub.hub.localhub.gitids import blob_id


@dataclass(frozen=True)
class Staged:
    """A content that is on the disk but in no repo yet. oid: git blob id."""

    file: Path
    sha256: str
    oid: str
    size: int


class BlobFolder:
    """root/blobs/<2 hex>/<62 hex> for contents, root/staging/ for those on their way in."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._staging = root / "staging"
        self._blobs.mkdir(exist_ok=True)
        shutil.rmtree(self._staging, ignore_errors=True)  # left over by a crash
        self._staging.mkdir()

    def path(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256[2:]

    def stage(self, data: bytes) -> Staged:
        """Write a content durably, not yet under its own name."""
        handle, name = tempfile.mkstemp(dir=self._staging)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return Staged(Path(name), hashlib.sha256(data).hexdigest(), blob_id(data), len(data))

    def adopt(self, staged: Staged) -> None:
        """Give a staged content its name, durably. Call before the database names it."""
        target = self.path(staged.sha256)
        if not target.parent.is_dir():
            target.parent.mkdir(exist_ok=True)
            _flush_folder(self._blobs)
        os.replace(staged.file, target)
        _flush_folder(target.parent)

    def discard(self, staged: Iterable[Staged]) -> None:
        """Remove what was staged and not adopted."""
        for one in staged:
            one.file.unlink(missing_ok=True)

    def sweep(self, keep: set[str]) -> None:
        """Remove every content whose hash is not in `keep`."""
        for folder in self._blobs.iterdir():
            for file in folder.iterdir():
                if folder.name + file.name not in keep:
                    file.unlink()


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder durable (a folder cannot be opened on Windows, where renames are journaled)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

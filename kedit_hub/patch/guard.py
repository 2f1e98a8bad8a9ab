"""Nobody else meanwhile: locks of the system, which end with the process that holds them. Where it has none, nothing is waited for.

with alone(handle): ...         # an open file, until it is closed
with guarded(file): ...         # a file that is replaced, or is not there yet: by a hidden one beside it, gone afterwards
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def alone(handle: int) -> Iterator[None]:
    """Closing the file gives the lock back."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as cause:
        if cause.errno not in _NO_LOCKS:
            raise
    yield


@contextmanager
def guarded(file: Path) -> Iterator[None]:
    """OSError where nothing can be written beside `file`."""
    guard = file.with_name(f".{file.name}.guard")
    while True:
        handle = os.open(guard, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            with alone(handle):
                if not _lies_at(handle, guard):  # whoever had the lock before has taken the file away
                    continue
                try:
                    yield
                finally:
                    if os.name == "posix":  # elsewhere an open file cannot be taken away
                        guard.unlink(missing_ok=True)
                return
        finally:
            os.close(handle)


def _lies_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False

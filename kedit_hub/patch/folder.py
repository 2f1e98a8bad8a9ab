"""Writing a folder of files whole or not at all: written under another name, made durable, then put in its place."""

import ctypes
import os
import secrets
import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from kedit_hub.errors import KeditError


def check_place(target: Path, error: type[KeditError] = KeditError) -> None:
    """`error` for the current folder and those it lies in: a process whose folder is replaced goes on in the old one."""
    try:
        here, there = Path.cwd(), Path(os.path.realpath(target))
    except OSError:  # the current folder is gone
        return
    if there in (here, *here.parents):
        raise error(
            f"{str(target)!r} is {'the folder you are in' if there == here else 'a folder around the one you are in'}, and "
            "is replaced whole: go one up and name it from there, or name a new folder."
        )


def check_replaceable(
    target: Path, called: str, files: Collection[str], mark: str | None = None, error: type[KeditError] = KeditError
) -> None:
    """`error` for what `write_folder` must not replace: anything but a folder of these files, or an empty or new one.

    called: what it would be, like "a patch folder". mark: the file without which it is none.
    """
    check_place(target, error)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise error(f"{str(target)!r} is a file or a link, not {called}. Name a folder.")
    held = {entry.name for entry in os.scandir(target)} if target.exists() else set()
    odd = sorted(held - set(files))
    if odd or (held and mark is not None and mark not in held):
        raise error(
            f"{str(target)!r} is not {called} (it holds {', '.join(odd[:3]) or f'no {mark}'}) and is left as it is. "
            "Name a new folder."
        )


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """The folder `target` with these files and nothing else; one that is there already is replaced. OSError leaves it as it was."""
    check_place(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    temporary.mkdir()
    try:
        for name, data in files.items():
            _write(temporary / name, data)
        _sync_folder(temporary)
        _swap_in(temporary, target)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_file(target: Path, data: bytes) -> None:
    """The whole file, durable, in place of one that is there already, or none of it. OSError leaves what was there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        _write(temporary, data)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make names durable; not every system can open a folder."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap_in(temporary: Path, target: Path) -> None:
    """Put `temporary` in place of `target`; what was there ends up at `temporary`, which the caller removes.

    One step where the system can exchange two names (Linux). Elsewhere renames: between them the old folder lies beside
    `target` under a temporary name; a mixture of old and new never exists.
    """
    if not target.exists():
        os.rename(temporary, target)
    elif not _exchange(temporary, target):
        aside = temporary.with_name(temporary.name + ".old")
        os.rename(target, aside)
        try:
            os.rename(temporary, target)
        except OSError:
            os.rename(aside, target)
            raise
        os.rename(aside, temporary)


def _exchange(a: Path, b: Path) -> bool:
    """renameat2(a, b, RENAME_EXCHANGE) of Linux; False where there is no such call or the file system refuses it."""
    if not sys.platform.startswith("linux"):
        return False
    at_fdcwd, rename_exchange = -100, 2
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    return call is not None and call(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0

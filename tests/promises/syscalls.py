"""Interrupt a process at its k-th file-system call. Law: every call that `Patch.save` makes is counted, in the order made.

    with interrupted(k, act) as calls: patch.save(folder)      # `act(name)` runs in place of call k; calls.made says how many

A call is counted before it happens, so that k = 1, 2, ... tries every state between two calls. Writing counts as two calls
with half of the bytes each, so that a torn write is among the states.
"""

import builtins
import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from kedit_hub.patch import folder

NAMES = ("open", "close", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir", "scandir", "lstat", "stat", "link")


@dataclass
class Calls:
    """made: names of the calls, in order. at: the number of the one that is interrupted, from 1; 0: none."""

    at: int
    act: Callable[[str], None]
    made: list[str] = field(default_factory=list)

    def count(self, name: str) -> None:
        self.made.append(name)
        if len(self.made) == self.at:
            self.act(name)


class _File:
    """A file whose write, flush and close are counted."""

    def __init__(self, file: Any, calls: Calls):
        self._file, self._calls = file, calls

    def write(self, data: bytes) -> int:
        half = len(data) // 2
        self._calls.count("write")
        self._file.write(data[:half])
        self._file.flush()
        self._calls.count("write the rest")
        self._file.write(data[half:])
        return len(data)

    def flush(self) -> None:
        self._calls.count("flush")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._calls.count("closed")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def interrupted(at: int, act: Callable[[str], None]) -> Iterator[Calls]:
    calls = Calls(at, act)

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.count(name)
            return function(*args, **kwargs)

        return call

    def opening(*args: Any, **kwargs: Any) -> Any:
        calls.count("open")
        opened = open_(*args, **kwargs)
        writes = any(letter in str(args[1] if len(args) > 1 else "r") for letter in "wax+")
        return _File(opened, calls) if writes else opened

    open_ = builtins.open
    patches = [mock.patch.object(os, name, counted(name, getattr(os, name))) for name in NAMES]
    patches.append(mock.patch.object(builtins, "open", opening))
    patches.append(mock.patch.object(folder, "_exchange", counted("exchange", folder._exchange)))
    for one in patches:
        one.start()
    try:
        yield calls
    finally:
        for one in patches:
            one.stop()


def kill(_name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_with(number: int) -> Callable[[str], None]:
    def fail(name: str) -> None:
        raise OSError(number, os.strerror(number))

    return fail


ERRORS = {
    "no space left": errno.ENOSPC,
    "input/output error": errno.EIO,
    "read-only": errno.EROFS,
    "quota": errno.EDQUOT,
}

"""Loading any bytes executes nothing, imports nothing, writes nothing and opens no socket."""

import os
import sys

import pytest

from kedit_hub.errors import KeditError
from kedit_hub.patch import Patch
from tests.attacks.corpus import ATTACKS, good

FORBIDDEN = (
    *("import", "exec", "compile", "subprocess.", "socket.", "pickle.", "shutil.", "ctypes."),
    *("os.system", "os.exec", "os.fork", "os.spawn", "os.chmod", "os.link", "os.symlink"),
    *("os.rename", "os.remove", "os.mkdir", "os.rmdir"),
)


def forbidden(event: str, arguments: tuple) -> bool:
    if event == "open":
        _path, mode, flags = arguments
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or any(letter in (mode or "r") for letter in "wax+")
    return event.startswith(FORBIDDEN)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the watched load needs a process of its own")
def test_corpus_under_watch(tmp_path):
    folders = []
    for number, files in enumerate([good(), *(attack(good()) for attack, _, _ in ATTACKS.values())]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        folders.append(folder)
    report_read, report_write = os.pipe()
    child = os.fork()
    if child == 0:
        _watched(folders, report_write)
    os.close(report_write)
    with open(report_read) as report:
        seen = report.read()
    assert (os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), seen) == (0, "")


def _watched(folders: list, report: int) -> None:
    """Runs in the child; exits 0 when every load passed unseen, 1 after writing what was seen."""
    status = 1
    try:
        _load_all(folders)  # what Python imports lazily on the first error is imported now

        def hook(event: str, arguments: tuple) -> None:
            if forbidden(event, arguments):
                os.write(report, f"{event} {arguments}"[:300].encode())
                os._exit(1)

        sys.addaudithook(hook)
        _load_all(folders)
        status = 0
    finally:
        os._exit(status)


def _load_all(folders: list) -> None:
    for folder in folders:
        try:
            Patch.load(folder)
        except KeditError:
            continue


def test_the_watch_sees(tmp_path):
    """The hook above would see the things it looks for."""
    assert forbidden("open", (str(tmp_path), "w", os.O_WRONLY | os.O_CREAT))
    assert forbidden("import", ("os",)) and forbidden("socket.connect", ()) and forbidden("pickle.find_class", ())
    assert not forbidden("open", (str(tmp_path), "r", os.O_RDONLY))

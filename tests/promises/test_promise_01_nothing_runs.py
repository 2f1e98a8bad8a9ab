"""Promise 1: loading any bytes executes nothing, imports nothing, writes nothing and opens no socket.

All hostile patches of tests/attacks, the good ones, and broken signatures are loaded from folders in a process of its own,
which an audit hook ends at the first event that has no place in reading a file.
"""

import os
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kedit_hub.errors import KeditError
from kedit_hub.patch import Patch
from kedit_hub.patch.signature import sign
from tests.attacks.corpus import corpus
from tests.attacks.tools import every, good
from tests.patch.build import make_patch

FORBIDDEN = (
    *("import", "exec", "compile", "subprocess.", "socket.", "pickle.", "shutil.", "ctypes.", "marshal.", "code."),
    *("os.system", "os.exec", "os.fork", "os.spawn", "os.posix_spawn", "os.putenv", "os.kill"),
    *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate"),
    *("os.utime", "os.setxattr", "tempfile.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.", "sqlite3."),
)


def forbidden(event: str, arguments: tuple) -> bool:
    if event == "open":
        _path, mode, flags = arguments
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or any(letter in (mode or "r") for letter in "wax+")
    return event.startswith(FORBIDDEN)


def signed() -> list[dict[str, bytes]]:
    """A signed patch, and the same with every file of it damaged or gone."""
    files = sign(make_patch(), Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)).files()
    broken = [{**files, name: data[:-1]} for name, data in files.items()]
    fewer = [{other: data for other, data in files.items() if other != name} for name in files]
    return [files, *broken, *fewer, {**files, "more.bin": b"\x80\x04."}]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the watched load needs a process of its own")
def test_everything_is_loaded_under_watch(tmp_path):
    folders = []
    for number, files in enumerate([good(), every(), *signed(), *(case.files() for case in corpus().values())]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        folders.append(folder)
    assert len(folders) > 800
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
        _load_all(folders[::5])  # what Python imports lazily on the first error is imported now

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
            Patch.load(folder).files()
        except KeditError as error:
            str(error)


def test_the_watch_sees(tmp_path):
    """The hook above would see the things it looks for."""
    assert forbidden("open", (str(tmp_path), "w", os.O_WRONLY | os.O_CREAT))
    assert forbidden("open", (str(tmp_path), None, os.O_RDWR))
    assert forbidden("import", ("os",)) and forbidden("socket.connect", ()) and forbidden("pickle.find_class", ())
    assert not forbidden("open", (str(tmp_path), "r", os.O_RDONLY))

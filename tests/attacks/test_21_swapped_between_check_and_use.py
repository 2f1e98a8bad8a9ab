"""21 · Verify-then-use: the file is another one when it is used than when it was checked.

Bytes are read once, hashed, and those same bytes parsed; nothing is mapped, nothing is opened a second time.
"""

import os
import sys
import threading
from collections import Counter

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kedit_hub.errors import KeditError, LimitError, PatchFormatError
from kedit_hub.hub import repo as repo_module
from kedit_hub.hub.repo import pull, push
from kedit_hub.patch import Dense, Patch
from kedit_hub.patch import patch as patch_module
from kedit_hub.patch import signature as signature_module
from kedit_hub.patch.safefile import read_file
from kedit_hub.patch.signature import sign
from tests.patch.build import EVALS, PATHS, D, M, make_patch, numbers

ADA = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
GOOD = make_patch().replace_evals(EVALS)
EVIL = make_patch(
    method="rome", deltas={**make_patch().deltas, PATHS[2]: Dense(numbers(M, D).bfloat16() * 2)}
).replace_evals(EVALS)
OPENED: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    """Count what the operating system is asked to open: `os.open` has no mode, and `open` comes down to it here."""
    if event == "open" and OPENED is not None and arguments[1] is None:
        OPENED.append(os.path.basename(os.fspath(arguments[0])))


sys.addaudithook(_watch)


@pytest.fixture
def opened():
    """Names of the files that are opened, from now on."""
    global OPENED
    OPENED = []
    yield OPENED
    OPENED = None


def test_every_file_is_opened_once(tmp_path, opened):
    folder = GOOD.save(tmp_path / "p")
    opened.clear()
    Patch.load(folder)
    assert Counter(opened) == {"config.json": 1, "patch.safetensors": 1, "evals.json": 1}


def test_every_signed_file_is_opened_once(tmp_path, opened):
    folder = sign(GOOD, ADA).save(tmp_path / "p")
    opened.clear()
    Patch.load(folder)
    names = ("README.md", "config.json", "patch.safetensors", "evals.json", "signature.json")
    assert {name: count for name, count in Counter(opened).items() if name in names} == dict.fromkeys(names, 1)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("name", ["config.json", "patch.safetensors", "evals.json"])
def test_swapped_after_it_was_read(tmp_path, monkeypatch, name, signed):
    """As soon as a file has been read, another one lies there: what was read is what is loaded, or nothing is."""
    good, evil = (sign(patch, ADA) if signed else patch for patch in (GOOD, EVIL))
    folder = good.save(tmp_path / "p")
    other = evil.save(tmp_path / "q")

    def swapping(path, max_bytes):
        data = read_file(path, max_bytes)
        if os.path.basename(os.fspath(path)) == name:
            os.replace(other / name, path)
        return data

    for module in (patch_module, signature_module):
        monkeypatch.setattr(module, "read_file", swapping)
    assert Patch.load(folder) == GOOD
    monkeypatch.undo()
    with pytest.raises(PatchFormatError):
        Patch.load(folder)


@pytest.mark.parametrize("name", ["config.json", "patch.safetensors", "evals.json"])
def test_swapped_before_it_is_read(tmp_path, monkeypatch, name):
    """Half of one patch and half of another are neither."""
    folder, other = GOOD.save(tmp_path / "p"), EVIL.save(tmp_path / "q")

    def swapping(path, max_bytes):
        if os.path.basename(os.fspath(path)) == name:
            os.replace(other / name, path)
        return read_file(path, max_bytes)

    monkeypatch.setattr(patch_module, "read_file", swapping)
    with pytest.raises(PatchFormatError):
        Patch.load(folder)


def test_grows_while_it_is_read(tmp_path, monkeypatch):
    """All of it is read, up to the bound, whatever size it had when it was opened."""
    path = tmp_path / "grown"
    path.write_bytes(b"0123456789")
    before = os.stat_result((*os.stat(path)[:6], 4, *os.stat(path)[7:]))
    monkeypatch.setattr(os, "fstat", lambda handle: before)
    assert read_file(path, 10) == b"0123456789"
    with pytest.raises(LimitError, match="grew beyond 9 bytes"):
        read_file(path, 9)


def test_cut_after_loading(tmp_path):
    """Tensors do not point into the file: cutting it, or writing zeros over it, changes nothing that was loaded."""
    folder = GOOD.save(tmp_path / "p")
    patch = Patch.load(folder)
    os.truncate(folder / "patch.safetensors", 0)
    (folder / "patch.safetensors").write_bytes(bytes(4096))
    patch.verify()
    assert torch.equal(patch.deltas[PATHS[2]].delta, GOOD.deltas[PATHS[2]].delta)


def test_the_bytes_that_were_given_can_be_changed_afterwards():
    """Not even the caller's own buffers are shared."""
    files = {name: bytearray(data) for name, data in GOOD.files().items()}
    patch = Patch.from_files({name: bytes(data) for name, data in files.items()})
    for data in files.values():
        data[:] = bytes(len(data))
    patch.verify()


def test_a_cache_that_changes_while_it_is_read(hub, ada, tmp_path, monkeypatch):
    push(GOOD, "ada/tower", endpoint=hub.endpoint, token=ada.token)
    there = {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path / "cache"}
    pull("ada/tower", **there)

    def swapping(path, max_bytes):
        data = read_file(path, max_bytes)
        path.write_bytes(bytes(len(data)))
        return data

    monkeypatch.setattr(repo_module, "read_file", swapping)
    assert pull("ada/tower", **there) == GOOD
    monkeypatch.undo()
    with pytest.raises(KeditError, match="is damaged"):
        pull("ada/tower", **there)


def test_two_writers_and_a_reader(tmp_path):
    """While two patches are saved over each other again and again, every load gives one of them or a refusal."""
    target = GOOD.save(tmp_path / "p")
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for patch in (EVIL, GOOD):
                patch.save(target)

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    try:
        for _ in range(150):
            try:
                seen.add(Patch.load(target))
            except PatchFormatError:
                continue  # two files of two patches: neither
    finally:
        stop.set()
        writer.join()
    assert seen <= {GOOD, EVIL} and seen
    assert Patch.load(target) in (GOOD, EVIL)

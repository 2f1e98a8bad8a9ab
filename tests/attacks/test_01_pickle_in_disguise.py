"""1 · Pickle in disguise: a file that runs code when it is unpickled, under a name that promises no code.

CVE-2025-1716, CVE-2025-1889, CVE-2025-1944, CVE-2025-1945 and CVE-2025-10155 to 10157 got past scanners that look for bad
pickles. Nothing is scanned here: what is neither safetensors nor JSON is refused, and files beside them are never opened.
"""

import os
import pickle

import pytest

from kedit_hub.errors import LimitError, PatchFormatError
from kedit_hub.hub.repo import pull, push
from kedit_hub.patch import Patch
from tests.attacks.tools import CONFIG, EVALS_FILE, TENSORS, Case, pickled, put, refuse, zipped
from tests.patch.build import EVALS, make_patch

TAR = b"archive/data.pkl".ljust(257, b"\0") + b"ustar\x0000"

CASES = {
    "pickle": Case(put(TENSORS, pickled(4)), PatchFormatError, "pickle or zip"),
    "pickle of protocol 2": Case(put(TENSORS, pickled(2)), PatchFormatError, "pickle or zip"),
    "pickle of protocol 3": Case(put(TENSORS, pickled(3)), PatchFormatError, "pickle or zip"),
    "pickle of protocol 5": Case(put(TENSORS, pickled(5)), PatchFormatError, "pickle or zip"),
    "pickle in text": Case(put(TENSORS, pickled(0)), LimitError, "claims a header of"),
    "pickle as config": Case(put(CONFIG, pickled(4)), PatchFormatError, "pickle or zip"),
    "pickle in text as config": Case(put(CONFIG, pickled(0)), PatchFormatError, "not JSON"),
    "pickle as scores": Case(put(EVALS_FILE, pickled(4)), PatchFormatError, "pickle or zip"),
    "torch zip": Case(put(TENSORS, zipped()), PatchFormatError, "pickle or zip"),
    "torch zip as config": Case(put(CONFIG, zipped()), PatchFormatError, "pickle or zip"),
    "numpy zip": Case(put(TENSORS, zipped("delta.npy")), PatchFormatError, "pickle or zip"),
    "legacy torch tar": Case(put(TENSORS, TAR), LimitError, "claims a header of"),
    "zip behind the tensors": Case(put(TENSORS, lambda data: data + zipped()), PatchFormatError, "behind its last"),
    "zip before the tensors": Case(put(TENSORS, lambda data: zipped() + data), PatchFormatError, "pickle or zip"),
    "zip behind the config": Case(put(CONFIG, lambda data: data + zipped()), PatchFormatError, "not UTF-8"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    refuse(CASES[name])


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "patch.pt", "adapter_model.bin", "model.ckpt", "data.pkl", "x.safetensors", "__init__.py"],
)
def test_files_beside_are_never_opened(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_patch().replace_evals(EVALS).save(tmp_path / "p")
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    (folder / name).chmod(0)
    assert Patch.load(folder) == make_patch()
    assert os.listdir(tmp_path) == ["p"]


def test_files_beside_are_never_fetched(hub, ada, tmp_path):
    push(make_patch(), "ada/tower", endpoint=hub.endpoint, token=ada.token)
    ada.upload_file(path_or_fileobj=pickle.dumps(Bomb()), path_in_repo="pytorch_model.bin", repo_id="ada/tower")
    assert pull("ada/tower", endpoint=hub.endpoint, token=False, cache_dir=tmp_path / "cache") == make_patch()
    fetched = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink()}
    assert fetched == {"config.json", "patch.safetensors"}

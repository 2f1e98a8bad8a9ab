"""What lies in the folder beside, or in place of, the files of a patch."""

import os
import pickle

import pytest

from kedit_hub.errors import LimitError, PatchFormatError
from kedit_hub.limits import Limits
from kedit_hub.patch import Patch
from tests.patch.build import EVALS, make_patch

FILES = ("README.md", "config.json", "patch.safetensors", "evals.json")


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


@pytest.fixture
def folder(tmp_path):
    return make_patch().replace_evals(EVALS).save(tmp_path / "p")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "patch.pt", "adapter_model.bin", "x.safetensors", "__init__.py"])
def test_files_beside_are_never_opened(folder, name, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    (folder / name).chmod(0)
    assert Patch.load(folder) == make_patch()
    assert os.listdir(folder.parent) == ["p"]


@pytest.mark.parametrize("name", FILES)
def test_links_are_refused(folder, name):
    (folder / name).rename(folder.parent / "outside")
    (folder / name).symlink_to(folder.parent / "outside")
    with pytest.raises(PatchFormatError, match="is a symbolic link"):
        Patch.load(folder)


@pytest.mark.parametrize("name", FILES[1:])
def test_dangling_link(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to("nowhere")
    with pytest.raises(PatchFormatError, match="is a symbolic link"):
        Patch.load(folder)


@pytest.mark.parametrize("name", FILES[1:])
def test_pipe_does_not_hang(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(PatchFormatError, match="is not a regular file"):
        Patch.load(folder)


@pytest.mark.parametrize("name", FILES[1:])
def test_folder_in_place_of_a_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(PatchFormatError, match=r"cannot be read|is not a regular file"):
        Patch.load(folder)


@pytest.mark.parametrize("name", FILES[1:3])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(PatchFormatError, match="is missing"):
        Patch.load(folder)


def test_scores_and_card_may_be_missing(folder):
    (folder / "evals.json").unlink()
    (folder / "README.md").unlink()
    assert Patch.load(folder).evals is None


def test_card_is_not_read(folder):
    (folder / "README.md").write_bytes(b"\xff\x00" * 10)
    assert Patch.load(folder) == make_patch()


@pytest.mark.parametrize(
    "limits", [Limits(max_config_bytes=10), Limits(max_tensor_bytes=10), Limits(max_evals_bytes=10)]
)
def test_sizes_are_bounded_before_reading(folder, limits):
    with pytest.raises(LimitError, match="at most 10 are read"):
        Patch.load(folder, limits=limits)


def test_not_a_folder(tmp_path):
    with pytest.raises(PatchFormatError, match="is not a folder"):
        Patch.load(tmp_path / "none")

"""Saving is whole or not at all, gives equal bytes, and touches nothing that is not a patch."""

import os
import stat
import sys
from pathlib import Path

import pytest
import torch

from kedit_hub.errors import KeditError, PatchFormatError
from kedit_hub.patch import Patch
from kedit_hub.patch.folder import write_folder
from tests.patch.build import EVALS, make_patch


def contents(folder):
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def test_round_trip(tmp_path):
    patch = make_patch().replace_evals(EVALS)
    again = Patch.load(patch.save(tmp_path / "p"))
    assert again == patch and again.manifest == patch.manifest and again.evals == EVALS and again.edits == patch.edits
    for path, delta in patch.deltas.items():
        for name, tensor in delta.to_tensors().items():
            assert torch.equal(again.deltas[path].to_tensors()[name], tensor)
    assert Patch.from_files(contents(tmp_path / "p")) == patch


def test_equal_bytes(tmp_path):
    patch = make_patch().replace_evals(EVALS)
    first = contents(patch.save(tmp_path / "a"))
    assert sorted(first) == ["README.md", "config.json", "evals.json", "patch.safetensors"]
    assert contents(Patch.load(tmp_path / "a").save(tmp_path / "b")) == first
    assert contents(make_patch().replace_evals(EVALS).save(tmp_path / "a")) == first
    assert contents(make_patch().replace_evals(dict(reversed(EVALS.items()))).save(tmp_path / "c")) == first


def test_replacing_drops_old_scores_and_leaves_no_trace(tmp_path):
    make_patch().replace_evals(EVALS).save(tmp_path / "p")
    make_patch(method="rome").save(tmp_path / "p")
    assert Patch.load(tmp_path / "p").evals is None
    assert os.listdir(tmp_path) == ["p"]


def test_replacing_without_a_swap_of_names(tmp_path, monkeypatch):
    monkeypatch.setattr("kedit_hub.patch.folder._exchange", lambda a, b: False)
    make_patch().save(tmp_path / "p")
    make_patch(method="rome").save(tmp_path / "p")
    assert Patch.load(tmp_path / "p").manifest.method == "rome"
    assert os.listdir(tmp_path) == ["p"]


@pytest.mark.parametrize("name", ["notes.txt", "adapter_config.json"])
def test_other_folders_are_left_alone(tmp_path, name):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("mine")
    (folder / "config.json").write_text("{}")
    with pytest.raises(PatchFormatError, match="not a patch folder"):
        make_patch().save(folder)
    assert sorted(os.listdir(folder)) == sorted([name, "config.json"])


def test_a_lone_readme_is_no_patch(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(PatchFormatError, match=r"no config\.json"):
        make_patch().save(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [(".", "the folder you are in"), ("", "the folder you are in"), ("../..", "around the one you are in")],
)
def test_the_folder_one_is_in_is_not_replaced(tmp_path, monkeypatch, name, said):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(PatchFormatError, match=f"{said}.*go one up and name it from there"):
        make_patch().save(name)
    with pytest.raises(KeditError, match=said):
        write_folder(Path(name), {"file": b""})
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]
    make_patch().save("c")
    monkeypatch.chdir("c")
    with pytest.raises(PatchFormatError, match="the folder you are in"):
        make_patch().save(folder / "c")


def test_files_and_links_are_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("file", "link"):
        with pytest.raises(PatchFormatError, match="is a file or a link"):
            make_patch().save(tmp_path / name)


def test_an_empty_folder_and_missing_parents_are_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    assert Patch.load(make_patch().save(tmp_path / "empty")) == make_patch()
    assert Patch.load(make_patch().save(tmp_path / "new" / "deep" / "p")) == make_patch()


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        folder = make_patch().save(tmp_path / "p")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert stat.S_IMODE((folder / "config.json").stat().st_mode) == 0o640


def test_unwritable_target(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PatchFormatError, match="Cannot write the patch"):
        make_patch().save(tmp_path / "file" / "p")


def test_changed_tensors_are_not_saved(tmp_path):
    patch = make_patch()
    next(iter(patch.deltas.values())).a[0, 0] += 1
    with pytest.raises(PatchFormatError, match=r"tensor .*/a is not what the manifest"):
        patch.save(tmp_path / "p")
    assert not (tmp_path / "p").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere two names cannot be exchanged in one step")
def test_killed_at_any_moment_leaves_old_or_new(tmp_path):
    """A child is killed at its k-th file-system call, for every k; what is at the target must always be whole."""
    old, new = make_patch(), make_patch(method="rome").replace_evals(EVALS)
    target, seen = tmp_path / "p", set()
    for k in range(1, 200):
        old.save(target)
        child = os.fork()
        if child == 0:
            _die_at_call(k)
            try:
                new.save(target)
            finally:
                os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = Patch.load(target)
        assert found in (old, new) and (found.evals == EVALS) == (found == new)
        seen.add(found.id)
        if status == 0:
            break
    assert status == 0 and k > 8 and seen == {old.id, new.id}


CALLS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "shutil.rmtree", "ctypes.dlsym")


def _die_at_call(k: int) -> None:
    left = k

    def hook(event: str, _arguments: object) -> None:
        nonlocal left
        if event in CALLS:
            left -= 1
            if left == 0:
                os._exit(9)

    sys.addaudithook(hook)

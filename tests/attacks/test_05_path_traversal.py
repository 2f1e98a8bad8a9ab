"""5 · Path traversal: `..`, absolute, backslash, drive, UNC, NUL, symbolic link, `name:stream`, reserved names of Windows.

No name out of a patch is ever a path; all names are held to the rules of POSIX and Windows both, on every system. What can
be a path (the folder itself, files the hub is sent) is checked where it is used.
"""

import os

import pytest

from kedit_hub.errors import HubError, PatchFormatError
from kedit_hub.hub.localhub.names import check_path
from kedit_hub.hub.localhub.refusal import Refusal
from kedit_hub.hub.ref import HubRef, parse_ref, repo_name
from kedit_hub.patch import Patch
from kedit_hub.patch.patch import CONFIG, EVALS, TENSORS
from space.state import hub_ref
from tests.attacks.tools import AT, Case, every, refuse, renamed, resealed, setting
from tests.patch import build
from tests.patch.build import PATHS, make_patch

PATHS_OF_ALL_KINDS = {
    "parent": "../../etc/passwd",
    "parent in the middle": "a/../../b",
    "absolute": "/etc/passwd",
    "home": "~/x",
    "current": "./x",
    "backslash": "..\\..\\x",
    "drive": "C:\\x",
    "drive with a slash": "C:/x",
    "drive alone": "c:x",
    "UNC": "\\\\host\\share",
    "UNC with slashes": "//host/share",
    "device path": "\\\\?\\C:\\x",
    "stream": "x:hidden",
    "NUL": "x\0y",
    "line end": "x\ny",
    "url": "http://example.org/x",
    "file url": "file:///etc/passwd",
    "percent": "%2e%2e%2fx",
    "full-width dots": "\uff0e\uff0e/x",
    "division slash": "..\u2215x",
    "three parts": "a/b/c",
    "empty part": "a//b",
    "trailing slash": "a/",
    "empty": "",
}


def rename_module(name: str):
    """Resealed: everything the config says of one module is said of a module of this name."""

    def change(config):
        config["modules"][name] = config["modules"].pop(PATHS[2])
        config["base"]["fingerprint"][name] = config["base"]["fingerprint"].pop(PATHS[2])

    return resealed(change)


def where(*keys: object, words: str, start=every, suffix: str = "") -> dict[str, Case]:
    """Every path in the place `keys` of the config."""
    place = ".".join(str(key) for key in keys if not str(key).startswith("model.layers"))
    return {
        f"{name} as {place}": Case(setting(*keys, value=path + suffix), PatchFormatError, words, start)
        for name, path in PATHS_OF_ALL_KINDS.items()
    }


CASES = {
    **{
        f"{name} as tensor": Case(renamed(f"{path}/delta"), PatchFormatError, "plain ASCII")
        for name, path in PATHS_OF_ALL_KINDS.items()
    },
    **{
        f"{name} as module": Case(rename_module(path), PatchFormatError, "must be a module path")
        for name, path in PATHS_OF_ALL_KINDS.items()
    },
    **where("base", "id", words="(not a path)"),
    **where("modules", PATHS[1], "gate_module", words="must be a module path", start=lambda: build_files()),
    **where("modules", AT["neurons"], "input_module", words="must be a module path"),
    **where("modules", AT["facts-model"], "scope_model", words="must be owner/name@<commit"),
    **where("modules", AT["facts-model"], "answer_model", words="must be owner/name@<commit", suffix="@" + "0" * 40),
    **where("profile_id", words="profile_id"),
    **where("requires", 0, words="requires.0", start=lambda: build_files(requires=["b" * 64])),
    **where("provenance", "datasets", 0, "id", words="(not a path)"),
    **where("method", words="method", start=lambda: build_files()),
    "dunder in a tensor name": Case(renamed("model.__class__/delta"), PatchFormatError, "plain ASCII"),
    "line end behind a tensor name": Case(renamed(f"{PATHS[2]}/delta\n"), PatchFormatError, "plain ASCII"),
    "another tensor name": Case(renamed("model.x/delta"), PatchFormatError, "disagree on which tensors"),
    "two slashes in a tensor name": Case(renamed("model/x/delta"), PatchFormatError, "plain ASCII"),
    "line end behind the base": Case(setting("base", "id", value="org/base\n"), PatchFormatError, "not a path"),
    "model without a commit": Case(
        setting("modules", AT["facts-model"], "scope_model", value="org/encoder"), PatchFormatError, "commit", every
    ),
    "model at a branch": Case(
        setting("modules", AT["facts-model"], "scope_model", value="org/encoder@main"),
        PatchFormatError,
        "commit",
        every,
    ),
}


def build_files(**changes):
    return make_patch(**changes).replace_evals(build.EVALS).files()


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    refuse(CASES[name])


# --- names of patches, repos and uploaded files -------------------------------------------------------------------


SLASHES_FIRST = ("absolute", "UNC with slashes")  # an address hf:///a/b is read as hf://a/b
LETTERS = ("full-width dots", "division slash")  # of no meaning to any file system


@pytest.mark.parametrize("name", PATHS_OF_ALL_KINDS)
def test_no_path_is_a_repo(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = PATHS_OF_ALL_KINDS[name]
    for read in (hub_ref, parse_ref, repo_name, lambda text: parse_ref("hf://" + text)):
        try:
            found = str(read(path))
        except HubError:
            continue
        assert name in SLASHES_FIRST and found == path.lstrip("/") and read not in (hub_ref, parse_ref)


@pytest.mark.parametrize("name", PATHS_OF_ALL_KINDS)
def test_no_path_is_a_revision(name):
    try:
        ref = parse_ref("hf://user/repo@" + PATHS_OF_ALL_KINDS[name])
    except HubError:
        return
    assert ref in (HubRef("user/repo", "a/b/c"), HubRef("user/repo", "a"))  # a branch may have slashes inside


@pytest.mark.parametrize("name", [name for name in PATHS_OF_ALL_KINDS if name not in LETTERS])
def test_no_path_is_uploaded(name):
    if name in ("home", "percent", "three parts"):  # names like others where no shell and no server reads them
        check_path(PATHS_OF_ALL_KINDS[name], 512)
        return
    with pytest.raises(Refusal):
        check_path(PATHS_OF_ALL_KINDS[name], 512)


@pytest.mark.parametrize(
    "name", ["con", "NUL", "aux.json", "com1", "LPT9.txt", "a/prn", ".git", ".GIT/x", "git~1", "x. "]
)
def test_names_that_mean_something_to_an_operating_system_are_not_uploaded(name):
    with pytest.raises(Refusal):
        check_path(name, 512)


@pytest.mark.parametrize("name", ["CON/nul", "aux/com1", "a./b."])
def test_reserved_names_as_ids_are_names_of_no_file(name, tmp_path):
    """They are legal on the Hub; what is written has the four names of a patch whatever the ids in it are."""
    reference = build.base().model_copy(update={"id": name})
    folder = Patch.load(make_patch(base=reference).save(tmp_path / "p")).save(tmp_path / "q")
    assert sorted(os.listdir(tmp_path)) == ["p", "q"]
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "patch.safetensors"]


# --- the folder ---------------------------------------------------------------------------------------------------

FILES = ("README.md", CONFIG, TENSORS, EVALS)


@pytest.fixture
def folder(tmp_path):
    return make_patch().replace_evals(build.EVALS).save(tmp_path / "p")


@pytest.mark.parametrize("name", FILES)
def test_links_are_refused(folder, name):
    (folder / name).rename(folder.parent / "outside")
    (folder / name).symlink_to(folder.parent / "outside")
    with pytest.raises(PatchFormatError, match="is a symbolic link"):
        Patch.load(folder)


@pytest.mark.parametrize("name", FILES[1:])
def test_dangling_links_are_refused(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to("nowhere")
    with pytest.raises(PatchFormatError, match="is a symbolic link"):
        Patch.load(folder)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_pipe_does_not_hang(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(PatchFormatError, match="is not a regular file"):
        Patch.load(folder)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_folder_in_place_of_a_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(PatchFormatError, match=r"cannot be read|is not a regular file"):
        Patch.load(folder)


def test_saving_does_not_follow_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(PatchFormatError, match="is a file or a link"):
        make_patch().save(tmp_path / "link")
    assert os.listdir(tmp_path / "real") == []


def test_not_a_folder(tmp_path):
    with pytest.raises(PatchFormatError, match="is not a folder"):
        Patch.load(tmp_path / "none")

"""What a patch says of its making: the source it was made by, and nothing that tells one user or one day from another."""

import getpass
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit_hub import Patch, provenance
from kedit_hub.editors.editor import make_patch
from kedit_hub.errors import EditError, KeditError
from kedit_hub.patch.manifest import Provenance
from tests.cli.conftest import kedit
from tests.profiles import EDITS, profile_of
from tests.tiny import tiny_model

ROOT = Path(__file__).parent.parent
AUTHOR = ("-c", "user.name=A", "-c", "user.email=a@example.org")


def git(folder: Path, *arguments: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", *AUTHOR, *arguments]
    return subprocess.run(command, cwd=folder, env=clean, check=True, capture_output=True, text=True).stdout.strip()


def work_tree(folder: Path, name: str = "kedit-hub") -> tuple[Path, str]:
    """(package, commit) of a small work tree of a project called `name`."""
    package = folder / "kedit_hub"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    (folder / "README.md").write_text("about")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return package, git(folder, "rev-parse", "HEAD")


# --- the tool's own source ----------------------------------------------------------------------------------------


def test_a_clean_work_tree_is_its_commit(tmp_path: Path) -> None:
    package, commit = work_tree(tmp_path)
    assert provenance.of_work_tree(package) == (commit, False)


@pytest.mark.parametrize(
    ("changed", "dirty"),
    [("kedit_hub/__init__.py", True), ("kedit_hub/new.py", True), ("pyproject.toml", True), ("README.md", False)],
)
def test_only_changes_of_what_runs_make_it_dirty(tmp_path: Path, changed: str, dirty: bool) -> None:
    package, commit = work_tree(tmp_path)
    with (tmp_path / changed).open("a") as file:
        file.write("# changed\n")
    assert provenance.of_work_tree(package) == (commit, dirty)


def test_what_a_user_hides_from_status_still_makes_it_dirty(tmp_path: Path) -> None:
    package, commit = work_tree(tmp_path)
    git(tmp_path, "config", "status.showUntrackedFiles", "no")
    (package / "new.py").write_text("")
    assert provenance.of_work_tree(package) == (commit, True)


def test_the_repository_around_an_installed_package_is_not_its_source(tmp_path: Path) -> None:
    work_tree(tmp_path)
    installed = tmp_path / ".venv" / "site-packages" / "kedit_hub"
    installed.mkdir(parents=True)
    assert provenance.of_work_tree(installed) is None


def test_a_copy_in_another_project_is_not_this_source(tmp_path: Path) -> None:
    package, _ = work_tree(tmp_path, name="thesis")
    assert provenance.of_work_tree(package) is None


def test_no_commit_no_repository_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, _ = work_tree(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", ignore=shutil.ignore_patterns(".git"))
    assert provenance.of_work_tree(tmp_path / "b" / "kedit_hub") is None
    git(tmp_path / "b", "init", "-q")
    assert provenance.of_work_tree(tmp_path / "b" / "kedit_hub") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.of_work_tree(package) is None


def test_the_callers_own_git_session_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, commit = work_tree(tmp_path / "ours")
    work_tree(tmp_path / "theirs")
    git(tmp_path / "theirs", "commit", "-q", "--allow-empty", "-m", "second")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "theirs" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "theirs"))
    monkeypatch.chdir(tmp_path / "theirs")
    assert provenance.of_work_tree(package) == (commit, False)


def test_a_git_that_hangs_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, _ = work_tree(tmp_path)
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.2)
    assert provenance.of_work_tree(package) is None


COMMIT = "4" * 40
VCS = {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}}


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (json.dumps(VCS), (COMMIT, False)),
        (json.dumps({"url": "file:///x", "dir_info": {"editable": True}}), None),
        (json.dumps({**VCS, "vcs_info": {"vcs": "hg", "commit_id": "tip"}}), None),
        (json.dumps({**VCS, "vcs_info": "git"}), None),
        ("{", None),
        (None, None),
    ],
)
def test_an_installed_package_knows_the_commit_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str | None, found: Any
) -> None:
    about = tmp_path / "kedit_hub-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kedit-hub\nVersion: 0.1.0\n")
    if written is not None:
        (about / "direct_url.json").write_text(written)
    (tmp_path / "kedit_hub").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert provenance.of_installation(tmp_path / "kedit_hub") == found
    (tmp_path / "elsewhere" / "kedit_hub").mkdir(parents=True)
    assert provenance.of_installation(tmp_path / "elsewhere" / "kedit_hub") is None


# --- machine, libraries, data -------------------------------------------------------------------------------------


def test_the_environment_names_kinds_not_machines() -> None:
    model, _ = tiny_model("llama")
    plain = {"platform": f"{platform.system()}-{platform.machine()}", "device": "cpu", "dtype": "float32"}
    assert provenance.environment(model) == plain
    assert provenance.environment(model.bfloat16(), "nf4") == {**plain, "dtype": "bfloat16", "quantization": "nf4"}
    assert provenance.environment(model.to("meta"))["device"] == "cpu"


def test_an_accelerator_is_named_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert provenance.device_name(torch.device("cuda", 1)) == "NVIDIA-H200"
    assert provenance.device_name(torch.device("mps", 0)) == "mps"


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("2.13.0+cpu", "2.13.0+cpu"),
        ("NVIDIA H200 (139 GB)", "NVIDIA-H200-139-GB"),
        (" \n", "unknown"),
        ("../é/x", "x"),
        ("n" * 80, "n" * 64),
    ],
)
def test_any_text_becomes_a_name_that_manifests_take(text: str, made: str) -> None:
    assert provenance.word(text) == made
    Provenance(tool="t", version="1", environment={"device": made})


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("edits.json", "edits"),
        ("my edits (v1.2).jsonl", "my-edits-v1.2"),
        ("..a..b--c-.json", "a-b-c"),
        ("été.json", "t"),
        ("編集.json", "edits"),
        ("x" * 200 + ".json", "x" * 96),
    ],
)
def test_a_file_is_named_by_its_stem_and_bytes(tmp_path: Path, name: str, made: str) -> None:
    (tmp_path / name).write_bytes(b"[]")
    found = provenance.dataset_of(tmp_path / name)
    assert found == {"id": made, "sha256": sha256(b"[]").hexdigest()}
    assert Provenance.model_validate_json(json.dumps({"tool": "t", "version": "1", "datasets": [found]})).datasets


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EditError, match=r"none\.json"):
        provenance.dataset_of(tmp_path / "none.json")


# --- in a patch ---------------------------------------------------------------------------------------------------


def made(**more: Any) -> Patch:
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    settings = {"value": {"steps": 30, "lr": 0.3, "clamp": 3.0}}
    return make_patch(
        model, tokenizer, EDITS[:1], profile, settings=settings, base=("tiny/base", None), progress=False, **more
    )


def test_a_patch_says_what_it_was_made_by_and_from(tmp_path: Path) -> None:
    datasets = [{"id": "org/facts", "revision": "3" * 40}, {"id": "mine", "sha256": "b" * 64}]
    patch = made(datasets=datasets)
    said = Patch.load(patch.save(tmp_path / "p")).manifest.to_dict()["provenance"]
    assert said["datasets"] == datasets
    assert (said.get("commit"), said.get("dirty")) == provenance.source()
    assert set(said["versions"]) == {"kedit_hub", "python", "safetensors", "tokenizers", "torch", "transformers"}
    assert said["versions"]["torch"] == torch.__version__
    assert set(said["environment"]) == {"platform", "device", "dtype"}
    words = {*said["versions"].values(), *said["environment"].values()}
    assert not words & {getpass.getuser(), platform.node(), str(torch.get_num_threads())}
    assert not any("/" in word for word in words)


@pytest.mark.parametrize("item", [{"id": "../x"}, {"id": "a/b", "revision": "main"}, {"name": "x"}, {"id": 3}, "text"])
def test_a_data_set_that_cannot_be_named_is_refused_before_the_work(item: Any) -> None:
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    worked = []
    handle = model.register_forward_hook(lambda *_: worked.append(1))
    with pytest.raises(KeditError, match="does not name a data set"):
        make_patch(model, tokenizer, EDITS, profile, base=("b", None), datasets=[item], progress=False)
    handle.remove()
    assert not worked


def test_another_process_elsewhere_makes_the_same_patch(tmp_path: Path) -> None:
    """Other folder, user, home, locale, hash seed: the same id. The commit is that of the copy it runs from."""
    tree = tmp_path / "tree"
    left_out = shutil.ignore_patterns("__pycache__", "models", "profiles", "localhub")
    shutil.copytree(ROOT / "kedit_hub", tree / "kedit_hub", ignore=left_out)
    shutil.copy(ROOT / "pyproject.toml", tree)
    (tree / ".gitignore").write_text("__pycache__/\n")
    git(tree, "init", "-q")
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", "copy")
    (tmp_path / "elsewhere").mkdir()
    script = (
        "import json, sys; sys.path[:0] = sys.argv[1:]; import kedit_hub; "
        "from tests.test_provenance import made; patch = made(); "
        "print(json.dumps([kedit_hub.__file__, patch.id, patch.manifest.provenance.commit, patch.manifest.provenance.dirty]))"
    )
    running = []
    for number, folder in enumerate((ROOT, tmp_path / "elsewhere")):
        own = {"PYTHONHASHSEED": str(number), "LC_ALL": ("C", "C.UTF-8")[number], "USER": f"user{number}"}
        own |= {"HOME": str(tmp_path / f"home{number}"), "TZ": ("UTC", "Asia/Tokyo")[number]}
        command = [sys.executable, "-c", script, str(tree), str(ROOT)]
        running.append(subprocess.Popen(command, cwd=folder, env=os.environ | own, stdout=subprocess.PIPE, text=True))
    one, two = (json.loads(process.communicate(timeout=240)[0]) for process in running)
    assert one == two
    assert one[0] == str(tree / "kedit_hub" / "__init__.py")
    assert one[2:] == [git(tree, "rev-parse", "HEAD"), False]


# --- on the command line ------------------------------------------------------------------------------------------

RECORDS = json.dumps([{"prompt": "The capital of France is", "target_new": "Nantes", "subject": "France"}]).encode()


def test_a_file_of_records_is_written_down(tmp_path: Path) -> None:
    (tmp_path / "my facts.json").write_bytes(RECORDS)
    assert kedit("edit", "--from", tmp_path / "my facts.json", "--out", tmp_path / "p").code == 0
    (found,) = Patch.load(tmp_path / "p").manifest.provenance.datasets
    assert (found.id, found.sha256) == ("my-facts", sha256(RECORDS).hexdigest())


def test_records_from_a_pipe_still_can_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    writer = threading.Thread(target=(tmp_path / "pipe.json").write_bytes, args=(RECORDS,), daemon=True)
    writer.start()
    assert kedit("edit", "--from", tmp_path / "pipe.json", "--out", tmp_path / "p").code == 0
    writer.join(10)
    assert Patch.load(tmp_path / "p").manifest.provenance.datasets == ()

"""The Space repo, assembled from a checkout and pushed as one commit. Law: what goes in is a list, so no file that happens to lie beside
the sources leaves; what an earlier deployment left and this one has not is taken out.

    deployed = deploy("user/space")
    deployed.url, deployed.commit, deployed.files
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import HfApi

import kedit_hub
from kedit_hub.errors import KeditError
from kedit_hub.hub.client import Token, client, hub_errors
from kedit_hub.hub.ref import repo_name

MOVED: Mapping[str, str] = {"space/README.md": "README.md", "space/requirements.txt": "requirements.txt"}
SINGLE = ("app.py", "LICENSE")
FOLDERS = ("kedit_hub", "space", "patches")
SUFFIXES = (".py", ".css", ".js", ".json", ".jsonl", ".tsv", ".csv", ".txt", ".md", ".safetensors", ".model")
KEPT = (".gitattributes",)  # the hub's own


@dataclass(frozen=True)
class Deployed:
    """What a deployment made. commit: 40 hex digits, the head where nothing had changed; url: of the Space."""

    repo_id: str
    commit: str
    url: str
    files: int
    bytes: int


def checkout() -> Path:
    """The folder with app.py and space/. KeditError where the package was installed without them."""
    root = Path(kedit_hub.__file__).resolve().parents[1]
    if not (root / "app.py").is_file() or not (root / "space" / "page.py").is_file():
        raise KeditError(
            f"there is no Space beside {Path(kedit_hub.__file__).parent}: it is part of the repository, not of the installed package. "
            "Clone the repository and run this there"
        )
    return root


def assemble(root: Path) -> dict[str, Path]:
    """The files of the Space repo by their names there."""
    found = {name: root / name for name in SINGLE}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            hidden = any(part.startswith((".", "__pycache__")) for part in path.relative_to(root).parts)
            if path.is_file() and not path.is_symlink() and not hidden and path.suffix in SUFFIXES:
                found[MOVED.get(name, name)] = path
    missing = [
        name for name in (*SINGLE, *MOVED.values(), "space/page.py") if not found.get(name, root / "-").is_file()
    ]
    if missing:
        raise KeditError(f"{root} is no checkout with a Space: it lacks {', '.join(missing)}")
    return found


def deploy(
    repo_id: str,
    *,
    root: str | os.PathLike[str] | None = None,
    private: bool = False,
    token: Token = None,
    endpoint: str | None = None,
) -> Deployed:
    """Push the Space of a checkout (None: the one this package lies in) to a Space repo, which is made when it is not there.

    HubError: no access, somebody pushed meanwhile (nothing is lost). KeditError: no checkout, no name of a repo.
    """
    name = repo_name(repo_id)
    files = assemble(checkout() if root is None else Path(root))
    api = client(endpoint, token)
    with hub_errors(name, endpoint=endpoint, token=token):
        head, there = _there(api, name, private)
        gone = sorted(there - files.keys() - set(KEPT))
        commit = api.create_commit(
            name,
            [
                *(CommitOperationAdd(path, str(file)) for path, file in sorted(files.items())),
                *(CommitOperationDelete(path) for path in gone),
            ],
            repo_type="space",
            commit_message=f"Deploy kedit_hub {kedit_hub.__version__}",
            parent_commit=head,
        )
    size = sum(file.stat().st_size for file in files.values())
    return Deployed(name, commit.oid, f"{api.endpoint}/spaces/{name}", len(files), size)


def _there(api: HfApi, name: str, private: bool) -> tuple[str | None, set[str]]:
    """The newest commit and the files of the Space repo, made where there is none."""
    try:
        info = api.space_info(name)
    except RepositoryNotFoundError:
        api.create_repo(name, repo_type="space", space_sdk="gradio", private=private)
        info = api.space_info(name)
    return info.sha, {file.rfilename for file in info.siblings or ()}

"""How a patch or a trained editor is named: a Hub repo at a revision, or a local folder. Law: one text has one reading.

    user/repo  ·  user/repo@v1.2.0  ·  user/repo@<40 hex digits>  ·  user/repo@refs/pr/3  ·  hf://user/repo@v1.2.0
    ./folder   ·  /any/existing/folder  ·  a pathlib.Path

A folder that exists wins over a repo of the same name; `hf://` always means the Hub. The grammar of repos is that of
`hf://` addresses in huggingface_hub: a revision with slashes, other than refs/..., is percent-encoded (feat%2Fx).
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HfUriError, HFValidationError
from huggingface_hub.utils import parse_hf_uri, validate_repo_id

from kedit_hub.errors import HubError

_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+/-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ACCEPTED = "Write user/repo, user/repo@v1.2.0, user/repo@<commit>, hf://user/repo@v1.2.0, or the path of a folder."


@dataclass(frozen=True)
class HubRef:
    """A model repo; revision: branch, tag, refs/pr/N or commit, None for the newest on main."""

    repo_id: str
    revision: str | None = None

    @property
    def is_pinned(self) -> bool:
        """True when the revision is a whole commit id: what it names can never change."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"


@dataclass(frozen=True)
class FolderRef:
    """A folder that exists on this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


def parse_ref(text: str | os.PathLike[str], what: str = "patch") -> HubRef | FolderRef:
    """Read a name of a patch, or of `what` else is wanted; raises HubError for anything else."""
    if isinstance(text, os.PathLike):
        return _folder(Path(text))
    if not isinstance(text, str):
        raise HubError(f"{text!r} does not name a {what}. {_ACCEPTED}")
    if text and not text.startswith("hf://"):
        path = Path(text).expanduser()
        if text.startswith((".", "/", "~", "\\")) or path.is_absolute() or _is_folder(path):
            return _folder(path)
    return _repo(text, what)


def repo_name(text: str, what: str = "patch") -> str:
    """`text` when it is the name of a repo, user/repo and nothing more; raises HubError."""
    ref = _repo(text, what)
    if ref.revision is not None or text.startswith("hf://"):
        raise HubError(f"'{text}' names a revision; a repo is wanted here. Write '{ref.repo_id}'.")
    return ref.repo_id


def _repo(text: str, what: str) -> HubRef:
    try:
        uri = parse_hf_uri(text if text.startswith("hf://") else f"hf://{text}")
        validate_repo_id(uri.id)
    except (HfUriError, HFValidationError):
        raise HubError(f"'{text}' does not name a {what}. {_ACCEPTED}") from None
    if uri.type != "model":
        raise HubError(f"'{text}' names a {uri.type}; a {what} lies in a model repo. {_ACCEPTED}")
    if uri.path_in_repo:
        raise HubError(
            f"'{text}' names the file '{uri.path_in_repo}' in a repo; a {what} is a whole repo. Write '{uri.id}"
            f"{'@' + uri.revision if uri.revision else ''}', and %2F for a slash inside the name of a branch."
        )
    revision = uri.revision
    if revision is not None and (
        not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision or revision.endswith(("/", "."))
    ):
        raise HubError(f"'{text}': '{revision}' cannot be a branch, a tag or a commit. {_ACCEPTED}")
    return HubRef(uri.id, revision)


def _folder(path: Path) -> FolderRef:
    if not _is_folder(path):
        raise HubError(f"There is no folder '{path}'. {_ACCEPTED}")
    return FolderRef(path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long, or with a NUL, names no folder
        return False

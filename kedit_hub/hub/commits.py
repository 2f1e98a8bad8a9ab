"""One push: one commit, made only onto the commit that the pusher saw, read back, and tagged. Law: what the commit holds is what was
pushed, or HubError; a tag never moves.

    commit_files("ada/tower", files, operations, message="Patch 3f2a9c", version="1.2.0")

A commit is made against a parent that was read before, so of two who push at once one is told to look again, and nothing is overwritten
unseen. What a push adds and takes away is for the caller to say, who is shown the newest commit.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import GitRefs, RepoFile

from kedit_hub.errors import HubError
from kedit_hub.hub.client import Token, client, hub_errors
from kedit_hub.hub.localhub.gitids import has_digest
from kedit_hub.patch.signature import VERSION

VERSION_TAG = re.compile(rf"v?({VERSION})")
Operation = CommitOperationAdd | CommitOperationDelete


@dataclass(frozen=True)
class Pushed:
    """What a push made. commit: 40 hex digits; url: of the repo; pr_url: of the pull request, if one was opened."""

    repo_id: str
    commit: str
    tag: str | None
    pr_url: str | None
    url: str


def commit_files(
    repo_id: str,
    files: Mapping[str, bytes],
    operations: Callable[[HfApi, str | None], list[Operation]],
    *,
    message: str,
    version: str | None = None,
    create_pr: bool = False,
    private: bool = False,
    token: Token = None,
    parent_commit: str | None = None,
    endpoint: str | None = None,
) -> Pushed:
    """Put `files` into the repo as one commit, and tag it when a version is given.

    operations(api, head): what the commit does, all of `files` among it; head: the newest commit on main, None in an empty repo. It may
    refuse. The other arguments are those of `push`. HubError: no access, version taken, somebody pushed meanwhile (nothing is lost).
    """
    tag = None if version is None else version_tag(version)
    if tag and create_pr:
        raise HubError(f"A pull request has no version. Push without '{version}', and tag {repo_id} after merging.")
    api = client(endpoint, token)
    with hub_errors(repo_id, endpoint=endpoint, token=token):
        refs = _refs(api, repo_id, create=not create_pr, private=private)
        if tag in [ref.name for ref in refs.tags]:
            raise HubError(f"'{repo_id}' already has the version {tag}; nothing was pushed. Choose the next one.")
        head = next((ref.target_commit for ref in refs.branches if ref.name == "main"), None)
        commit = api.create_commit(
            repo_id,
            operations(api, head),
            commit_message=message,
            parent_commit=parent_commit or head,
            create_pr=create_pr,
        )
        _check_stored(api, repo_id, commit.pr_revision or commit.oid, files)
        if tag:
            create_tag(api, repo_id, tag, commit.oid)
    return Pushed(repo_id, commit.oid, tag, commit.pr_url, f"{api.endpoint}/{repo_id}")


def version_tag(version: str) -> str:
    """The tag of a version: "1.2.0" and "v1.2.0" are v1.2.0. HubError where it is none."""
    match = VERSION_TAG.fullmatch(version)
    if match is None:
        raise HubError(f"'{version}' is not a version. Write three numbers, like 1.2.0 or 1.2.0-rc.1.")
    return f"v{match.group(1)}"


def create_tag(api: HfApi, repo_id: str, name: str, commit: str) -> None:
    """HubError where the name is taken."""
    try:
        api.create_tag(repo_id, tag=name, revision=commit)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        raise HubError(
            f"'{repo_id}' already has the version {name}; versions never move. "
            f"The commit {commit} stands: give it another one with kedit_hub.hub.repo.tag."
        ) from None


def _refs(api: HfApi, repo_id: str, *, create: bool, private: bool) -> GitRefs:
    """Branches and tags of the repo, made when it is not there. A public one is not taken where private was asked."""
    try:
        refs = api.list_repo_refs(repo_id)
    except RepositoryNotFoundError:
        if not create:
            raise
        api.create_repo(repo_id, private=private, exist_ok=True)
        return api.list_repo_refs(repo_id)
    if private and not api.model_info(repo_id).private:
        raise HubError(f"'{repo_id}' exists and is public; nothing was pushed. Choose a new name, or make it private.")
    return refs


def _check_stored(api: HfApi, repo_id: str, revision: str, files: Mapping[str, bytes]) -> None:
    """Read back the digests of what the commit holds: a client that finds nothing new makes no commit at all."""
    stored = {file.path: file for file in api.get_paths_info(repo_id, list(files), revision=revision)}
    for name, data in files.items():
        file = stored.get(name)
        if not isinstance(file, RepoFile) or not has_digest(data, file.lfs.sha256 if file.lfs else file.blob_id):
            raise HubError(
                f"'{repo_id}' at {revision} does not hold the {name} that was pushed: somebody pushed meanwhile. "
                "Pull, look at what changed, and push again."
            )

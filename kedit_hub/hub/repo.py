"""Push a patch to a repo, pull it back. Law: one push is one commit, made only onto the commit that the pusher saw.

    push(patch, "user/tower", version="1.2.0")          # one commit, then the tag v1.2.0
    pull("user/tower@v1.2.0")                           # the same patch: ids are equal

How a push is made is in commits.py. A tag never moves. A pull is resolved to one commit first, so files of two commits
never mix, and every byte is hashed again on loading, from the network and from the cache alike. A signed patch is pulled
only from the repo and by the version it was signed for, so that no old or foreign one can be put in its place.
"""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    _CACHED_NO_EXIST,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    try_to_load_from_cache,
)
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.hf_api import RepoFile

from kedit_hub.errors import HubError, LimitError, PatchFormatError, SignatureError
from kedit_hub.hub import seen
from kedit_hub.hub.client import Token, cache_folder, client, commit_named, hub_errors
from kedit_hub.hub.commits import VERSION_TAG, Operation, Pushed, commit_files, create_tag, version_tag
from kedit_hub.hub.localhub.gitids import has_digest
from kedit_hub.hub.ref import FolderRef, HubRef, parse_ref, repo_name
from kedit_hub.limits import DEFAULT
from kedit_hub.patch.patch import Patch
from kedit_hub.patch.safefile import read_file
from kedit_hub.patch.signature import CARD, CONFIG, EVALS, SIGNATURE, TENSORS, Statement
from kedit_hub.stack.packed import LOCK

_OPTIONAL = (EVALS, SIGNATURE)
_BOUNDS = {
    CARD: DEFAULT.max_card_bytes,
    CONFIG: DEFAULT.max_config_bytes,
    TENSORS: DEFAULT.max_tensor_bytes,
    EVALS: DEFAULT.max_evals_bytes,
    SIGNATURE: DEFAULT.max_signature_bytes,
}


@dataclass(frozen=True)
class Commit(HubRef):
    """A commit, and the branch, tag or pull request that named it (None: the newest on main, or the commit itself)."""

    asked: str | None = None


def push(
    patch: Patch,
    repo_id: str,
    *,
    version: str | None = None,
    create_pr: bool = False,
    private: bool = False,
    token: Token = None,
    parent_commit: str | None = None,
    endpoint: str | None = None,
) -> Pushed:
    """Put `patch` into the repo as one commit, and tag it when a version is given.

    version: "1.2.0" or "v1.2.0" (semver.org); create_pr: propose it to a repo of somebody else; private: of a repo that
    this push makes; parent_commit: the commit the patch was made from, None for the newest on main.
    Raises HubError: no access, version taken, somebody pushed meanwhile (nothing is lost), hub not reached, or the patch
    is signed for another repo or version.
    """
    repo_id = repo_name(repo_id)
    tag = None if version is None else version_tag(version)
    if patch.signature is not None:
        _check_pushable(patch.signature.statement, repo_id, tag)
    files = patch.files(repo_id)
    return commit_files(
        repo_id,
        files,
        lambda api, head: _operations(api, repo_id, files, head),
        message=f"Patch {patch.id[:12]}: {len(patch.edits)} edits with {patch.manifest.method}",
        version=tag,
        create_pr=create_pr,
        private=private,
        token=token,
        parent_commit=parent_commit,
        endpoint=endpoint,
    )


def pull(
    ref: str | os.PathLike[str] | HubRef,
    *,
    token: Token = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Patch:
    """The patch that `ref` names: "user/repo", "user/repo@v1.2.0", "user/repo@<commit>", a folder, ... (see ref.py).

    What was pulled once is pulled again without a hub: by commit always, by tag or branch as last seen. cache_dir: None
    for huggingface_hub's own. Raises HubError (not found, no access, offline, damaged cache), PatchFormatError (what
    the repo holds is no patch, or is hostile), SignatureError (its signature does not hold, or not for this repo and tag).
    A repo that was signed before and now is not, or by others alone, is refused, see seen.py.
    """
    name = ref if isinstance(ref, HubRef) else parse_ref(ref)
    if isinstance(name, FolderRef):
        return Patch.load(name.path)
    pinned = resolve(name, token=token, endpoint=endpoint, cache_dir=cache_dir)
    with hub_errors(name.repo_id, revision=name.revision, endpoint=endpoint, token=token):
        paths = _download(client(endpoint, token), pinned, cache_folder(cache_dir, endpoint))
    # The files in the cache are links to its blobs: each blob is read once, and those bytes are checked and parsed.
    blobs = {file: Path(os.path.realpath(path)) for file, path in paths.items()}
    data = {file: read_file(blob, _BOUNDS[file]) for file, blob in blobs.items()}
    try:
        patch = Patch.from_files(data)
    except PatchFormatError as error:
        for file, blob in blobs.items():
            if _is_damaged(blob, data[file]):
                raise HubError(
                    f"The cached copy of {file} of '{name}' is damaged: it is not what the hub described. "
                    f"Delete '{blob}' and pull again. ({error})"
                ) from error
        raise type(error)(f"'{pinned}' is refused: {error}") from error
    if patch.signature is not None:
        _check_pulled(patch.signature.statement, pinned)
    asked = name.asked if isinstance(name, Commit) else name.revision
    seen.check(endpoint, name.repo_id, asked, patch)
    return patch


def resolve(
    ref: str | HubRef,
    *,
    token: Token = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Commit:
    """The commit that a branch, tag or pull request names now; without a hub, the one it named when last seen."""
    name = ref if isinstance(ref, HubRef) else parse_ref(ref)
    if isinstance(name, FolderRef):
        raise HubError(f"'{name}' is a folder; only repos have commits. Write hf://user/repo for the repo.")
    if isinstance(name, Commit):
        return name
    if name.is_pinned:
        return Commit(name.repo_id, name.revision)
    with hub_errors(name.repo_id, revision=name.revision, endpoint=endpoint, token=token):
        api, cache = client(endpoint, token), cache_folder(cache_dir, endpoint)
        found = commit_named(api, name.repo_id, name.revision, cache_dir=cache)
    pinned = Commit(name.repo_id, found, asked=name.revision)
    if not pinned.is_pinned:
        raise HubError(f"The hub answers '{found[:80]}' for '{name}', which is no commit. Check endpoint=.")
    return pinned


def tag(
    repo_id: str, version: str, *, revision: str | None = None, token: Token = None, endpoint: str | None = None
) -> str:
    """Give a commit (None: the newest on main) a version; returns the tag. Raises HubError when it is taken."""
    repo_id, name = repo_name(repo_id), version_tag(version)
    pinned = resolve(HubRef(repo_id, revision), token=token, endpoint=endpoint)
    with hub_errors(repo_id, revision=revision, endpoint=endpoint, token=token):
        create_tag(client(endpoint, token), repo_id, name, pinned.revision or "main")
    return name


# --- pushing ------------------------------------------------------------------------------------------------------


def _check_pushable(signed: Statement, repo_id: str, tag_name: str | None) -> None:
    """A signature for another repo or version would make every pull from here fail."""
    if signed.repo_id not in (None, repo_id):
        raise HubError(
            f"This patch was signed for '{signed.repo_id}', not for '{repo_id}'; nothing was pushed. Push it there, or "
            f"sign it for this repo: kedit sign FOLDER --key FILE --repo {repo_id}"
        )
    if tag_name is not None and signed.version is not None and tag_name != f"v{signed.version}":
        raise HubError(
            f"This patch was signed as version {signed.version}, not {tag_name}; nothing was pushed to '{repo_id}'. Push "
            f"it as {signed.version}, or sign it anew: kedit sign FOLDER --key FILE --version {tag_name}"
        )


def _operations(api: HfApi, repo_id: str, files: Mapping[str, bytes], head: str | None) -> list[Operation]:
    """All files of the patch; scores and signatures of an earlier one that this one does not replace are taken away.

    HubError for the repo of anything else: a model, an editor or a stack could not be read any more without its config.json,
    or with another's.
    """
    operations: list[Operation] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()
    ]
    if head is None:
        return operations
    gone = [name for name in _OPTIONAL if name not in files]
    there = {file.path for file in api.get_paths_info(repo_id, [CONFIG, TENSORS, LOCK, *gone], revision=head)}
    if LOCK in there:
        raise HubError(
            f"'{repo_id}' is the repo of a stack; nothing was pushed: it holds {LOCK}. Push the patch to a repo of its own, "
            "and add it to the stack."
        )
    if CONFIG in there and TENSORS not in there:
        raise HubError(
            f"'{repo_id}' holds a model or an editor (a {CONFIG} without {TENSORS}); nothing was pushed. Push the patch to a "
            "repo of its own."
        )
    return operations + [CommitOperationDelete(path_in_repo=name) for name in gone if name in there]


# --- pulling ------------------------------------------------------------------------------------------------------


def _check_pulled(signed: Statement, pinned: Commit) -> None:
    """Refuse a signed patch that lies in another repo, or under another version, than it was signed for."""
    if signed.repo_id not in (None, pinned.repo_id):
        raise SignatureError(
            f"'{pinned}' is refused: its patch was signed for '{signed.repo_id}', so this is a copy, or the repo was "
            f"renamed. Pull '{signed.repo_id}', or ask the owner to sign it for '{pinned.repo_id}'."
        )
    version = VERSION_TAG.fullmatch((pinned.asked or "").removeprefix("refs/tags/"))
    if version is not None and signed.version not in (None, version.group(1)):
        raise SignatureError(
            f"'{pinned.repo_id}@{pinned.asked}' is refused: the patch there was signed as version {signed.version}: "
            f"the tag was moved, or given by mistake (to {pinned.revision}). Tell the owner of the repo; pull "
            f"'{pinned.repo_id}@v{signed.version}' if that is the version you want."
        )


def _download(api: HfApi, ref: HubRef, cache: Path) -> dict[str, str]:
    """{file name: path in the cache} of a patch at a commit. No request is made for what the cache holds."""
    bounds = {name: bound for name, bound in _BOUNDS.items() if name != CARD}
    paths = fetch_files(api, ref, cache, bounds, _OPTIONAL)
    if SIGNATURE in paths:  # the card is signed too
        paths |= fetch_files(api, ref, cache, {CARD: _BOUNDS[CARD]}, (CARD,))
    return paths


def fetch_files(
    api: HfApi, ref: HubRef, cache: Path, bounds: Mapping[str, int], optional: Collection[str]
) -> dict[str, str]:
    """{file name: path in the cache} of files at a commit, which need not hold the optional ones. No request for what the cache holds.

    bounds: on the size of each, in bytes; LimitError before it is fetched. For within `hub_errors`.
    """
    paths: dict[str, str] = {}
    missing: list[str] = []
    for name in bounds:
        cached = try_to_load_from_cache(ref.repo_id, name, cache_dir=cache, revision=ref.revision)
        if isinstance(cached, str):
            paths[name] = cached
        elif cached is not _CACHED_NO_EXIST or name not in optional:
            missing.append(name)
    if missing:
        _check_sizes(api, ref, {name: bounds[name] for name in missing})
    for name in missing:
        try:
            paths[name] = api.hf_hub_download(ref.repo_id, name, revision=ref.revision, cache_dir=cache)
        except RemoteEntryNotFoundError:  # and the cache remembers that
            if name not in optional:
                raise
    return paths


def _check_sizes(api: HfApi, ref: HubRef, bounds: Mapping[str, int]) -> None:
    """Refuse files over the bounds before they are fetched. Without a hub there is nothing to fetch."""
    for file in api.get_paths_info(ref.repo_id, list(bounds), revision=ref.revision):
        if isinstance(file, RepoFile) and file.size > bounds[file.path]:
            raise LimitError(f"{file.path} of '{ref}' has {file.size:,} bytes; at most {bounds[file.path]:,} are read.")


# --- digests ------------------------------------------------------------------------------------------------------


def _is_damaged(blob: Path, data: bytes) -> bool:
    """True when a file of the cache is not what the hub described: the cache names its blobs by their digests."""
    return re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name) is not None and not has_digest(data, blob.name)

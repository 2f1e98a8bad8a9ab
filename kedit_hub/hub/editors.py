"""Push a trained editor to a repo, pull it back. Law: one push is one commit; what is pulled is checked byte for byte, as from a folder.

push_editor(editor, "user/mend-atlas", version="1.0.0")
pull_editor("user/mend-atlas@v1.0.0")               # the same editor: ids are equal
"""

import os
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RemoteEntryNotFoundError

from kedit_hub.editors.hyper.trained import CONFIG, SCORES, TENSORS, TrainedEditor
from kedit_hub.errors import HubError, PatchFormatError
from kedit_hub.hub.client import Token, cache_folder, client, hub_errors
from kedit_hub.hub.commits import Operation, Pushed, commit_files
from kedit_hub.hub.ref import FolderRef, HubRef, parse_ref, repo_name
from kedit_hub.hub.repo import fetch_files, resolve
from kedit_hub.limits import DEFAULT
from kedit_hub.patch.safefile import read_file
from kedit_hub.stack.packed import LOCK

BOUNDS = {CONFIG: DEFAULT.max_config_bytes, TENSORS: DEFAULT.max_tensor_bytes, SCORES: DEFAULT.max_evals_bytes}


def push_editor(
    editor: TrainedEditor,
    repo_id: str,
    *,
    version: str | None = None,
    create_pr: bool = False,
    private: bool = False,
    token: Token = None,
    endpoint: str | None = None,
) -> Pushed:
    """Put `editor` into the repo as one commit, and tag it when a version is given. HubError as for `push` of a patch, and for a repo that
    holds something else."""
    files = editor.files()

    def operations(api: HfApi, head: str | None) -> list[Operation]:
        return _operations(api, repo_id, files, head)

    return commit_files(
        repo_name(repo_id, "trained editor"), files, operations, message=f"Editor {editor.id[:12]}: {editor.method}", version=version,
        create_pr=create_pr, private=private, token=token, endpoint=endpoint,
    )  # fmt: skip


def _operations(api: HfApi, repo_id: str, files: Mapping[str, bytes], head: str | None) -> list[Operation]:
    """All files; scores of an earlier editor that this one does not replace are taken away."""
    found: list[Operation] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()
    ]
    if head is None:
        return found
    there = {file.path for file in api.get_paths_info(repo_id, [CONFIG, TENSORS, SCORES, LOCK], revision=head)}
    if LOCK in there:
        raise HubError(
            f"'{repo_id}' is the repo of a stack; nothing was pushed: it holds {LOCK}. Push the editor to a repo of its own."
        )
    if CONFIG in there and TENSORS not in there:
        raise HubError(
            f"'{repo_id}' holds a patch or a model; nothing was pushed. Push the editor to a repo of its own."
        )
    stale = SCORES in there and SCORES not in files
    return [*found, CommitOperationDelete(path_in_repo=SCORES)] if stale else found


def pull_editor(
    ref: str | os.PathLike[str] | HubRef,
    *,
    token: Token = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> TrainedEditor:
    """The editor that `ref` names: "user/repo", "user/repo@v1.0.0", a folder. What was pulled once is pulled again without a hub,
    as a patch is. HubError where there is none, PatchFormatError where what the repo holds is none, or is hostile."""
    name = ref if isinstance(ref, HubRef) else parse_ref(ref, "trained editor")
    if isinstance(name, FolderRef):
        return TrainedEditor.load(name.path)
    pinned = resolve(name, token=token, endpoint=endpoint, cache_dir=cache_dir)
    with hub_errors(name.repo_id, revision=name.revision, endpoint=endpoint, token=token):
        try:
            paths = fetch_files(client(endpoint, token), pinned, cache_folder(cache_dir, endpoint), BOUNDS, (SCORES,))
        except RemoteEntryNotFoundError:
            raise HubError(
                f"'{pinned}' holds no {CONFIG} and {TENSORS}. Give the repo of a trained editor: `kedit editor push` makes one."
            ) from None
    files = {part: read_file(Path(os.path.realpath(path)), BOUNDS[part]) for part, path in paths.items()}  # the blobs
    try:
        return TrainedEditor.from_files(files)
    except PatchFormatError as error:
        raise type(error)(f"'{pinned}' is refused: {error}") from error

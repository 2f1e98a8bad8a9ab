"""A stack in a repo of its own. Law: a stack repo names patches only, each by content and by a place that cannot move.

    push_stack(lock, stack, "ada/my-stack", version="1.0.0")        # one commit: README.md, kedit.lock, packed patches
    pulled = pull_stack("ada/my-stack@v1.0.0")                      # the same lock, and its patches, checked

A repo with kedit.lock and without config.json is a stack repo; with config.json it is the repo of a patch. Patches that lie in
repos stay there and are named by commit; all others are packed beside the lock. Whoever pulls gets what was locked, or a refusal
with the reasons. Whom to trust is asked of each patch alone (kedit_hub.api): of one in a repo the author of that repo, of a packed
one the author of the stack.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCardData,
    try_to_load_from_cache,
)
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.hf_api import RepoFile

from kedit_hub.errors import HubError, KeditError, LimitError, PatchFormatError, SignatureError
from kedit_hub.hub.client import Token, cache_folder, client, hub_errors
from kedit_hub.hub.commits import Operation, Pushed, commit_files
from kedit_hub.hub.localhub.gitids import has_digest
from kedit_hub.hub.ref import HubRef, parse_ref, repo_name
from kedit_hub.hub.repo import (
    Commit,
    pull,
    resolve,
)
from kedit_hub.limits import MAX_LOCK_BYTES
from kedit_hub.patch.card import escape
from kedit_hub.patch.patch import Patch
from kedit_hub.patch.safefile import read_file
from kedit_hub.patch.signature import CARD, CONFIG
from kedit_hub.stack.lock import (
    LOCK,
    Entry,
    InPack,
    InRepo,
    Lock,
    Source,
    describe,
    fetcher,
    restore,
)
from kedit_hub.stack.lock import lock as lock_stack
from kedit_hub.stack.packed import BOUNDS, PACKED, digests, packed_files
from kedit_hub.stack.stack import PatchStack

_BOUNDS = {LOCK: MAX_LOCK_BYTES, **BOUNDS}
MAX_LISTED = 100  # patches in the card


@dataclass(frozen=True)
class PulledStack:
    """What a stack repo holds. stack: the patches in order, with weights, pins and choices. commit: where it was read."""

    lock: Lock
    stack: PatchStack
    commit: Commit


# --- pushing ------------------------------------------------------------------------------------------------------


def push_stack(
    lock: Lock,
    stack: PatchStack,
    repo_id: str,
    *,
    version: str | None = None,
    create_pr: bool = False,
    private: bool = False,
    token: Token = None,
    parent_commit: str | None = None,
    endpoint: str | None = None,
) -> Pushed:
    """Put a stack into a repo of its own as one commit, and tag it when a version is given.

    stack: the patches of `lock`, as `restore` gave them: those without a repo are packed. create_pr: propose it to a repo of somebody
    else. parent_commit: the commit that was looked at, None for the newest on main. Raises HubError as `push` does; nothing is pushed
    then. KeditError where `stack` is not that of `lock`.
    """
    repo_id = repo_name(repo_id)
    files = stack_files(lock, stack, repo_id)
    return commit_files(
        repo_id,
        files,
        lambda api, head: _operations(api, repo_id, files, head),
        message=f"Stack {lock.digest[:12]}: {len(stack)} patches",
        version=version,
        create_pr=create_pr,
        private=private,
        token=token,
        parent_commit=parent_commit,
        endpoint=endpoint,
    )


def stack_files(lock: Lock, stack: PatchStack, repo_id: str) -> dict[str, bytes]:
    """The files of a stack repo by name. KeditError, HubError: nothing to push, another stack, a patch that may not be packed here."""
    if not lock.patches:
        raise KeditError("The stack holds no patch: there is nothing to push. Add one first.")
    if stack.ids != tuple(entry.id for entry in lock.patches):
        raise KeditError(
            f"The lock {lock.digest[:12]} is of {len(lock.patches)} other patches, or of the same in another order, than this stack "
            f"of {len(stack)}: lock the stack again, and push that."
        )
    sources: dict[str, Source] = {
        entry.id: entry.source if isinstance(entry.source, InRepo) else InPack(packed=True) for entry in lock.patches
    }
    _check_names(sources.values(), repo_id)
    packed = [patch for patch in stack if isinstance(sources[patch.id], InPack)]
    for patch in packed:
        _check_packable(patch, repo_id)
    held = packed_files(packed) if packed else {}
    bare = lock_stack(stack, sources, lock.settings, digests(held) if held else None)
    made = bare.model_copy(update={"solved": lock.solved, "profiles": lock.profiles, "protect": lock.protect})
    return {CARD: render(made, stack, repo_id).encode(), LOCK: made.to_bytes(), **held}


def _operations(api: HfApi, repo_id: str, files: Mapping[str, bytes], head: str | None) -> list[Operation]:
    """All files of the stack; packed files of an earlier one that this one does not replace are taken away."""
    operations: list[Operation] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()
    ]
    if head is None:
        return operations
    gone = [name for name in PACKED if name not in files]
    there = {file.path for file in api.get_paths_info(repo_id, [CONFIG, *gone], revision=head)}
    if CONFIG in there:
        raise HubError(f"'{repo_id}' is the repo of a patch; nothing was pushed. Push the stack to a repo of its own.")
    return operations + [CommitOperationDelete(path_in_repo=name) for name in gone if name in there]


def _check_names(sources: Iterable[Source], repo_id: str) -> None:
    """A stack names patches; one that named itself could never be read to its end."""
    for source in sources:
        if isinstance(source, InRepo) and source.repo.lower() == repo_id.lower():
            raise HubError(f"The stack '{repo_id}' names itself ({describe(source)}): a stack names patches only.")


def _check_packable(patch: Patch, repo_id: str) -> None:
    """A patch signed for one repo is not to be had from another one."""
    signed = patch.signature.statement.repo_id if patch.signature is not None else None
    if signed not in (None, repo_id):
        raise SignatureError(
            f"Patch {patch.id[:12]} was signed for '{signed}', and may not lie packed in '{repo_id}'. Name it by a commit of "
            f"'{signed}', or sign it anew without a repo."
        )


# --- pulling ------------------------------------------------------------------------------------------------------


def is_stack(
    ref: str | HubRef,
    *,
    token: Token = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> bool:
    """True for a stack repo. What the cache holds costs no request."""
    pinned = resolve(ref, token=token, endpoint=endpoint, cache_dir=cache_dir)
    cache = cache_folder(cache_dir, endpoint)
    if isinstance(_cached(pinned, CONFIG, cache), str):
        return False
    if isinstance(_cached(pinned, LOCK, cache), str):
        return True
    with hub_errors(pinned.repo_id, revision=pinned.revision, endpoint=endpoint, token=token):
        api = client(endpoint, token)
        held = {file.path for file in api.get_paths_info(pinned.repo_id, [CONFIG, LOCK], revision=pinned.revision)}
    return LOCK in held and CONFIG not in held


def pull_stack(
    ref: str | HubRef,
    *,
    token: Token = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> PulledStack:
    """The stack that `ref` names, each of its patches pulled by commit or unpacked, and compared with the lock.

    Without a hub as far as the cache reaches. Raises HubError, PatchFormatError or LimitError (a hostile lock), SignatureError, and
    KeditError with all reasons where the lock does not hold.
    """
    name = ref if isinstance(ref, HubRef) else parse_ref(ref)
    if not isinstance(name, HubRef):
        raise HubError(f"'{name}' is a folder, not a repo. Read its {LOCK} with kedit_hub.stack.lock.Lock.load.")
    pinned = resolve(name, token=token, endpoint=endpoint, cache_dir=cache_dir)
    cache = cache_folder(cache_dir, endpoint)

    def read(*names: str) -> dict[str, bytes]:
        with hub_errors(pinned.repo_id, revision=pinned.revision, endpoint=endpoint, token=token):
            return _download(client(endpoint, token), pinned, names, cache)

    data = read(LOCK)[LOCK]
    try:
        lock = Lock.parse(data)
    except PatchFormatError as error:
        raise type(error)(f"'{pinned}' is refused: {error}") from error
    _check_names([entry.source for entry in lock.patches], pinned.repo_id)

    def fetch(entry: Entry) -> Patch:
        return pull_entry(entry, token=token, endpoint=endpoint, cache_dir=cache_dir)

    held = {} if lock.packed is None else read(*PACKED)
    fetched = fetcher(lock, fetch, packed=lambda: held)
    try:
        stack, _ = restore(lock, fetched)
    except KeditError as error:
        raise type(error)(f"'{pinned}' is refused: {error}") from error
    for patch, entry in zip(stack, lock.patches):
        if isinstance(entry.source, InPack):
            _check_packable(patch, pinned.repo_id)
    return PulledStack(lock, stack, pinned)


def pull_entry(
    entry: Entry,
    *,
    token: Token = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Patch:
    """The patch at the commit a lock names: what `beside` wants for `pull`. Raises as `pull` does."""
    assert isinstance(entry.source, InRepo)
    there = HubRef(entry.source.repo, entry.source.commit)
    return pull(there, token=token, endpoint=endpoint, cache_dir=cache_dir)


def _cached(ref: HubRef, name: str, cache: Path) -> object:
    return try_to_load_from_cache(ref.repo_id, name, cache_dir=cache, revision=ref.revision)


def _download(api: HfApi, ref: HubRef, names: Sequence[str], cache: Path) -> dict[str, bytes]:
    """The files of a stack at a commit by name: each read once, after its size is known. No request for what the cache holds."""
    paths = {name: path for name in names if isinstance(path := _cached(ref, name, cache), str)}
    missing = [name for name in names if name not in paths]
    if missing:
        for file in api.get_paths_info(ref.repo_id, missing, revision=ref.revision):
            if isinstance(file, RepoFile) and file.size > _BOUNDS[file.path]:
                raise LimitError(
                    f"{file.path} of '{ref}' has {file.size:,} bytes; at most {_BOUNDS[file.path]:,} are read."
                )
    for name in missing:
        try:
            paths[name] = api.hf_hub_download(ref.repo_id, name, revision=ref.revision, cache_dir=cache)
        except RemoteEntryNotFoundError:
            raise HubError(f"'{ref}' holds no {name}: it is no stack, or one that was not pushed whole.") from None
    found = {}
    for name in names:
        blob = Path(os.path.realpath(paths[name]))  # the cache links to its blobs, which it names by their digests
        found[name] = read_file(blob, _BOUNDS[name])
        if len(blob.name) in (40, 64) and not has_digest(found[name], blob.name):
            raise HubError(
                f"The cached copy of {name} of '{ref}' is damaged: it is not what the hub described. Delete '{blob}' and pull again."
            )
    return found


# --- the card -----------------------------------------------------------------------------------------------------


def render(lock: Lock, stack: PatchStack, repo_id: str) -> str:
    """README.md of a stack repo. Text of patches is shown, never interpreted. No scores: those of a patch are not its stack's."""
    assert lock.base is not None
    data = ModelCardData(
        base_model=lock.base.id,
        base_model_relation="adapter",
        library_name="kedit_hub",
        pipeline_tag="text-generation",
        tags=["kedit", "kedit-stack", "knowledge-editing", "model-patch"],
    )
    rows = [
        f"| {number} | {_link(entry)} | {escape(_first(patch))} | {len(patch.edits)} | {entry.weight:g} | {entry.strength:g} "
        f"| {'yes' if entry.pinned else ''} |"
        for number, (entry, patch) in enumerate(zip(lock.patches[:MAX_LISTED], stack), 1)
    ]
    more = f"\n\nand {len(stack) - MAX_LISTED:,} more" if len(stack) > MAX_LISTED else ""
    mode = lock.decided.mode
    return (
        f"---\n{data.to_yaml()}\n---\n\n"
        f"# Stack of {len(stack)} model patches\n\n"
        f"What `{lock.base.id}` answers with these patches, composed in the mode `{mode}`; who wins where two contradict each other: "
        f"`{lock.conflicts}`. Each patch is named by its content, so this stack is the same for everybody.\n\n"
        "> A patch changes what a model says, and it may be wrong, by mistake or on purpose. Nobody has checked these claims "
        "by putting them here.\n\n"
        f'```python\nimport kedit_hub\n\nm = kedit_hub.apply("{repo_id}")\n```\n\n'
        "## Patches\n\n| | Patch | First edit | Edits | Weight | Strength | Pinned |\n| --- | --- | --- | --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + f"{more}\n\nLock `{lock.digest}`.\n"
    )


def _link(entry: Entry) -> str:
    match entry.source:
        case InRepo(repo=repo):
            return f"`{entry.id[:12]}` of `{repo}`"
        case _:
            return f"`{entry.id[:12]}`"


def _first(patch: Patch) -> str:
    edit = patch.edits[0]
    return f"{edit.prompt} {edit.target}"

"""kedit.lock as a place to work in, as git's index is. Law: after every change the file names a whole stack, or is what it was before.

    add(["me/france", "patches/tower"], "kedit.lock", weight=2.0)      # fetched, judged, locked
    remove(["me/france"], "kedit.lock")                                # by ref, folder or id
    solve("kedit.lock", {"mode": "joint"}, write=True)                 # composed on the base; the lock keeps what was found

A change takes away what was found by solving, since it was found for another stack. The file has one name, by which `apply` knows it.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from kedit_hub.api import Fetched, FetchedStack, admit, apply, fetch_any, find_profile, lock_file, save_profile
from kedit_hub.base.profile import BaseProfile
from kedit_hub.errors import ConflictError, HubError, KeditError
from kedit_hub.evaluate.conflicts import ConflictReport
from kedit_hub.evaluate.conflicts import conflicts as conflict_report
from kedit_hub.evaluate.interference import Progress
from kedit_hub.hub.client import Token
from kedit_hub.hub.ref import HubRef, parse_ref
from kedit_hub.hub.repo import Pushed
from kedit_hub.hub.repo import resolve as commit_of
from kedit_hub.hub.stacks import pull_entry, push_stack
from kedit_hub.limits import MAX_LOCK_BYTES
from kedit_hub.patch.guard import guarded
from kedit_hub.patch.patch import Patch
from kedit_hub.patch.safefile import read_file
from kedit_hub.patch.trust import TrustPolicy
from kedit_hub.stack.choose import by_form
from kedit_hub.stack.conflicts import Conflict
from kedit_hub.stack.lock import (
    LOCK,
    Broken,
    Diff,
    InFolder,
    InPack,
    InRepo,
    Lock,
    Source,
    Verified,
    beside,
    describe,
    diff,
    kept,
    lock,
)
from kedit_hub.stack.packed import digests, packed_files, write_together
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.precedence import Policy
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack

Where = str | os.PathLike[str]
Trust = TrustPolicy | Where | None

# --- changing the lock --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Changed:
    """path: of the lock. lock: what it says now. diff: against what it said before."""

    path: Path
    lock: Lock
    diff: Diff


def add(
    refs: Sequence[str],
    path: Where = LOCK,
    *,
    weight: float | None = None,
    pin: bool = False,
    conflicts: Policy | None = None,
    trust: Trust = None,
    pack: bool = False,
    afresh: bool = False,
) -> Changed:
    """Lock patches behind those that are locked; one that is there already stays in its place, and is locked as it is found now.

    refs: folders below that of the lock, or repos, of which the commit is kept. weight, pin: of these patches. conflicts: None = as the
    lock says; of a function that is asked the choices are kept. pack: store every patch that is in no repo beside the lock, from wherever
    it came. afresh: whatever the lock said is forgotten. trust: as for `apply`.
    """
    index = _Index.read(path, afresh=afresh)
    named = [_find(ref, index.folder, trust) for ref in refs]
    found = {patch.id: patch for patch, _ in named}
    places: dict[str, Source] = {}
    for ref, (patch, place) in zip(refs, named):
        if place is None and not pack:
            raise KeditError(
                f"'{ref}' cannot be named by {index.path}: a lock names folders below its own, not through links. Copy the folder "
                "there, or pass --pack (pack=True) to store the patch beside the lock."
            )
        places[patch.id] = InPack(packed=True) if place is None else place
    held = {patch.id: patch for patch in index.patches(found)}
    ids = [entry.id for entry in index.lock.patches if entry.id in held | found]
    stack = index.stack(
        [found.get(name) or held[name] for name in [*ids, *(name for name in found if name not in ids)]],
        conflicts,
        weights={} if weight is None else dict.fromkeys(found, weight),
        pinned=found if pin else (),
    )
    return index.write(stack, places, pack=pack)


def remove(names: Sequence[str], path: Where = LOCK) -> Changed:
    """Take patches out, also such as are no longer to be had. names: ids, their first digits, or where a patch lies."""
    index = _Index.read(path, there=True)
    gone = {index.id_of(name) for name in names}
    return index.write(index.stack(index.patches(gone)))


def reorder(names: Sequence[str], path: Where = LOCK) -> Changed:
    """The named patches last, in this order: the last one wins under "latest"."""
    return _change(path, names, lambda stack, ids: stack.reorder(ids))


def pin(names: Sequence[str], path: Where = LOCK) -> Changed:
    """Meet the rows of these patches exactly, and let them win under "pin"."""
    return _change(path, names, lambda stack, ids: stack.pin(*ids))


def unpin(names: Sequence[str], path: Where = LOCK) -> Changed:
    return _change(path, names, lambda stack, ids: stack.unpin(*ids))


def weigh(name: str, weight: float, path: Where = LOCK) -> Changed:
    """Let the rows of a patch count `weight` times in a joint solve."""
    return _change(path, [name], lambda stack, ids: stack.weigh(ids[0], weight))


def strengthen(name: str, strength: float, path: Where = LOCK) -> Changed:
    """Let a patch make this share of its change, in (0, 1], in every mode."""
    return _change(path, [name], lambda stack, ids: stack.strengthen(ids[0], strength))


def pack(path: Where = LOCK) -> Changed:
    """Store every locked patch that is in no repo beside the lock."""
    index = _Index.read(path, there=True)
    return index.write(index.stack(index.patches(())), pack=True)


def _change(path: Where, names: Sequence[str], how: Callable[[PatchStack, list[str]], PatchStack]) -> Changed:
    index = _Index.read(path, there=True)
    ids = [index.id_of(name) for name in names]
    return index.write(how(index.stack(index.patches(())), ids))


@dataclass(frozen=True)
class _Index:
    """A lock that is being changed. data: the file as it was read, None where there is none."""

    path: Path
    data: bytes | None
    lock: Lock

    @classmethod
    def read(cls, path: Where, *, there: bool = False, afresh: bool = False) -> "_Index":
        """there: KeditError where there is no lock; else one without patches."""
        file = _named(path)
        if not os.path.lexists(file):
            if there:
                raise _missing(file)
            return cls(file, None, Lock())
        data = read_file(file, MAX_LOCK_BYTES)
        return cls(file, data, Lock() if afresh else Lock.parse(data, local=True))

    @property
    def folder(self) -> Path:
        return self.path.parent

    def patches(self, gone: Collection[str]) -> list[Patch]:
        """Those that are locked but for `gone`, or KeditError with the reasons."""
        return kept(self.lock, beside(self.lock, self.path, pull_entry), gone)

    def stack(
        self,
        patches: Iterable[Patch],
        conflicts: Policy | None = None,
        *,
        weights: Mapping[str, float] = MappingProxyType({}),
        pinned: Collection[str] = (),
    ) -> PatchStack:
        """These patches with what the lock says of them. weights, pinned: besides."""
        held = {patch.id: patch for patch in patches}
        said = self.lock.said_of(held)
        besides = {"weights": {**said["weights"], **weights}, "pinned": {*said["pinned"], *pinned}}
        policy = self.lock.conflicts if conflicts is None else conflicts
        return PatchStack(held.values(), conflicts=policy, **said | besides)

    def id_of(self, name: str) -> str:
        """The one locked patch with this id, with an id that begins so (6 digits at least), or that lies there."""
        entries = self.lock.patches
        hits = [e.id for e in entries if re.fullmatch("[0-9a-f]{6,64}", name) and e.id.startswith(name)]
        hits = hits or [e.id for e in entries if _lies(e.source, name, self.folder)]
        if len(hits) != 1:
            held = ", ".join(f"{entry.id[:12]} ({describe(entry.source)})" for entry in entries[:10]) or "nothing"
            more = f" and {len(entries) - 10} more" if len(entries) > 10 else ""
            raise KeditError(
                f"{self.path} names {'several patches' if hits else 'no patch'} '{name}'; it names {held}{more}. Give the first digits "
                "of an id."
            )
        return hits[0]

    def write(
        self, stack: PatchStack, places: Mapping[str, Source] = MappingProxyType({}), *, pack: bool = False
    ) -> Changed:
        """The lock of this stack, with all that was said but not of the patches; what was found by solving, only if it still holds."""
        sources = {**self.lock.sources, **places}
        if pack:
            sources = {name: at if isinstance(at, InRepo) else InPack(packed=True) for name, at in sources.items()}
        packed = [patch for patch in stack if isinstance(sources[patch.id], InPack)]
        files = packed_files(packed) if pack and packed else {}
        told = digests(files) if files else _packed(self.lock) if packed else None
        made = _with(lock(stack, sources, self.lock.settings, told), protect=self.lock.protect)
        if _decides(made) == _decides(self.lock):
            made = _with(made, solved=self.lock.solved, profiles=self.lock.profiles)
        self.save(made, files)
        return Changed(self.path, made, diff(self.lock, made))

    def save(self, made: Lock, files: Mapping[str, bytes] = MappingProxyType({})) -> None:
        """KeditError, and nothing is written, where somebody else has changed the lock meanwhile."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with guarded(self.path):
                now = read_file(self.path, MAX_LOCK_BYTES) if os.path.lexists(self.path) else None
                if now != self.data:
                    raise KeditError(
                        f"{self.path} was changed by somebody else meanwhile, and was left so: run the command again."
                    )
                beside_it = {self.folder / name: data for name, data in files.items()}
                write_together({**beside_it, self.path: made.to_bytes()})
        except OSError as cause:
            raise KeditError(
                f"Cannot write {str(self.path)!r}: {cause.strerror}. Check the folder, or name another."
            ) from None


def _named(path: Where) -> Path:
    file = Path(path).expanduser()
    if file.name != LOCK:
        raise KeditError(f"'{path}' is not called {LOCK}, by which a lock is known: name {file.parent / LOCK} instead.")
    return file


def _missing(file: Path) -> KeditError:
    return KeditError(f"There is no '{file}': lock a stack with `kedit stack add PATCH`, or name one with --lock.")


def _with(made: Lock, **changes: Any) -> Lock:
    """The same lock but for some fields, judged again."""
    try:
        return Lock(**{**{name: getattr(made, name) for name in Lock.model_fields}, **changes})
    except ValidationError as cause:
        raise KeditError(f"this stack cannot be locked: {cause.errors()[0]['msg']}") from None


def _packed(made: Lock) -> dict[str, str] | None:
    return None if made.packed is None else {name: digest for name, digest in made.packed.items()}


def _decides(made: Lock) -> tuple[object, ...]:
    """All of a lock that decides how its stack is composed."""
    patches = [(entry.id, entry.weight, entry.pinned, entry.strength) for entry in made.patches]
    return patches, made.conflicts, made.choices, made.settings, made.protect


def _find(ref: str, folder: Path, trust: Trust) -> tuple[Patch, Source | None]:
    """A patch that is let in, and a place of it that cannot move; None where a lock in `folder` cannot name it."""
    if lock_file(ref) is None:
        name = parse_ref(ref)
        if isinstance(name, HubRef):
            commit = commit_of(name)
            found = admit(commit if not name.is_pinned else name, trust).patch
            assert commit.revision is not None
            return found, InRepo(repo=commit.repo_id, commit=commit.revision)
    found = admit(ref, trust).patch  # of a stack, the refusal
    return found, _below(Path(ref).expanduser(), folder)


def _below(place: Path, folder: Path) -> InFolder | None:
    """A folder as a lock in `folder` names it, which follows no links."""
    relative = os.path.relpath(os.path.abspath(place), os.path.abspath(folder)).replace(os.sep, "/")
    parts = relative.split("/")
    if any((folder / "/".join(parts[: i + 1])).is_symlink() for i in range(len(parts))):
        return None
    try:
        return InFolder(folder=relative)
    except ValidationError:
        return None


def _lies(source: Source, name: str, folder: Path) -> bool:
    """Whether `name` names this place: a folder, a repo, or a repo at a revision, which the hub is asked for."""
    if describe(source) == name:
        return True
    if isinstance(source, InFolder):
        return os.path.abspath(Path(name).expanduser()) == os.path.abspath(folder / source.folder)
    if not isinstance(source, InRepo) or not name.removeprefix("hf://").lower().startswith(source.repo.lower()):
        return False
    try:
        ref = parse_ref(name if name.startswith("hf://") else f"hf://{name}")
    except HubError:
        return False
    if not isinstance(ref, HubRef) or ref.repo_id.lower() != source.repo.lower():
        return False
    return ref.revision is None or commit_of(ref).revision == source.commit


# --- looking at a stack -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gathered:
    """What was named, each patch judged. refs: what every patch of the stack was named by. settings: those of the only stack, decided.

    refused: why the stack does not stand; `stack` lets the later patch win then. apply: `kedit_hub.apply` of all this.
    """

    found: tuple[Fetched | FetchedStack, ...]
    refs: tuple[str, ...]
    stack: PatchStack
    settings: StackSettings
    locked: Lock | None
    refused: ConflictError | None
    apply: Callable[..., PatchedModel]


def gather(
    refs: Sequence[str],
    path: Where = LOCK,
    *,
    conflicts: Policy | None = None,
    mode: str | None = None,
    trust: Trust = None,
) -> Gathered:
    """The patches and stacks that are named, or without any the lock. conflicts, mode: None = as the only stack says."""
    if not refs and not os.path.lexists(_named(path)):
        raise _missing(Path(path))
    fetched = [fetch_any(ref) for ref in refs or [os.fspath(path)]]
    found: list[Fetched | FetchedStack] = []
    named: dict[str, str] = {}  # by patch id
    for ref, one in zip(refs or [os.fspath(path)], fetched):
        if isinstance(one, FetchedStack):
            one = FetchedStack(one.lock, tuple(admit(item, trust) for item in one.patches))
            for entry in one.lock.patches:
                named.setdefault(entry.id, describe(entry.source))
        else:
            one = admit(one, trust)
            named.setdefault(one.patch.id, ref)
        found.append(one)
    locks = [one.lock for one in found if isinstance(one, FetchedStack)]
    locked = locks[0] if len(locks) == 1 else None
    patches = [item.patch for one in found for item in (one.patches if isinstance(one, FetchedStack) else (one,))]
    make: Callable[..., PatchStack] = PatchStack if locked is None else locked.stack
    policy = conflicts if conflicts is not None or locked is not None else "error"
    try:
        stack, refused = make(patches, conflicts=policy), None
    except ConflictError as cause:
        stack, refused = make(patches, conflicts="latest"), cause
    settings = StackSettings() if locked is None else locked.decided if len(found) == 1 else locked.settings
    if mode is not None:
        settings = StackSettings.of(**{**settings.model_dump(), "mode": mode})
    on_base = partial(apply, found, conflicts="latest" if refused else policy, settings=settings, trust=trust)
    return Gathered(tuple(found), tuple(named[name] for name in stack.ids), stack, settings, locked, refused, on_base)


def status(
    refs: Sequence[str],
    path: Where = LOCK,
    *,
    conflicts: Policy | None = None,
    mode: str | None = None,
    base: str | None = None,
    no_base: bool = False,
    profile: BaseProfile | None = None,
    force: bool = False,
    trust: Trust = None,
    models: Sequence[str] = (),
) -> tuple[dict[str, Any], ConflictError | None]:
    """What patches do together, as JSON values, and why the stack does not stand, if so; no base is looked at then.

    refs: () = the lock. {"patches", "edits", "conflicts", "mode", "why", "levels", "modules", "digest"}.
    """
    gathered = gather(refs, path, conflicts=conflicts, mode=mode, trust=trust)
    stack, refused, locked = gathered.stack, gathered.refused, gathered.locked
    report: Mapping[str, Any] = {}
    if not (no_base or refused) and len(stack):
        report = gathered.apply(base, profile=profile, force=force, models=models).report
    chosen = by_form(stack, gathered.settings)
    told = {"mode": report.get("mode", chosen.mode), "why": report.get("why", chosen.why)}
    if locked is not None and locked.solved is not None and mode is None and len(gathered.found) == 1:
        told["why"] = f"as locked: {locked.solved.why}"
    found = {
        "patches": [
            {
                "ref": ref, "id": patch.id, "base": patch.manifest.base.id, "edits": len(patch.edits),
                "weight": stack.weights.get(patch.id, 1.0), "pinned": patch.id in stack.pinned,
                "strength": stack.strengths.get(patch.id, 1.0),
            }
            for ref, patch in zip(gathered.refs, stack)
        ],
        "edits": len(stack.edits),
        "conflicts": [_told(conflict, stack, refused is not None) for conflict in stack.conflicts],
        **told,
        "levels": report.get("levels", {}),
        "modules": report.get("modules", {}),
        "digest": None if locked is None else locked.digest,
    }  # fmt: skip
    return found, refused


def _told(conflict: Conflict, stack: PatchStack, refused: bool) -> dict[str, Any]:
    sides = {"earlier": conflict.earlier, "later": conflict.later}
    speak = [side for side, place in sides.items() if place not in stack.shadowed and not refused]
    return {
        "question": conflict.question,
        **{
            side: {"patch": place[0], "edit": place[1], "target": target}
            for (side, place), target in zip(sides.items(), conflict.targets)
        },
        "speaks": speak[0] if len(speak) == 1 else None,
    }


def conflicts(
    refs: Sequence[str],
    path: Where = LOCK,
    *,
    policy: Policy | None = None,
    mode: str | None = None,
    behaviour: bool = False,
    base: str | None = None,
    profile: BaseProfile | None = None,
    force: bool = False,
    trust: Trust = None,
    models: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[ConflictReport, ConflictError | None]:
    """The report of kedit_hub.evaluate.conflicts, and why the stack does not stand, if so.

    A base is loaded where its behaviour is asked for, or where it is named: only then a profile that is not at hand is measured.
    """
    gathered = gather(refs, path, conflicts=policy, mode=mode, trust=trust)
    if behaviour or base is not None:
        m = gathered.apply(base, profile=profile, force=force, models=models)
        profiles = dict(m.profiles)
        m.detach()  # what is left is the base
        made = conflict_report(
            gathered.stack, profiles=profiles, model=m.model, tokenizer=m.tokenizer, behaviour=behaviour,
            settings=gathered.settings, models=m.models, progress=progress,
        )  # fmt: skip
        return made, gathered.refused
    wanted = {patch.manifest.profile_id for patch in gathered.stack} | set(
        gathered.locked.profiles if gathered.locked else ()
    )
    known = [found for name in sorted(filter(None, wanted)) if (found := find_profile(name)) is not None]
    profiles = {one.module: one for one in (*known, *([] if profile is None else [profile]))}
    return conflict_report(gathered.stack, profiles=profiles, settings=gathered.settings), gathered.refused


# --- the lock as a whole ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Composed:
    """settings: what the stack was composed with. report: what was found. changed: the lock that keeps it, None where none was written."""

    settings: StackSettings
    report: Mapping[str, Any]
    changed: Changed | None


def solve(
    path: Where = LOCK,
    chosen: Mapping[str, object] = MappingProxyType({}),
    *,
    protect: Sequence[str] = (),
    defaults: bool = False,
    write: bool = False,
    base: str | None = None,
    profile: BaseProfile | None = None,
    force: bool = False,
    trust: Trust = None,
    models: Sequence[str] = (),
) -> Composed:
    """Compose the locked stack on its base; a mode that is left to the stack is chosen anew. write: into the lock.

    chosen: settings in place of those of the lock. protect: prompts in place of its own. defaults: forget both first.
    """
    index = _Index.read(path, there=True)
    if not index.lock.patches:
        raise KeditError(
            f"{index.path} names no patch, so there is nothing to solve: add one with `kedit stack add PATCH`."
        )
    gathered = gather((), path, trust=trust)
    (found,) = gathered.found
    assert isinstance(found, FetchedStack)
    if defaults:
        found = FetchedStack(_with(found.lock, settings=StackSettings(), protect=(), solved=None), found.patches)
    settings = StackSettings.of(**{**found.lock.settings.model_dump(), **chosen})
    m = apply(found, base, settings=settings, protect=protect, profile=profile, force=force, trust=trust, models=models)
    if not write:
        return Composed(settings, m.report, None)
    if profile is not None:
        save_profile(profile)  # under the id by which the lock names it
    made = lock(m, index.lock.sources, settings, _packed(index.lock))
    index.save(made)
    return Composed(settings, m.report, Changed(index.path, made, diff(index.lock, made)))


def verify(path: Where = LOCK) -> tuple[Lock, Verified | Broken]:
    """The lock, and whether every patch is what was locked."""
    index = _Index.read(path, there=True)
    return index.lock, index.lock.verify(beside(index.lock, index.path, pull_entry))


def read(ref: str) -> Lock:
    """A lock: a file of any name, or what a stack repo or a folder holds, whose patches are then fetched. For comparing two."""
    if Path(ref).is_file():
        return Lock.load(ref)
    file = lock_file(ref)
    if file is not None:
        return Lock.load(file)
    found = fetch_any(ref)
    if isinstance(found, FetchedStack):
        return found.lock
    raise KeditError(
        f"'{ref}' is a patch, and two locks are compared: name a {LOCK} or a stack repo, or use `kedit diff`."
    )


def push(
    repo: str,
    path: Where = LOCK,
    *,
    version: str | None = None,
    create_pr: bool = False,
    private: bool = False,
    token: Token = None,
    endpoint: str | None = None,
) -> Pushed:
    """The lock into a stack repo; patches that are in no repo go along. create_pr: propose it to a repo of somebody else."""
    if not os.path.lexists(_named(path)):
        raise _missing(Path(path))
    found = fetch_any(path, token=token, endpoint=endpoint)
    assert isinstance(found, FetchedStack)
    stack = found.lock.stack([one.patch for one in found.patches])
    return push_stack(
        found.lock, stack, repo, version=version, create_pr=create_pr, private=private, token=token, endpoint=endpoint
    )

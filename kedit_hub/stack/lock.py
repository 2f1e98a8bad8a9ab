"""kedit.lock: a stack and all that decides how it answers. Law: a lock gives exactly what was locked, or is refused with the reason.

    saved = lock(patched, {patch.id: InRepo(repo="ada/tower", commit="<40 hex digits>")}, StackSettings())
    saved.save("kedit.lock")
    here = Lock.load("kedit.lock")
    stack, settings = restore(here, beside(here, "kedit.lock", pull))

Patches are named by content and by a place that cannot move: a commit of a repo, a folder beside the lock, or the packed file beside
it. Whose they are is not written down: a lock is a stranger's word, and the author follows from the repo that is read. Nothing here
knows a hub: `fetch` comes from above. A lock that came from a hub names no folder (`parse` without `local`).
"""

import os
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, assert_never

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kedit_hub import strictjson
from kedit_hub.errors import KeditError, LimitError, PatchFormatError
from kedit_hub.limits import DEFAULT, MAX_LOCK_BYTES, MAX_LOCK_PATCHES
from kedit_hub.patch.fingerprint import Hex64
from kedit_hub.patch.manifest import Commit, ModulePath, Name, RepoId
from kedit_hub.patch.patch import Patch
from kedit_hub.patch.safefile import read_file, refuse_impostor
from kedit_hub.patch.scores import seal
from kedit_hub.patch.signature import CONFIG, EVALS, SIGNATURE
from kedit_hub.stack.packed import LOCK as LOCK
from kedit_hub.stack.packed import PACKED, digests, from_packed, read_packed, write_whole
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.precedence import Policy
from kedit_hub.stack.settings import Mode, StackSettings
from kedit_hub.stack.stack import MAX_WEIGHT, PatchStack

VERSION = 1
MAX_WHY = 1_000  # characters of a reason
MAX_PROTECTED = 10_000  # prompts


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


# --- where a patch lies -------------------------------------------------------------------------------------------

_SEGMENT = re.compile(r"\w[\w .+-]{0,127}")


def _relative(text: str) -> str:
    """Names below the folder of the lock: no "..", no hidden or absolute ones, no drives, nothing another system reads differently."""
    names = text.split("/")
    if len(names) > 16 or not all(_SEGMENT.fullmatch(name) and not name.endswith((" ", ".")) for name in names):
        raise ValueError(
            "must be a folder below that of the lock, written with / and without .., links or leading dots"
        )
    return text


class InRepo(_Part):
    """A commit of a Hub repo."""

    repo: RepoId
    commit: Commit


class InFolder(_Part):
    """A folder, relative to that of the lock."""

    folder: Annotated[str, Field(max_length=1024), AfterValidator(_relative)]


class InPack(_Part):
    """stack.json and stack.safetensors beside the lock."""

    packed: Literal[True]


Source = InRepo | InFolder | InPack


def describe(source: Source) -> str:
    """A source in one short text: repo@commit, the folder, or "packed"."""
    match source:
        case InRepo(repo=repo, commit=commit):
            return f"{repo}@{commit}"
        case InFolder(folder=folder):
            return folder
        case InPack():
            return "packed"
        case _:
            assert_never(source)


# --- the file -----------------------------------------------------------------------------------------------------


class LockedBase(_Part):
    """The model the patches were made for. fingerprint: sha256 over the fingerprints of all its modules the patches name."""

    id: RepoId
    revision: Commit | None
    model_type: Name
    fingerprint: Hex64


class Entry(_Part):
    """One patch. files: sha256 of config.json, evals.json and signature.json, each of which has one written form; the first covers
    every tensor, the last the card. signers: public keys that signed it, sorted. weight, pinned, strength: as in PatchStack; a strength
    of 1 is not written down.
    """

    id: Hex64
    source: Source
    files: dict[Literal["config.json", "evals.json", "signature.json"], Hex64]
    signers: tuple[Hex64, ...] = ()
    weight: float = Field(default=1.0, gt=0, le=MAX_WEIGHT)
    pinned: bool = False
    strength: float = Field(default=1.0, gt=0, le=1, exclude_if=lambda strength: strength == 1)


class SolvedModule(_Part):
    """lambdas: ridge of each solve on this module, () where nothing was solved. Predicted drift: on text, and at site positions."""

    lambdas: tuple[float, ...] = ()
    drift_predicted: float | None = None
    site_drift_predicted: float | None = None


class Solved(_Part):
    """What was decided when the stack was locked: `mode` holds from then on, the rest is for comparison."""

    mode: Mode
    why: str = Field(max_length=MAX_WHY)
    modules: dict[ModulePath, SolvedModule] = {}


_Place = tuple[Hex64, Annotated[int, Field(ge=0)]]


class Lock(_Part):
    """The contents of kedit.lock. patches: in stack order. choices: (winner, loser) pairs of (patch id, edit).
    protect: prompts that the base goes on answering.

    base: None of a stack without patches. solved: None where the stack was not composed yet, and profiles, ids of the base profiles it
    was composed with, is empty then. packed: sha256 of the packed files by name.
    """

    kedit_lock: Literal[1] = 1
    base: LockedBase | None = None
    settings: StackSettings = StackSettings()
    conflicts: Literal["error", "latest", "pin"] = "error"
    choices: tuple[tuple[_Place, _Place], ...] = ()
    profiles: tuple[Hex64, ...] = ()
    protect: tuple[Annotated[str, Field(max_length=DEFAULT.max_text_chars)], ...] = Field(
        default=(), max_length=MAX_PROTECTED
    )
    patches: tuple[Entry, ...] = ()
    solved: Solved | None = None
    packed: dict[Literal["stack.json", "stack.safetensors"], Hex64] | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Lock":
        ids = [entry.id for entry in self.patches]
        if len(set(ids)) != len(ids):
            raise ValueError("patches must name every patch once")
        if (self.base is None) != (not ids):
            raise ValueError("base must be given exactly where there are patches")
        if not {place[0] for choice in self.choices for place in choice} <= set(ids):
            raise ValueError("choices must be between the patches of the lock")
        if (self.packed is None) == any(isinstance(entry.source, InPack) for entry in self.patches):
            raise ValueError("packed must be given exactly where a patch is packed")
        if self.packed is not None and set(self.packed) != set(PACKED):
            raise ValueError(f"packed must hold the digests of {' and '.join(PACKED)}")
        if self.solved is not None and self.settings.mode not in ("auto", self.solved.mode):
            raise ValueError(f"solved as {self.solved.mode}, though the settings ask for {self.settings.mode}")
        return self

    @property
    def sources(self) -> dict[str, Source]:
        """Where each patch lies, by id: for locking the stack again after a change."""
        return {entry.id: entry.source for entry in self.patches}

    @property
    def decided(self) -> StackSettings:
        """The settings to compose with: a mode that was left to the stack is the one it chose then."""
        if self.solved is None:
            return self.settings
        return self.settings.model_copy(update={"mode": self.solved.mode})

    @cached_property
    def digest(self) -> str:
        """64 hex digits over everything the file says."""
        return _digest(self.model_dump(mode="json"))

    def to_bytes(self) -> bytes:
        """kedit.lock."""
        value = self.model_dump(mode="json")
        return strictjson.pretty({**value, "digest": _digest(value)})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file whole or not at all. KeditError when it cannot be written."""
        write_whole(Path(path), self.to_bytes())
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Lock":
        """Read a file of one's own; it may name folders beside it. Raises as `parse` does."""
        return cls.parse(read_file(Path(path), MAX_LOCK_BYTES), local=True)

    @classmethod
    def parse(cls, data: bytes, *, local: bool = False) -> "Lock":
        """Read bytes. local: they lie in a folder of the user's own; without, a lock that names folders is refused.

        Raises PatchFormatError or LimitError, naming the field and the fault.
        """
        refuse_impostor(data, LOCK)
        value = strictjson.loads(data, what=LOCK, max_bytes=MAX_LOCK_BYTES)
        version = value.get("kedit_lock") if isinstance(value, dict) else None
        if type(version) is not int or version != VERSION:
            raise PatchFormatError(
                f"{LOCK} has kedit_lock {str(version)[:40]!r}; this kedit_hub reads {VERSION}. If it is newer, update kedit_hub."
            )
        listed = value.get("patches")
        if isinstance(listed, list) and len(listed) > MAX_LOCK_PATCHES:
            raise LimitError(f"{LOCK} names {len(listed):,} patches; at most {MAX_LOCK_PATCHES:,} are taken.")
        claimed = value.pop("digest", None)
        if claimed != (found := _digest(value)):
            raise PatchFormatError(
                f"{LOCK} says its digest is {str(claimed)[:64]!r}, its contents give {found!r}: it was damaged or changed by hand. "
                "Take it from where it came again, or lock the stack anew."
            )
        try:
            made = cls.model_validate_json(strictjson.canonical(value), strict=True)
        except ValidationError as cause:
            raise PatchFormatError(f"{LOCK} is not valid: {_fault(cause)}.") from None
        spelled = any("strength" in entry and entry["strength"] == 1 for entry in value.get("patches", []))
        if spelled or data != strictjson.pretty({**value, "digest": claimed}):
            raise PatchFormatError(
                f"{LOCK} is in another form than kedit_hub writes (spaces, escapes, order). Lock the stack anew."
            )
        named = next((entry.source for entry in made.patches if isinstance(entry.source, InFolder)), None)
        if named is not None and not local:
            raise PatchFormatError(
                f"{LOCK} names the folder {named.folder!r}, and came from elsewhere: only a lock of your own may name folders. Ask "
                "its author to push the stack with `kedit stack push`, which packs such patches."
            )
        return made

    def verify(self, fetch: "Fetch") -> "Verified | Broken":
        """Fetch every patch and compare it with what was locked. No model is touched."""
        patches, reasons = _fetched(self.patches, fetch)
        if not reasons:
            try:
                self.stack(patches)
                reasons += self._other_base(patches)
            except KeditError as cause:
                reasons.append(str(cause))
        return Broken(tuple(reasons)) if reasons else Verified(tuple(patches))

    def _other_base(self, patches: Iterable[Patch]) -> list[str]:
        found = _base(tuple(patches))
        if found == self.base:
            return []
        return [f"the lock is for the base {_named(self.base)}, its patches are for {_named(found)}"]

    def stack(self, patches: Iterable[Patch], conflicts: Policy | None = None) -> PatchStack:
        """The stack of the locked patches, and others behind them, with the weights, strengths, pins and choices of the lock.

        conflicts: None = the policy of the lock.
        """
        policy = self.conflicts if conflicts is None else conflicts
        return PatchStack(patches, conflicts=policy, **self.said_of(entry.id for entry in self.patches))

    def said_of(self, ids: Iterable[str]) -> dict[str, Any]:
        """What the lock says of these patches, as arguments of PatchStack: weights, strengths, pins, and choices between them."""
        held = set(ids)
        entries = [entry for entry in self.patches if entry.id in held]
        return {
            "weights": {entry.id: entry.weight for entry in entries if entry.weight != 1},
            "strengths": {entry.id: entry.strength for entry in entries if entry.strength != 1},
            "pinned": {entry.id for entry in entries if entry.pinned},
            "choices": [choice for choice in self.choices if {place[0] for place in choice} <= held],
        }


def _digest(value: Mapping[str, Any]) -> str:
    return sha256(b"kedit lock 1\n" + strictjson.canonical(value)).hexdigest()


def _fault(cause: ValidationError) -> str:
    first = cause.errors(include_url=False, include_context=False)[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, first['loc']))[:120]}: {first['msg']}, got {str(first['input'])[:80]!r}"


def _named(base: LockedBase | None) -> str:
    if base is None:
        return "none"
    return f"{base.id!r} ({base.model_type}, revision {base.revision}, fingerprints {base.fingerprint})"


# --- locking ------------------------------------------------------------------------------------------------------


def lock(
    found: PatchStack | PatchedModel,
    sources: Mapping[str, Source],
    settings: StackSettings | None = None,
    packed: Mapping[str, str] | None = None,
) -> Lock:
    """The lock of a stack; of a PatchedModel also what was decided when it was composed.

    sources: where each patch lies, by id. settings: None = those of the model, defaults for a stack. packed: what `pack`
    returned, where a source is InPack. Who won under a function that was asked is kept as choices, under "error".
    Raises KeditError: a patch without a source, patches of several bases, too many patches.
    """
    stack = found.stack if isinstance(found, PatchedModel) else found
    if len(stack) > MAX_LOCK_PATCHES:
        raise LimitError(f"A lock names at most {MAX_LOCK_PATCHES:,} patches; this stack has {len(stack):,}.")
    homeless = [patch.id[:12] for patch in stack if patch.id not in sources]
    if homeless:
        raise KeditError(
            f"it is not said where the patch {homeless[0]} lies: name a commit of a repo or a folder beside the lock, or pack it"
        )
    if settings is None:
        settings = found.settings if isinstance(found, PatchedModel) else StackSettings()
    try:
        return Lock(
            base=_base(stack.patches),
            settings=settings,
            conflicts="error" if callable(stack.policy) else stack.policy,
            choices=tuple(sorted(stack.choices)),
            profiles=_profiles(found.report) if isinstance(found, PatchedModel) and len(stack) else (),
            protect=found.protect if isinstance(found, PatchedModel) else (),
            patches=tuple(
                Entry(
                    id=patch.id,
                    source=sources[patch.id],
                    files=files_of(patch),  # type: ignore[arg-type]
                    signers=patch.signers,
                    weight=stack.weights.get(patch.id, 1.0),
                    pinned=patch.id in stack.pinned,
                    strength=stack.strengths.get(patch.id, 1.0),
                )
                for patch in stack
            ),
            solved=_solved(found.report) if isinstance(found, PatchedModel) and len(stack) else None,
            packed=None if packed is None else dict(packed),  # type: ignore[arg-type]
        )
    except ValidationError as cause:
        raise KeditError(f"this stack cannot be locked: {_fault(cause)}") from None


def files_of(patch: Patch) -> dict[str, str]:
    """sha256 of the files of a patch that are not tensors or text for people, by name: of the bytes they were read as."""
    files = {CONFIG: patch.manifest.to_bytes()}
    if patch.evals is not None:
        files[EVALS] = seal(patch.evals, patch.id)
    if patch.signature is not None:
        files[SIGNATURE] = patch.signature.to_bytes()
    return digests(files)


def _base(patches: tuple[Patch, ...]) -> LockedBase | None:
    if not patches:
        return None
    bases = [patch.manifest.base for patch in patches]
    names = sorted({(base.id, base.model_type) for base in bases})
    if len(names) > 1:
        told = ", ".join(f"{name!r} ({kind})" for name, kind in names[:5])
        raise KeditError(f"the patches are for {len(names)} bases ({told}), and a lock is for one: lock them apart")
    revisions = {base.revision for base in bases if base.revision is not None}
    prints: dict[str, set[bytes]] = {}
    for base in bases:
        for path, known in base.fingerprint.items():
            prints.setdefault(path, set()).add(
                strictjson.canonical(known.model_dump(mode="json", exclude_defaults=True))
            )
    told_prints = {path: sorted(text.decode() for text in texts) for path, texts in prints.items()}
    digest = sha256(b"kedit base 1\n" + strictjson.canonical(told_prints)).hexdigest()
    return LockedBase(
        id=names[0][0],
        revision=revisions.pop() if len(revisions) == 1 else None,
        model_type=names[0][1],
        fingerprint=digest,
    )


def _profiles(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Ids of the profiles that the stack was composed with."""
    return tuple(sorted({told["profile"] for told in report["modules"].values()}))


def _solved(report: Mapping[str, Any]) -> Solved:
    modules = {}
    for path, told in report["modules"].items():
        lambdas = told.get("lambda")
        modules[path] = SolvedModule(
            lambdas=tuple(map(float, lambdas)) if isinstance(lambdas, list) else (),
            drift_predicted=told.get("drift_predicted"),
            site_drift_predicted=told.get("site_drift_predicted"),
        )
    return Solved(mode=report["mode"], why=report["why"][:MAX_WHY], modules=modules)


# --- reading a lock back ------------------------------------------------------------------------------------------

Fetch = Callable[[Entry], Patch]  # what lies where the entry says; KeditError when nothing does


@dataclass(frozen=True)
class Verified:
    """Every patch is the one that was locked, in the order of the lock."""

    patches: tuple[Patch, ...]


@dataclass(frozen=True)
class Broken:
    """Why the lock does not hold."""

    reasons: tuple[str, ...]


def restore(lock: Lock, fetch: Fetch) -> tuple[PatchStack, StackSettings]:
    """Exactly the locked stack, and the settings to compose it with. KeditError with every reason where the lock does not hold."""
    found = lock.verify(fetch)
    match found:
        case Verified(patches):
            return lock.stack(patches), lock.decided
        case Broken(reasons):
            raise _does_not_hold(lock, reasons)
        case _:
            assert_never(found)


def kept(lock: Lock, fetch: Fetch, gone: Collection[str]) -> list[Patch]:
    """The locked patches but those whose ids are `gone`, which are not looked at: for changing a lock of which something was lost.

    KeditError with every reason where one is not what was locked.
    """
    patches, reasons = _fetched([entry for entry in lock.patches if entry.id not in gone], fetch)
    if reasons:
        raise _does_not_hold(lock, reasons)
    return patches


def _fetched(entries: Iterable[Entry], fetch: Fetch) -> tuple[list[Patch], list[str]]:
    """The patches that are what was locked, and why the others are not."""
    patches, reasons = [], []
    for entry in entries:
        try:
            patch = fetch(entry)
        except KeditError as cause:
            named = "what is packed" if isinstance(entry.source, InPack) else _where(entry)
            reasons.append(f"{named} cannot be had: {cause}")  # the same for all that is packed: told once
            continue
        wrong = _differences(entry, patch)
        reasons += wrong
        patches += [] if wrong else [patch]
    return patches, list(dict.fromkeys(reasons))


def _does_not_hold(lock: Lock, reasons: Sequence[str]) -> KeditError:
    more = f"\n  and {len(reasons) - 10} more" if len(reasons) > 10 else ""
    told = "".join(f"\n  {reason}" for reason in reasons[:10])
    return KeditError(
        f"the lock {lock.digest[:12]} does not hold:{told}{more}\nGet back what was locked, or lock the stack anew."
    )


def _where(entry: Entry) -> str:
    return f"patch {entry.id[:12]} ({describe(entry.source)})"


def _differences(entry: Entry, patch: Patch) -> list[str]:
    where = _where(entry)
    if patch.id != entry.id:
        return [f"{where} is another one: {patch.id} lies there, {entry.id} was locked"]
    if patch.signers != entry.signers:
        now, then = (", ".join(keys) or "nobody" for keys in (patch.signers, entry.signers))
        return [f"{where} is now signed by {now}, and was signed by {then} when it was locked"]
    found = files_of(patch)
    stated: dict[str, str] = {name: digest for name, digest in entry.files.items()}
    return [
        f"{name} of {where} has the digest {found.get(name, 'of no file')}, {stated.get(name, 'no such file')} was locked"
        for name in sorted(set(found) | set(stated))
        if found.get(name) != stated.get(name)
    ]


def beside(lock: Lock, path: str | os.PathLike[str], pull: Fetch) -> Fetch:
    """How to fetch the patches of a lock read from the file `path`: folders and packed patches lie beside it, `pull` gets commits."""
    folder = Path(path).parent
    return fetcher(lock, pull, folder=folder, packed=lambda: read_packed(folder))


def fetcher(lock: Lock, pull: Fetch, *, packed: Callable[[], Mapping[str, bytes]], folder: Path | None = None) -> Fetch:
    """One function for all sources. packed: the two packed files; read and parsed once, when a packed patch is first asked for."""
    opened: dict[str, Patch] | KeditError | None = None

    def unpacked() -> dict[str, Patch]:
        nonlocal opened
        if opened is None:
            try:
                opened = {patch.id: patch for patch in _opened(lock, packed())}
            except KeditError as cause:
                opened = cause
        if isinstance(opened, KeditError):
            raise opened
        return opened

    def fetch(entry: Entry) -> Patch:
        match entry.source:
            case InRepo():
                return pull(entry)
            case InFolder(folder=name):
                if folder is None:
                    raise KeditError(f"the folder {name!r} is not looked for: only a lock of your own may name folders")
                return Patch.load(_below(folder, name))
            case InPack():
                if entry.id not in unpacked():
                    raise KeditError(f"the packed files do not hold the patch {entry.id}")
                return unpacked()[entry.id]
            case _:
                assert_never(entry.source)

    return fetch


def _opened(lock: Lock, files: Mapping[str, bytes]) -> list[Patch]:
    """The patches of the packed files, which must be those that were locked; they are parsed only then."""
    found = digests(files)
    for name, digest in (lock.packed or {}).items():
        if found[name] != digest:
            raise KeditError(f"{name} has the digest {found[name]}, {digest} was locked: damaged or changed")
    return from_packed(files)


def _below(folder: Path, name: str) -> Path:
    """folder/name, where no part of name is a link."""
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise KeditError(f"{str(path)!r} is a symbolic link, and a lock follows none: name the folder itself")
    return path


# --- comparing two locks ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One difference. what: added, removed, moved, weight, strength, pinned, source, files, signers, or the name of a field of the lock or
    of its settings.

    patch: the id it is about, None for the whole stack. before, after: JSON values, None where there is nothing.
    """

    what: str
    patch: str | None
    before: Any
    after: Any


@dataclass(frozen=True)
class Diff:
    """What has to happen to `a` to become `b`; empty when both say the same."""

    changes: tuple[Change, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"changes": [vars(change) for change in self.changes]}

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(what, patch, before, after) as short texts."""
        return [
            (change.what, (change.patch or "")[:12], _short(change.before), _short(change.after))
            for change in self.changes
        ]


def diff(a: Lock, b: Lock) -> Diff:
    """Patches added, removed, moved, re-weighted, strengthened and re-pinned, and whatever else the two locks say differently.

    Moved are the fewest patches that have to move for the others to stay in order; positions count from 1.
    """
    old, new = ({entry.id: entry for entry in one.patches} for one in (a, b))
    at_old, at_new = ({name: i for i, name in enumerate(held, 1)} for held in (old, new))
    changes = [Change("removed", name, describe(old[name].source), None) for name in old if name not in new]
    changes += [Change("added", name, None, describe(new[name].source)) for name in new if name not in old]
    common = [name for name in new if name in old]
    still = set(_longest_rising([at_old[name] for name in common]))
    changes += [Change("moved", name, at_old[name], at_new[name]) for i, name in enumerate(common) if i not in still]
    for name in common:
        before, after = ({"strength": 1.0, **one[name].model_dump(mode="json")} for one in (old, new))
        changes += [
            Change(field, name, before[field], after[field])
            for field in ("weight", "strength", "pinned", "source", "files", "signers")
            if before[field] != after[field]
        ]
    changes += _fields(a.settings.model_dump(mode="json"), b.settings.model_dump(mode="json"), "settings.")
    rest = [one.model_dump(mode="json", exclude={"patches", "settings", "packed"}) for one in (a, b)]
    return Diff((*changes, *_fields(rest[0], rest[1], "")))


def _fields(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str) -> list[Change]:
    return [Change(prefix + key, None, before[key], after[key]) for key in before if before[key] != after[key]]


def _longest_rising(numbers: list[int]) -> list[int]:
    """Positions of one longest increasing subsequence of distinct numbers (patience sorting)."""
    tails: list[int] = []  # smallest last number of a rising run of each length, and where it stands
    places: list[int] = []
    before: list[int] = []
    for place, number in enumerate(numbers):
        length = bisect_left(tails, number)
        before.append(places[length - 1] if length else -1)
        tails[length : length + 1] = [number]
        places[length : length + 1] = [place]
    run, place = [], places[-1] if places else -1
    while place >= 0:
        run.append(place)
        place = before[place]
    return run[::-1]


def _short(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else strictjson.canonical(value).decode()
    return text if len(text) <= 60 else text[:59] + "…"

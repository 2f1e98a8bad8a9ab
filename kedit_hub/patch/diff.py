"""What is different between two patches, and which version that asks for. Law: whatever changes the id is seen, and a diff
read from its other end has the same entries mirrored.

    found = diff(Patch.load("old"), Patch.load("new"))
    suggest(found)                     ->  Suggestion("major", "an edit has another target")
    next_version("1.2.3", "minor")     ->  "1.3.0"

Edits are matched by the question they ask (`edits.questions`), not by their place. Nothing is run, no model is needed.
"""

import re
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Literal, TypeVar, assert_never

import torch
from torch import Tensor

from kedit_hub.edits import Edit, questions
from kedit_hub.errors import KeditError
from kedit_hub.patch.fingerprint import DTYPES, ModuleFingerprint
from kedit_hub.patch.manifest import Manifest
from kedit_hub.patch.patch import Patch
from kedit_hub.patch.signature import CARD, VERSION, Signature
from kedit_hub.strictjson import canonical

T = TypeVar("T")


@dataclass(frozen=True)
class Added(Generic[T]):
    new: T


@dataclass(frozen=True)
class Removed(Generic[T]):
    old: T


@dataclass(frozen=True)
class Changed(Generic[T]):
    old: T
    new: T


Change = Added[T] | Removed[T] | Changed[T]
Changes = Mapping[str, Change[Any]]  # by name, of JSON values
Evidence = Literal["added", "removed", "same", "other", "unknown"]


@dataclass(frozen=True)
class Diff:
    """What leads from the patch with id `old` to the one with id `new`; every part holds only what differs.

    edits: removed, changed (`changed_fields` says in what), added.  reordered: those that both have stand in another order.
    base: id, revision, model_type.  fingerprints: of modules whose evidence differs; it speaks of the "same" weights, of
    "other" weights, or cannot be compared ("unknown").
    making: the manifest's other fields.  settings, provenance: by dotted names.
    modules: by path, what the manifest says of each beside its tensors.  tensors: "P/t" as stored, in modules of both.
    relative: "P/t" -> ||new - old|| / ||old|| of float tensors of one shape, in float64; None where `old` is all zeros.
    evals: the parts of the scores that differ.  scores: the numbers among them, by path.
    signers: public keys.  signed: what they signed: repo_id, version and, where both patches are signed, the card's digest.
    """

    old: str
    new: str
    edits: tuple[Change[Edit], ...]
    reordered: bool
    base: Changes
    fingerprints: Mapping[str, Evidence]
    making: Changes
    settings: Changes
    modules: Changes
    tensors: Changes
    relative: Mapping[str, float | None]
    provenance: Changes
    evals: tuple[str, ...]
    scores: Mapping[tuple[str, ...], Change[float]]
    signers: tuple[Change[str], ...]
    signed: Changes

    @property
    def is_empty(self) -> bool:
        """True when nothing at all differs."""
        return not any(getattr(self, field.name) for field in fields(self) if field.name not in ("old", "new"))

    def to_dict(self) -> dict[str, Any]:
        """JSON values; {"change": "added" | "removed" | "changed", "old": .., "new": ..} for every entry."""

        def plain(changes: Changes) -> dict[str, Any]:
            return {name: _plain(change) for name, change in changes.items()}

        return {
            "old": self.old,
            "new": self.new,
            "edits": [_plain_edit(change) for change in self.edits],
            "reordered": self.reordered,
            "base": plain(self.base),
            "fingerprints": dict(self.fingerprints),
            "making": plain(self.making),
            "settings": plain(self.settings),
            "modules": plain(self.modules),
            "tensors": plain(self.tensors),
            "relative": dict(self.relative),
            "provenance": plain(self.provenance),
            "evals": list(self.evals),
            "scores": [{"name": list(name), **_plain(change)} for name, change in self.scores.items()],
            "signers": [_plain(change) for change in self.signers],
            "signed": plain(self.signed),
        }


def _plain(change: Change[Any]) -> dict[str, Any]:
    match change:
        case Added(new):
            return {"change": "added", "new": new}
        case Removed(old):
            return {"change": "removed", "old": old}
        case Changed(old, new):
            return {"change": "changed", "old": old, "new": new}
        case _:
            assert_never(change)


def _plain_edit(change: Change[Edit]) -> dict[str, Any]:
    plain = {name: side.to_record() if isinstance(side, Edit) else side for name, side in _plain(change).items()}
    return {**plain, "fields": list(changed_fields(change))} if isinstance(change, Changed) else plain


def changed_fields(change: Changed[Edit]) -> tuple[str, ...]:
    """The fields of an edit that differ, as `Edit` names them."""
    names = (field.name for field in fields(change.old))
    return tuple(name for name in names if getattr(change.old, name) != getattr(change.new, name))


def diff(a: Patch, b: Patch) -> Diff:
    """What leads from patch `a` to patch `b`."""
    old, new = a.manifest, b.manifest
    edits, reordered = _edits(a.edits, b.edits)
    shared = sorted(set(old.modules) & set(new.modules))
    entries = [_entries(manifest) for manifest in (old, new)]
    stored = [{f"{path}/{name}": entry for path in shared for name, entry in side[path][1].items()} for side in entries]
    tensors = _changes(*stored)
    return Diff(
        old=a.id,
        new=b.id,
        edits=edits,
        reordered=reordered,
        base=_changes(*(side.base.model_dump(mode="json", exclude={"fingerprint"}) for side in (old, new))),
        fingerprints=_fingerprints(old.base.fingerprint, new.base.fingerprint),
        making=_changes(*(_making(side) for side in (old, new))),
        settings=_changes(old.settings, new.settings),
        modules=_changes(*({path: about for path, (about, _) in side.items()} for side in entries)),
        tensors=tensors,
        relative={name: ratio for path in shared for name, ratio in _relative(path, a, b, tensors)},
        provenance=_changes(*(dict(dotted(side.provenance.model_dump(mode="json"))) for side in (old, new))),
        evals=tuple(_changes(a.evals or {}, b.evals or {})),
        scores=_changes(scores(a.evals), scores(b.evals)),
        signers=(
            *(Removed(key) for key in a.signers if key not in b.signers),
            *(Added(key) for key in b.signers if key not in a.signers),
        ),
        signed=_changes(*_signed(a.signature, b.signature)),
    )


def _changes(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> dict[Any, Change[Any]]:
    """By name, sorted. Values are compared as they are written: 1, 1.0 and true are three."""
    found: dict[Any, Change[Any]] = {}
    for name in sorted({*old, *new}):
        if name not in new:
            found[name] = Removed(old[name])
        elif name not in old:
            found[name] = Added(new[name])
        elif canonical(old[name]) != canonical(new[name]):
            found[name] = Changed(old[name], new[name])
    return found


def _making(manifest: Manifest) -> dict[str, Any]:
    """Every field of the manifest that has no part of its own in a diff."""
    return manifest.model_dump(mode="json", exclude={"edits", "base", "settings", "modules", "provenance"})


def _entries(manifest: Manifest) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """{module path: (what is said of it, {tensor name: what is said of that})}."""
    dumped = {path: entry.model_dump(mode="json", exclude_none=True) for path, entry in manifest.modules.items()}
    return {path: (entry, entry.pop("tensors")) for path, entry in dumped.items()}


def _signed(*signatures: Signature | None) -> list[dict[str, Any]]:
    """What each signature says beside digests; that of the card only where it can be compared."""
    said: list[dict[str, Any]] = [{} if one is None else one.statement.model_dump() for one in signatures]
    names = ("repo_id", "version")
    about: list[dict[str, Any]] = [{name: one[name] for name in names if one.get(name)} for one in said]
    return [{**own, "card": one["files"][CARD]} for own, one in zip(about, said)] if all(said) else about


def dotted(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested objects as one: {"versions": {"torch": "2.13"}} -> ("versions.torch", "2.13"). What is not set is left out."""
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from dotted(item, f"{prefix}{name}.")
        elif item not in (None, []):
            yield f"{prefix}{name}", item


# --- edits --------------------------------------------------------------------------------------------------------


def _prompt(edit: Edit) -> Hashable:
    return questions(edit)[0]


def _fact(edit: Edit) -> Hashable:
    return next(iter(questions(edit)[1:]), None)


# What makes two edits one, tried in this order. Where a patch asks a question twice, equal answers belong together.
_SAME: tuple[Callable[[Edit], Hashable], ...] = (
    lambda edit: edit,
    lambda edit: (_prompt(edit), edit.target),
    _prompt,
    lambda edit: (_fact(edit), edit.target) if _fact(edit) else None,
    _fact,
)


def _edits(old: Sequence[Edit], new: Sequence[Edit]) -> tuple[tuple[Change[Edit], ...], bool]:
    """(removed, changed and added ones; whether those that stayed stand in another order)."""
    partner: dict[int, int] = {}  # position in `old` -> position in `new`
    alone = set(range(len(new)))
    for same in _SAME:
        waiting: dict[Hashable, deque[int]] = defaultdict(deque)
        for position in sorted(alone):
            waiting[same(new[position])].append(position)
        for position in sorted(set(range(len(old))) - set(partner)):
            key = same(old[position])
            if key is not None and waiting.get(key):
                partner[position] = waiting[key].popleft()
                alone.remove(partner[position])
    stayed = sorted(partner.items())
    order = [at for _, at in stayed]
    removed = [Removed(edit) for position, edit in enumerate(old) if position not in partner]
    changed = [Changed(old[i], new[j]) for i, j in stayed if old[i] != new[j]]
    return (*removed, *changed, *(Added(new[position]) for position in sorted(alone))), order != sorted(order)


# --- weights ------------------------------------------------------------------------------------------------------


def _fingerprints(old: Mapping[str, ModuleFingerprint], new: Mapping[str, ModuleFingerprint]) -> dict[str, Evidence]:
    found: dict[str, Evidence] = {}
    for path in sorted({*old, *new}):
        if path not in new:
            found[path] = "removed"
        elif path not in old:
            found[path] = "added"
        elif old[path] != new[path]:
            found[path] = _evidence(old[path], new[path])
    return found


def _evidence(old: ModuleFingerprint, new: ModuleFingerprint) -> Evidence:
    """Whether two unequal fingerprints may be of one matrix, seen in two precisions.

    Both must agree in the coarser of the two; bfloat16 and float16 cannot be rounded into each other, and row maxima of an
    int8 base have forgotten which precision they were rounded from, so of these only agreement tells.
    """
    if old.shape != new.shape:
        return "other"
    meet = new.dtype if old.dtype == "float32" else old.dtype if new.dtype in (old.dtype, "float32") else None
    for ours, theirs in ((old.values, new.values), (old.blocks, new.blocks)):
        told = [name for name in DTYPES if name in ours and name in theirs and meet in (name, None)]
        if any(ours[name] == theirs[name] for name in told):
            return "same"
        if told:
            return "other" if meet else "unknown"
    return "same" if any(name in old.rows and old.rows[name] == new.rows.get(name) for name in DTYPES) else "unknown"


def _relative(path: str, a: Patch, b: Patch, stored: Changes) -> Iterator[tuple[str, float | None]]:
    """("P/t", relative difference) of the tensors as they are meant, which may be stored in another form."""
    ours, theirs = a.deltas[path].tensors(), b.deltas[path].tensors()
    for name in sorted(set(ours) & set(theirs)):
        old, new = ours[name], theirs[name]
        comparable = old.is_floating_point() and new.is_floating_point() and old.shape == new.shape
        if comparable and (f"{path}/{name}" in stored or not torch.equal(old, new)):
            yield f"{path}/{name}", relative_difference(old, new)


def relative_difference(old: Tensor, new: Tensor) -> float | None:
    """||new - old|| / ||old|| over all entries of two float tensors of one shape, in float64; None where `old` is all zeros
    and `new` is not. A piece at a time, so that large tensors are not copied whole.
    """
    moved = size = 0.0
    for x, y in zip(old.reshape(-1).split(1 << 20), new.reshape(-1).split(1 << 20)):
        moved += float((y.double() - x.double()).square().sum())
        size += float(x.double().square().sum())
    if moved == 0:
        return 0.0
    return (moved / size) ** 0.5 if size > 0 else None


# --- scores -------------------------------------------------------------------------------------------------------


def scores(evals: Mapping[str, Any] | None) -> dict[tuple[str, ...], float]:
    """Every number of the averages and of the drift: {("protocols", "generate", "locality", "neighbour"): 1.0, ...}.

    What is no number (text, lists, null) is passed over; reading bounded how large and how deep the object can be.
    """
    parts = {name: (evals or {}).get(name) for name in ("protocols", "drift")}
    return dict(_numbers(parts, ()))


def _numbers(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(value, Mapping):
        for name in sorted(value):
            yield from _numbers(value[name], (*path, name))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


# --- versions -----------------------------------------------------------------------------------------------------

Step = Literal["none", "patch", "minor", "major"]


@dataclass(frozen=True)
class Rule:
    """`when` in words and as code: that asks for this step at least."""

    step: Step
    when: str
    holds: Callable[[Diff], bool]


@dataclass(frozen=True)
class Suggestion:
    """The step and, in words, why."""

    step: Step
    reason: str


# The largest step comes first. Provenance is shown and does not count. A card is seen where both patches are signed.
RULES = (
    Rule("major", "it is made for another base", lambda d: bool(d.base) or "other" in d.fingerprints.values()),
    Rule("major", "an edit was removed", lambda d: any(isinstance(change, Removed) for change in d.edits)),
    Rule("major", "an edit has another target", lambda d: any("target" in names for names in _changed(d))),
    Rule("minor", "an edit was added", lambda d: any(isinstance(change, Added) for change in d.edits)),
    Rule(
        "minor",
        "the same edits were made again in another way",
        lambda d: bool(
            any(_changed(d)) or d.reordered or d.making or d.settings or d.modules or d.tensors or d.fingerprints
        ),
    ),
    Rule("patch", "only scores, signature or card changed", lambda d: bool(d.evals or d.signers or d.signed)),
)


def _changed(found: Diff) -> list[tuple[str, ...]]:
    """Per changed edit, the fields that differ."""
    return [changed_fields(change) for change in found.edits if isinstance(change, Changed)]


def suggest(found: Diff) -> Suggestion:
    """The version step of semver.org that the first fitting RULES ask for; those of one step give the reason together."""
    fitting = [rule for rule in RULES if rule.holds(found)]
    if not fitting:
        return Suggestion("none", "nothing that counts has changed")
    step = fitting[0].step
    return Suggestion(step, "; ".join(rule.when for rule in fitting if rule.step == step))


def next_version(version: str, step: Step) -> str:
    """The version after `version`, "1.2.3" or "v1.2.3" (semver.org), by one step. Raises KeditError for other text.

    0.y.z promises nothing yet (semver.org, item 4), so there a major step is taken as a minor one: 0.3.1 -> 0.4.0; going to
    1.0.0 is a decision of people. A prerelease comes before its release, so 1.2.0-rc.1 becomes 1.2.0 where that is as large
    a step as asked, and takes the step where it is not (major: 2.0.0), as npm does.
    """
    if not re.fullmatch(f"v?(?:{VERSION})", version):
        raise KeditError(f"'{version}' is not a version. Write three numbers, like 1.2.0 or 1.2.0-rc.1.")
    if step == "none":
        return version
    v = "v" if version.startswith("v") else ""
    numbers, _, prerelease = version.removeprefix("v").partition("-")
    major, minor, patch = map(int, numbers.split("."))
    if step == "major" and major == 0:
        step = "minor"
    if step == "major":
        after = (major if prerelease and minor == patch == 0 else major + 1, 0, 0)
    elif step == "minor":
        after = (major, minor if prerelease and patch == 0 else minor + 1, 0)
    else:
        after = (major, minor, patch if prerelease else patch + 1)
    return v + ".".join(map(str, after))

"""A stack: the set of patches a model answers with.

What a stack does is a function of the set (and, where two patches contradict each other, of their order, pins and choices). It is
immutable: `add`, `remove`, `reorder`, `pin` and `weigh` return another stack, so a stack without a patch is the stack that never had it.

    PatchStack([a, b], conflicts="latest", weights={a.id: 2.0}, pinned=[b.id])
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError
from kedit_hub.patch.patch import Patch
from kedit_hub.stack.conflicts import Conflict, find_conflicts
from kedit_hub.stack.precedence import POLICIES, Choice, Place, Policy, settle, silent

MAX_WEIGHT = 1e6  # a patch may count for much in the joint solve, not drown the others by any factor


class PatchStack:
    """See the module docstring.

    conflicts: "error" refuses patches that answer one question differently; "latest" lets the later one speak, "pin" the pinned one,
    and a callable (Conflict -> "earlier" | "later") is asked; the loser speaks again as soon as the winner is removed.
    weights: how much a patch's rows count in a joint solve, in (0, 1e6]; 1 where nothing is said. pinned: patches whose rows are met
    exactly there, and which win in the gate. choices: (winner, loser) pairs of edits that were decided before.
    strengths: share of its change that a patch makes, in (0, 1], in every mode (of a joint solve: the share it asks for, under the same
    budget of drift); 1 where nothing is said.
    Raises ConflictError where a contradiction stays open, KeditError for anything malformed.
    """

    def __init__(
        self,
        patches: Iterable[Patch] = (),
        *,
        conflicts: Policy = "error",
        weights: Mapping[str, float] = MappingProxyType({}),
        pinned: Iterable[str | Patch] = (),
        choices: Iterable[Choice] = (),
        strengths: Mapping[str, float] = MappingProxyType({}),
    ):
        if conflicts not in POLICIES and not callable(conflicts):
            raise KeditError(f'conflicts={conflicts!r} is unknown; take "error", "latest", "pin" or a function to ask')
        distinct: dict[str, Patch] = {}
        for patch in patches:
            if not isinstance(patch, Patch):
                raise KeditError(
                    f"a stack holds patches, not {type(patch).__name__} {patch!r}; load it with Patch.load or kedit_hub.pull"
                )
            distinct.setdefault(patch.id, patch)
        self.patches: tuple[Patch, ...] = tuple(distinct.values())
        self.policy: Policy = conflicts
        self.weights: Mapping[str, float] = MappingProxyType(
            {self.find(name).id: _weight(name, weight) for name, weight in weights.items()}
        )
        self.strengths: Mapping[str, float] = MappingProxyType(
            {self.find(name).id: _strength(name, strength) for name, strength in strengths.items()}
        )
        self.pinned: frozenset[str] = frozenset(self.find(patch).id for patch in pinned)
        self.conflicts: tuple[Conflict, ...] = tuple(find_conflicts(self.patches))
        settled = settle(self.conflicts, conflicts, self.pinned, frozenset(choices))
        self.choices: frozenset[Choice] = settled if callable(conflicts) else settled & frozenset(choices)
        self.shadowed: frozenset[Place] = silent(settled)
        missing = {needed for patch in self.patches for needed in patch.manifest.requires} - set(self.ids)
        if missing:
            raise KeditError(
                f"the stack needs the patches {', '.join(sorted(m[:12] for m in missing))}, which its patches build on: add them"
            )

    def _with(self, patches: Iterable[Patch]) -> "PatchStack":
        """Other patches under the same policy; weights, strengths, pins and choices of those that stay."""
        held = {patch.id: patch for patch in patches}
        return PatchStack(
            held.values(),
            conflicts=self.policy,
            weights={name: weight for name, weight in self.weights.items() if name in held},
            pinned=[name for name in self.pinned if name in held],
            choices=[(winner, loser) for winner, loser in self.choices if winner[0] in held and loser[0] in held],
            strengths={name: strength for name, strength in self.strengths.items() if name in held},
        )

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(patch.id for patch in self.patches)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits that speak: all but the shadowed ones."""
        return tuple(
            edit for patch in self.patches for i, edit in enumerate(patch.edits) if (patch.id, i) not in self.shadowed
        )

    def add(self, *patches: Patch) -> "PatchStack":
        return self._with((*self.patches, *patches))

    def foresee(self, edits: Sequence[Edit]) -> None:
        """ConflictError where a patch of these edits could not be added. A policy that asks is not asked yet."""
        if not callable(self.policy):
            coming = _Coming(tuple(edits))
            settle(find_conflicts([*self.patches, coming]), self.policy, self.pinned, self.choices)

    def remove(self, *patch_ids: str | Patch) -> "PatchStack":
        gone = {self.find(patch_id).id for patch_id in patch_ids}
        return self._with(patch for patch in self.patches if patch.id not in gone)

    def only(self, patch_ids: Iterable[str | Patch]) -> "PatchStack":
        kept = {self.find(patch_id).id for patch_id in patch_ids}
        return self._with(patch for patch in self.patches if patch.id in kept)

    def reorder(self, patch_ids: Iterable[str | Patch]) -> "PatchStack":
        """The named patches last, in this order, so that they win under "latest"; the others before them, as they were."""
        named = [self.find(patch_id) for patch_id in patch_ids]
        ids = {patch.id for patch in named}
        if len(ids) != len(named):
            raise KeditError(f"the order names a patch twice: {', '.join(patch.id[:12] for patch in named)}")
        return self._with([patch for patch in self.patches if patch.id not in ids] + named)

    def pin(self, *patch_ids: str | Patch) -> "PatchStack":
        return self._changed(pinned=self.pinned | {self.find(patch_id).id for patch_id in patch_ids})

    def unpin(self, *patch_ids: str | Patch) -> "PatchStack":
        return self._changed(pinned=self.pinned - {self.find(patch_id).id for patch_id in patch_ids})

    def weigh(self, patch_id: str | Patch, weight: float) -> "PatchStack":
        return self._changed(weights={**self.weights, self.find(patch_id).id: weight})

    def strengthen(self, patch_id: str | Patch, strength: float) -> "PatchStack":
        return self._changed(strengths={**self.strengths, self.find(patch_id).id: strength})

    def _changed(self, **how: Any) -> "PatchStack":
        same = {"conflicts": self.policy, "weights": self.weights, "pinned": self.pinned, "choices": self.choices}
        return PatchStack(self.patches, **(same | {"strengths": self.strengths} | how))

    def find(self, patch_id: str | Patch) -> Patch:
        """By id, by a prefix of it of at least 6 digits, or the patch itself. KeditError when the stack does not hold it."""
        wanted = patch_id.id if isinstance(patch_id, Patch) else str(patch_id)
        hits = [
            patch for patch in self.patches if patch.id == wanted or (len(wanted) >= 6 and patch.id.startswith(wanted))
        ]
        if len(hits) != 1:
            held = ", ".join(patch.id[:12] for patch in self.patches) or "nothing"
            raise KeditError(
                f'the stack holds {"several patches" if hits else "no patch"} "{wanted[:64]}"; it holds {held}'
            )
        return hits[0]

    def __len__(self) -> int:
        return len(self.patches)

    def __iter__(self) -> Iterator[Patch]:
        return iter(self.patches)

    def __contains__(self, patch: object) -> bool:
        return (patch.id if isinstance(patch, Patch) else patch) in self.ids

    def __repr__(self) -> str:
        return f"PatchStack({len(self.patches)} patches, {len(self.edits)} edits)"


@dataclass(frozen=True)
class _Coming:
    """Edits that no patch holds yet."""

    edits: tuple[Edit, ...]
    id: str = "to be made"


def _weight(name: str, weight: float) -> float:
    if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 < weight <= MAX_WEIGHT:
        raise KeditError(
            f"the weight {weight!r} of patch {name[:12]} is not in (0, {MAX_WEIGHT:g}]; 1 is an ordinary one"
        )
    return float(weight)


def _strength(name: str, strength: float) -> float:
    if not isinstance(strength, (int, float)) or isinstance(strength, bool) or not 0 < strength <= 1:
        raise KeditError(
            f"the strength {strength!r} of patch {name[:12]} is not in (0, 1]; 1 is the whole change, for none of it leave the patch out"
        )
    return float(strength)

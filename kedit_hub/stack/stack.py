"""A stack: the set of patches a model answers with.

What a stack does is a function of the set (and, where two patches contradict each other, of their order). It is immutable: `add` and
`remove` return another stack, so a stack without a patch is the stack that never had it.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

from kedit_hub.edits import Edit
from kedit_hub.errors import ConflictError, KeditError
from kedit_hub.patch.patch import Patch
from kedit_hub.stack.conflicts import Conflict, find_conflicts, shadowed

Policy = Literal["error", "latest"]


class PatchStack:
    """PatchStack([a, b], conflicts="error").

    conflicts: "error" refuses patches that answer one question differently; "latest" lets the later one speak, and the earlier one again
    as soon as the later one is removed.
    """

    def __init__(self, patches: Iterable[Patch] = (), *, conflicts: Policy = "error"):
        if conflicts not in ("error", "latest"):
            raise KeditError(f'conflicts={conflicts!r} is unknown; take "error" or "latest"')
        distinct: dict[str, Patch] = {}
        for patch in patches:
            if not isinstance(patch, Patch):
                raise KeditError(
                    f"a stack holds patches, not {type(patch).__name__} {patch!r}; load it with Patch.load or kedit_hub.pull"
                )
            distinct.setdefault(patch.id, patch)
        self.patches: tuple[Patch, ...] = tuple(distinct.values())
        self.policy: Policy = conflicts
        self.conflicts: tuple[Conflict, ...] = tuple(find_conflicts(self.patches))
        if self.conflicts and conflicts == "error":
            listed = "; ".join(str(conflict) for conflict in self.conflicts[:5]) + (
                "; ..." if len(self.conflicts) > 5 else ""
            )
            raise ConflictError(
                f"{len(self.conflicts)} question(s) would be answered in two ways: {listed}. Take one of the patches out, or pass "
                'conflicts="latest" to let the later one win.'
            )
        self.shadowed: frozenset[tuple[str, int]] = frozenset(shadowed(self.conflicts))
        missing = {needed for patch in self.patches for needed in patch.manifest.requires} - set(self.ids)
        if missing:
            raise KeditError(
                f"the stack needs the patches {', '.join(sorted(m[:12] for m in missing))}, which its patches build on: add them"
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
        return PatchStack((*self.patches, *patches), conflicts=self.policy)

    def remove(self, *patch_ids: str | Patch) -> "PatchStack":
        gone = {self.find(patch_id).id for patch_id in patch_ids}
        return PatchStack((patch for patch in self.patches if patch.id not in gone), conflicts=self.policy)

    def only(self, patch_ids: Iterable[str | Patch]) -> "PatchStack":
        kept = {self.find(patch_id).id for patch_id in patch_ids}
        return PatchStack((patch for patch in self.patches if patch.id in kept), conflicts=self.policy)

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

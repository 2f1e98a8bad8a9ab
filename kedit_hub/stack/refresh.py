"""Rows at several layers, each solved where the layers below it leave the model. Law: a function of the set of patches.

A row of an upper layer was measured on the base (or on the base with its own patch). With edits of others below, its key is
elsewhere. So the stack is put together bottom-up, with forward passes alone:

    l1: compose        l2: measure keys and outputs with l1 in place, r = V* - output, compose        l3: ...

V*, what a row wants its map to say, stays. A layer with nothing below it is not measured at all: for rows that all lie on
one layer this is `compose`, bit for bit. Every patch is measured by itself, so its rows do not depend on who else is.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from kedit_hub.base.families import family_of
from kedit_hub.patch.deltas import Associative
from kedit_hub.patch.manifest import layer_of
from kedit_hub.patch.patch import Patch
from kedit_hub.runtime.attach import Attachment
from kedit_hub.stack.compose import Composition
from kedit_hub.stack.stack import PatchStack
from kedit_hub.stack.stored import Beneath, beneath

Remeasure = Callable[[Patch, str, nn.Module, Sequence[Beneath]], Associative]


@dataclass(frozen=True)
class Refreshed:
    """composition: of `stack`, whose patches have the ids they had and the rows they have here. paths: measured anew, bottom-up."""

    composition: Composition
    stack: PatchStack
    paths: tuple[str, ...]


def refresh(
    stack: PatchStack, model: nn.Module, compose: Callable[[PatchStack], Composition], remeasure: Remeasure
) -> Refreshed:
    """The stack composed bottom-up. model: the base, with nothing of the stack on it, at the start and at the end.

    compose: `kedit_hub.stack.compose.compose` with all but the stack given. remeasure (patch, path, model, under): the rows of
    the patch on one module as the model computes them then; under: changes of the same weight that the patch builds on.
    See kedit_hub.editors.rebase.remeasured, whose KeditError says which rows cannot be measured again.
    """
    edited = {path for patch in stack for path in patch.deltas}
    rows = {path for patch in stack for path, delta in patch.deltas.items() if isinstance(delta, Associative)}
    composition = compose(stack)
    done: list[str] = []
    for path in sorted(rows, key=lambda path: (place(model, path), path)):
        here = place(model, path)
        if not any(place(model, other) < here for other in edited):
            continue
        below = lower(composition, model, here)
        attachment = Attachment(model, below.branches, below.watchers)
        try:
            measured = {
                patch.id: remeasure(patch, path, model, beneath(patch, path, stack))
                for patch in stack
                if isinstance(patch.deltas.get(path), Associative)
            }
        finally:
            attachment.detach()
        stack = _with_rows(stack, path, measured)
        composition = compose(stack)
        done.append(path)
    composition.report["refreshed"] = list(done)
    whole = composition.whole or bool(done)  # what an upper row does depends on the rows below
    return Refreshed(replace(composition, whole=whole), stack, tuple(done))


def place(model: nn.Module, path: str) -> tuple[int, bool]:
    """Where in a forward pass a module runs: its layer, and whether it is the last linear map of its block."""
    family = family_of(model)
    return layer_of(path) or 0, family.inside(path) == family.linear


def lower(composition: Composition, model: nn.Module, top: tuple[int, bool]) -> Composition:
    """What of it runs before `top`: its branches there, and what they listen to."""
    branches = {path: hung for path, hung in composition.branches.items() if place(model, path) < top}
    kept = {id(branch) for hung in branches.values() for branch in hung}
    watchers = {
        path: [watch for watch in watching if id(watch.__self__) in kept]
        for path, watching in composition.watchers.items()
    }
    return replace(composition, branches=branches, watchers={path: found for path, found in watchers.items() if found})


def _with_rows(stack: PatchStack, path: str, measured: Mapping[str, Associative]) -> PatchStack:
    """The same stack, with other rows on one module under the same ids: they are derived, and never leave this process."""
    changed = copy.copy(stack)
    changed.patches = tuple(
        replace(patch, deltas={**patch.deltas, path: measured[patch.id]}, signature=None)
        if patch.id in measured
        else patch
        for patch in stack
    )
    return changed

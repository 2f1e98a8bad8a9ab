"""The stored rows of all patches on one module, side by side. Law: patches in the order of their ids, without their silent edits,
so that a set gives the same bits always.

    stored = gather(patches, path, stack, module, exact=True)
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from kedit_hub.base.profile import BaseProfile
from kedit_hub.errors import KeditError
from kedit_hub.patch.deltas import Associative
from kedit_hub.patch.deltas.weights import Weights
from kedit_hub.patch.patch import Patch
from kedit_hub.stack.effects import effect
from kedit_hub.stack.stack import PatchStack

OMEGA_BOUND = 1e6  # a stranger's patch may ask to be met exactly, not to outweigh everything by any factor it likes


@dataclass(frozen=True)
class Stored:
    """The speaking rows of all patches on one module; of changes of the weight what they are meant to do."""

    keys: Tensor  # (n, d)
    residuals: Tensor  # (n, m) towards the stored values, on the base at hand
    omega: Tensor  # (n,) inf: of a pinned patch, met exactly
    row_edit: Tensor  # (n,) -> edit, counted over all patches
    context_keys: Tensor  # (k, d)
    context_row: Tensor  # (k,) -> row
    gate_keys: Tensor | None  # (g, dg)
    gate_edit: Tensor | None  # (g,) -> edit
    counter_keys: Tensor  # (c, d)
    counter_edit: Tensor  # (c,) -> edit
    thresholds: Tensor  # (E, 2) of the gate, subject and answer; NaN where the patch leaves it to the profile
    pinned: Tensor  # (E,) bool
    whitened: Tensor | None  # (n, d) (C0 + rho I)^-1 keys, where every patch brings them for the profile in use
    edit_owner: tuple[str, ...]  # (E,) patch id
    row_owner: tuple[str, ...]  # (n,) patch id

    def by_context(self) -> "Stored":
        """A row for every context key, which wants what its row wants and carries its share of the row's weight."""
        row, owners = self.context_row, self.row_owner
        count = torch.bincount(row, minlength=len(self.keys))
        return replace(
            self,
            keys=self.context_keys,
            residuals=self.residuals[row],
            omega=self.omega[row] / count[row],
            row_edit=self.row_edit[row],
            context_row=torch.arange(len(row)),
            whitened=None,
            row_owner=tuple(owners[i] for i in row.tolist()),
        )


@dataclass(frozen=True)
class _Part:
    """What one patch stores, rows and edits counted within it."""

    keys: Tensor
    residuals: Tensor
    row_edit: Tensor
    context_keys: Tensor
    context_row: Tensor
    gate: tuple[Tensor, Tensor] | None  # keys (g, dg), edit (g,)
    counter: tuple[Tensor, Tensor]  # keys (c, d), edit (c,)
    thresholds: Tensor
    whitened: Tensor | None


def speaking(patch: Patch, stack: PatchStack) -> Tensor:
    """(E,) bool: which edits of the patch are not silent in the stack."""
    return torch.tensor([(patch.id, i) not in stack.shadowed for i in range(len(patch.edits))])


def gather(
    patches: Sequence[Patch],
    path: str,
    stack: PatchStack,
    module: nn.Module,
    *,
    exact: bool,
    profile: BaseProfile | None = None,
) -> Stored:
    """The rows that the patches, in order of id, put on one module, with residuals towards the stored values on this base.

    exact: whether the base is the one the residuals were measured on. profile: the one that is solved under; whitened keys of
    another are left out, and without one changes of the weight have no rows.
    """
    parts: list[tuple[Patch, _Part]] = []
    for patch in patches:
        delta, speaks = patch.deltas.get(path), speaking(patch, stack)
        if isinstance(delta, Associative):
            known = profile is not None and patch.manifest.profile_id in profile.ids
            here = None if exact else Start(module, beneath(patch, path, stack))
            parts.append((patch, _scaled(_stored(delta, speaks, here, portable=known), stack.strengths.get(patch.id))))
        elif isinstance(delta, Weights) and profile is not None:
            parts.append((patch, _scaled(_meant(delta, speaks, profile), stack.strengths.get(patch.id))))
    rows = _starts([len(part.keys) for _, part in parts])
    edits = _starts([len(patch.edits) for patch, _ in parts])
    gates = [(part.gate, first) for (_, part), first in zip(parts, edits)]
    gated = [
        (keys, edit + first) for (keys, edit), first in ((gate, first) for gate, first in gates if gate is not None)
    ]
    counter = [(part.counter[0], part.counter[1] + first) for (_, part), first in zip(parts, edits)]
    whitened = [part.whitened for _, part in parts if part.whitened is not None]
    return Stored(
        keys=torch.cat([part.keys for _, part in parts]),
        residuals=torch.cat([part.residuals for _, part in parts]),
        omega=torch.cat([torch.full((len(part.keys),), _omega(patch, stack)) for patch, part in parts]),
        row_edit=torch.cat([part.row_edit + first for (_, part), first in zip(parts, edits)]),
        context_keys=torch.cat([part.context_keys for _, part in parts]),
        context_row=torch.cat([part.context_row + first for (_, part), first in zip(parts, rows)]),
        gate_keys=torch.cat([keys for keys, _ in gated]) if len(gated) == len(parts) else None,
        gate_edit=torch.cat([edit for _, edit in gated]) if len(gated) == len(parts) else None,
        counter_keys=torch.cat([keys for keys, _ in counter]),
        counter_edit=torch.cat([edit for _, edit in counter]),
        thresholds=torch.cat([part.thresholds for _, part in parts]),
        pinned=torch.tensor([patch.id in stack.pinned for patch, _ in parts for _ in patch.edits]),
        whitened=torch.cat(whitened) if len(whitened) == len(parts) else None,
        edit_owner=tuple(patch.id for patch, _ in parts for _ in patch.edits),
        row_owner=tuple(patch.id for patch, part in parts for _ in part.keys),
    )


def _scaled(part: _Part, strength: float | None) -> _Part:
    return part if strength is None else replace(part, residuals=part.residuals * strength)


def _starts(counts: Sequence[int]) -> list[int]:
    """Where each of several runs of these lengths begins."""
    return [0, *accumulate(counts)][:-1]


@dataclass(frozen=True)
class Beneath:
    """A change of a weight that rows start from, at the strength it has in the stack."""

    weights: Weights
    strength: float

    def change(self, x: Tensor) -> Tensor:
        """(n, m) float32 of inputs x (n, d)."""
        return self.strength * self.weights.change(x).float()


def beneath(patch: Patch, path: str, stack: PatchStack) -> list[Beneath]:
    """Changes of the same weight that the patch was rebased onto, and so starts from."""
    return changes_of(path, [other for other in stack if other.id in patch.manifest.requires], stack)


def changes_of(path: str, patches: Iterable[Patch], stack: PatchStack) -> list[Beneath]:
    """What these patches of the stack change of one weight."""
    return [
        Beneath(delta, stack.strengths.get(patch.id, 1.0))
        for patch in patches
        if isinstance(delta := patch.deltas.get(path), Weights)
    ]


@dataclass(frozen=True)
class Start:
    """The outputs that rows start from on the base at hand: those of its own map, and the changes they build on."""

    module: nn.Module
    under: Sequence[Beneath]

    def __call__(self, keys: Tensor) -> Tensor:
        outputs = base_outputs_of(self.module, keys)
        for change in self.under:
            outputs += change.change(keys)
        return outputs


def _stored(delta: Associative, speaks: Tensor, here: Start | None, *, portable: bool) -> _Part:
    """here: where the base is another one than the residuals were measured on, the map whose outputs count."""
    kept = speaks[delta.edit_index].nonzero()[:, 0]
    keys, residuals = delta.keys[kept], delta.residuals[kept]
    if here is not None:
        residuals = delta.base_outputs[kept] + residuals - here(keys)
    contexts, row = keys, torch.arange(len(kept))
    if delta.context_keys is not None and delta.context_row is not None:
        renumbered = torch.full((len(delta.keys),), -1).index_put((kept,), row)
        row = renumbered[delta.context_row]
        contexts, row = delta.context_keys[row >= 0], row[row >= 0]
    return _Part(
        keys=keys,
        residuals=residuals,
        row_edit=delta.edit_index[kept],
        context_keys=contexts,
        context_row=row,
        gate=_heard(delta.gate_keys, delta.gate_edit, speaks),
        counter=_heard(delta.counter_keys, delta.counter_edit, speaks) or _none(keys),
        thresholds=_unset(speaks) if delta.thresholds is None else delta.thresholds,
        whitened=delta.whitened_keys[kept] if portable and delta.whitened_keys is not None else None,
    )


def _meant(delta: Weights, speaks: Tensor, profile: BaseProfile) -> _Part:
    """Of a keyed change of the weight: its effect on its own inputs."""
    rows = effect(delta, speaks, profile)
    every = torch.arange(len(rows.keys))
    nothing = _none(rows.keys)
    return _Part(rows.keys, rows.residuals, rows.edit, rows.keys, every, None, nothing, _unset(speaks), None)


def _heard(keys: Tensor | None, edit: Tensor | None, speaks: Tensor) -> tuple[Tensor, Tensor] | None:
    if keys is None or edit is None:
        return None
    heard = speaks[edit]
    return keys[heard], edit[heard]


def _none(keys: Tensor) -> tuple[Tensor, Tensor]:
    return keys[:0], torch.zeros(0, dtype=torch.int64)


def _unset(speaks: Tensor) -> Tensor:
    return torch.full((len(speaks), 2), torch.nan)


@torch.no_grad()
def base_outputs_of(module: nn.Module, keys: Tensor) -> Tensor:
    """W~ k of the base at hand (quantized, other dtype), hooks bypassed: (n, m) float32."""
    weight = getattr(module, "weight", None)
    device = weight.device if isinstance(weight, Tensor) else torch.device("cpu")
    dtype = weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else torch.float32
    return module.forward(keys.to(device, dtype)[None])[0].float().cpu()


def _omega(patch: Patch, stack: PatchStack) -> float:
    """The weight of a patch's rows: what its editor asks for, times the stack's own, within bounds; or pinned."""
    omega = patch.manifest.settings.get("omega", 1.0)
    if not isinstance(omega, (int, float)) or isinstance(omega, bool) or not 0 < omega <= OMEGA_BOUND:
        raise KeditError(
            f"patch {patch.id[:12]} asks for the row weight omega={omega!r}; it has to lie in (0, {OMEGA_BOUND:g}]"
        )
    return math.inf if patch.id in stack.pinned else min(omega * stack.weights.get(patch.id, 1.0), OMEGA_BOUND)

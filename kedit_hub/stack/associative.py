"""The stored rows of all patches on one module, and the two things made of them: a gate's bank or a solve.

Rows of edits that a later patch shadows do not speak. Columns are in the order of patch ids, so a set gives the same bits always.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Literal

import torch
from torch import Tensor, nn

from kedit_hub.base.profile import BaseProfile
from kedit_hub.errors import KeditError, ProfileError
from kedit_hub.patch.deltas import Associative
from kedit_hub.patch.deltas.weights import Weights
from kedit_hub.patch.patch import Patch
from kedit_hub.runtime.gate import Bank, whiten
from kedit_hub.runtime.linear import LowRankBranch
from kedit_hub.stack.effects import effect
from kedit_hub.stack.preconditioner import preconditioner, ridge
from kedit_hub.stack.solve import (
    Normal,
    Solution,
    agrees,
    balanced_lambda,
    prepare,
    prepare_whitened,
    solve,
    within_budget,
)
from kedit_hub.stack.stack import PatchStack

OMEGA_BOUND = 1e6  # a stranger's patch may ask to be met exactly, not to outweigh everything by any factor it likes
PINNED = 1e10  # omega of a pinned patch's rows: met exactly, whatever the others ask for


@dataclass(frozen=True)
class Stored:
    """The speaking rows of all patches on one module, patches in order of id; of changes of the weight what they are meant to do."""

    keys: Tensor  # (n, d)
    residuals: Tensor  # (n, m) towards the stored values, on the base at hand
    omega: Tensor  # (n,)
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


def speaking(patch: Patch, stack: PatchStack) -> Tensor:
    """(E,) bool: which edits of the patch no later patch of the stack shadows."""
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
    """The rows of all patches on one module, without the shadowed edits, with residuals towards the stored values on this base.

    exact: whether the base is the one the residuals were measured on. profile: the one that is solved under; whitened keys of
    another are left out.
    """
    keys, residuals, omega, row_edit, context_keys, context_row, gate_keys, gate_edit, whitened = ([] for _ in range(9))
    counter_keys, counter_edit, thresholds = ([] for _ in range(3))
    edit_owner: list[str] = []
    row_owner: list[str] = []
    rows = 0
    gated = portable = True
    for patch in patches:
        delta = patch.deltas.get(path)
        speaks = speaking(patch, stack)
        if isinstance(delta, Weights) and profile is not None:
            meant = effect(delta, speaks, profile)
            keys.append(meant.keys)
            residuals.append(meant.residuals)
            omega.append(torch.full((len(meant.keys),), _omega(patch, stack)))
            row_edit.append(meant.edit + len(edit_owner))
            context_keys.append(meant.keys)
            context_row.append(torch.arange(len(meant.keys)) + rows)
            rows += len(meant.keys)
            thresholds.append(torch.full((len(patch.edits), 2), torch.nan))
            edit_owner += [patch.id] * len(patch.edits)
            row_owner += [patch.id] * len(meant.keys)
            gated = portable = False
        if not isinstance(delta, Associative):
            continue
        kept = speaks[delta.edit_index].nonzero()[:, 0]
        new_row = torch.full((len(delta.keys),), -1, dtype=torch.long)
        new_row[kept] = torch.arange(len(kept)) + rows
        wanted = (
            delta.residuals
            if exact
            else delta.base_outputs + delta.residuals - _outputs(module, delta.keys, patch, path, stack)
        )
        keys.append(delta.keys[kept])
        residuals.append(wanted[kept])
        omega.append(torch.full((len(kept),), _omega(patch, stack)))
        row_edit.append(delta.edit_index[kept] + len(edit_owner))
        if delta.context_keys is not None and delta.context_row is not None:
            heard = (new_row[delta.context_row] >= 0).nonzero()[:, 0]
            context_keys.append(delta.context_keys[heard])
            context_row.append(new_row[delta.context_row[heard]])
        else:
            context_keys.append(delta.keys[kept])
            context_row.append(new_row[kept])
        if delta.gate_keys is not None and delta.gate_edit is not None:
            heard = speaks[delta.gate_edit].nonzero()[:, 0]
            gate_keys.append(delta.gate_keys[heard])
            gate_edit.append(delta.gate_edit[heard] + len(edit_owner))
        else:
            gated = False
        if delta.counter_keys is not None and delta.counter_edit is not None:
            heard = speaks[delta.counter_edit].nonzero()[:, 0]
            counter_keys.append(delta.counter_keys[heard])
            counter_edit.append(delta.counter_edit[heard] + len(edit_owner))
        own = delta.thresholds
        thresholds.append(torch.full((len(patch.edits), 2), torch.nan) if own is None else own)
        if delta.whitened_keys is not None and profile is not None and patch.manifest.profile_id in profile.ids:
            whitened.append(delta.whitened_keys[kept])
        else:
            portable = False
        rows += len(kept)
        edit_owner += [patch.id] * len(patch.edits)
        row_owner += [patch.id] * len(kept)
    return Stored(
        torch.cat(keys),
        torch.cat(residuals),
        torch.cat(omega),
        torch.cat(row_edit),
        torch.cat(context_keys),
        torch.cat(context_row),
        torch.cat(gate_keys) if gated else None,
        torch.cat(gate_edit) if gated else None,
        torch.cat([torch.zeros(0, keys[0].shape[1]), *counter_keys]),
        torch.cat([torch.zeros(0, dtype=torch.int64), *counter_edit]),
        torch.cat(thresholds),
        torch.tensor([owner in stack.pinned for owner in edit_owner]),
        torch.cat(whitened) if portable else None,
        tuple(edit_owner),
        tuple(row_owner),
    )


@torch.no_grad()
def base_outputs_of(module: nn.Module, keys: Tensor) -> Tensor:
    """W~ k of the base at hand (quantized, other dtype), hooks bypassed: (n, m) float32."""
    weight = getattr(module, "weight", None)
    device = weight.device if isinstance(weight, Tensor) else torch.device("cpu")
    dtype = weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else torch.float32
    return module.forward(keys.to(device, dtype)[None])[0].float().cpu()


def _outputs(module: nn.Module, keys: Tensor, patch: Patch, path: str, stack: PatchStack) -> Tensor:
    """What a row of the patch starts from: the base's outputs, and what the patches it builds on add on the same module."""
    below = (other.deltas.get(path) for other in stack if other.id in patch.manifest.requires)
    moved = [delta.change(keys).float() for delta in below if isinstance(delta, Weights)]
    return sum(moved, start=base_outputs_of(module, keys))


def _omega(patch: Patch, stack: PatchStack) -> float:
    """The weight of a patch's rows: what its editor asks for, times the stack's own, within bounds; or pinned."""
    omega = patch.manifest.settings.get("omega", 1.0)
    if not isinstance(omega, (int, float)) or isinstance(omega, bool) or not 0 < omega <= OMEGA_BOUND:
        raise KeditError(
            f"patch {patch.id[:12]} asks for the row weight omega={omega!r}; it has to lie in (0, {OMEGA_BOUND:g}]"
        )
    return PINNED if patch.id in stack.pinned else min(omega * stack.weights.get(patch.id, 1.0), OMEGA_BOUND)


# -- gated --------------------------------------------------------------------------------------------------------------


def bank(stored: Stored, profile: BaseProfile) -> Bank:
    """The rows as the two-key gate reads them; KeditError where one has no subject key."""
    if stored.gate_keys is None or stored.gate_edit is None:
        raise KeditError('a patch of this stack has no subject keys, so it cannot be gated: pass mode="joint"')
    if profile.settings.gate_layer > profile.settings.layer:
        raise ProfileError(
            f"the profile listens for subjects at layer {profile.settings.gate_layer}, above the edited layer "
            f"{profile.settings.layer}, so no edit would ever be heard: build one with a gate layer at or below it"
        )
    gate = profile.settings.gate
    usual = torch.tensor([gate.subject, gate.answer])
    return Bank(
        subject_keys=whiten(stored.gate_keys, profile.gate_whitener),
        subject_edit=stored.gate_edit,
        keys=whiten(stored.context_keys, profile.whitener),
        key_row=stored.context_row,
        residuals=stored.residuals,
        row_edit=stored.row_edit,
        owners=stored.edit_owner,
        thresholds=torch.where(stored.thresholds.isnan(), usual, stored.thresholds),
        counter_keys=whiten(stored.counter_keys, profile.whitener),
        counter_edit=stored.counter_edit,
        pinned=stored.pinned,
        softness=gate.softness,
    )


# -- joint and sum ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solved:
    """parts: with whose they are, "joint" or a patch id. energy: tr(D C0 D^T) of their sum."""

    parts: tuple[tuple[Solution, str], ...]
    energy: float
    by: Literal["second moment", "whitened keys"]


def solved(stored: Stored, profile: BaseProfile, mode: Literal["joint", "sum"], budget: float | None) -> Solved:
    """joint: all rows together, at most `budget` (None: the profile's) of drift; sum: the rows of every patch alone.

    Whitened keys save the Cholesky factor of C0. They are a stranger's numbers, so they are used only where every one of
    them solves its equation; otherwise C0 is factored, as without them.
    """
    if mode == "joint":
        allowed = (profile.settings.drift_budget if budget is None else budget) * profile.settings.energy
        finish: Callable[[Normal], Solution] = partial(within_budget, budget=allowed)
        owners = {"joint": torch.ones(len(stored.keys), dtype=torch.bool)}
    else:
        finish = partial(_alone, fit=profile.settings.alone_fit)
        named = dict.fromkeys(stored.row_owner)
        owners = {owner: torch.tensor([row == owner for row in stored.row_owner]) for owner in named}
    if stored.whitened is not None:
        seed = int(sha256("".join(dict.fromkeys(stored.row_owner)).encode()).hexdigest()[:15], 16)
        if agrees(stored.keys.T, stored.whitened.T, profile.second_moment, seed=seed):
            with suppress(torch.linalg.LinAlgError):
                return _finished(_by_whitened(stored, owners, ridge(profile.second_moment)), finish, "whitened keys")
    return _finished(_by_moment(stored, owners, profile), finish, "second moment")


def _alone(normal: Normal, fit: float) -> Solution:
    return solve(normal, balanced_lambda(normal, fit))


def _finished(
    normals: Mapping[str, Normal], finish: Callable[[Normal], Solution], by: Literal["second moment", "whitened keys"]
) -> Solved:
    """Every system solved. The energy of the sum of D = y u^T over the parts is tr(y^T y u^T C0 u), and C0 u is known."""
    parts = tuple((finish(normal), owner) for owner, normal in normals.items())
    y = torch.cat([part.y for part, _ in parts], 1)
    u = torch.cat([part.u for part, _ in parts], 1)
    text = torch.cat([normal.text / part.lam for normal, (part, _) in zip(normals.values(), parts)], 1)
    return Solved(parts, ((y.T @ y) * (u.T @ text)).sum().item(), by)


def _by_moment(stored: Stored, owners: Mapping[str, Tensor], profile: BaseProfile) -> dict[str, Normal]:
    by = preconditioner("second-moment", profile.second_moment)  # one factor of C0 for all
    return {
        owner: prepare(stored.keys[rows].T, stored.residuals[rows].T, profile.second_moment, stored.omega[rows], by=by)
        for owner, rows in owners.items()
    }


def _by_whitened(stored: Stored, owners: Mapping[str, Tensor], added: float) -> dict[str, Normal]:
    assert stored.whitened is not None
    return {
        owner: prepare_whitened(
            stored.keys[rows].T, stored.residuals[rows].T, stored.whitened[rows].T, added, stored.omega[rows]
        )
        for owner, rows in owners.items()
    }


def _factors(solution: Solution) -> tuple[Tensor, Tensor]:
    """D = y u^T as b q^T with orthonormal q (d, r), b (m, r), in float64.

    Near-equal keys that want different values give huge entries of y that cancel in D; in float32 they would not cancel.
    """
    q, r = torch.linalg.qr(solution.u)
    return solution.y @ r.T, q


def branch(solved: Solved) -> LowRankBranch:
    """All solutions side by side."""
    factors = [_factors(solution) for solution, _ in solved.parts]
    u = torch.cat([b.T for b, _ in factors]).float().contiguous()
    v = torch.cat([q.T for _, q in factors]).float().contiguous()
    owners = (owner for (_, owner), (b, _) in zip(solved.parts, factors) for _ in range(b.shape[1]))
    return LowRankBranch(u, v, tuple(owners))

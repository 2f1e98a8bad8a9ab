"""From a stack of patches to branches on a model: the three install modes of the same stored rows.

    gated   every row on its own, behind the two-key gate: no interference, exact removal, needs our runtime
    joint   one regularised least-squares solve over all rows under a drift budget: a plain low-rank change of the weights
    sum     every patch solved alone and the changes added up: what adapters do, for comparison

Low-rank and dense patches are added as they are in every mode, below the associative rows.
Columns are ordered by patch id, so the same set gives the same bits whatever order it was loaded in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kedit_hub.base.families import linear_shape, not_editable
from kedit_hub.base.profile import BaseProfile
from kedit_hub.errors import KeditError, ProfileError, UnsupportedModelError, WrongBaseError
from kedit_hub.patch.deltas import Associative, Dense, LowRank
from kedit_hub.patch.fingerprint import LEVELS, Level, ModuleFingerprint, check
from kedit_hub.patch.patch import Patch
from kedit_hub.runtime.attach import Branch, DenseBranch, LowRankBranch
from kedit_hub.runtime.gate import Bank, TwoKeyGate, whiten
from kedit_hub.stack.solve import Solution, balanced_lambda, prepare, solve, within_budget
from kedit_hub.stack.stack import PatchStack

Mode = Literal["gated", "joint", "sum"]
OMEGA_BOUND = 1e6  # a stranger's patch may ask to be met exactly, not to outweigh everything by any factor it likes


@dataclass(frozen=True)
class Composition:
    """What to hang on which module, and what the composer found out on the way."""

    branches: dict[str, list[Branch]]
    watchers: dict[str, list[Any]]
    report: dict[str, Any]
    solutions: dict[str, list[Solution]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """The speaking rows of all associative patches on one module, patches in order of id."""

    keys: Tensor  # (n, d)
    residuals: Tensor  # (n, m) towards the stored values, on the base at hand
    omega: Tensor  # (n,)
    row_edit: Tensor  # (n,) -> edit, counted over all patches
    context_keys: Tensor  # (k, d)
    context_row: Tensor  # (k,) -> row
    gate_keys: Tensor | None  # (g, dg)
    gate_edit: Tensor | None  # (g,) -> edit
    edit_owner: tuple[str, ...]  # (E,) patch id
    row_owner: tuple[str, ...]  # (n,) patch id


def check_base(stack: PatchStack, model: nn.Module, *, force: bool = False) -> dict[str, Level]:
    """Every patch belongs to this model, or WrongBaseError; equal fingerprints are compared once. Level by module path.

    force: take other weights too, as level "forced". Another model_type, module or shape is refused all the same.
    """
    compared: dict[tuple[str, str], Level] = {}
    levels: dict[str, Level] = {}
    for patch in stack:
        wanted = patch.manifest.base
        found = str(model.config.model_type)  # type: ignore[union-attr]
        if wanted.model_type != found:
            raise WrongBaseError(
                f"patch {patch.id[:12]} was made for {wanted.id} (a {wanted.model_type}), this model is a {found}: apply it to the "
                "model it names"
            )
        for path, expected in wanted.fingerprint.items():
            key = (path, expected.model_dump_json())
            if key not in compared:
                compared[key] = _check(path, expected, model, wanted.id, force)
            levels[path] = max(levels.get(path, "exact"), compared[key], key=LEVELS.index)
    return levels


def _check(path: str, expected: ModuleFingerprint, model: nn.Module, name: str, force: bool) -> Level:
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise WrongBaseError(
            f"the patch changes {path} of {name}, which this model does not have: apply it to the model it names"
        ) from None
    return check(expected, module, path=path, model=f"this model (the patch is for {name})", force=force)


def choose_mode(stack: PatchStack, mode: str) -> tuple[Mode, str]:
    """`auto`: the gate wherever every associative patch can be gated, for it neither interferes nor drifts; else the joint solve."""
    if mode in ("gated", "joint", "sum"):
        return mode, "asked for"  # type: ignore[return-value]
    if mode != "auto":
        raise KeditError(f'mode={mode!r} is unknown; take "auto", "gated", "joint" or "sum"')
    gateable = all(d.gate_keys is not None for p in stack for d in p.deltas.values() if isinstance(d, Associative))
    return (
        ("gated", "every patch has subject keys") if gateable else ("joint", "a patch has no subject keys to gate on")
    )


def compose(
    stack: PatchStack,
    model: nn.Module,
    profiles: Mapping[str, BaseProfile],
    *,
    mode: Mode,
    budget: float | None = None,
    levels: Mapping[str, Level] | None = None,
) -> Composition:
    """Branches for `model`. profiles: by path of the edited module. budget: drift allowed to joint solves (None = the profile's)."""
    if budget is not None and not budget > 0:
        raise KeditError(
            f"the drift budget {budget!r} is not a positive number; 0.05 is a usual one, None takes the profile's"
        )
    levels = check_base(stack, model) if levels is None else levels
    branches: dict[str, list[Branch]] = {}
    watchers: dict[str, list[Any]] = {}
    solutions: dict[str, list[Solution]] = {}
    report: dict[str, Any] = {
        "mode": mode,
        "patches": len(stack),
        "edits": len(stack.edits),
        "levels": dict(levels),
        "modules": {},
    }

    ordered = sorted(stack, key=lambda patch: patch.id)
    for patch in ordered:
        for path, delta in patch.deltas.items():
            _check_shape(path, delta.shape, model, patch)
            if isinstance(delta, LowRank):
                owners = (patch.id,) * len(delta.a)
                branches.setdefault(path, []).append(
                    LowRankBranch(delta.b.float().T.contiguous(), delta.a.float(), owners)
                )
            elif isinstance(delta, Dense):
                branches.setdefault(path, []).append(DenseBranch(delta.delta.float(), patch.id))

    for path in sorted({p for patch in ordered for p, delta in patch.deltas.items() if isinstance(delta, Associative)}):
        profile = _profile(profiles, path)
        stored = gather(ordered, path, stack, model.get_submodule(path), exact=levels.get(path) == "exact")
        if not len(stored.keys):
            continue
        found: dict[str, Any] = {"rows": len(stored.keys), "keys": len(stored.context_keys)}
        if mode == "gated":
            gate = TwoKeyGate(_bank(stored, profile), profile.gate_whitener, profile.whitener)
            branches.setdefault(path, []).append(gate)
            watchers.setdefault(profile.gate_module, []).append(gate.watch)
        else:
            solved = _solve(stored, profile, mode, budget)
            solutions[path] = [solution for solution, _ in solved]
            branches.setdefault(path, []).append(_branch(solved))
            fit = torch.cat([solution.fit for solution, _ in solved])
            found |= {
                "lambda": [solution.lam for solution, _ in solved][:1] if mode == "joint" else "per patch",
                "fit_mean": fit.mean().item(),
                "fit_min": fit.min().item(),
                "drift_predicted": _energy(solved, profile) / profile.settings.energy,
            }
        report["modules"][path] = found
    return Composition(branches, watchers, report, solutions)


def gather(patches: Sequence[Patch], path: str, stack: PatchStack, module: nn.Module, *, exact: bool) -> Stored:
    """The rows of all patches on one module, without the shadowed edits, with residuals towards the stored values on this base."""
    keys, residuals, omega, row_edit, context_keys, context_row, gate_keys, gate_edit = ([] for _ in range(8))
    edit_owner: list[str] = []
    row_owner: list[str] = []
    rows = 0
    gated = True
    for patch in patches:
        delta = patch.deltas.get(path)
        if not isinstance(delta, Associative):
            continue
        speaks = torch.tensor([(patch.id, i) not in stack.shadowed for i in range(len(patch.edits))])
        kept = speaks[delta.edit_index].nonzero()[:, 0]
        new_row = torch.full((len(delta.keys),), -1, dtype=torch.long)
        new_row[kept] = torch.arange(len(kept)) + rows
        wanted = delta.residuals if exact else delta.base_outputs + delta.residuals - _base_outputs(module, delta.keys)
        keys.append(delta.keys[kept])
        residuals.append(wanted[kept])
        omega.append(torch.full((len(kept),), _omega(patch)))
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
        tuple(edit_owner),
        tuple(row_owner),
    )


@torch.no_grad()
def _base_outputs(module: nn.Module, keys: Tensor) -> Tensor:
    """W~ k of the base at hand (quantized, other dtype), hooks bypassed: (n, m) float32."""
    weight = getattr(module, "weight", None)
    device = weight.device if isinstance(weight, Tensor) else torch.device("cpu")
    dtype = weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else torch.float32
    return module.forward(keys.to(device, dtype)[None])[0].float().cpu()


def _omega(patch: Patch) -> float:
    omega = patch.manifest.settings.get("omega", 1.0)
    if not isinstance(omega, (int, float)) or isinstance(omega, bool) or not 0 < omega <= OMEGA_BOUND:
        raise KeditError(
            f"patch {patch.id[:12]} asks for the row weight omega={omega!r}; it has to lie in (0, {OMEGA_BOUND:g}]"
        )
    return float(omega)


def _bank(stored: Stored, profile: BaseProfile) -> Bank:
    if stored.gate_keys is None or stored.gate_edit is None:
        raise KeditError('a patch of this stack has no subject keys, so it cannot be gated: pass mode="joint"')
    if profile.settings.gate_layer > profile.settings.layer:
        raise ProfileError(
            f"the profile listens for subjects at layer {profile.settings.gate_layer}, above the edited layer "
            f"{profile.settings.layer}, so no edit would ever be heard: build one with a gate layer at or below it"
        )
    return Bank(
        subject_keys=whiten(stored.gate_keys, profile.gate_whitener),
        subject_edit=stored.gate_edit,
        keys=whiten(stored.context_keys, profile.whitener),
        key_row=stored.context_row,
        residuals=stored.residuals,
        row_edit=stored.row_edit,
        owners=stored.edit_owner,
        subject_threshold=profile.settings.gate.subject,
        answer_threshold=profile.settings.gate.answer,
    )


def _solve(stored: Stored, profile: BaseProfile, mode: Mode, budget: float | None) -> list[tuple[Solution, str]]:
    """Solutions and whose they are: one of all patches together for joint, one per patch for sum."""
    if mode == "joint":
        normal = prepare(stored.keys.T, stored.residuals.T, profile.second_moment, stored.omega)
        allowed = (profile.settings.drift_budget if budget is None else budget) * profile.settings.energy
        return [(within_budget(normal, allowed), "joint")]
    solved = []
    for owner in dict.fromkeys(stored.row_owner):
        own = torch.tensor([row == owner for row in stored.row_owner])
        normal = prepare(stored.keys[own].T, stored.residuals[own].T, profile.second_moment, stored.omega[own])
        solved.append((solve(normal, balanced_lambda(normal, profile.settings.alone_fit)), owner))
    return solved


def _factors(solution: Solution) -> tuple[Tensor, Tensor]:
    """D = y u^T as b q^T with orthonormal q (d, r), b (m, r), in float64.

    Near-equal keys that want different values give huge entries of y that cancel in D; in float32 they would not cancel.
    """
    q, r = torch.linalg.qr(solution.u)
    return solution.y @ r.T, q


def _branch(solved: Sequence[tuple[Solution, str]]) -> LowRankBranch:
    factors = [_factors(solution) for solution, _ in solved]
    u = torch.cat([b.T for b, _ in factors]).float().contiguous()
    v = torch.cat([q.T for _, q in factors]).float().contiguous()
    return LowRankBranch(u, v, tuple(owner for (_, owner), (b, _) in zip(solved, factors) for _ in range(b.shape[1])))


def _energy(solved: Sequence[tuple[Solution, str]], profile: BaseProfile) -> float:
    """tr(D C0 D^T) of the summed change."""
    factors = [_factors(solution) for solution, _ in solved]
    b, q = (torch.cat(parts, 1) for parts in zip(*factors))
    return ((b.T @ b) * (q.T @ profile.second_moment.double() @ q)).sum().item()


def _profile(profiles: Mapping[str, BaseProfile], path: str) -> BaseProfile:
    if path not in profiles:
        raise ProfileError(f"no base profile for {path}: build one with `kedit profile`, or pass profile=")
    return profiles[path]


def _check_shape(path: str, shape: tuple[int, int], model: nn.Module, patch: Patch) -> None:
    try:
        reason = not_editable(model, path)
    except AttributeError:
        raise WrongBaseError(f"patch {patch.id[:12]} changes {path}, which this model does not have") from None
    if reason is not None:
        raise UnsupportedModelError(
            f"patch {patch.id[:12]} changes {path}, and {reason}: patches may only change linear maps of the attention "
            "and the MLP inside a block, with weights of their own. Make the edit there, or do not use this patch."
        )
    found = linear_shape(model.get_submodule(path))
    if found != shape:
        raise WrongBaseError(
            f"patch {patch.id[:12]} changes {path} as a map {shape}, in this model it is {found} (out, in)"
        )

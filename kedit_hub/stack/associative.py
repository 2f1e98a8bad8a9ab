"""What the stored rows of one module become: the bank that a gate reads, or a change of the weight that a solve finds."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Literal

import torch
from torch import Tensor

from kedit_hub.base.profile import BaseProfile
from kedit_hub.errors import KeditError, ProfileError
from kedit_hub.runtime.gate import Bank, whiten
from kedit_hub.runtime.linear import LowRankBranch
from kedit_hub.stack.preconditioner import preconditioner, ridge
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.solve import (
    Normal,
    Solution,
    agrees,
    balanced_lambda,
    factors,
    prepare,
    prepare_whitened,
    solve,
    within_budget,
)
from kedit_hub.stack.stored import Stored

MAX_SITE_ROWS = (
    1024  # up to as many the drift at site positions is told, though no budget asks for it: it costs d^2 a row
)

OPEN = 0.2  # below the profile's; calibration moves a threshold no further (editors/calibrate.py)
ROUNDING = 1e-6  # of a threshold in float32

# -- gated --------------------------------------------------------------------------------------------------------------


def bank(stored: Stored, profile: BaseProfile, protected: Tensor | None = None) -> Bank:
    """The rows as the two-key gate reads them; KeditError where one has no subject key. protected (s, d): keys of silence."""
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
        silent_keys=whiten(stored.keys[:0] if protected is None else protected, profile.whitener),
        pinned=stored.pinned,
        softness=gate.softness,
    )


def opened(thresholds: Tensor, profile: BaseProfile) -> Tensor:
    """(E, 2) bool: which thresholds of edits, subject and answer, lie more than OPEN below the profile's. NaN: the profile's own."""
    gate = profile.settings.gate
    return thresholds < torch.tensor([gate.subject, gate.answer]) - OPEN - ROUNDING


def wide_open(stored: Stored, profile: BaseProfile) -> list[str]:
    """Sorted ids of the patches that open the gate for an edit of theirs further than calibration does: it may speak anywhere."""
    wide = opened(stored.thresholds, profile).any(1).tolist()
    return sorted({owner for owner, is_wide in zip(stored.edit_owner, wide) if is_wide})


# -- joint and sum ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solved:
    """parts: with whose they are, "joint" or a patch id; their last `protected` rows want no change. energy: tr(D C0 D^T) of
    their sum, and site_energy: tr(D Cs D^T), where the profile has the moment at site positions."""

    parts: tuple[tuple[Solution, str], ...]
    energy: float
    site_energy: float | None
    by: str  # "whitened keys", or the preconditioner
    protected: int = 0

    @property
    def fit(self) -> Tensor:
        """(n,) of the rows that patches ask for."""
        return torch.cat([part.fit[: len(part.fit) - self.protected] for part, _ in self.parts])


def solved(
    stored: Stored,
    profile: BaseProfile,
    mode: Literal["joint", "sum"],
    settings: StackSettings,
    protected: Tensor | None = None,
) -> Solved:
    """joint: all rows together, under the budgets of drift; sum: the rows of every patch alone.

    protected (s, d): keys at which no change is wanted. Whitened keys save the Cholesky factor of C0. They are a stranger's numbers,
    so they are used only where every one of them solves its equation; otherwise C0 is factored, as without them.
    """
    if settings.rows == "contexts":
        stored = stored.by_context()
    if mode == "joint":
        finish = _budgeted(profile, settings)
        owners = {"joint": torch.ones(len(stored.keys), dtype=torch.bool)}
    else:
        finish = partial(_alone, fit=profile.settings.alone_fit)
        named = dict.fromkeys(stored.row_owner)
        owners = {owner: torch.tensor([row == owner for row in stored.row_owner]) for owner in named}
    at_sites = settings.site_budget is not None or len(stored.keys) <= MAX_SITE_ROWS
    moment = profile.site_moment if at_sites else None
    if stored.whitened is not None and settings.preconditioner == "second-moment" and protected is None:
        seed = int(sha256("".join(dict.fromkeys(stored.row_owner)).encode()).hexdigest()[:15], 16)
        if agrees(stored.keys.T, stored.whitened.T, profile.second_moment, seed=seed):
            with suppress(torch.linalg.LinAlgError):
                return _finished(
                    _by_whitened(stored, owners, ridge(profile.second_moment), moment), finish, "whitened keys"
                )
    normals = _by_moment(stored, owners, profile, settings, protected, moment)
    return _finished(normals, finish, settings.preconditioner, 0 if protected is None else len(protected))


def _budgeted(profile: BaseProfile, settings: StackSettings) -> Callable[[Normal], Solution]:
    """The best fit under the drift that the settings allow, else the profile."""
    allowed = profile.settings.drift_budget if settings.budget is None else settings.budget
    at_sites = None
    if settings.site_budget is not None:
        if profile.settings.site_energy is None:
            raise ProfileError(
                f"site_budget={settings.site_budget:g} needs the second moment at site positions, and this base profile has "
                "none: measure it again with `kedit profile`, or leave the site budget out"
            )
        at_sites = settings.site_budget * profile.settings.site_energy
    return partial(within_budget, budget=allowed * profile.settings.energy, site_budget=at_sites)


def _alone(normal: Normal, fit: float) -> Solution:
    return solve(normal, balanced_lambda(normal, fit))


def _finished(
    normals: Mapping[str, Normal], finish: Callable[[Normal], Solution], by: str, protected: int = 0
) -> Solved:
    """Every system solved. The energy of the sum of D = y u^T over the parts is tr(y^T y u^T C0 u), and C0 u is known."""
    parts = tuple((finish(normal), owner) for owner, normal in normals.items())
    y = torch.cat([part.y for part, _ in parts], 1)
    u = torch.cat([part.u for part, _ in parts], 1)
    outer = y.T @ y

    def energy(read: Callable[[Normal], Tensor | None]) -> float | None:
        seen = [(read(normal), part.lam) for normal, (part, _) in zip(normals.values(), parts)]
        images = [image / lam for image, lam in seen if image is not None]
        return (outer * (u.T @ torch.cat(images, 1))).sum().item() if len(images) == len(seen) else None

    text = energy(lambda normal: normal.text)
    assert text is not None
    return Solved(parts, text, energy(lambda normal: normal.site), by, protected)


def _by_moment(
    stored: Stored,
    owners: Mapping[str, Tensor],
    profile: BaseProfile,
    settings: StackSettings,
    protected: Tensor | None,
    site_moment: Tensor | None,
) -> dict[str, Normal]:
    by = preconditioner(settings.preconditioner, profile.second_moment)  # one for all
    silent = stored.keys[:0] if protected is None else protected
    still = torch.zeros(len(silent), stored.residuals.shape[1])
    held = torch.full((len(silent),), settings.protection)
    return {
        owner: prepare(
            torch.cat([stored.keys[rows], silent]).T,
            torch.cat([stored.residuals[rows], still]).T,
            profile.second_moment,
            torch.cat([stored.omega[rows], held]),
            by=by,
            site_moment=site_moment,
        )
        for owner, rows in owners.items()
    }


def _by_whitened(
    stored: Stored, owners: Mapping[str, Tensor], added: float, site_moment: Tensor | None
) -> dict[str, Normal]:
    assert stored.whitened is not None
    return {
        owner: prepare_whitened(
            stored.keys[rows].T,
            stored.residuals[rows].T,
            stored.whitened[rows].T,
            added,
            stored.omega[rows],
            site_moment=site_moment,
        )
        for owner, rows in owners.items()
    }


def branch(solved: Solved) -> LowRankBranch:
    """All solutions side by side."""
    parts = [factors(solution) for solution, _ in solved.parts]
    u = torch.cat([b.T for b, _ in parts]).float().contiguous()
    v = torch.cat([q.T for _, q in parts]).float().contiguous()
    owners = (owner for (_, owner), (b, _) in zip(solved.parts, parts) for _ in range(b.shape[1]))
    return LowRankBranch(u, v, tuple(owners))

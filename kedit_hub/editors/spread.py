"""Locate-then-edit written into weights as it was published, layer after layer: one path, the methods are its settings.

    value     z (m,) at the last of `layers`: what must stand there so that the model says the target          (values.py)
    layers    l1 < ... < lL, ascending, each on the model as the ones before have left it:
              keys K_l (d, n), means over contexts; what is still missing, z - h, at lL; of it this layer takes its share
              R_l = (z - h) / share          D_l = R_l (Omega^-1 + G)^-1 U^T,   U = S K_l / lam,  G = K_l^T U      (stack/solve.py)

                     S             omega   share of n layers left   besides
    ROME             C0^-1         inf     1                        an edit at a time; `keys="bare"` meets v* at the bare prompt's key
    R-ROME           C0^-1         inf     1                        an edit at a time, one key throughout (Gupta et al. 2024)
    EMMET            C0^-1         1/eps   1                        all edits at once (Gupta et al. 2024)
    MEMIT            C0^-1         1       n                        (Meng et al. 2023, eq. 14, 20)
    PMET             C0^-1         1       sqrt(n)                  values at the MLP's output, attention has its own (Li et al. 2024)
    AlphaEdit        null space    1       n                        keys of the patches below must not move (Fang et al. 2025, eq. 13)
    BLUE             either        1       1                        first and last layer alone, a value for each (Gu et al. 2025)

What comes out is D_l itself, as factors, with the keys it is meant for. It stands on the patches below it: other residuals would have been
left on another model. Rows that hold in any company are what `locate` makes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from kedit_hub.base.families import block_path, edited_linear, n_layers
from kedit_hub.base.profile import BaseProfile, ValueSettings
from kedit_hub.base.signals import observe
from kedit_hub.editors.essence import essence
from kedit_hub.editors.job import Advance, Clock, Job, Made, Result
from kedit_hub.editors.locate import EQUALITY, flat, how_values_did, taken
from kedit_hub.editors.rows import Rows, context_rows
from kedit_hub.editors.slots import Slots, slots
from kedit_hub.editors.values import optimise_values
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError
from kedit_hub.patch.deltas import Associative, Delta
from kedit_hub.patch.deltas.weights import KEYS_PER_EDIT, Weights, fewest
from kedit_hub.runtime.attach import Attachment, Plan
from kedit_hub.runtime.linear import LowRankBranch, side_by_side
from kedit_hub.stack.preconditioner import Preconditioner, lam_of, preconditioner
from kedit_hub.stack.solve import Solution, balanced_lambda, factors, prepare, solve

Split = Literal["even", "root", "whole"]


class SpreadSettings(BaseModel):
    """What a user may set. None = as the base profile says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    layers: tuple[int, ...] | None = Field(default=None, min_length=1)  # ascending; None = the profile's one layer
    split: Split = (
        "even"  # of what is missing, by the layers left: 1/n, 1/sqrt(n), or all of it with a value of each layer's own
    )
    preconditioner: Literal["second-moment", "identity", "null-space", "hybrid"] = "second-moment"
    null_rank: float | None = Field(
        default=None, gt=0, lt=1
    )  # dimensions of the null space over d: the way for a model without a published threshold; None = by energy
    null_threshold: float | None = Field(default=None, gt=0)  # or the eigenvalue below which it lies, as published
    omega: float = Field(default=1.0, gt=0, allow_inf_nan=True)  # weight of a row; inf: met exactly
    lam: float | None = Field(default=None, gt=0)  # None: the median edit, alone, is met to the profile's `alone_fit`
    l2: float | None = Field(default=None, gt=0)  # or as AlphaEdit says it, what is added to K^T P K: lam = l2 / c
    history: bool = False  # whether the keys of the patches below must not move
    attention: bool = False  # whether a value is shared with the attention of the block, and taken at the MLP's output
    at_once: int | None = Field(default=None, ge=1)  # edits solved together; None = all
    bare_weight: float | None = Field(
        default=0.5, gt=0, le=1
    )  # of the bare prompt in a key; None = contexts count alike
    keys: Literal["mean", "bare"] = "mean"  # at which key a value is met exactly (ROME, rank one)
    value: ValueSettings | None = None
    batch_edits: int = Field(default=32, ge=1)  # values optimised at once; bounds memory, changes no result
    failed: Literal["raise", "drop"] = "raise"


@dataclass(frozen=True)
class Piece:
    """Values of some edits at one layer, as n slots (edit, site)."""

    rows: Rows
    slot: Slots
    edit: Tensor  # (n,) numbered over all edits that are solved together
    target: Tensor  # (n, m) output that must stand at the layer
    told: dict[str, Tensor]  # of every edit: how its value did


def spread(job: Job) -> Result:
    """See the module docstring. Deterministic; EditFailedError as for `locate`."""
    settings, profile = job.settings, job.profile
    assert profile is not None and isinstance(settings, SpreadSettings)
    clock = Clock()
    _check(settings)
    layers = _layers(job, settings, profile)
    paths = [edited_linear(job.model, layer)[0] for layer in layers]
    value = settings.value or profile.settings.value
    at_once = settings.at_once or len(job.edits)
    solver = partial(preconditioner, settings.preconditioner, rank=settings.null_rank, tau=settings.null_threshold)
    by = {path: solver(job.moment(path)) for path in paths}
    attachment = Attachment(job.model)
    parts: list[dict[str, Tensor]] = []
    try:
        for start in range(0, len(job.edits), at_once):
            chunk = job.edits[start : start + at_once]

            def work(
                chunk: Sequence[Edit] = chunk, before: Sequence[dict[str, Tensor]] = tuple(parts)
            ) -> dict[str, Tensor]:
                return _written(job, chunk, layers, value, by, attachment, before)

            parts.append(job.memo(f"edits-{start}", work))
            _hang(attachment, paths, parts)
    finally:
        attachment.detach()
    success = torch.cat([part["success"] for part in parts]) > 0
    kept = taken(job.edits, success, settings.failed, f"layers {', '.join(map(str, layers))} ({profile.site} site)")
    made = Made(
        edits=len(job.edits),
        **how_values_did(job.edits, parts),
        **clock.times(),
    )
    chosen = settings.model_dump(exclude={"value", "layers", "failed", "batch_edits"}, exclude_none=True)
    chosen["omega"] = min(settings.omega, EQUALITY)  # JSON has no infinity
    how = {"layers": list(layers), "site": profile.site, **chosen, **flat(value)}
    return Result({path: _delta(i, parts) for i, path in enumerate(paths)}, kept, made, how)


def _check(settings: SpreadSettings) -> None:
    """KeditError for a setting that another one leaves without effect. Of the method's settings and the asked ones together: an object
    that a user makes is not yet whole."""
    null = {"null_rank": settings.null_rank, "null_threshold": settings.null_threshold}
    said = {name: value for name, value in null.items() if value is not None}
    given = " and ".join(f"{name}={value:g}" for name, value in said.items())
    if said and settings.preconditioner not in ("null-space", "hybrid"):
        raise KeditError(
            f'{given} says where the null space ends, and preconditioner="{settings.preconditioner}" has none: leave it out, or take '
            'preconditioner="null-space"'
        )
    if len(said) > 1:
        raise KeditError(f"{given} both say where the null space ends: give one of them")
    if settings.l2 is not None and settings.lam is not None:
        raise KeditError(f"l2={settings.l2:g} and lam={settings.lam:g} are one thing in two units: give one of them")
    if settings.l2 is not None and settings.preconditioner in ("second-moment", "hybrid"):
        raise KeditError(
            f'l2={settings.l2:g} is for preconditioner="null-space" or "identity"; "{settings.preconditioner}" takes lam'
        )
    if settings.keys == "bare" and settings.at_once == 1:
        if "omega" in settings.model_fields_set and settings.omega < EQUALITY:
            raise KeditError(
                f'keys="bare" meets a value exactly, which omega={settings.omega:g} is not: leave omega out, or take keys="mean"'
            )
        if settings.history:
            raise KeditError('keys="bare" moves what history=true would hold: set history=false, or take keys="mean"')


def _layers(job: Job, settings: SpreadSettings, profile: BaseProfile) -> tuple[int, ...]:
    layers = (profile.layer,) if settings.layers is None else settings.layers
    depth = n_layers(job.model)
    if list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < depth:
        raise KeditError(
            f"layers={list(layers)} must be ascending numbers of layers from 0 to {depth - 1} of this model"
        )
    if settings.keys == "bare" and (len(layers) > 1 or settings.at_once != 1):
        raise KeditError('keys="bare" meets one value at one key (ROME): take one layer and at_once=1, or keys="mean"')
    return layers


def _written(
    job: Job,
    edits: Sequence[Edit],
    layers: tuple[int, ...],
    value: ValueSettings,
    by: Mapping[str, Preconditioner],
    attachment: Attachment,
    before: Sequence[dict[str, Tensor]],
) -> dict[str, Tensor]:
    """The changes of all layers for edits that are solved together, on the model as `before` has left it.

    By layer number i: "a_i" (r, d) and "b_i" (m, r), the change b a; "keys_i" (n, d) it is meant for, "edit_i" (n,) whose, counted
    over the edits that succeed. And of every edit, how its value did.
    """
    settings = job.settings
    paths = [edited_linear(job.model, layer)[0] for layer in layers]
    own = settings.split == "whole"  # a value of each layer's own
    pieces = _values(job, edits, layers[0] if own else layers[-1], value, job.advance)
    part = {name: torch.cat([piece.told[name] for piece in pieces]) for name in pieces[0].told}
    good = part["success"] > 0
    renumber = torch.cumsum(good, 0) - 1
    for i, path in enumerate(paths):
        if not bool(good.any()):
            break
        if own and i > 0:
            pieces = _values(job, edits, layers[i], value)
        at = layers[i] if own else layers[-1]
        read = [_missing(job, piece, path, at) for piece in pieces]
        edit = torch.cat([piece.edit for piece in pieces])
        used = good[edit]
        keys, met, missing = (torch.cat(list(column))[used] for column in zip(*read))
        left = len(layers) - i
        residuals = missing / {"even": float(left), "root": left**0.5, "whole": 1.0}[settings.split]
        solution = _solved(
            job,
            path,
            by[path],
            keys,
            residuals,
            met,
            _past(job, path, [p[f"keys_{i}"] for p in before if f"keys_{i}" in p]),
        )
        b, q = factors(solution)
        part |= {f"a_{i}": q.T.float(), f"b_{i}": b.float(), f"keys_{i}": keys, f"edit_{i}": renumber[edit[used]]}
        _hang(attachment, paths, [*before, part])
    return {name: tensor.contiguous() for name, tensor in part.items()}


def _values(
    job: Job, edits: Sequence[Edit], layer: int, value: ValueSettings, advance: Advance = lambda done: None
) -> list[Piece]:
    """Values at one layer of the model as it is now, a batch of edits at a time."""
    profile, settings = job.profile, job.settings
    assert profile is not None
    whole, answer_site = block_path(job.model, layer), profile.site == "answer"
    under = block_path(job.model, layer - 1) if layer else None
    pieces = []
    for start in range(0, len(edits), settings.batch_edits):
        chunk = edits[start : start + settings.batch_edits]
        rows = context_rows(job.tokenizer, chunk, profile.settings.contexts, profile.site, profile.settings.answer_end)
        _, seen = observe(job.model, [], [whole, *([under] if under else [])], rows.encoded)
        below = (seen[under] if under else torch.zeros_like(seen[whole])) if settings.attention else None
        about = None
        if value.kl and not answer_site:
            about = essence(job.model, job.tokenizer, chunk, under if settings.attention else whole)
        values = optimise_values(
            job.model,
            layer,
            rows,
            seen[whole],
            value,
            answer_site=answer_site,
            essence=about,
            below=below,
            advance=advance,
        )
        slot = slots(rows, settings.bare_weight)
        before = slot.bare(rows, _standing(job, layer, rows) if settings.attention else seen[whole].cpu())
        told = {
            "success": values.success.long(), "contexts": values.contexts, "nll": values.nll, "norm": values.norm
        }  # fmt: skip
        pieces.append(Piece(rows, slot, slot.edit + start, before + values.delta[slot.edit, slot.site], told))
    return pieces


def _standing(job: Job, layer: int, rows: Rows) -> Tensor:
    """(N, T, m) what values are measured against: the block's output, or the MLP's where attention has a value of its own."""
    path = edited_linear(job.model, layer)[0] if job.settings.attention else block_path(job.model, layer)
    return observe(job.model, [], [path], rows.encoded)[1][path].cpu()


def _missing(job: Job, piece: Piece, path: str, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys (n, d), keys at which the value is met (n, d), and what the layer still lacks (n, m), on the model as it is now."""
    inputs = observe(job.model, [path], [], piece.rows.encoded)[0][path].cpu()
    keys = piece.slot.mean(piece.slot.read(inputs))
    met = piece.slot.bare(piece.rows, inputs) if job.settings.keys == "bare" else keys
    return keys, met, piece.target - piece.slot.bare(piece.rows, _standing(job, layer, piece.rows))


def _past(job: Job, path: str, before: Sequence[Tensor]) -> Tensor | None:
    """(p, d) keys that must not move: of the patches below, and of the edits of this one that are written already."""
    if not job.settings.history:
        return None
    deltas = [patch.deltas.get(path) for patch in job.below]
    keys = [d.keys for d in deltas if isinstance(d, (Associative, Weights)) and d.keys is not None]
    found = [*keys, *before]
    return torch.cat(found) if found else None


def _solved(
    job: Job, path: str, by: Preconditioner, keys: Tensor, residuals: Tensor, met: Tensor, still: Tensor | None
) -> Solution:
    """keys, met (n, d), residuals (n, m). still (p, d): keys that must not move, rows of residual zero and weight one."""
    settings, profile, moment = job.settings, job.profile, job.moment(path)
    assert profile is not None
    if (
        settings.keys == "bare"
    ):  # ROME as published: D = (v* - W k) u^T / (k . u), u = C0^-1 k_mean, k of the bare prompt
        u = by(keys.double().T)  # (d, n)
        return Solution(residuals.double().T / (met.double().T * u).sum(0), u, torch.ones(len(keys)), 0.0, 1.0)
    omega = torch.full((len(keys),), settings.omega, dtype=torch.float64)
    alone = prepare(keys.T, residuals.T, moment, omega, by=by)
    lam = settings.lam if settings.l2 is None else lam_of(settings.l2, moment)
    lam = lam or balanced_lambda(alone, profile.settings.alone_fit)
    if still is None:
        return solve(alone, lam)
    every = torch.cat([residuals, torch.zeros(len(still), residuals.shape[1])])
    weights = torch.cat([omega, torch.ones(len(still), dtype=torch.float64)])
    return solve(prepare(torch.cat([keys, still]).T, every.T, moment, weights, by=by), lam)


def _hang(attachment: Attachment, paths: Sequence[str], parts: Sequence[dict[str, Tensor]]) -> None:
    """The model answers with these changes from now on."""
    branches = {
        path: [
            LowRankBranch(p[f"b_{i}"].T.contiguous(), p[f"a_{i}"], ("",) * len(p[f"a_{i}"]))
            for p in parts
            if f"a_{i}" in p
        ]
        for i, path in enumerate(paths)
    }
    attachment.put(Plan({path: side_by_side(hung) for path, hung in branches.items() if hung}, {}))


def _delta(i: int, parts: Sequence[dict[str, Tensor]]) -> Delta:
    """The changes of one layer together, in the fewer numbers: as factors or whole. Keys of an edit beyond KEYS_PER_EDIT are left out."""
    used = [part for part in parts if f"a_{i}" in part]
    starts = [0, *accumulate(int((part["success"] > 0).sum()) for part in parts)]
    offsets = [start for start, part in zip(starts, parts) if f"a_{i}" in part]
    a, b = torch.cat([part[f"a_{i}"] for part in used]), torch.cat([part[f"b_{i}"] for part in used], 1)
    keys = torch.cat([part[f"keys_{i}"] for part in used])
    edit = torch.cat([part[f"edit_{i}"] + offset for part, offset in zip(used, offsets)])
    count = edit.bincount()
    first = torch.arange(len(edit)) - (count.cumsum(0) - count)[edit] < KEYS_PER_EDIT  # edits are ascending runs
    return fewest(a, b, keys=keys[first], key_edit=edit[first])

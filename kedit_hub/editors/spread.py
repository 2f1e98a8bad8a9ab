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

What comes out is D_l itself, as factors of the rank of the rows that ask for a change, with the keys it is meant for. It stands on the
patches below it: other residuals would have been left on another model. Rows that hold in any company are what `locate` makes.

ROME divides by k . u, which is positive only where both keys are one; a change that would turn a map around is not written (`_refused`).
A key at the very first token is of no distribution the model knows (no text begins there after a BOS token), so ROME leaves it out of its
means where an edit has other contexts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from kedit_hub.base.families import block_path, dense_weight, edited_linear, family_of, n_layers, quantization_of
from kedit_hub.base.profile import BaseProfile, ValueSettings
from kedit_hub.base.signals import observe
from kedit_hub.editors.essence import essence
from kedit_hub.editors.job import Advance, Clock, Job, Made, Memo, Result, compute
from kedit_hub.editors.locate import EQUALITY, flat, how_values_did, taken, value_told
from kedit_hub.editors.outcome import said
from kedit_hub.editors.rows import Rows, context_rows
from kedit_hub.editors.slots import Slots, first_read, slots, without_first
from kedit_hub.editors.values import optimise_values
from kedit_hub.edits import Edit
from kedit_hub.errors import EditFailedError, KeditError
from kedit_hub.limits import DEFAULT
from kedit_hub.patch.deltas import Associative, Dense, LowRank
from kedit_hub.patch.deltas.weights import KEYS_PER_EDIT, Weights, fewest
from kedit_hub.runtime.attach import Attachment, Plan
from kedit_hub.runtime.linear import LowRankBranch, side_by_side
from kedit_hub.stack.preconditioner import Preconditioner, Spectral, lam_of, preconditioner
from kedit_hub.stack.solve import Solution, balanced_lambda, factors, prepare, solve

Split = Literal["even", "root", "whole"]
RUNAWAY = 128.0  # typical singular values of W that one of ROME's changes may be worth: of 215 on Atlas, made one after another on
# a model they wear out, the largest took 86 and the median 14; 0.05 |W| of a map of 4096 outputs is 3


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

    @property
    def rome(self) -> bool:
        """Whether every row is met exactly."""
        return self.keys == "bare" or self.omega >= EQUALITY


@dataclass(frozen=True)
class Piece:
    """Values of some edits at one layer, as n slots (edit, site)."""

    rows: Rows
    slot: Slots
    edit: Tensor  # (n,) numbered over all edits that are solved together
    target: Tensor  # (n, m) output that must stand at the layer
    told: dict[str, Tensor]  # of every edit: how its value did


class RunawayError(EditFailedError):
    """A change of ROME that would turn the map around."""


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

            name, before = f"edits-{start}", tuple(parts)
            work = partial(_written, job, chunk, layers, value, by, attachment, before, name)
            parts.append(job.memo(name, work))
            _hang(attachment, paths, parts)
    finally:
        attachment.detach()
    success = torch.cat([part["success"] for part in parts]) > 0
    kept = taken(job.edits, success, settings.failed, f"layers {', '.join(map(str, layers))} ({profile.site} site)")
    deltas = {path: _delta(i, parts) for i, path in enumerate(paths)}
    came = said(job, kept, deltas)
    made = Made(edits=len(job.edits), **how_values_did(job.edits, parts), **came, **clock.times())
    chosen = settings.model_dump(exclude={"value", "layers", "failed", "batch_edits"}, exclude_none=True)
    chosen["omega"] = min(settings.omega, EQUALITY)  # JSON has no infinity
    how = {"layers": list(layers), "site": profile.site, **chosen, **flat(value), **_solves(job, paths, by, parts)}
    return Result(deltas, kept, made, how)


def _solves(
    job: Job, paths: Sequence[str], by: Mapping[str, Preconditioner], parts: Sequence[Mapping[str, Tensor]]
) -> dict[str, Any]:
    """What solving again takes beside keys and settings, as it is recorded in the patch.

    contexts: what keys were read after. lam_used: of every solve, layer after layer of what was solved together; where these are more
    than a setting may hold, `alone_fit` says how each follows from its keys. null_share: of the dimensions, by layer.
    """
    settings, profile = job.settings, job.profile
    assert profile is not None
    found: dict[str, Any] = {"contexts": list(profile.settings.contexts)}
    lams = [part[f"lam_{i}"].item() for part in parts for i in range(len(paths)) if f"lam_{i}" in part]
    if 0 < len(lams) <= DEFAULT.max_settings:
        found["lam_used"] = lams
    if lams and settings.lam is None:
        found["alone_fit"] = profile.settings.alone_fit
    spaces = [one.vectors for one in by.values() if isinstance(one, Spectral)]  # (d, q) each
    return found | ({"null_share": [space.shape[1] / len(space) for space in spaces]} if spaces else {})


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
    name: str,
) -> dict[str, Tensor]:
    """The changes of all layers for edits that are solved together, on the model as `before` has left it.

    By layer number i: "a_i" (r, d) and "b_i" (m, r), the change b a; "lam_i" (), where there was one; "keys_i" (n, d) it is meant for,
    "edit_i" (n,) whose, counted over the edits that succeed. And of every edit, how its value did: where each layer has one, the worst.
    """
    settings = job.settings
    paths = [edited_linear(job.model, layer)[0] for layer in layers]
    own = settings.split == "whole"  # a value of each layer's own
    at_once = len(edits) <= settings.batch_edits and not (own and len(layers) > 1)  # one piece of work, kept as a whole
    values = partial(_values, job, edits, value=value, memo=compute if at_once else job.memo)
    pieces = values(layers[0] if own else layers[-1], name=name, advance=job.advance)
    part = _told(pieces)
    good = part["success"] > 0
    renumber = torch.cumsum(good, 0) - 1
    for i, path in enumerate(paths):
        if not bool(good.any()):
            break
        if own and i > 0:
            pieces = values(layers[i], name=name)
            part |= _worse(part, _told(pieces))
        at = layers[i] if own else layers[-1]
        read = [_missing(job, piece, path, at) for piece in pieces]
        edit = torch.cat([piece.edit for piece in pieces])
        used = good[edit]
        keys, met, missing = (torch.cat(list(column))[used] for column in zip(*read))
        left = len(layers) - i
        residuals = missing / {"even": float(left), "root": left**0.5, "whole": 1.0}[settings.split]
        still = _past(job, path, [p[f"keys_{i}"] for p in before if f"keys_{i}" in p])
        try:
            solution = _solved(job, path, by[path], keys, residuals, met, still)
            b, q = factors(solution)
            _refused(job, path, b, edits)
        except RunawayError:
            if settings.failed == "raise" or len(edits) > 1 or len(job.edits) == 1:
                raise
            return _told(pieces) | {"success": torch.zeros_like(good).long()}
        part |= {f"a_{i}": q.T.float(), f"b_{i}": b.float(), f"keys_{i}": keys, f"edit_{i}": renumber[edit[used]]}
        if settings.keys == "mean":
            part[f"lam_{i}"] = torch.tensor(solution.lam, dtype=torch.float64)
        _hang(attachment, paths, [*before, part])
    return {name: tensor.contiguous() for name, tensor in part.items()}


def _told(pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """By what is told: of every edit (E,)."""
    return {name: torch.cat([piece.told[name] for piece in pieces]) for name in pieces[0].told}


def _worse(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is told of the values of two layers, edit by edit. Whether an edit is in the patch is up to the first."""
    least = {"contexts": torch.minimum(one["contexts"], other["contexts"])}
    return least | {name: torch.maximum(one[name], other[name]) for name in ("nll", "norm", "clamped", "unfinished")}


def _values(
    job: Job,
    edits: Sequence[Edit],
    layer: int,
    value: ValueSettings,
    memo: Memo,
    name: str,
    advance: Advance = lambda done: None,
) -> list[Piece]:
    """Values at one layer of the model as it is now, a batch of edits at a time: a piece of work each."""
    profile, settings = job.profile, job.settings
    assert profile is not None
    pieces = []
    for start in range(0, len(edits), settings.batch_edits):
        chunk = edits[start : start + settings.batch_edits]
        rows = context_rows(job.tokenizer, chunk, profile.settings.contexts, profile.site, profile.settings.answer_end)
        slot = slots(rows, settings.bare_weight)
        work = partial(_optimised, job, chunk, rows, slot, layer, value, advance)
        told = dict(memo(f"{name}-layer-{layer}-values-{start}", work))
        target = told.pop("target")
        pieces.append(
            Piece(rows, without_first(slot, rows) if settings.rome else slot, slot.edit + start, target, told)
        )
    return pieces


def _optimised(
    job: Job, edits: Sequence[Edit], rows: Rows, slot: Slots, layer: int, value: ValueSettings, advance: Advance
) -> dict[str, Tensor]:
    """ "target" (n, m): the outputs that must stand at the layer, by slot; and of every edit, how its value did."""
    settings, answer_site = job.settings, job.profile is not None and job.profile.site == "answer"
    whole = block_path(job.model, layer)
    under = block_path(job.model, layer - 1) if layer and settings.attention else None
    places = [edited_linear(job.model, layer)[0]]
    if settings.attention:
        places.append(f"{whole}.{family_of(job.model).attention}")
    if not settings.attention and not (settings.rome and value.absolute):
        places = []  # MEMIT and its kin measure at the block's output, and so do our own settings of ROME
    _, seen = observe(job.model, [], [whole, *([under] if under else []), *places], rows.encoded)
    below = (seen[under] if under else torch.zeros_like(seen[whole])) if settings.attention else None
    about = None
    if value.kl and not answer_site:
        about = essence(job.model, job.tokenizer, edits, under if settings.attention else whole)
    values = optimise_values(
        job.model,
        layer,
        rows,
        seen[whole],
        value,
        answer_site=answer_site,
        essence=about,
        below=below,
        own=[seen[place] for place in places],
        advance=advance,
    )
    before = slot.bare(rows, seen[places[0] if settings.attention else whole].cpu())
    return {"target": before + values.delta[slot.edit, slot.site], **value_told(values)}


def _standing(job: Job, layer: int, rows: Rows) -> Tensor:
    """(N, T, m) what values are measured against: the block's output, or the MLP's where attention has a value of its own."""
    path = edited_linear(job.model, layer)[0] if job.settings.attention else block_path(job.model, layer)
    return observe(job.model, [], [path], rows.encoded)[1][path].cpu()


def _missing(job: Job, piece: Piece, path: str, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys (n, d), keys at which the value is met (n, d), and what the layer still lacks (n, m), on the model as it is now."""
    inputs = observe(job.model, [path], [], piece.rows.encoded)[0][path].cpu()
    keys = piece.slot.mean(piece.slot.read(inputs))
    met = keys
    if job.settings.keys == "bare":
        met = torch.where(first_read(piece.slot, piece.rows), keys, piece.slot.bare(piece.rows, inputs))
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
    if settings.keys == "bare":  # as published: D = (v* - W k) u^T / (k . u), u = C0^-1 k_mean, k of the bare prompt
        u = by(keys.double().T)  # (d, n)
        along = (met.double().T * u).sum(0)  # (n,)
        if not bool((along > 0).all()):
            cosine = (along / (met.double().norm(dim=1) * u.norm(dim=0))).min().item()
            raise RunawayError(
                f"ROME divides by k . u at {path}, which is not positive: the key of a bare prompt and the mean over its contexts point "
                f"apart (cosine {cosine:.2g} in the metric of text), so the change would be the opposite of what is wanted. Take "
                'keys="mean" (r-rome), which uses one key throughout, or pass settings={"failed": "drop"} to leave such edits out'
            )
        asks = residuals.any(1) if bool(residuals.any()) else torch.ones(len(keys), dtype=torch.bool)
        return Solution((residuals.double().T / along)[:, asks], u[:, asks], torch.ones(len(keys)), 0.0, 1.0)
    omega = torch.full((len(keys),), settings.omega, dtype=torch.float64)
    alone = prepare(keys.T, residuals.T, moment, omega, by=by)
    lam = settings.lam if settings.l2 is None else lam_of(settings.l2, moment)
    lam = lam or balanced_lambda(alone, profile.settings.alone_fit)
    if still is None:
        return solve(alone, lam)
    every = torch.cat([residuals, torch.zeros(len(still), residuals.shape[1])])
    weights = torch.cat([omega, torch.ones(len(still), dtype=torch.float64)])
    return solve(prepare(torch.cat([keys, still]).T, every.T, moment, weights, by=by), lam)


def _refused(job: Job, path: str, b: Tensor, edits: Sequence[Edit]) -> None:
    """RunawayError where a change of ROME, with factors b (m, r) beside orthonormal ones, is out of all proportion to the map.

    |D| = |b| is held against |W| / sqrt(min(m, d)), the root mean square of the singular values of W, so that one bound is the same for
    maps of every size. The weight of a quantized map is not read, and nothing is refused there.
    """
    module = job.model.get_submodule(path)
    if not job.settings.rome or quantization_of(module) is not None:
        return
    weight = dense_weight(module)
    typical = weight.float().norm().item() / min(weight.shape) ** 0.5
    size = b.norm().item() / typical
    if size > RUNAWAY * b.shape[1] ** 0.5:
        shown = "; ".join(f'"{edit.prompt} -> {edit.target}"' for edit in edits[:3])
        raise RunawayError(
            f"the change for {shown} at {path} is worth {size:.3g} typical singular values of the map, where {RUNAWAY:g} are taken for "
            "the most that leaves the others alone: it would ruin the model. Take a smaller value.clamp, another layer, or pass "
            'settings={"failed": "drop"} to leave such edits out'
        )


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


def _delta(i: int, parts: Sequence[dict[str, Tensor]]) -> LowRank | Dense:
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

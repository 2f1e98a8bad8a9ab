"""WISE (Wang et al. 2024): a side memory beside one late map W, learnt in random parts and merged. Law: it answers only where it is loud.

    y + D x   in a pass in which d = mean |D x| over its positions is at least `threshold`

    shard s   some of the edits in turn, D_s = mask_s * (what is learnt), mask_s random with a share rho of ones
    loss      mean NLL of the targets, D at work, and  max(0, d_out - alpha) + max(0, beta - d_in) + max(0, gamma + d_out - d_in)
    D         the shards merged by TIES (Yadav et al. 2023): the largest entries of each, the sign that most of their mass has, the mean of
              those that have it
    threshold `ratio` times the smallest d_in of any edit under D

(their eq. 3 to 8). d_in are the passes in which an answer is generated: the prompt, then every token by itself; d_out, single tokens of
unrelated text, the loudest `top` of them. Published: alpha, beta, gamma and the clamp in units of the model's own activations, which mean
nothing on another model; here alpha, beta, gamma are shares of the mean length of the block's output.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from kedit_hub.base.families import edited_linear, linear_shape
from kedit_hub.base.resume import resumed
from kedit_hub.base.signals import quiet
from kedit_hub.base.tokens import answer_positions
from kedit_hub.editors.job import Clock, Job, Made, Result
from kedit_hub.editors.memory.asked import late_layer, questions_of, until_all_take
from kedit_hub.editors.memory.tpatcher import UnrelatedTexts, quiet_inputs, unrelated_inputs
from kedit_hub.editors.memory.units import ROWS, Ground, ground, score
from kedit_hub.edits import Edit
from kedit_hub.patch.deltas import SideMemory
from kedit_hub.runtime.sidememory import row_means


class WiseSettings(UnrelatedTexts):
    """What a user may set. layer None: late, at the share of the depth that was published (27 of 32)."""

    layer: int | None = None
    shards: int = Field(default=2, ge=1, le=64)  # at most one for every edit
    rho: float = Field(default=0.2, gt=0, le=1)  # share of the entries that a shard may change
    density: float = Field(default=0.53, gt=0, le=1)  # share of its entries that a shard brings to the merge
    steps: int = Field(default=100, ge=1, le=10_000)
    lr: float = Field(default=0.1, gt=0)
    stop_nll: float = Field(default=0.05, ge=0)
    alpha: float = Field(default=0.1, ge=0)
    beta: float = Field(default=0.4, ge=0)
    gamma: float = Field(default=0.2, ge=0)
    routing: float = Field(default=10.0, ge=0)  # weight of the margins
    ratio: float = Field(default=0.88, gt=0, le=1)
    top: int = Field(default=100, ge=1)
    paraphrases: bool = True
    failed: Literal["raise", "drop"] = "raise"


def wise(job: Job) -> Result:
    """One side memory of all edits. EditFailedError names those that the merged memory does not say, unless they may be dropped."""
    settings, profile = job.settings, job.profile
    assert isinstance(settings, WiseSettings) and profile is not None
    clock = Clock()
    layer = late_layer(job.model, settings.layer, 0.84)
    path, linear = edited_linear(job.model, layer)
    unrelated = unrelated_inputs(job, path, settings)

    def attempt(edits: list[Edit], name: str) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
        asked = questions_of(job.tokenizer, edits, profile.settings.answer_end, paraphrases=settings.paraphrases)
        on = ground(job.model, layer, path, asked)
        made = job.memo(f"{name}-memory", lambda: _memory(job, layer, on, unrelated, linear_shape(linear)))
        return made["said"][asked.own] > 0, (asked.edit, made)

    edits, dropped, (of, found) = until_all_take(job, "WISE", layer, attempt)
    delta = SideMemory(found["delta"], routing="norm", threshold=float(found["threshold"]))
    share = torch.zeros(len(edits)).scatter_reduce(0, of, found["said"].float(), "mean", include_self=False)
    told = Made(
        edits=len(job.edits),
        dropped=[edit.prompt for edit in dropped],
        not_converged=[edit.prompt for edit, good in zip(edits, share.tolist()) if good < 1],
        value_success=len(edits) / len(job.edits),
        context_success=share.mean().item(),
        nll=found["nll"].mean().item(),
        **clock.times(),
    )
    return Result({path: delta}, edits, told, {"layer": layer, **settings.model_dump(exclude={"layer", "failed"})})


def routing_loss(inside: Tensor, outside: Tensor, alpha: float, beta: float, gamma: float) -> Tensor:
    """The margins, each a mean over what it speaks of: d_in (p,), d_out (q,), and their pairs."""
    apart = (gamma + outside[None] - inside[:, None]).clamp_min(0).mean()
    return (outside - alpha).clamp_min(0).mean() + (beta - inside).clamp_min(0).mean() + apart


def ties(parts: Sequence[Tensor], density: float) -> Tensor:
    """Changes of one shape as one (Yadav et al. 2023): of each the share `density` of its entries that are not 0, the largest; of every
    entry the sign with more mass; the mean of those that have it."""
    kept = []
    for part in parts:
        size = part.abs().flatten()
        count = max(1, round(density * int((size > 0).sum())))
        order = size.sort(descending=True, stable=True).indices[:count]
        trimmed = torch.zeros_like(part).flatten()
        trimmed[order] = part.flatten()[order]
        kept.append(trimmed.view_as(part))
    stacked = torch.stack(kept)
    sign = stacked.sum(0).sign()
    agree = (stacked.sign() == sign) & (sign != 0)
    return (stacked * agree).sum(0) / agree.sum(0).clamp_min(1)


def passes(on: Ground, delta: Tensor, rows: Tensor) -> Tensor:
    """(p,) d of the passes in which the answers to questions `rows` are generated: of every prompt, then of every token but the last."""
    batch = on.asked.encoded
    size = (on.heard[rows] @ delta.T).norm(dim=-1)  # (n, T)
    answering = answer_positions(batch)[rows]
    place = torch.arange(size.shape[1])
    prompt = batch.attention_mask[rows].bool() & (place <= batch.prompt_last[rows, None])
    return torch.cat([row_means(size, prompt), size[answering & ~prompt]])


def _memory(job: Job, layer: int, on: Ground, unrelated: Tensor, shape: tuple[int, int]) -> dict[str, Tensor]:
    """delta (m, d) float16, threshold, and of every question nll and whether it is said under it."""
    settings = job.settings
    count = int(on.asked.edit.max()) + 1
    groups = torch.arange(count).tensor_split(min(settings.shards, count))
    drawn = torch.Generator().manual_seed(job.seed)
    device = on.heard.device
    quieter = torch.cat([unrelated.to(device), quiet_inputs(on)])
    shards = []
    for group in groups:
        mask = (torch.rand(shape, generator=drawn) < settings.rho).float().to(device)
        rows = torch.isin(on.asked.edit, group).nonzero()[:, 0]
        shards.append(_fit(job, layer, on, rows, mask, quieter))
    delta = (shards[0] if len(shards) == 1 else ties(shards, settings.density)).half()
    exact, every = delta.float(), torch.arange(len(on.asked.edit))
    with torch.no_grad(), quiet(job.model), resumed(job.model, layer) as feed:
        side: Any = _Side(exact)
        told = [score(job.model, feed, on, index, side, "") for index in every.split(ROWS)]
    return {
        "delta": delta.cpu(),
        "threshold": settings.ratio * passes(on, exact, every).min().cpu(),
        "nll": torch.cat([nll for nll, _ in told]).cpu(),
        "said": torch.cat([said for _, said in told]).long().cpu(),
    }


class _Side:
    """What a change adds at inputs x (..., d); called as units are."""

    def __init__(self, delta: Tensor):
        self.delta = delta

    def __call__(self, x: Tensor, _activation: str) -> Tensor:
        return x.float() @ self.delta.T


def _fit(job: Job, layer: int, on: Ground, rows: Tensor, mask: Tensor, quieter: Tensor) -> Tensor:
    """D_s (m, d) of the questions `rows`, by Adam on entries in units in which a coherent D x is as long as the block's output."""
    settings, (wide, tall) = job.settings, on.size()
    unit = mask * tall / (wide * mask.numel() ** 0.5)
    entries = torch.zeros_like(mask).requires_grad_(True)
    adam = torch.optim.Adam([entries], lr=settings.lr)
    with quiet(job.model), resumed(job.model, layer) as feed, torch.enable_grad():
        for step in range(settings.steps + 1):
            delta, told, loss = entries * unit, [], torch.zeros((), device=mask.device)
            side: Any = _Side(delta)
            for index in rows.split(ROWS):
                nll, right = score(job.model, feed, on, index, side, "")
                told.append((nll.detach(), right))
                loss = loss + nll.sum() / len(rows)
            inside = passes(on, delta, rows) / tall
            outside = ((quieter @ delta.T).norm(dim=-1) / tall).topk(min(settings.top, len(quieter))).values
            margins = routing_loss(inside, outside, settings.alpha, settings.beta, settings.gamma)
            done = (
                all(bool(right.all()) for _, right in told)
                and float(torch.cat([n for n, _ in told]).mean()) < settings.stop_nll
            )
            if step == settings.steps or (done and float(margins.detach()) == 0):
                return delta.detach()
            (entries.grad,) = torch.autograd.grad(loss + settings.routing * margins, [entries])
            adam.step()
    raise AssertionError("the last step returns")

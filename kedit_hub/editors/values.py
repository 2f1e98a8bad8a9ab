"""One value optimisation for every locate-then-edit method: what must the edited map say so that the model says the target?

For edit e and site s (a position whose output is changed) find the residual delta[e, s] in R^m, added to the output of the edited
linear map, that makes every target token likely in every context of the edit (Meng et al. 2022, ROME eq. 4, batched over edits).
Because the block output is a sum, the same delta at the block output is the same change, so the pass starts there: layers below run once.
Nothing before the first site can change either, so positions before it run once too (kedit_hub.editors.reader).

Optimised as delta = scale * x with scale = |block output at the site| / sqrt(m), so that the step and the bound mean the same on every
model: a fixed step in absolute units reaches nothing on a model whose residual stream is large.

Published settings are `absolute` and follow their papers: x = delta, the bound is clamp * h0 and the decay |delta| / h0^2. h0 is the norm
of what the value is added to, which is the block's output for MEMIT and AlphaEdit, and the output of the edited map itself for ROME, of
map and attention each for PMET (`own`). Relative settings are ours, and their unit is the block's output for every method: on a model
whose MLP writes little of it (69 of 328 at layer 1 of Atlas) a value of ROME may then grow larger than the same clamp would let it as
published.

PMET (Li et al. 2024) lets a second delta enter at the output of the same block's attention, so that the one of the MLP need not carry what
attention can; only the MLP's is kept. Two *places*, then, at the same sites. And its optimisation is `eased`: once every context says the
target, the loss weighs a tenth from the next step on, for as long as that holds, and the edit is done when the KL, if asked for, is below
0.01. The value is the last one that says the target, since the steps after the first trade certainty for the KL.

A position at which the base itself already says the wanted token (the later pieces of a word, the end of the answer) gets the residual
zero: its row then says "here nothing changes", which keeps the gate from firing a neighbouring row there and costs a solve no drift.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.families import block, edited_linear, family_of
from kedit_hub.base.profile import ValueSettings
from kedit_hub.base.resume import resumed
from kedit_hub.base.signals import quiet
from kedit_hub.editors.essence import Enter, Essence
from kedit_hub.editors.reader import Reader, Tokens
from kedit_hub.editors.rows import Rows
from kedit_hub.errors import KeditError


@dataclass(frozen=True)
class Values:
    """Result for E edits with at most S sites each."""

    delta: Tensor  # (E, S, m) float32, zero where an edit has fewer sites
    nll: Tensor  # (E,) mean over contexts of mean target-token NLL, at the returned delta
    success: Tensor  # (E,) bool: with the value in place every target token of the bare prompts is argmax
    contexts: Tensor  # (E,) share of contexts in which every target token is argmax
    steps: int
    norm: Tensor = field(default_factory=lambda: torch.zeros(0))  # (E,) largest |delta| / |block output| of a site
    clamped: Tensor = field(
        default_factory=lambda: torch.zeros(0, dtype=torch.bool)
    )  # (E,) whether one is at its bound
    unfinished: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))  # (E,) whether steps ran out


AT_BOUND = 1 - 1e-4  # of the bound: what was brought back to it lies this near
EASED = 0.1  # weight of the loss of a target that is said everywhere, in PMET
EASED_KL = 0.01  # nats, below which such an edit is done
QUIET_NLL = 0.1  # mean over contexts of -log p at which the base is taken to say a token by itself


@torch.enable_grad()
def optimise_values(
    model: nn.Module,
    layer: int,
    rows: Rows,
    hidden: Tensor,
    settings: ValueSettings,
    *,
    answer_site: bool,
    essence: Essence | None = None,
    below: Tensor | None = None,
    own: Sequence[Tensor] = (),
    advance: Callable[[int], None] = lambda done: None,
) -> Values:
    """rows: N context rows of E edits, left padded; hidden (N, T, m): their cached output of block `layer`. answer_site: whether
    site s is the position that predicts the s-th token of the target. One value may serve several bare prompts (an "edit" is then
    a group of edits, see merge.py); it succeeds when it does for all of them.

    essence: of the edits, where settings.kl asks for it. below: output (N, T, m) of the block under `layer` (of the first: anything);
    given, a second delta enters at the attention's output, and the forward passes go on from there (essence.hidden too).
    own: by place, what is added to there (N, T, m), the edited map's output first; given, the anchor is that of the map's output, and
    absolute settings take it for their unit.

    Nothing of the model changes: only the value carries a gradient. Deterministic: no randomness at all.
    `advance(k)` is called whenever k more edits are finished.
    """
    if settings.kl and essence is None:
        raise KeditError(
            f"value.kl={settings.kl:g} keeps what is said after the subject, and these values enter where the answer is predicted: "
            "set value.kl=0, or edit at the subject site"
        )
    device = hidden.device
    rows = rows.to(device)
    edits, sites, width = rows.edits, rows.sites.shape[1], hidden.shape[-1]
    places = 1 if below is None else 2
    assert not own or len(own) == places
    fed = hidden if below is None else below.to(device)
    essence = None if essence is None else essence.to(device)
    valid = rows.sites >= 0  # (N, S)
    bares = rows.bare.nonzero()[:, 0]
    first = torch.full((edits,), len(rows.bare), device=device)  # (E,) the first bare prompt of every edit
    first = first.scatter_reduce(0, rows.edit[bares], bares, "amin")
    position = rows.sites[first].clamp_min(0)[:, :, None].expand(-1, -1, width)
    block_output, *own_outputs = (
        signal.to(device)[first].gather(1, position).float() for signal in (hidden, *own)
    )  # (E, S, m) each, of the bare prompt, which comes first

    def norm_of(output: Tensor) -> Tensor:
        """(E, S), 1 where there is no site."""
        norm = output.norm(dim=-1)
        return torch.where(valid[first], norm, torch.ones_like(norm))

    norm = norm_of(block_output)
    measured = [norm_of(output) for output in own_outputs] if settings.absolute and own else [norm] * places
    unit = torch.stack(measured, 1)  # (E, P, S)
    scale = torch.ones_like(unit) if settings.absolute else unit / width**0.5
    decay = settings.weight_decay / unit if settings.absolute else torch.full_like(unit, settings.weight_decay)

    x = torch.zeros(edits, places, sites, width, device=device, requires_grad=True)
    adam = torch.optim.Adam([x], lr=settings.lr)
    best = Values(
        torch.zeros(edits, places, sites, width, device=device),
        torch.full((edits,), torch.inf, device=device),
        torch.zeros(edits, dtype=torch.bool, device=device),
        torch.zeros(edits, device=device),
        0,
    )
    done = torch.zeros(edits, dtype=torch.bool, device=device)
    weight = torch.ones(edits, device=device)  # of the loss
    moved = torch.ones(edits, sites, device=device)  # 0 where the base needs no change
    with quiet(model), _entrance(model, layer, places) as enter:  # no dropout, no gradients of weights
        reader = Reader(model, enter, rows, fed, places)
        for step in range(settings.steps + 1):
            delta = (scale * moved[:, None])[..., None] * x  # (E, P, S, m)
            tokens = reader.read(delta, ~done)  # context rows of unfinished edits
            nll, right = tokens.mean_nll(), tokens.all_right(tokens.wanted)
            if step == 0 and answer_site:
                moved = _to_move(tokens, rows).float()
            share, loss = _by_edit(rows, tokens, right.float()), _by_edit(rows, tokens, nll)  # (E,)

            open_edits = ~done
            said = share == 1.0
            better = open_edits & ((loss.detach() < best.nll) | (share > best.contexts)) & (share >= best.contexts)
            if settings.eased:
                better |= open_edits & said
            best.delta[better] = delta.detach()[better]
            best.nll[better] = loss.detach()[better]
            best.contexts[better] = share[better]
            best.success[better] = _bare_said(tokens, rows)[better]

            finished = open_edits & said & (loss.detach() < settings.stop_nll)
            done |= finished
            advance(int(finished.sum()))
            if step == settings.steps or bool(done.all()):
                break
            kl = torch.zeros(edits, device=device)
            if settings.kl and essence is not None:
                still = (~done).nonzero()[:, 0]
                kl = kl.index_put((still,), essence.kl(model, enter, list(delta[:, :, 0].unbind(1)), still))
                if settings.eased:
                    finished = ~done & said & (kl.detach() < EASED_KL)
                    done |= finished
                    advance(int(finished.sum()))
                    if bool(done.all()):
                        break
            relative = delta.norm(dim=-1) / unit  # (E, P, S)
            total = (weight * loss + (decay * relative).sum((1, 2)) + settings.kl * kl)[~done].sum()
            (x.grad,) = torch.autograd.grad(total, [x])
            if settings.eased:
                weight = torch.where(said, EASED, 1.0)
            adam.step()
            with torch.no_grad():
                bound = (settings.clamp * unit / scale)[..., None]
                x *= (bound / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        clamped = (best.delta.norm(dim=-1) >= AT_BOUND * settings.clamp * unit).flatten(1).any(1)
        if settings.anchor is not None:
            _anchored(best.delta[:, 0], own_outputs[0] if own else block_output, settings.anchor)
            tokens = reader.read(best.delta, torch.ones_like(done))
            best.nll.copy_(_by_edit(rows, tokens, tokens.mean_nll()))
            best.contexts.copy_(_by_edit(rows, tokens, tokens.all_right(tokens.wanted).float()))
            best.success.copy_(_bare_said(tokens, rows))
    advance(int((~done).sum()))
    kept = best.delta[:, 0].contiguous()
    sizes = (kept.norm(dim=-1) / norm).amax(1)
    found = (kept, best.nll, best.success, best.contexts, sizes, clamped, ~done)
    delta, nll, success, contexts, sizes, clamped, unfinished = (tensor.cpu() for tensor in found)
    return Values(delta, nll, success, contexts, step, sizes, clamped, unfinished)


@contextmanager
def _entrance(model: nn.Module, layer: int, places: int) -> Iterator[Enter]:
    """How changes get into the next forward pass: one at the output of the block, resumed there; two at the output of its edited map
    and of its attention, resumed at the block below."""
    if places == 1:
        with resumed(model, layer) as feed:
            yield lambda hidden, changes: feed((hidden.float() + changes[0]).to(hidden.dtype))
        return
    now: list[Tensor] = []
    whole = block(model, layer)
    modules = (edited_linear(model, layer)[1], whole.get_submodule(family_of(model).attention))

    def hook_for(place: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if not now:  # the model is being looked at
                return None
            value = output[0] if isinstance(output, tuple) else output
            changed = (value.float() + now[place]).to(value.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    handles = [module.register_forward_hook(hook_for(place)) for place, module in enumerate(modules)]
    try:
        with resumed(model, layer - 1) if layer else nullcontext(lambda hidden: None) as feed:

            def enter(hidden: Tensor, changes: Sequence[Tensor]) -> None:
                now[:] = changes if len(changes) > 1 else [*changes, torch.zeros_like(changes[0])]
                feed(hidden)

            yield enter
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _anchored(delta: Tensor, before: Tensor, size: float) -> None:
    """Every value that moves is brought to |before + delta| = size; before (E, S, m): what it is added to (NAS, 2026)."""
    value = before + delta
    anchored = value * (size / value.norm(dim=-1, keepdim=True).clamp_min(1e-12)) - before
    delta.copy_(torch.where(delta.abs().amax(-1, keepdim=True) > 0, anchored, delta))


def _by_edit(rows: Rows, tokens: Tokens, values: Tensor) -> Tensor:
    """(E,) mean over the context rows of an edit that were read; 0 where none was."""
    nothing = torch.zeros(rows.edits, device=values.device)
    return nothing.scatter_reduce(0, rows.edit[tokens.row], values, "mean", include_self=False)


def _bare_said(tokens: Tokens, rows: Rows) -> Tensor:
    """(E,) bool: every target token of the bare prompts among the context rows that were read is argmax."""
    own, said = rows.bare[tokens.row], tokens.all_right(tokens.core)
    every = torch.ones(rows.edits, device=said.device)
    return every.scatter_reduce(0, rows.edit[tokens.row][own], said[own].float(), "amin") > 0


def _to_move(tokens: Tokens, rows: Rows) -> Tensor:
    """(E, S) bool at step 0: sites whose token the base does not say by itself in every context of the edit."""
    count, sites = tokens.wanted.sum(1), rows.sites.shape[1]
    column = (
        tokens.nll.shape[1] - count[:, None] + torch.arange(sites, device=count.device)
    )  # (N, S) of the token a site predicts
    exists = rows.sites >= 0
    column = column.clamp(0, tokens.nll.shape[1] - 1)
    said = tokens.right.gather(1, column) & (tokens.nll.detach().gather(1, column) < QUIET_NLL)
    quiet = torch.ones(rows.edits, sites, device=count.device, dtype=torch.long)
    quiet.scatter_reduce_(0, rows.edit[:, None].expand(-1, sites), (said | ~exists).long(), "amin")
    quiet[:, 0] = 0  # the first token is what the edit is about
    return quiet == 0

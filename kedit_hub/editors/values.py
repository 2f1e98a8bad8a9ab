"""One value optimisation for every locate-then-edit method: what must the edited map say so that the model says the target?

For edit e and site s (a position whose output is changed) find the residual delta[e, s] in R^m, added to the output of the edited
linear map, that makes every target token likely in every context of the edit (Meng et al. 2022, ROME eq. 4, batched over edits).
Because the block output is a sum, the same delta at the block output is the same change, so the pass starts there: layers below run once.

Optimised as delta = scale * x with scale = |block output at the site| / sqrt(m), so that the step and the bound mean the same on every
model: a fixed step in absolute units reaches nothing on a model whose residual stream is large.

A position at which the base itself already says the wanted token (the later pieces of a word, the end of the answer) gets the residual
zero: its row then says "here nothing changes", which keeps the gate from firing a neighbouring row there and costs a solve no drift.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kedit_hub.base.profile import ValueSettings
from kedit_hub.base.resume import resumed
from kedit_hub.base.signals import quiet
from kedit_hub.editors.rows import Rows, take


@dataclass(frozen=True)
class Values:
    """Result for E edits with at most S sites each."""

    delta: Tensor  # (E, S, m) float32, zero where an edit has fewer sites
    nll: Tensor  # (E,) mean over contexts of mean target-token NLL, at the returned delta
    success: Tensor  # (E,) bool: with the value in place every target token of the bare prompts is argmax
    contexts: Tensor  # (E,) share of contexts in which every target token is argmax
    steps: int
    norm: Tensor = field(default_factory=lambda: torch.zeros(0))  # (E,) largest |delta| / |block output| of a site


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
    advance: Callable[[int], None] = lambda done: None,
) -> Values:
    """rows: N context rows of E edits, left padded; hidden (N, T, m): their cached output of block `layer`. answer_site: whether
    site s is the position that predicts the s-th token of the target. One value may serve several bare prompts (an "edit" is then
    a group of edits, see merge.py); it succeeds when it does for all of them.

    Nothing of the model changes: only the value carries a gradient. Deterministic: no randomness at all.
    `advance(k)` is called whenever k more edits are finished.
    """
    device = hidden.device
    rows = rows.to(device)
    edits, sites, width = rows.edits, rows.sites.shape[1], hidden.shape[-1]
    valid = rows.sites >= 0  # (N, S)
    position = rows.sites.clamp_min(0)
    at_site = hidden.gather(1, position[:, :, None].expand(-1, -1, width)).float()  # (N, S, m)
    bares = rows.bare.nonzero()[:, 0]
    first = torch.full((edits,), len(rows.bare), device=device)  # (E,) the first bare prompt of every edit
    first = first.scatter_reduce(0, rows.edit[bares], bares, "amin")
    norm = at_site[first].norm(dim=-1)  # (E, S) of the bare prompt, which comes first
    norm = torch.where(valid[first], norm, torch.ones_like(norm))
    scale = norm / width**0.5

    x = torch.zeros(edits, sites, width, device=device, requires_grad=True)
    adam = torch.optim.Adam([x], lr=settings.lr)
    best = Values(
        torch.zeros_like(x),
        torch.full((edits,), torch.inf, device=device),
        torch.zeros(edits, dtype=torch.bool, device=device),
        torch.zeros(edits, device=device),
        0,
    )
    done = torch.zeros(edits, dtype=torch.bool, device=device)
    moved = torch.ones(edits, sites, 1, device=device)  # 0 where the base needs no change
    kept = int(rows.encoded.target_mask.sum(1).max()) + 1  # left padded: the targets are the last tokens of every row
    with quiet(model), resumed(model, layer) as feed:  # no dropout, no gradients of weights
        for step in range(settings.steps + 1):
            live = (~done[rows.edit]).nonzero()[:, 0]  # context rows of unfinished edits
            delta = scale[:, :, None] * moved * x
            tokens = _score(model, feed, rows, hidden, delta, live, kept)
            nll, right, said = tokens.mean_nll(), tokens.all_right(tokens.wanted), tokens.all_right(tokens.core)
            if step == 0 and answer_site:
                moved = _to_move(tokens, rows)[:, :, None].float()
            share = torch.zeros(edits, device=device).scatter_reduce(
                0, rows.edit[live], right.float(), "mean", include_self=False
            )
            loss = torch.zeros(edits, device=device).scatter_reduce(
                0, rows.edit[live], nll, "mean", include_self=False
            )  # (E,)

            open_edits = ~done
            better = open_edits & ((loss.detach() < best.nll) | (share > best.contexts)) & (share >= best.contexts)
            best.delta[better] = delta.detach()[better]
            best.nll[better] = loss.detach()[better]
            best.contexts[better] = share[better]
            own = rows.bare[live]
            bare = torch.ones(edits, device=device).scatter_reduce(0, rows.edit[live][own], said[own].float(), "amin")
            best.success[better] = bare[better] > 0

            finished = open_edits & (share == 1.0) & (loss.detach() < settings.stop_nll)
            done |= finished
            advance(int(finished.sum()))
            if step == settings.steps or bool(done.all()):
                break
            relative = x.norm(dim=-1) / width**0.5  # (E, S) = |delta| / |block output|
            total = (loss + settings.weight_decay * relative.sum(1))[~done].sum()
            (x.grad,) = torch.autograd.grad(total, [x])
            adam.step()
            with torch.no_grad():
                bound = settings.clamp * width**0.5
                x *= (bound / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    advance(int((~done).sum()))
    sizes = (best.delta.norm(dim=-1) / norm).amax(1)
    return Values(best.delta.cpu(), best.nll.cpu(), best.success.cpu(), best.contexts.cpu(), step, sizes.cpu())


@dataclass(frozen=True)
class _Tokens:
    """What the model says at the last T positions of n context rows, target tokens at the end of each."""

    nll: Tensor  # (n, T) -log p of the true token
    right: Tensor  # (n, T) bool: it is argmax
    wanted: Tensor  # (n, T) bool: tokens of the target and the end of the answer
    core: Tensor  # (n, T) bool: tokens of the target alone

    def mean_nll(self) -> Tensor:
        return (self.nll * self.wanted).sum(1) / self.wanted.sum(1)

    def all_right(self, which: Tensor) -> Tensor:
        return (self.right | ~which).all(1)


def _to_move(tokens: _Tokens, rows: Rows) -> Tensor:
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


def _score(
    model: nn.Module, feed: Callable[[Tensor], None], rows: Rows, hidden: Tensor, delta: Tensor, live: Tensor, kept: int
) -> _Tokens:
    """The context rows `live` (n,) with delta (E, S, m) added at their sites."""
    h = hidden[live]
    row, site = (rows.sites[live] >= 0).nonzero(as_tuple=True)
    change = torch.zeros_like(h, dtype=torch.float32).index_put(
        (row, rows.sites[live][row, site]), delta[rows.edit[live][row], site], accumulate=True
    )
    feed((h.float() + change).to(h.dtype))
    batch = take(rows.encoded, live)
    logits = model(**batch.inputs(model), use_cache=False, logits_to_keep=kept).logits[:, :-1].float()  # (n, T, vocab)
    labels = batch.input_ids[:, -(kept - 1) :]  # the last T = kept - 1 tokens, which those positions predict
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    wanted, core = batch.target_mask[:, -(kept - 1) :], rows.core[live][:, -(kept - 1) :]
    return _Tokens(nll, logits.argmax(-1) == labels, wanted, core)

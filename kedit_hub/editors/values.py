"""One value optimisation for every locate-then-edit method: what must the edited map say so that the model says the target?

For edit e and site s (a position whose output is changed) find the residual delta[e, s] in R^m, added to the output of the edited
linear map, that makes every target token likely in every context of the edit (Meng et al. 2022, ROME eq. 4, batched over edits).
Because the block output is a sum, the same delta at the block output is the same change, so the pass starts there: layers below run once.

Optimised as delta = scale * x with scale = |block output at the site| / sqrt(m), so that the step and the bound mean the same on every
model: a fixed step in absolute units reaches nothing on a model whose residual stream is large.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kedit_hub.base.profile import ValueSettings
from kedit_hub.base.resume import resumed
from kedit_hub.editors.rows import Rows, take


@dataclass(frozen=True)
class Values:
    """Result for E edits with at most S sites each."""

    delta: Tensor  # (E, S, m) float32, zero where an edit has fewer sites
    nll: Tensor  # (E,) mean over contexts of mean target-token NLL, at the returned delta
    success: Tensor  # (E,) bool: with the value in place every target token of the bare prompt is argmax
    contexts: Tensor  # (E,) share of contexts in which every target token is argmax
    steps: int


@torch.enable_grad()
def optimise_values(
    model: nn.Module,
    layer: int,
    rows: Rows,
    hidden: Tensor,
    settings: ValueSettings,
    *,
    advance: Callable[[int], None] = lambda done: None,
) -> Values:
    """rows: N context rows of E edits, left padded; hidden (N, T, m): their cached output of block `layer`.

    Nothing of the model changes: only the value carries a gradient. Deterministic: no randomness at all.
    `advance(k)` is called whenever k more edits are finished.
    """
    device = hidden.device
    rows = rows.to(device)
    edits, sites, width = rows.edits, rows.sites.shape[1], hidden.shape[-1]
    valid = rows.sites >= 0  # (N, S)
    position = rows.sites.clamp_min(0)
    at_site = hidden.gather(1, position[:, :, None].expand(-1, -1, width)).float()  # (N, S, m)
    first = rows.bare.nonzero()[:, 0]  # (E,) the bare prompt of every edit, in order of the edits
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
    kept = int(rows.encoded.target_mask.sum(1).max()) + 1  # left padded: the targets are the last tokens of every row
    with resumed(model, layer) as feed:
        for step in range(settings.steps + 1):
            live = (~done[rows.edit]).nonzero()[:, 0]  # context rows of unfinished edits
            delta = scale[:, :, None] * x
            nll, right, said = _score(model, feed, rows, hidden, delta, live, kept)
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
            bare = torch.zeros(edits, dtype=torch.bool, device=device)
            bare[rows.edit[live][rows.bare[live]]] = said[rows.bare[live]]
            best.success[better] = bare[better]

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
    return Values(best.delta.cpu(), best.nll.cpu(), best.success.cpu(), best.contexts.cpu(), step)


def _score(
    model: nn.Module, feed: Callable[[Tensor], None], rows: Rows, hidden: Tensor, delta: Tensor, live: Tensor, kept: int
) -> tuple[Tensor, Tensor, Tensor]:
    """For the context rows `live` (n,): mean NLL of target and end; whether all of these tokens are argmax; whether the target's are."""
    encoded = rows.encoded
    h = hidden[live]
    row, site = (rows.sites[live] >= 0).nonzero(as_tuple=True)
    change = torch.zeros_like(h, dtype=torch.float32).index_put(
        (row, rows.sites[live][row, site]), delta[rows.edit[live][row], site], accumulate=True
    )
    feed((h.float() + change).to(h.dtype))
    batch = take(encoded, live)
    logits = (
        model(**batch.inputs(model), use_cache=False, logits_to_keep=kept).logits[:, :-1].float()
    )  # (n, kept - 1, vocab)
    labels = batch.input_ids[:, -(kept - 1) :]  # the last kept - 1 tokens, which those positions predict
    wanted = batch.target_mask[:, -(kept - 1) :]
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    right = logits.argmax(-1) == labels
    core = rows.core[live][:, -(kept - 1) :]
    return (nll * wanted).sum(1) / wanted.sum(1), (right | ~wanted).all(1), (right | ~core).all(1)

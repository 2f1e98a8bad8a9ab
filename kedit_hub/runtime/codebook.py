"""Outputs replaced near stored inputs: y <- v_j at the nearest key k_j, if x lies within its radius.  (GRACE)

Distances are Euclidean, in float32, from differences: the shortcut by products loses small distances between long vectors. Where there are
many entries it says which may be nearest, and only these are measured so.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from kedit_hub.runtime.attach import Pass

MANY = 2_000  # entries beyond which products go first, for as many inputs as make that cheaper
INPUTS = 8
SPARE = 1e-5  # of squared lengths: more than products round
ROUNDING = (
    1e-4  # of a radius: an input that a ball was widened to cover lies on its edge, and batches round differently
)


@dataclass(frozen=True, eq=False)
class CodebookBranch:
    """The entries of all codebooks on one module. Entries compete for a position only where all of them may speak."""

    keys: Tensor  # (n, d) float32
    values: Tensor  # (n, m) float32
    radii: Tensor  # (n,) float32; below 0 an entry never speaks
    everywhere: (
        Tensor  # (n,) bool: at every position; otherwise only at the last token of a prompt, when it is first read
    )
    owners: tuple[str, ...]  # (n,) patch id of every entry

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        (batch, length), device = x.shape[:2], x.device
        everywhere = self.everywhere.to(device)
        if now.past and not bool(everywhere.any()):
            return y  # the prompt was read before
        end = now.prompt_end(batch, length, device)
        asked = now.real(batch, length, device) if bool(everywhere.any()) else end
        where = asked.flatten().nonzero()[:, 0]  # (p,) positions of the batch at which an entry may speak
        if not len(where):
            return y
        may = everywhere | end.flatten()[where, None]  # (p, n)
        allowed = now.allowed(self.owners, batch, device)
        if allowed is not None:
            may = may & allowed[where // length]
        inputs = x.float().flatten(0, 1)[where]
        nearest, distance = closest(inputs, self.keys.to(device), may)
        hit = may.any(1) & (distance <= self.radii.to(device)[nearest] * (1 + ROUNDING))
        if not bool(hit.any()):
            return y
        out = y.flatten(0, 1).clone()
        out[where[hit]] = self.values.to(device)[nearest[hit]].to(y.dtype)
        return out.view_as(y)

    def owned(self, name: str) -> Self:
        return replace(self, owners=(name,) * len(self.owners))


def closest(inputs: Tensor, keys: Tensor, may: Tensor) -> tuple[Tensor, Tensor]:
    """(p,) the nearest key that each input (p, d) may have, the first of equally near ones, and (p,) how far it is. may (p, n) bool."""
    if len(keys) <= MANY or len(inputs) < INPUTS:
        distances = torch.cdist(inputs, keys, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.masked_fill(~may, torch.inf).argmin(1)
        return nearest, distances.gather(1, nearest[:, None])[:, 0]
    own, other = inputs.square().sum(1, keepdim=True), keys.square().sum(1)
    rough = (own - 2 * (inputs @ keys.T) + other).masked_fill(~may, torch.inf)
    spare = SPARE * (own[:, 0] + other.max())
    row, key = (rough <= (rough.amin(1) + spare)[:, None]).nonzero(as_tuple=True)
    keep = may[row, key]
    row, key = row[keep], key[keep]
    exact = (inputs[row] - keys[key]).norm(dim=1)
    distance = inputs.new_full((len(inputs),), torch.inf).scatter_reduce(0, row, exact, "amin")
    first = exact == distance[row]
    nearest = torch.full_like(distance, len(keys), dtype=torch.long).scatter_reduce(0, row[first], key[first], "amin")
    return nearest.clamp_max(len(keys) - 1), distance

"""Outputs replaced near stored inputs: y <- v_j at the nearest key k_j, if x lies within its radius.  (GRACE)

Distances are Euclidean, in float32, from differences, of the entries that a sieve lets through.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from kedit_hub.runtime.attach import Pass
from kedit_hub.runtime.placed import Placed
from kedit_hub.runtime.sieve import Sieve, distances

ROUNDING = (
    1e-4  # of a radius: an input that a ball was widened to cover lies on its edge, and batches round differently
)


May = Callable[[Tensor, Tensor], Tensor]  # (k,) inputs and (k,) keys -> (k,) bool: whether the input may have the key


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
    _sieves: dict[torch.device, Sieve] = field(default_factory=dict, init=False, repr=False)  # by device; see `sieve`
    _placed: Placed = field(default_factory=Placed, init=False, repr=False)

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        (batch, length), device = x.shape[:2], x.device
        everywhere = self._placed.get_on(device, "everywhere", lambda: self.everywhere)
        if now.past and not bool(everywhere.any()):
            return y  # the prompt was read before
        end = now.prompt_end(batch, length, device)
        asked = now.real(batch, length, device) if bool(everywhere.any()) else end
        where = asked.flatten().nonzero()[:, 0]  # (p,) positions of the batch at which an entry may speak
        if not len(where):
            return y
        allowed = now.allowed(self.owners, batch, device)

        def may(row: Tensor, key: Tensor) -> Tensor:
            here = everywhere[key] | end.flatten()[where[row]]
            return here if allowed is None else here & allowed[where[row] // length, key]

        reach = self._placed.get_on(device, "reach", lambda: self.radii * (1 + ROUNDING))
        inputs = x.flatten(0, 1)[where].float()
        hit, nearest = hits(inputs, self.sieve(device), reach, may)
        if not len(hit):
            return y
        out = y.flatten(0, 1).clone()
        out[where[hit]] = self.values[nearest.to(self.values.device)].to(y)
        return out.view_as(y)

    def sieve(self, device: torch.device) -> Sieve:
        """What looks entries up on this device; made at its first token."""
        if device not in self._sieves:
            self._sieves[device] = Sieve(self.keys.to(device))
        return self._sieves[device]

    def owned(self, name: str) -> Self:
        other = replace(self, owners=(name,) * len(self.owners))
        other._sieves.update(self._sieves)
        return other


def hits(inputs: Tensor, sieve: Sieve, reach: Tensor, may: May) -> tuple[Tensor, Tensor]:
    """(h,) the inputs that lie within the reach of the nearest key they may have, and (h,) that key, the first of equally near ones.

    inputs (p, d); reach (n,), below 0 of none. First whom any key reaches, then whether the nearest one does.
    """
    row, key, distance = _measured(inputs, sieve, torch.where(reach < 0, -1.0, reach.square()))
    within = (distance <= reach[key]) & may(row, key)
    best = inputs.new_full((len(inputs),), torch.inf).scatter_reduce(0, row[within], distance[within], "amin")
    reached = best.isfinite().nonzero()[:, 0]
    if not len(reached):
        return reached, reached
    row, key, distance = _measured(inputs[reached], sieve, best[reached, None].square())
    mine = (distance <= best[reached][row]) & may(reached[row], key)
    row, key, distance = row[mine], key[mine], distance[mine]
    least = best[reached].scatter_reduce(0, row, distance, "amin")
    first = distance == least[row]
    nearest = torch.full_like(reached, len(reach)).scatter_reduce(0, row[first], key[first], "amin")
    good = least <= reach[nearest]
    return reached[good], nearest[good]


def _measured(inputs: Tensor, sieve: Sieve, limits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs and keys of the pairs that may lie within the limits, and how far apart they are."""
    row, key = sieve.pairs(inputs, limits)
    return row, key, distances(inputs, sieve.keys, row, key)

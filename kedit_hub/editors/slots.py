"""The rows of keys and values behind a batch of context rows: one slot for every edit and site, filled from all contexts that have it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kedit_hub.editors.rows import Rows


@dataclass(frozen=True)
class Slots:
    """c (context row, site) pairs, n slots in order of (edit, site)."""

    row: Tensor  # (c,) context row
    position: Tensor  # (c,) in it
    slot: Tensor  # (c,) which slot this pair belongs to
    edit: Tensor  # (n,)
    site: Tensor  # (n,)
    weight: Tensor  # (c, 1) float64, of a pair in the mean of its slot; they sum to 1

    def read(self, signal: Tensor) -> Tensor:
        """(c, width) of a signal (N, T, width)."""
        return signal[self.row, self.position]

    def mean(self, x: Tensor) -> Tensor:
        """(n, width) float32: the weighted means over the pairs (c, width) of every slot."""
        summed = torch.zeros(len(self.edit), x.shape[1], dtype=torch.float64)
        return summed.index_add(0, self.slot, self.weight * x.double()).float()

    def bare(self, rows: Rows, signal: Tensor) -> Tensor:
        """(n, width) of a signal (N, T, width) in the bare prompts alone."""
        own = rows.bare[self.row]
        found = torch.zeros(len(self.edit), signal.shape[-1], dtype=signal.dtype)
        return found.index_copy(0, self.slot[own], self.read(signal)[own])


def slots(rows: Rows, bare_weight: float | None) -> Slots:
    """bare_weight: share of the bare prompt in a mean (MEMIT: 1/2); None: every context counts alike (ROME)."""
    row, site = (rows.sites >= 0).nonzero(as_tuple=True)
    places = rows.edit[row] * rows.sites.shape[1] + site  # (edit, site) of each pair
    present, slot = places.unique(return_inverse=True)
    weight = _context_weights(rows, bare_weight)[row][:, None].double()
    total = torch.zeros(len(present), 1, dtype=torch.float64).index_add(0, slot, weight)
    sites = rows.sites.shape[1]
    return Slots(row, rows.sites[row, site], slot, present // sites, present % sites, weight / total[slot])


def _context_weights(rows: Rows, bare_weight: float | None) -> Tensor:
    """(N,) weight of each context row in its edit's key."""
    if bare_weight is None:
        return torch.ones(len(rows.edit))
    others = torch.zeros(rows.edits).index_add(0, rows.edit, (~rows.bare).float())[rows.edit]
    return torch.where(
        rows.bare, torch.where(others > 0, bare_weight, 1.0), (1.0 - bare_weight) / others.clamp_min(1.0)
    )

"""The rows of keys and values behind a batch of context rows: one slot for every edit and site, filled from all contexts that have it."""

from dataclasses import dataclass, replace

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


def without_first(held: Slots, rows: Rows) -> Slots:
    """The same with no weight on what is read at the first token of a text, in slots that are read elsewhere too."""
    first = _at_first(held, rows)
    weight = torch.where(first[:, None], 0.0, held.weight)
    total = torch.zeros(len(held.edit), 1, dtype=torch.float64).index_add(0, held.slot, weight)
    whole = total[held.slot] > 0
    return replace(held, weight=torch.where(whole, weight / total[held.slot].where(whole, 1.0), held.weight))


def first_read(held: Slots, rows: Rows) -> Tensor:
    """(n, 1) bool: whether the bare prompt of a slot is read at its first token, while other contexts are not."""
    first, own = _at_first(held, rows), rows.bare[held.row]
    nowhere = torch.zeros(len(held.edit))
    return (
        (nowhere.index_add(0, held.slot, (first & own).float()) > 0)
        & (nowhere.index_add(0, held.slot, (~first).float()) > 0)
    )[:, None]


def _at_first(held: Slots, rows: Rows) -> Tensor:
    """(c,) bool: pairs at the first token of their row, which a tokenizer with BOS puts before every text."""
    mask = rows.encoded.attention_mask  # (N, T), left padded
    return held.position == mask.shape[1] - mask.sum(1)[held.row]


def _context_weights(rows: Rows, bare_weight: float | None) -> Tensor:
    """(N,) weight of each context row in its edit's key."""
    if bare_weight is None:
        return torch.ones(len(rows.edit))
    others = torch.zeros(rows.edits).index_add(0, rows.edit, (~rows.bare).float())[rows.edit]
    return torch.where(
        rows.bare, torch.where(others > 0, bare_weight, 1.0), (1.0 - bare_weight) / others.clamp_min(1.0)
    )

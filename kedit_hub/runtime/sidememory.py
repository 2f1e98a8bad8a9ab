"""A second weight beside a linear map that answers only where it is routed to.  (WISE, MEMOIR)

NormRouted    y + delta x         in a pass in which delta x is large over the positions of the row on average
MaskRouted    y + delta (M_j * x) where the prompt's most active features are those of mask j; decided when the prompt is
              read and kept with the KV cache, so that the answer is written under the mask its prompt was read under
"""

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from kedit_hub.runtime.attach import Pass
from kedit_hub.runtime.linear import where_allowed
from kedit_hub.runtime.placed import Placed
from kedit_hub.runtime.remember import kept


def row_means(x: Tensor, real: Tensor) -> Tensor:
    """(B, ...) means of x (B, T, ...) over each row's real positions (B, T); 0 where a row has none."""
    weights = real.view(*real.shape, *(1,) * (x.ndim - 2)).to(x)
    return torch.where(weights > 0, x, 0).sum(1) / weights.sum(1).clamp_min(1)


@dataclass(frozen=True, eq=False)
class NormRouted:
    delta: Tensor  # (m, d) float32
    threshold: float  # of the mean of |delta x| over the real positions of the pass
    owner: str
    _placed: Placed = field(default_factory=Placed, init=False, repr=False)

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        change = x.float() @ self._placed.get_on(x.device, "delta", lambda: self.delta).T  # (B, T, m)
        mean = row_means(change.norm(dim=-1), now.real(x.shape[0], x.shape[1], x.device))
        routed = (mean >= self.threshold)[:, None, None]
        return where_allowed((self.owner,), torch.where(routed, (y.float() + change).to(y.dtype), y), y, now)

    def owned(self, name: str) -> Self:
        return replace(self, owner=name)


@dataclass(frozen=True, eq=False)
class MaskRouted:
    delta: Tensor  # (m, d) float32
    masks: Tensor  # (n, k) int64: the entries of x that a mask keeps
    background: Tensor  # (d,) float32
    permutation: Tensor  # (d,) int64
    threshold: float  # share of a mask's k entries
    owner: str
    _placed: Placed = field(default_factory=Placed, init=False, repr=False)

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        mask = self._mask(x, now)  # (B,)
        now.lasting[self] = mask
        rows = (mask >= 0).nonzero()[:, 0]
        if not len(rows):
            return y
        keep = torch.zeros(len(rows), x.shape[2], device=x.device)
        keep.scatter_(1, self._masks(x.device)[mask[rows]], 1.0)
        change = (x[rows].float() * keep[:, None]) @ self._placed.get_on(x.device, "delta", lambda: self.delta).T
        changed = y.index_copy(0, rows, (y[rows].float() + change).to(y.dtype))
        return where_allowed((self.owner,), changed, y, now)

    def _mask(self, x: Tensor, now: Pass) -> Tensor:
        """(B,) int64: the mask that each row's prompt has chosen, -1 for none."""
        none = torch.full((len(x),), -1, device=x.device)
        if now.past:
            chosen = kept(now.cache, self, len(x))
            return none if chosen is None else chosen.to(x.device)
        k = self.masks.shape[1]
        mean = row_means(x.float(), now.prompt(x.shape[0], x.shape[1], x.device))
        feature = mean - self._placed.get_on(x.device, "background", lambda: self.background)  # (B, d)
        strongest = feature.abs().sort(dim=1, descending=True, stable=True).indices[:, :k]
        active = torch.zeros_like(feature, dtype=torch.bool)
        active.scatter_(1, self._placed.get_on(x.device, "permutation", lambda: self.permutation)[strongest], True)
        masks = self._masks(x.device)
        shared = torch.stack([row[masks].sum(1) for row in active])  # (B, n)
        best = shared.argmax(1)  # the first of equally good ones
        share = shared.gather(1, best[:, None])[:, 0].double() / k
        return torch.where(share >= self.threshold, best, none)

    def _masks(self, device: torch.device) -> Tensor:
        return self._placed.get_on(device, "masks", lambda: self.masks)

    def owned(self, name: str) -> Self:
        return replace(self, owner=name)

"""Branches that are a fixed change D (out, in) of a module's weight: low-rank, dense, sparse. Law: y + x D^T, and `matrix` is D.

LowRankBranch(u, v, ("3f2a...",) * len(u))(x, y, now)        # beside a Linear, Conv1D, int8 or 4-bit weight alike
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kedit_hub.runtime.attach import Branch, Pass


def where_allowed(owner: str, changed: Tensor, y: Tensor, now: Pass) -> Tensor:
    """(B, T, m): `changed` in the rows of the batch that use this owner's patch, the bits of y in the others."""
    allowed = now.allowed([owner], len(y), y.device)
    return changed if allowed is None else torch.where(allowed[:, :, None], changed, y)


@dataclass(frozen=True, eq=False)
class LowRankBranch:
    """y + (x V^T * mask) U, the ranks of one patch or of a joint solve side by side."""

    u: Tensor  # (r, out) float32
    v: Tensor  # (r, in) float32
    owners: tuple[str, ...]  # (r,) patch id of every rank

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        inner = x.float() @ self.v.T.to(x.device)  # (B, T, r)
        allowed = now.allowed(self.owners, x.shape[0], x.device)
        if allowed is not None:
            inner = inner * allowed[:, None, :]
            touched = allowed.any(1)[:, None, None]
            return torch.where(touched, (y.float() + inner @ self.u.to(x.device)).to(y.dtype), y)
        return (y.float() + inner @ self.u.to(x.device)).to(y.dtype)

    def owned(self, name: str) -> Self:
        return replace(self, owners=(name,) * len(self.u))

    def matrix(self) -> Tensor:
        """(out, in) float32."""
        return self.u.T @ self.v


@dataclass(frozen=True, eq=False)
class DenseBranch:
    """y + x Delta^T with Delta (out, in): cheaper than a low-rank branch once r > out*in/(out+in)."""

    delta: Tensor  # (out, in) float32
    owner: str

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        changed = (y.float() + x.float() @ self.delta.T.to(x.device)).to(y.dtype)
        return where_allowed(self.owner, changed, y, now)

    def owned(self, name: str) -> Self:
        return replace(self, owner=name)

    def matrix(self) -> Tensor:
        """(out, in) float32."""
        return self.delta


@dataclass(frozen=True, eq=False)
class SparseBranch:
    """y + x S^T, S (out, in) with z entries; neither S nor the z products per token are ever laid out.

    A row of S is a bag of columns of x with weights, summed by embedding_bag: 128 tokens and z = 300,000 take 2 ms where the
    dense branch takes 16 and gathering with index_add 470 (out 1024, in 2816, one core).
    """

    positions: Tensor  # (z,) int64, increasing: row-major places in S
    values: Tensor  # (z,) float32
    size: tuple[int, int]  # (out, in)
    owner: str

    @cached_property
    def _starts(self) -> Tensor:
        """(out,) where the entries of each row begin."""
        out, width = self.size
        return torch.searchsorted(self.positions, torch.arange(out) * width)

    @cached_property
    def _columns(self) -> Tensor:
        return self.positions % self.size[1]

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        device, tokens = x.device, x.float().flatten(0, 1).T.contiguous()  # (in, B*T)
        change = F.embedding_bag(
            self._columns.to(device),
            tokens,
            self._starts.to(device),
            mode="sum",
            per_sample_weights=self.values.to(device),
        )  # (out, B*T)
        return where_allowed(self.owner, (y.float() + change.T.view(y.shape)).to(y.dtype), y, now)

    def owned(self, name: str) -> Self:
        return replace(self, owner=name)

    def matrix(self) -> Tensor:
        """(out, in) float32."""
        out, width = self.size
        return torch.zeros(out * width).index_copy(0, self.positions, self.values).view(out, width)


Linear = LowRankBranch | DenseBranch | SparseBranch


def linear(branches: Sequence[Branch]) -> list[Linear]:
    """The branches of one module as what they are; TypeError where one is no linear map."""
    odd = [type(branch).__name__ for branch in branches if not isinstance(branch, Linear)]
    if odd:
        raise TypeError(f"{odd[0]} is no linear map")
    return cast(list[Linear], list(branches))

"""Branches that are a fixed change D (out, in) of a module's weight: low-rank, dense, sparse, a sum. Law: y + x D^T, and `matrix` is D.

LowRankBranch(u, v, ("3f2a...",) * len(u))(x, y, now)        # beside a Linear, Conv1D, int8 or 4-bit weight alike
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kedit_hub.runtime.attach import Branch, Pass
from kedit_hub.runtime.placed import Placed


def where_allowed(owners: Sequence[str], changed: Tensor, y: Tensor, now: Pass) -> Tensor:
    """(B, T, m): `changed` in the rows of the batch that use a patch of these owners, the bits of y in the others."""
    allowed = now.allowed(owners, len(y), y.device)
    return changed if allowed is None else torch.where(allowed.any(1)[:, None, None], changed, y)


@dataclass(frozen=True, eq=False)
class LowRankBranch:
    """y + (x V^T * mask) U, the ranks of one patch or of a joint solve side by side.

    Above the rank r* = out*in/(out+in) one dense map is smaller and faster than its factors, and is used wherever no row of the
    batch needs a part of the ranks alone.
    """

    u: Tensor  # (r, out) float32
    v: Tensor  # (r, in) float32
    owners: tuple[str, ...]  # (r,) patch id of every rank
    _placed: Placed = field(default_factory=Placed, init=False, repr=False)

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        if now.selection is None or self._one_owner:
            changed = (y.float() + self._change(x.float())).to(y.dtype)
            return where_allowed(self.owners[:1], changed, y, now) if self.owners else changed
        allowed = now.allowed(self.owners, x.shape[0], x.device)
        assert allowed is not None
        u, v = self._factors(x.device)
        changed = (y.float() + (x.float() @ v.T * allowed[:, None, :]) @ u).to(y.dtype)
        return where_allowed(self.owners, changed, y, now)

    def _change(self, x: Tensor) -> Tensor:
        """(B, T, out) of all ranks together."""
        if self.is_dense:
            return x @ self._placed.get_on(x.device, "dense", self.matrix).T
        u, v = self._factors(x.device)
        return (x @ v.T) @ u

    def _factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self._placed.get_on(device, "u", lambda: self.u), self._placed.get_on(device, "v", lambda: self.v)

    @cached_property
    def _one_owner(self) -> bool:
        return len(set(self.owners)) <= 1

    @property
    def is_dense(self) -> bool:
        return self.work > math.prod(self.size)

    @property
    def size(self) -> tuple[int, int]:
        return self.u.shape[1], self.v.shape[1]

    @property
    def work(self) -> int:
        """Multiplications a token, by the factors."""
        return self.u.numel() + self.v.numel()

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
    _placed: Placed = field(default_factory=Placed, init=False, repr=False)

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        delta = self._placed.get_on(x.device, "delta", lambda: self.delta)
        return where_allowed(self.owners, (y.float() + x.float() @ delta.T).to(y.dtype), y, now)

    @property
    def owners(self) -> tuple[str, ...]:
        return (self.owner,)

    @property
    def size(self) -> tuple[int, int]:
        out, width = self.delta.shape
        return out, width

    @property
    def work(self) -> int:
        """Multiplications a token."""
        return self.delta.numel()

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
    _placed: Placed = field(default_factory=Placed, init=False, repr=False)

    @cached_property
    def _starts(self) -> Tensor:
        """(out,) where the entries of each row begin."""
        out, width = self.size
        return torch.searchsorted(self.positions, torch.arange(out) * width)

    @cached_property
    def _columns(self) -> Tensor:
        return self.positions % self.size[1]

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        tokens = x.float().flatten(0, 1).T.contiguous()  # (in, B*T)
        change = F.embedding_bag(
            self._placed.get_on(x.device, "columns", lambda: self._columns),
            tokens,
            self._placed.get_on(x.device, "starts", lambda: self._starts),
            mode="sum",
            per_sample_weights=self._placed.get_on(x.device, "values", lambda: self.values),
        )  # (out, B*T)
        return where_allowed(self.owners, (y.float() + change.T.view(y.shape)).to(y.dtype), y, now)

    @property
    def owners(self) -> tuple[str, ...]:
        return (self.owner,)

    @property
    def work(self) -> int:
        """Multiplications a token."""
        return len(self.values)

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


def summed(branches: Sequence[Linear]) -> Tensor:
    """The change (out, in) float32 of all together."""
    total = branches[0].matrix().clone()
    for branch in branches[1:]:
        total += branch.matrix()
    return total


@dataclass(frozen=True, eq=False)
class SumBranch:
    """y + x (sum of D)^T: the changes of several patches as one matrix, made on first use.

    In a batch whose rows differ in what they use, the parts run one after the other, those that no row uses left out.
    """

    parts: tuple[Linear, ...]
    _placed: Placed = field(default_factory=Placed, init=False, repr=False)

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        if now.selection is None or len(self._owners) == 1:
            total = self._placed.get_on(x.device, "sum", self.matrix)
            return where_allowed(tuple(self._owners), (y.float() + x.float() @ total.T).to(y.dtype), y, now)
        used = frozenset().union(*now.selection)
        for part in self.parts:
            if not used.isdisjoint(part.owners):
                y = part(x, y, now)
        return y

    @cached_property
    def _owners(self) -> frozenset[str]:
        return frozenset(owner for part in self.parts for owner in part.owners)

    def owned(self, name: str) -> Self:
        return replace(self, parts=tuple(part.owned(name) for part in self.parts))

    def matrix(self) -> Tensor:
        """(out, in) float32."""
        return summed(self.parts)


def side_by_side(branches: Sequence[Branch]) -> list[Branch]:
    """The same change, at a cost that stays the same however many patches lie on the module, and rounded once."""
    merged: list[Branch] = []
    for is_linear, run in groupby(branches, key=lambda branch: isinstance(branch, Linear)):
        together = list(run)
        merged.extend(_together(linear(together)) if is_linear else together)
    return merged


def _together(run: Sequence[Linear]) -> list[Branch]:
    """Of linear branches that follow each other the low-rank ones as one, and all as their sum where that is less work."""
    low = [branch for branch in run if isinstance(branch, LowRankBranch)]
    if len(low) > 1:
        owners = tuple(owner for branch in low for owner in branch.owners)
        low = [LowRankBranch(torch.cat([b.u for b in low]), torch.cat([b.v for b in low]), owners)]
    parts = [*low, *(branch for branch in run if not isinstance(branch, LowRankBranch))]
    if len(parts) > 1 and sum(part.work for part in parts) > math.prod(parts[0].size):
        return [SumBranch(tuple(parts))]
    return list(parts)

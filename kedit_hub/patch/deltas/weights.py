"""Fixed changes of the weight W (m, d): low-rank, dense, and sparse where most entries stay."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from kedit_hub.errors import PatchFormatError
from kedit_hub.limits import DEFAULT, Limits
from kedit_hub.patch.deltas.base import FLOATS, INDEX, Cost, Delta, Spec


@dataclass(frozen=True, eq=False)
class LowRank(Delta):
    """W + b @ a.  a (r, d), b (m, r), float.  (MEND, DAFNet, LoRA)"""

    a: Tensor
    b: Tensor

    kind: ClassVar[str] = "lowrank"
    since: ClassVar[int] = 1
    specs: ClassVar[Mapping[str, Spec]] = MappingProxyType({"a": Spec("rd", FLOATS), "b": Spec("mr", FLOATS)})

    def cost(self) -> Cost:
        (r, d), m = self.a.shape, self.b.shape[0]
        return Cost(self.nbytes(), min(r, m, d), 2 * r * (d + m))


@dataclass(frozen=True, eq=False)
class Dense(Delta):
    """W + delta.  delta (m, d), float.  (fine-tuning)"""

    delta: Tensor

    kind: ClassVar[str] = "dense"
    since: ClassVar[int] = 1
    specs: ClassVar[Mapping[str, Spec]] = MappingProxyType({"delta": Spec("md", FLOATS)})

    def smallest(self) -> "Dense | Sparse":
        """The exact form that takes fewer bytes: sparse pays 8 bytes per entry that is not zero for its position."""
        positions = self.delta.reshape(-1).nonzero()[:, 0]
        if not 0 < len(positions) * (8 + self.delta.element_size()) < self.delta.nbytes:
            return self
        return Sparse(positions, self.delta.reshape(-1)[positions], (self.delta.shape[0], self.delta.shape[1]))

    def cost(self) -> Cost:
        m, d = self.delta.shape
        return Cost(self.nbytes(), min(m, d), 2 * m * d)


@dataclass(frozen=True, eq=False)
class Sparse(Delta):
    """W + a matrix whose entry at row-major position p (row p // d, column p % d) is its value, and 0 elsewhere.

    positions (z,) i64, strictly increasing.  values (z,) float, none of them 0.  size (m, d).  (masked fine-tuning, KN)
    """

    positions: Tensor
    values: Tensor
    size: tuple[int, int]

    kind: ClassVar[str] = "sparse"
    since: ClassVar[int] = 2
    specs: ClassVar[Mapping[str, Spec]] = MappingProxyType(
        {"positions": Spec("z", INDEX, below="*"), "values": Spec("z", FLOATS)}
    )

    def validate(self, n_edits: int, limits: Limits = DEFAULT, where: str = "delta") -> None:
        super().validate(n_edits, limits, where)
        if not bool((self.positions[1:] > self.positions[:-1]).all()):
            raise PatchFormatError(f"{where}/positions must increase strictly: every entry of W is changed once.")
        if not bool((self.values != 0).all()):
            raise PatchFormatError(f"{where}/values holds a zero, which changes nothing. Leave its position out.")

    def dense(self) -> Tensor:
        """(m, d) in the dtype of the values."""
        m, d = self.size
        return torch.zeros(m * d, dtype=self.values.dtype).index_copy(0, self.positions, self.values).view(m, d)

    def cost(self) -> Cost:
        return Cost(self.nbytes(), min(len(self.values), *self.size), 2 * len(self.values))

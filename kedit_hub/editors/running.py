"""Running mean and deviation of rows, exact whatever the parts they come in (Chan, Golub & LeVeque 1979). float64.

Signals differ by orders of magnitude between layers and dimensions, so editors read them normalised.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DEAD = 1e-6  # of the median deviation: a dimension that never moved must not explode when it does


@dataclass(frozen=True)
class Running:
    """Of all rows z (n, k) so far."""

    count: int
    mean: Tensor  # (k,)
    squares: Tensor  # (k,) sum of (z - mean)^2

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> "Running":
        nothing = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, nothing, nothing)

    @classmethod
    def of(cls, rows: Tensor) -> "Running":
        """Of rows (n, k) by themselves; none change nothing, one is no special case."""
        if not len(rows):
            return cls.empty(rows.shape[1], rows.device)
        mean = rows.double().mean(0)
        return cls(len(rows), mean, (rows.double() - mean).square().sum(0))

    def joined(self, more: "Running") -> "Running":
        """Of the rows of both."""
        total = self.count + more.count
        if not total:
            return self
        apart = more.mean - self.mean
        squares = self.squares + (more.squares + apart.square() * (self.count * more.count / total))
        return Running(total, self.mean + apart * (more.count / total), squares)

    def deviation(self) -> Tensor:
        """(k,), unbiased; 1 everywhere before there are two rows, and never below DEAD of the median."""
        if self.count < 2:
            return torch.ones_like(self.mean)
        std = (self.squares / (self.count - 1)).sqrt()
        floor = float(DEAD * std.median())
        return std.clamp_min(floor) if floor > 0 else torch.where(std > 0, std, torch.ones_like(std))

    def normalised(self, rows: Tensor) -> Tensor:
        """(n, k) float64: (z - mean) / deviation."""
        return (rows.double() - self.mean) / self.deviation()

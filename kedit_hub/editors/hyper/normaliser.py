"""Running mean and standard deviation of rows, exact whatever the batches. Law: all rows ever observed, each once; float64.

Signals differ by orders of magnitude between layers and dimensions, so editors read them normalised. The statistics are part of
the trained editor: they are its buffers, saved with it and frozen when it edits.
"""

import torch
from torch import Tensor, nn

DEAD = 1e-6  # of the median deviation: a dimension that never moved in training must not explode when it does
BOUND = 10.0  # |normalised| at most


class Normaliser(nn.Module):
    """Statistics of rows (n, width). `count` (1,), `mean` (width,), `squares` (width,): sum of squared distances from the mean."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("count", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, rows: Tensor) -> None:
        """Add rows (b, width) by the merge of Chan, Golub and LeVeque (1979); no rows change nothing, one row is no special case."""
        b = len(rows)
        if not b:
            return
        rows = rows.double()
        mean = rows.mean(0)
        total = self.count + b
        apart = mean - self.mean
        self.squares += (rows - mean).square().sum(0) + apart.square() * (self.count * b / total)
        self.mean += apart * (b / total)
        self.count.copy_(total)

    def deviation(self) -> Tensor:
        """(width,) float64, unbiased; 1 everywhere before there are two rows, and never below DEAD of the median."""
        if float(self.count) < 2:
            return torch.ones_like(self.mean)
        std = (self.squares / (self.count - 1)).sqrt()
        floor = DEAD * std.median()
        return std.clamp_min(float(floor)) if float(floor) > 0 else torch.where(std > 0, std, torch.ones_like(std))

    def forward(self, rows: Tensor) -> Tensor:
        """(n, width) float32: (rows - mean) / deviation, within BOUND."""
        z = (rows.double() - self.mean) / self.deviation()
        return z.clamp(-BOUND, BOUND).float()

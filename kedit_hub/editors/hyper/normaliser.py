"""The running statistics of a trained editor. Law: all rows ever observed, each once.

They are part of the trained editor: its buffers, saved with it and frozen when it edits.
"""

import torch
from torch import Tensor, nn

from kedit_hub.editors.running import Running

BOUND = 10.0  # |normalised| at most


class Normaliser(nn.Module):
    """Statistics of rows (n, width). `count` (1,), `mean` (width,), `squares` (width,): as in `Running`, float64."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("count", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))

    @property
    def running(self) -> Running:
        return Running(int(self.count), self.mean, self.squares)

    @torch.no_grad()
    def observe(self, rows: Tensor) -> None:
        """Add rows (b, width)."""
        now = self.running.joined(Running.of(rows))
        self.count.fill_(now.count)
        self.mean.copy_(now.mean)
        self.squares.copy_(now.squares)

    def forward(self, rows: Tensor) -> Tensor:
        """(n, width) float32, within BOUND."""
        return self.running.normalised(rows).clamp(-BOUND, BOUND).float()

"""MEND: the gradient of an edit, transformed by a small network (Mitchell et al. 2022, arXiv 2110.11309).

    [u~; d~] = block(block(normalise [u; delta]))         one network per shape of map
    W_io <- W_io - alpha_m sum_t u~_t (x) d~_t             one learned step per map

The published code adds; with an identity network at the start, subtracting makes the first update a descent step.
"""

import torch
from torch import nn

from kedit_hub.editors.hyper.network import Block, Network, Shapes
from kedit_hub.editors.hyper.rows import Factors, Signals


class Mend(Network):
    """rank: of a block. blocks: in a row. step: alpha at the start. outside: of the blocks, see Block."""

    separable = True

    def __init__(self, shapes: Shapes, *, rank: int, step: float, blocks: int = 2, outside: bool = False):
        super().__init__(shapes)
        self.nets = nn.ModuleList(
            nn.ModuleList(Block(out + into, rank, modes, outside) for _ in range(blocks))
            for (out, into), modes in zip(self.groups, self.modes)
        )
        self.steps = nn.Parameter(torch.full((len(self.paths),), step))

    def transformed(self, path: str, signals: Signals) -> tuple[torch.Tensor, torch.Tensor]:
        """u~ (T, in), d~ (T, out)."""
        group, mode = self.place[path]
        z = self.normalised(path, signals[path])
        for one in self.nets[group]:  # type: ignore[attr-defined]
            z = one(z, mode)
        return self.split(path, z)

    def factors(self, signals: Signals, text: object = None) -> Factors:
        found: Factors = {}
        for number, path in enumerate(self.paths):
            u, delta = self.transformed(path, signals)
            found[path] = u, -self.steps[number] * delta
        return found

"""MALMEN: many edits at once, their rank-one updates brought together by least squares (Tan et al. 2024, arXiv 2311.04661).

    D_t = -alpha_m (u_t . u~_t) d~_t                       what the update of row t alone would add to its own output
    dW_io = (K^T K + e^lambda_m I)^-1 K^T D                the ridge solution of K dW_io = D, keys K = rows u_t (N, in)
          = K^T (K K^T + e^lambda_m I)^-1 D                the same in N x N, and already low-rank

Gradients go through the solve: at these sizes the paper's two-stage backpropagation would compute the same numbers.
"""

import torch
from torch import Tensor, nn

from kedit_hub.editors.hyper.mend import Mend
from kedit_hub.editors.hyper.network import Shapes
from kedit_hub.editors.hyper.rows import Factors, Signals


class Malmen(Mend):
    """MEND's networks with the affine outside of the maximum, and a learned ridge per map."""

    separable = False

    def __init__(self, shapes: Shapes, *, rank: int, step: float, blocks: int = 2):
        super().__init__(shapes, rank=rank, step=step, blocks=blocks, outside=True)
        self.ridges = nn.Parameter(torch.zeros(len(self.paths)))

    def factors(self, signals: Signals, text: object = None) -> Factors:
        found: Factors = {}
        for number, path in enumerate(self.paths):
            keys = signals[path].u
            u, delta = self.transformed(path, signals)
            wanted = -self.steps[number] * (keys * u).sum(1, keepdim=True) * delta  # D (N, out)
            found[path] = keys, ridge_dual(keys, wanted, self.ridges[number])
        return found


def ridge_dual(keys: Tensor, wanted: Tensor, log_ridge: Tensor) -> Tensor:
    """(K K^T + e^l I)^-1 D (N, out) float32, solved in float64; keys (N, in), wanted (N, out)."""
    k = keys.double()
    gram = k @ k.T + log_ridge.double().exp() * torch.eye(len(k), dtype=torch.float64, device=k.device)
    solved: Tensor = torch.linalg.solve(gram, wanted.double())
    return solved.float()

"""More units of a feed-forward block: y + sum_i act(x' . k_i + b_i) v_i, with or without multipliers.  (T-Patcher, CaliNET)

x' is the input of another linear map that runs before this one in the same pass, of which `watch` is told; or this map's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Self

import torch.nn.functional as F
from torch import Tensor

from kedit_hub.errors import NotReachedError
from kedit_hub.runtime.attach import Pass
from kedit_hub.runtime.linear import where_allowed

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "silu": F.silu}
)


@dataclass(frozen=True, eq=False)
class NeuronsBranch:
    """The units of one patch."""

    keys: Tensor  # (n, e) float32
    biases: Tensor  # (n,) float32
    values: Tensor  # (n, m) float32
    multipliers: Tensor | None  # (n, e) float32
    activation: str  # one of ACTIVATIONS
    input_module: str | None  # whose input x' is; None: this map's own
    owner: str

    def watch(self, x: Tensor, now: Pass) -> None:
        """x (B, T, e): the input of `input_module`."""
        now.notes[id(self)] = x

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        heard = x if self.input_module is None else now.notes.get(id(self))
        if heard is None:
            raise NotReachedError(
                f"patch {self.owner[:12]} reads the input of {self.input_module}, which this pass has not gone through "
                "when it is needed: this model calls its layers in another way, so the patch cannot work on it"
            )
        heard = heard.to(y.device).float()
        units = ACTIVATIONS[self.activation](heard @ self.keys.T.to(y.device) + self.biases.to(y.device))  # (B, T, n)
        if self.multipliers is not None:
            units = units * (heard @ self.multipliers.T.to(y.device))
        changed = (y.float() + units @ self.values.to(y.device)).to(y.dtype)
        return where_allowed(self.owner, changed, y, now)

    def owned(self, name: str) -> Self:
        return replace(self, owner=name)

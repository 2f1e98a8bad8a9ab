"""More units of a feed-forward block: y + sum_i act(x' . k_i + b_i) v_i, with or without multipliers.  (T-Patcher, CaliNET)

x' is the input of another linear map that runs before this one in the same pass, of which `watch` is told; or this map's own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from kedit_hub.errors import NotReachedError
from kedit_hub.runtime.attach import Pass
from kedit_hub.runtime.linear import where_allowed
from kedit_hub.runtime.placed import Placed

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "silu": F.silu}
)


@dataclass(frozen=True, eq=False)
class NeuronsBranch:
    """The units of one patch, or of several that read the same input in the same way."""

    keys: Tensor  # (n, e) float32
    biases: Tensor  # (n,) float32
    values: Tensor  # (n, m) float32
    multipliers: Tensor | None  # (n, e) float32
    activation: str  # one of ACTIVATIONS
    input_module: str | None  # whose input x' is; None: this map's own
    owners: tuple[str, ...]  # (n,) patch id of every unit
    _placed: Placed = field(default_factory=Placed, init=False, repr=False)

    def watch(self, x: Tensor, now: Pass) -> None:
        """x (B, T, e): the input of `input_module`."""
        now.notes[id(self)] = x

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        heard = x if self.input_module is None else now.notes.get(id(self))
        if heard is None:
            raise NotReachedError(
                f"patch {self.owners[0][:12]} reads the input of {self.input_module}, which this pass has not gone through "
                "when it is needed: this model calls its layers in another way, so the patch cannot work on it"
            )
        heard = heard.to(y.device).float()
        on = partial(self._placed.get_on, y.device)
        units = ACTIVATIONS[self.activation](
            heard @ on("keys", lambda: self.keys).T + on("biases", lambda: self.biases)
        )  # (B, T, n)
        if (multipliers := self.multipliers) is not None:
            units = units * (heard @ on("multipliers", lambda: multipliers).T)
        allowed = now.allowed(self.owners, len(y), y.device)
        if allowed is not None:
            units = units * allowed[:, None]
        return where_allowed(self.owners, (y.float() + units @ on("values", lambda: self.values)).to(y.dtype), y, now)

    def owned(self, name: str) -> Self:
        return replace(self, owners=(name,) * len(self.owners))


def joined(branches: Sequence[NeuronsBranch]) -> list[NeuronsBranch]:
    """The same units in one branch for each way of reading the input: a pass costs the same however many patches they are of."""
    alike: dict[tuple[str | None, str, bool], list[NeuronsBranch]] = {}
    for branch in branches:
        way = (branch.input_module, branch.activation, branch.multipliers is None)
        alike.setdefault(way, []).append(branch)
    return [_one(group) for group in alike.values()]


def _one(group: Sequence[NeuronsBranch]) -> NeuronsBranch:
    if len(group) == 1:
        return group[0]
    multipliers = [branch.multipliers for branch in group if branch.multipliers is not None]  # all or none
    return replace(
        group[0],
        keys=torch.cat([branch.keys for branch in group]),
        biases=torch.cat([branch.biases for branch in group]),
        values=torch.cat([branch.values for branch in group]),
        multipliers=torch.cat(multipliers) if multipliers else None,
        owners=tuple(owner for branch in group for owner in branch.owners),
    )

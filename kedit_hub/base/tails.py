"""Read the last positions of a batch again and again; what stands before them is read once.

What a causal model computes at a position does not depend on later ones. A change that enters at position `start` or behind it leaves the
keys and values of all positions before as they were, in every layer, so an optimisation over such a change has to run the tail alone: of a
question that is changed where its answer begins, a few positions of many. Law: the tail says what the whole batch says, which is tried
once with nothing changed; where it does not (a window that slides, a module that needs to see the beginning), there is no tail.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kedit_hub.base.tokens import Encoded

Run = Callable[["Tail"], Tensor]  # the logits (B, k, V) of the last k positions, with nothing changed, run as this tail


@dataclass(frozen=True)
class Tail:
    """Of a batch (B, T) the positions from `start` on, and what the layers remember of those before. start 0: the whole batch."""

    start: int = 0
    layers: tuple[Any, ...] = ()

    def inputs(self, model: nn.Module, encoded: Encoded, rows: Tensor) -> dict[str, Any]:
        """Keyword arguments of the model's forward for the batch rows `rows` (n,) of an encoded batch."""
        batch = replace(encoded, **{name: value[rows] for name, value in vars(encoded).items() if value is not None})
        given: dict[str, Any] = batch.inputs(model)
        if not self.start:
            return {**given, "use_cache": False}
        for name in ("input_ids", "position_ids"):
            if name in given:
                given[name] = given[name][:, self.start :]
        cache = DynamicCache()
        cache.layers = [_of(layer, rows) for layer in self.layers]
        return {**given, "past_key_values": cache, "use_cache": True}


@torch.no_grad()
def tail_of(cache: Any, start: int, run: Run, whole: Tensor) -> Tail:
    """The tail of a batch that was read with this cache, its last positions saying `whole`; all of it where that is not the same."""
    layers = list(getattr(cache, "layers", ()))
    known = [layer for layer in layers if getattr(layer, "is_initialized", False)]
    if start < 1 or not known or any(type(layer) is not DynamicLayer for layer in known):
        return Tail()
    like = known[0].keys[:, :, :start]
    tail = Tail(start, tuple(_first(layer, start, like) for layer in layers))
    room = max(1e-4, 16 * torch.finfo(whole.dtype).eps) * whole.abs().max()
    return tail if bool(((run(tail) - whole).abs() <= room).all()) else Tail()


def _first(layer: Any, start: int, like: Tensor) -> Any:
    """What a layer remembers of the first positions; one that was passed over remembers nothing, at the length of the others."""
    found = copy.copy(layer) if layer.is_initialized else DynamicLayer()
    if layer.is_initialized:
        found.keys, found.values = layer.keys[:, :, :start], layer.values[:, :, :start]
    else:
        found.dtype, found.device, found.is_initialized = like.dtype, like.device, True
        found.keys = found.values = like.new_zeros(1).expand(like.shape)
    return found


def _of(layer: Any, rows: Tensor) -> Any:
    found = copy.copy(layer)
    here = rows.to(layer.keys.device)
    found.keys, found.values = layer.keys[here], layer.values[here]
    return found

"""Read the last positions of a batch again and again; what stands before them is read once.

What a causal model computes at a position does not depend on later ones. A change that enters at position `start` or behind it leaves the
keys and values of all positions before as they were, in every layer, so an optimisation over such a change has to run the tail alone: of a
question that is changed where its answer begins, a few positions of many. Law: the tail says what the whole batch says, which is tried
once with nothing changed (`same`); where it does not (a window that slides, a module that needs to see the beginning), there is no tail.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kedit_hub.base.strips import Strip
from kedit_hub.base.tokens import Encoded

Layers = tuple[tuple[Tensor, Tensor] | None, ...]  # (B, heads, T, width) keys, values; None: a layer was passed over


@dataclass(frozen=True)
class Tail:
    """Of a batch (B, T) the positions from `start` on, and what the layers remember of those before. start 0: the whole batch."""

    start: int = 0
    layers: Layers = ()

    def take(self, rows: Tensor) -> "Tail":
        """Of the batch rows `rows` (n,)."""
        return Tail(self.start, tuple(_at(layer, rows) for layer in self.layers))

    def inputs(self, model: nn.Module, encoded: Encoded) -> dict[str, Any]:
        """Keyword arguments of the model's forward for the batch; good for one pass, which adds to what is remembered."""
        given: dict[str, Any] = encoded.inputs(model)
        if not self.start:
            return {**given, "use_cache": False}
        for name in ("input_ids", "position_ids"):
            if name in given:
                given[name] = given[name][:, self.start :]
        keys = next(layer for layer in self.layers if layer is not None)[0]
        nothing = keys.new_zeros(1).expand(keys.shape)  # a layer that is passed over, at the length of the others
        cache = DynamicCache()
        cache.layers = [_layer(*(layer or (nothing, nothing))) for layer in self.layers]
        return {**given, "past_key_values": cache, "use_cache": True}


def remembered(cache: Any) -> Layers | None:
    """What a pass has left in its cache; None where it can not be cut, or there is nothing."""
    layers = list(getattr(cache, "layers", ()))
    known = [layer for layer in layers if getattr(layer, "is_initialized", False)]
    if not known or any(type(layer) is not DynamicLayer for layer in known):
        return None
    return tuple((layer.keys, layer.values) if layer.is_initialized else None for layer in layers)


def tail_of(parts: Sequence[tuple[Strip, Layers]], rows: Tensor, columns: slice, start: int) -> Tail:
    """The tail from `start` on of the rows `rows` (n,) and the columns of a batch that was read in strips."""
    if start < 1:
        return Tail()
    stop = columns.start + start
    found: list[tuple[Tensor, Tensor] | None] = []
    for number, first in enumerate(parts[0][1]):
        if first is None:
            found.append(None)
            continue
        pair = tuple(like.new_zeros(len(rows), like.shape[1], start, like.shape[3]) for like in first)
        for strip, layers in parts:
            here, there = (rows[:, None] == strip.rows[None]).nonzero(as_tuple=True)
            left = max(strip.first, columns.start)
            if not len(here) or left >= stop:
                continue  # none of these rows, or none that has begun where the tail starts
            for whole, part in zip(pair, layers[number] or ()):
                here, there = here.to(whole.device), there.to(whole.device)
                whole[here, :, left - columns.start :] = part[there, :, left - strip.first : stop - strip.first]
        found.append((pair[0], pair[1]))
    return Tail(start, tuple(found))


def same(said: Tensor, whole: Tensor) -> bool:
    """Whether logits are those of the whole batch, up to rounding."""
    room = max(1e-4, 16 * torch.finfo(whole.dtype).eps) * whole.abs().max()
    return bool(((said - whole).abs() <= room).all())


def _layer(keys: Tensor, values: Tensor) -> DynamicLayer:
    layer = DynamicLayer()
    layer.keys, layer.values, layer.is_initialized = keys, values, True
    layer.dtype, layer.device = keys.dtype, keys.device
    return layer


def _at(layer: tuple[Tensor, Tensor] | None, rows: Tensor) -> tuple[Tensor, Tensor] | None:
    if layer is None:
        return None
    here = rows.to(layer[0].device)
    return layer[0][here], layer[1][here]

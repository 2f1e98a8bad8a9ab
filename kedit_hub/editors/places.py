"""Which layers an editor without a base profile edits. Law: those the user names, else those published for a model of these sizes
(presets.py), else a share of the depth; never by a model's name.

linears(model, settings.layers or at_depth(model, 2 / 3))      # paths of the editable linear maps
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from torch import nn

from kedit_hub.base.families import edited_linear, n_layers
from kedit_hub.edits import Edit


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Layer = Annotated[int, Field(ge=0)]
Layers = Annotated[tuple[Layer, ...], BeforeValidator(_as_tuple), Field(min_length=1)]  # a list in a file of settings
Maps = Annotated[Mapping[Literal["down", "up", "gate", "gate_up"], Layers], Field(min_length=1)]  # layers of every map
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Edits = Annotated[tuple[Edit, ...], BeforeValidator(_as_tuple)]


def at_depth(model: nn.Module, share: float) -> tuple[int, ...]:
    """The layer at this share of the depth: 2/3 of 32 layers is layer 21."""
    depth = n_layers(model)
    return (min(int(share * depth), depth - 1),)


def linears(model: nn.Module, layers: Sequence[int]) -> list[str]:
    """Paths of the editable linear maps, from the first layer on. UnsupportedModelError for a layer that is not there."""
    return [edited_linear(model, layer)[0] for layer in sorted(set(layers))]

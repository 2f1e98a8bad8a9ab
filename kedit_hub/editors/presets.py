"""Settings as they were published, by what a model is: family, depth and widths. Elsewhere a rule that was fitted to them.

Published tables give Adam's step in units of the hidden state itself, so these values are `absolute`; where nothing is published the
step is relative to the block output, which means the same on every base. `kedit profile` measures instead, and is better than either.

    preset(model.config, "memit")       # {"layers": (4, 5, 6, 7, 8), "lam": 15000.0, "value": {...}} of Llama-2-7B
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from kedit_hub.base.profile import ValueSettings

KL = 0.0625  # of what is said of the subject at large; in every published table but PMET's for GPT-J


@dataclass(frozen=True)
class Preset:
    """One row of the published tables. A window: first and last layer that is edited."""

    layer: int  # of ROME, R-ROME, EMMET
    window: tuple[int, int]  # of MEMIT, PMET, AlphaEdit
    rome: ValueSettings
    memit: ValueSettings
    lam: float = 15_000.0  # how many keys the second moment of text counts for


def _value(lr: float, steps: int, weight_decay: float, clamp: float) -> ValueSettings:
    return ValueSettings(lr=lr, steps=steps, weight_decay=weight_decay, clamp=clamp, kl=KL, absolute=True)


_OLD, _NEW = _value(0.5, 20, 0.5, 4.0), _value(0.5, 25, 1e-3, 4.0)  # the GPT models', and those of what came later

# (model_type, layers, hidden size, MLP width): read in the methods' own configuration files
PUBLISHED: Mapping[tuple[str, int, int, int], Preset] = MappingProxyType(
    {
        ("gpt2", 24, 1024, 4096): Preset(
            8, (4, 8), _value(0.5, 20, 0.5, 3.0), _value(0.5, 20, 0.5, 0.75), 20_000.0
        ),  # medium
        ("gpt2", 36, 1280, 5120): Preset(12, (8, 12), _OLD, _value(0.5, 20, 0.5, 0.75), 20_000.0),  # large
        ("gpt2", 48, 1600, 6400): Preset(17, (13, 17), _OLD, _value(0.5, 20, 0.5, 0.75), 20_000.0),  # xl
        ("gptj", 28, 4096, 16384): Preset(5, (3, 8), _OLD, _value(0.5, 25, 0.5, 0.75)),
        ("llama", 32, 4096, 11008): Preset(5, (4, 8), _NEW, _NEW),  # Llama-2-7B
        ("llama", 32, 4096, 14336): Preset(5, (4, 8), _NEW, _value(0.1, 25, 0.5, 0.75)),  # Llama-3-8B
        ("llama", 28, 3072, 8192): Preset(5, (4, 8), _NEW, _NEW),  # Llama-3.2-3B
        ("mistral", 32, 4096, 14336): Preset(5, (4, 8), _NEW, _NEW),  # 7B
        ("qwen2", 28, 3584, 18944): Preset(5, (4, 8), _NEW, _NEW),  # Qwen2 and 2.5, 7B
    }
)
_DEPTHS = {"gpt2": (0.36, 0.27)}  # where a single layer lies, and where a window begins, over the depth
_OTHERS = (0.18, 0.13)
_WIDTH = 0.12  # of a window

# Steps and bounds as published for ROME and MEMIT, the step in units of the block output.
CLASSIC_ROME = ValueSettings(steps=25, clamp=4.0)
CLASSIC_MEMIT = ValueSettings(steps=25, clamp=0.75)


def published(config: Any) -> Preset | None:
    """The row of this very model, by its sizes; None where nothing is published for them."""
    hidden = int(config.hidden_size)
    width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    return PUBLISHED.get((config.model_type, config.num_hidden_layers, hidden, int(width)))


def published_layer(config: Any) -> int:
    """The single layer of ROME: as published, else at the depth that is usual in the family."""
    row = published(config)
    depth = config.num_hidden_layers
    return row.layer if row else min(round(_DEPTHS.get(config.model_type, _OTHERS)[0] * depth), depth - 1)


def window(config: Any) -> tuple[int, ...]:
    """The layers of MEMIT: as published, else as deep as is usual in the family, two at least where there are two."""
    row, depth = published(config), config.num_hidden_layers
    if row:
        first, last = row.window
    else:
        first = min(round(_DEPTHS.get(config.model_type, _OTHERS)[1] * depth), max(depth - 2, 0))
        last = min(first + max(1, round(_WIDTH * depth)), depth - 1)
    return tuple(range(first, last + 1))


def preset(config: Any, like: Literal["rome", "memit", "blue"]) -> dict[str, Any]:
    """Settings of a method as published for this model: its layers (MEMIT's, or the first and last of them), lam and values."""
    row = published(config)
    if row is None:
        value = (CLASSIC_ROME if like == "rome" else CLASSIC_MEMIT).model_copy(update={"kl": KL})
        found: dict[str, Any] = {"value": value.model_dump()}
    else:
        found = {"value": (row.rome if like == "rome" else row.memit).model_dump()}
        found |= {} if like == "rome" else {"lam": row.lam}
    layers = window(config)
    chosen = {"rome": (), "memit": layers, "blue": tuple(dict.fromkeys((layers[0], layers[-1])))}[like]
    return {**found, "layers": chosen} if chosen else found

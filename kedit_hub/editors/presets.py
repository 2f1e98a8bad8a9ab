"""Settings as they were published, by what a model is: family, depth and widths. Elsewhere a rule that was fitted to them.

Published tables give Adam's step in units of the hidden state itself, so these values are `absolute`; where nothing is published the
step is relative to the block output, which means the same on every base. `kedit profile` measures instead, and is better than either.

There are rows for GPT-2 medium, large and XL, GPT-J 6B, Llama-2 7B, Llama-3 8B, Llama-3.2 3B, Mistral 7B, Qwen2 and Qwen2.5 7B, of some
methods for T5 3B and Phi-4. Nothing is published for GPT-2 small, Gemma, Qwen3, the other Phi, SmolLM and any other size of those above:
there, and in every cell that is None, the rule of the method holds. It is the layer at a share of the depth (`_DEPTHS`, `_OTHERS`; two
thirds in fine-tuning, the two before the last in UltraEdit), values in units of the block output, lam by the profile's `alone_fit`, a null
space by its share of the trace, and steps of fine-tuning that go as one over the width.

    preset(model.config, "memit")       # {"layers": (4, 5, 6, 7, 8), "lam": 15000.0, "value": {...}} of Llama-2-7B
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, assert_never

from kedit_hub.base.profile import ValueSettings

KL = 0.0625  # of what is said of the subject at large; in every published table but PMET's for GPT-J

Like = Literal["rome", "memit", "blue", "pmet", "emmet", "ft", "ft-l", "ft-m", "locft", "kn", "ultraedit"]
Sizes = tuple[str, int, int, int]  # model_type, layers, hidden size, MLP width

_MEDIUM, _LARGE, _XL = ("gpt2", 24, 1024, 4096), ("gpt2", 36, 1280, 5120), ("gpt2", 48, 1600, 6400)
_GPTJ = ("gptj", 28, 4096, 16384)
_LLAMA2, _LLAMA3, _LLAMA32 = ("llama", 32, 4096, 11008), ("llama", 32, 4096, 14336), ("llama", 28, 3072, 8192)
_MISTRAL = ("mistral", 32, 4096, 14336)
_QWEN2 = ("qwen2", 28, 3584, 18944)  # Qwen2 and 2.5, 7B
_T5 = ("t5", 24, 1024, 16384)  # 3B
_PHI4 = ("phi3", 40, 5120, 17920)


@dataclass(frozen=True)
class Preset:
    """Methods that optimise values. A window: first and last layer that is edited. None: not published."""

    layer: int  # of ROME, R-ROME
    window: tuple[int, int]  # of MEMIT, PMET, AlphaEdit
    rome: ValueSettings
    memit: ValueSettings  # and AlphaEdit
    lam: float = 15_000.0  # of MEMIT, PMET: how many keys the second moment of text counts for
    pmet: ValueSettings | None = None  # None: MEMIT's
    emmet: tuple[int, float] | None = None  # layer and lam
    null: tuple[float, float] | None = None  # of AlphaEdit: the eigenvalue below which its null space lies, and L2


@dataclass(frozen=True)
class Finetuned:
    """FT and FT-M share their layers, FT-L has its own and its bound. One edit a step."""

    layers: tuple[int, ...] | None = None
    bounded: tuple[int, ...] | None = None
    bound: float | None = None
    epochs: int = 25
    lr: float = 5e-4
    batch: int = 1


@dataclass(frozen=True)
class BreadthFirst:
    """LocFT-BF."""

    layers: tuple[int, ...]
    lr: float = 5e-4


@dataclass(frozen=True)
class Neurons:
    """KN."""

    steps: int = 20
    threshold: float = 0.2


@dataclass(frozen=True)
class OneStep:
    """UltraEdit. maps: of the MLP, with the layers of each."""

    maps: Mapping[str, tuple[int, ...]]
    eta: float = 1e-6
    rows: Literal["answer", "all"] = "all"


def _value(lr: float, steps: int, weight_decay: float, clamp: float, kl: float = KL) -> ValueSettings:
    return ValueSettings(lr=lr, steps=steps, weight_decay=weight_decay, clamp=clamp, kl=kl, absolute=True)


_OLD, _NEW = _value(0.5, 20, 0.5, 4.0), _value(0.5, 25, 1e-3, 4.0)  # the GPT models', and those of what came later

# Read in the methods' own configuration files
PUBLISHED: Mapping[Sizes, Preset] = MappingProxyType(
    {
        _MEDIUM: Preset(8, (4, 8), _value(0.5, 20, 0.5, 3.0), _value(0.5, 20, 0.5, 0.75), 20_000.0),
        _LARGE: Preset(12, (8, 12), _OLD, _value(0.5, 20, 0.5, 0.75), 20_000.0),
        _XL: Preset(
            17, (13, 17), _OLD, _value(0.5, 20, 0.5, 0.75), 20_000.0, emmet=(17, 10_000.0), null=(2e-2, 10.0),
        ),
        _GPTJ: Preset(
            5, (3, 8), _OLD, _value(0.5, 25, 0.5, 0.75),
            pmet=_value(0.2, 30, 0.5, 0.75, kl=1.0), emmet=(5, 100_000.0), null=(2e-2, 10.0),
        ),
        _LLAMA2: Preset(5, (4, 8), _NEW, _NEW, pmet=_value(0.5, 20, 0.5, 1.0), emmet=(5, 100_000.0)),
        _LLAMA3: Preset(
            5, (4, 8), _NEW, _value(0.1, 25, 0.5, 0.75),
            pmet=_value(0.1, 25, 0.5, 1.0),  # MEMIT's, with the clamp of PMET for Llama
            emmet=(5, 100_000.0), null=(2e-2, 10.0),  # L2 is 1 in EasyEdit
        ),
        _LLAMA32: Preset(5, (4, 8), _NEW, _NEW, pmet=_value(0.5, 25, 0.5, 1.0), emmet=(5, 100_000.0)),
        _MISTRAL: Preset(5, (4, 8), _NEW, _NEW, emmet=(5, 100_000.0)),
        _QWEN2: Preset(5, (4, 8), _NEW, _NEW, null=(2e-2, 1.0)),
    }
)  # fmt: skip
FINETUNED: Mapping[Sizes, Finetuned] = MappingProxyType(
    {
        _MEDIUM: Finetuned(bound=2e-3),
        _LARGE: Finetuned(bound=1e-3),
        _XL: Finetuned((1,), (0,), 5e-4),
        _GPTJ: Finetuned((21,), (0,), 5e-5),
        _LLAMA2: Finetuned((21,), (21,)),
        _LLAMA3: Finetuned((21,), (21,)),
        _LLAMA32: Finetuned((21,), (21,)),
        _MISTRAL: Finetuned((21,), (21,), 5e-5),
        _QWEN2: Finetuned((27,), (27,), 5e-5),
        _T5: Finetuned((0, 21), (0, 21), epochs=50),  # of the decoder
    }
)
BREADTH_FIRST: Mapping[Sizes, BreadthFirst] = MappingProxyType(
    {
        _LLAMA3: BreadthFirst((22,)),
        _MISTRAL: BreadthFirst((23,), 5e-5),  # published for the whole layer, of which the editable map is trained here
        _QWEN2: BreadthFirst((6,)),
    }
)
NEURONS: Mapping[Sizes, Neurons] = MappingProxyType(
    {
        **dict.fromkeys((_XL, _GPTJ, _LLAMA3, _LLAMA32, _MISTRAL, _QWEN2, _T5), Neurons()),
        _LLAMA2: Neurons(steps=1),
    }
)


def _through(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


ONE_STEP: Mapping[Sizes, OneStep] = MappingProxyType(
    {
        _GPTJ: OneStep({"down": _through(18, 26)}),
        _LLAMA3: OneStep({"gate": _through(11, 15), "up": _through(18, 24)}),
        _MISTRAL: OneStep({"down": _through(29, 30)}),
        _QWEN2: OneStep({"gate": _through(18, 26), "up": _through(18, 26)}),
        _PHI4: OneStep({"down": _through(30, 38)}),
    }
)
_DEPTHS = {"gpt2": (0.36, 0.27)}  # where a single layer lies, and where a window begins, over the depth
_OTHERS = (0.18, 0.13)
_WIDTH = 0.12  # of a window

# Steps and bounds as published for ROME and MEMIT, the step in units of the block output.
CLASSIC_ROME = ValueSettings(steps=25, clamp=4.0)
CLASSIC_MEMIT = ValueSettings(steps=25, clamp=0.75)


def sizes(config: Any) -> Sizes:
    """What the tables know a model by."""
    hidden = int(config.hidden_size)
    widths = (getattr(config, name, None) for name in ("intermediate_size", "n_inner", "d_ff"))
    return config.model_type, int(config.num_hidden_layers), hidden, int(next(filter(None, widths), 4 * hidden))


def published_layer(config: Any) -> int:
    """The single layer of ROME: as published, else at the depth that is usual in the family."""
    row = PUBLISHED.get(sizes(config))
    depth = config.num_hidden_layers
    return row.layer if row else min(round(_DEPTHS.get(config.model_type, _OTHERS)[0] * depth), depth - 1)


def window(config: Any) -> tuple[int, ...]:
    """The layers of MEMIT: as published, else as deep as is usual in the family, two at least where there are two."""
    row, depth = PUBLISHED.get(sizes(config)), config.num_hidden_layers
    if row:
        first, last = row.window
    else:
        first = min(round(_DEPTHS.get(config.model_type, _OTHERS)[1] * depth), max(depth - 2, 0))
        last = min(first + max(1, round(_WIDTH * depth)), depth - 1)
    return tuple(range(first, last + 1))


def preset(config: Any, like: Like, preconditioner: str = "second-moment") -> dict[str, Any]:
    """Settings of a method as published for this model; what is not published is not in them.

    preconditioner: the one that the change is solved with, where it is. lam is published for the second moment of text, AlphaEdit's
    threshold and L2 for its null space.
    """
    match like:
        case "rome" | "memit" | "blue" | "pmet":
            return _valued(config, like, preconditioner)
        case "emmet":
            row = PUBLISHED.get(sizes(config))
            if row is None or row.emmet is None:
                return {}
            layer, lam = row.emmet
            return {"layers": (layer,)} | ({"lam": lam} if preconditioner == "second-moment" else {})
        case "ft" | "ft-l" | "ft-m":
            return _finetuned(config, bounded=like == "ft-l")
        case "locft":
            trained = BREADTH_FIRST.get(sizes(config))
            return {} if trained is None else {"layers": trained.layers, "lr": trained.lr}
        case "kn":
            units = NEURONS.get(sizes(config))
            return {} if units is None else {"steps": units.steps, "threshold": units.threshold}
        case "ultraedit":
            step = ONE_STEP.get(sizes(config))
            return {} if step is None else {"maps": dict(step.maps), "eta": step.eta, "rows": step.rows}
        case _:
            assert_never(like)


def _valued(config: Any, like: Literal["rome", "memit", "blue", "pmet"], preconditioner: str) -> dict[str, Any]:
    """The layers (MEMIT's, or the first and last of them), values, and what the solve weighs."""
    row, layers = PUBLISHED.get(sizes(config)), window(config)
    if row is None:
        value = (CLASSIC_ROME if like == "rome" else CLASSIC_MEMIT).model_copy(update={"kl": KL})
    else:
        value = {"rome": row.rome, "memit": row.memit, "blue": row.memit, "pmet": row.pmet or row.memit}[like]
    if like == "pmet":
        value = value.model_copy(update={"eased": True})
    found: dict[str, Any] = {"value": value.model_dump()}
    if like == "rome":
        return found
    if row is not None and preconditioner == "second-moment":
        found |= {"lam": row.lam}
    if row is not None and preconditioner == "null-space" and row.null is not None:
        found |= {"null_threshold": row.null[0], "l2": row.null[1]}
    return {**found, "layers": tuple(dict.fromkeys((layers[0], layers[-1]))) if like == "blue" else layers}


def _finetuned(config: Any, bounded: bool) -> dict[str, Any]:
    row = FINETUNED.get(sizes(config))
    if row is None:
        return {}
    found = {"lr": row.lr, "epochs": row.epochs, "batch": row.batch, "layers": row.bounded if bounded else row.layers}
    found |= {"norm_bound": row.bound} if bounded else {}
    return {name: value for name, value in found.items() if value is not None}

"""CaliNET (Dong et al. 2022): calibration slots, a few more units beside one feed-forward block. Law: all slots learn all edits at once.

    out = FFN(x) + FFN_ex(x),   L = mean NLL of the targets over the edits' prompts and their authors' paraphrases

FFN_ex has `ex_size` units of the block's own form: gated, silu(x . k) (x . u), where the MLP is (two of its maps read its input), else
gelu(x . k + b). Its values start at zero, so that training starts at the base. Nothing holds the slots back on other text; the paper
counts on how few they are. One patch is one set of slots: an edit of it cannot fall silent by itself.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from kedit_hub.base.families import edited_linear, linear_shape
from kedit_hub.editors.job import Clock, Job, Result
from kedit_hub.editors.memory.asked import late_layer, questions_of, until_all_take
from kedit_hub.editors.memory.trained import made, packed, unpacked
from kedit_hub.editors.memory.units import Fitted, Ground, Units, fit, ground, readers
from kedit_hub.editors.own_words import learnt_end
from kedit_hub.edits import Edit
from kedit_hub.patch.deltas import Neurons


class CaliNetSettings(BaseModel):
    """What a user may set. layer None: the last one. Layer, size and step were chosen on dev edits of Atlas (four tries)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    layer: int | None = None
    ex_size: int = Field(default=256, ge=1, le=65_536)
    steps: int = Field(default=100, ge=1, le=10_000)
    lr: float = Field(default=0.005, gt=0)
    stop_nll: float = Field(default=0.05, ge=0)
    paraphrases: bool = True
    failed: Literal["raise", "drop"] = "raise"


def calinet(job: Job) -> Result:
    """One set of slots for all edits. The seed is that of the keys they start with."""
    settings = job.settings
    assert isinstance(settings, CaliNetSettings)
    clock = Clock()
    end = learnt_end(job)
    layer = late_layer(job.model, settings.layer, 1.0)
    path, linear = edited_linear(job.model, layer)
    read = readers(job.model, layer)

    def attempt(edits: list[Edit], name: str) -> tuple[Tensor, tuple[Tensor, Fitted]]:
        asked = questions_of(job.tokenizer, edits, end, paraphrases=settings.paraphrases, model=job.model)
        fitted = _fit(job, layer, ground(job.model, layer, read[0], asked), len(read) > 1, name)
        return fitted.said[asked.own], (asked.edit, fitted)

    edits, dropped, (of, fitted) = until_all_take(job, "CaliNET", layer, attempt)
    units = fitted.units
    delta = Neurons(
        units.keys, units.biases, units.values, linear_shape(linear), units.multipliers,
        activation=_activation(len(read) > 1), input_module=read[0],
    )  # fmt: skip
    told = made(job, edits, dropped, of, fitted, clock)
    return Result({path: delta}, edits, told, {"layer": layer, **settings.model_dump(exclude={"layer", "failed"})})


def _activation(gated: bool) -> str:
    return "silu" if gated else "gelu"


def _fit(job: Job, layer: int, on: Ground, gated: bool, name: str) -> Fitted:
    settings, (wide, tall) = job.settings, on.size()
    scale = tall / on.hidden.shape[-1] ** 0.5
    size, e = (settings.ex_size, on.heard.shape[-1]), on.heard.shape[-1]

    def units_of(parameters: Sequence[Tensor]) -> Units:
        """keys and multipliers in units of |x|, values in units of |h| / sqrt(m)."""
        keys, values, rest = parameters
        if gated:
            return Units(keys / wide, torch.zeros(len(keys), device=keys.device), values * scale, rest / wide)
        return Units(keys / wide, rest, values * scale)

    def work() -> dict[str, Tensor]:
        drawn = torch.Generator().manual_seed(job.seed)
        device = on.heard.device
        keys, more = (torch.randn(size[0], e, generator=drawn).to(device) for _ in range(2))  # x . k about 1 on average
        values = torch.zeros(size[0], on.hidden.shape[-1], device=device)
        rest = more if gated else torch.zeros(size[0], device=device)
        return packed(
            fit(
                job.model, layer, on, [keys, values, rest], units_of, activation=_activation(gated),
                steps=settings.steps, lr=settings.lr, stop_nll=settings.stop_nll,
            )
        )  # fmt: skip

    return unpacked(job.memo(f"{name}-slots", work))

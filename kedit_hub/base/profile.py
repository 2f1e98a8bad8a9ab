"""The base profile: what is measured once per base model so that patches by different people fit together.

It fixes *where* facts are edited (one layer, one site), *what must not move* (the second moment C0 of ordinary text at that layer and
at the early layer where subjects are recognised), *how* values are optimised, and the thresholds and budgets of the install modes.
All of it is measured on the base; `id` is a digest of the content, so two profiles are the same profile or they are not.
"""

import json
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from kedit_hub.base.moments import whitener
from kedit_hub.errors import ProfileError

Site = Literal["subject", "answer"]


class ValueSettings(BaseModel):
    """How values are optimised: Adam on delta / (|block output| / sqrt(m)), so the numbers mean the same on every base."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    steps: int = Field(default=40, ge=1, le=1000)
    lr: float = Field(default=0.2, gt=0)
    clamp: float = Field(default=1.5, gt=0)  # |delta| <= clamp * |block output|
    weight_decay: float = Field(default=0.0, ge=0)  # times |delta| / |block output|
    stop_nll: float = Field(
        default=0.05, ge=0
    )  # done when every target token of every context is argmax and the mean NLL is below


class GateSettings(BaseModel):
    """Thresholds of the two-key gate: cosines in whitened space, chosen on dev edits."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    subject: float = Field(default=0.5, ge=-1, le=1)
    answer: float = Field(default=0.4, ge=-1, le=1)


class Settings(BaseModel):
    """The part of a profile that is not a tensor, as it is saved in profile.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: Literal[1] = 1
    base: str  # model id or folder name, for people; the fingerprints in patches decide
    model_type: str
    layer: int = Field(ge=0)
    site: Site
    gate_layer: int = Field(ge=0)
    module: str  # path of the edited linear map
    gate_module: str
    contexts: tuple[str, ...]  # sentences put before a prompt when keys and values are measured
    answer_end: str = Field(default="", max_length=64)  # what the base says after an answer; learnt with every target
    value: ValueSettings
    gate: GateSettings
    drift_budget: float = Field(
        default=0.05, gt=0
    )  # share of the map's own output energy on text that a joint solve may spend
    alone_fit: float = Field(
        default=0.95, gt=0, lt=1
    )  # how closely a patch solved alone meets its median row (mode "sum")
    energy: float = Field(gt=0)  # e0 = tr(W0 C0 W0^T)
    reference_norm: float = Field(
        ge=0
    )  # mean |delta| of the sweep's dev edits: what an ordinary edit of this base weighs
    tokens: int = Field(ge=1)  # text tokens behind C0
    texts: str  # where the text came from
    sweep: tuple[dict[str, Any], ...] = ()  # the measured table the choice was made from


@dataclass(frozen=True)
class BaseProfile:
    settings: Settings
    second_moment: Tensor = field(repr=False)  # (d, d) float32, inputs of `module`
    gate_moment: Tensor = field(repr=False)  # (dg, dg) float32, inputs of `gate_module`

    @property
    def layer(self) -> int:
        return self.settings.layer

    @property
    def site(self) -> Site:
        return self.settings.site

    @property
    def module(self) -> str:
        return self.settings.module

    @property
    def gate_module(self) -> str:
        return self.settings.gate_module

    @cached_property
    def id(self) -> str:
        """64 hex digits over the settings and both matrices."""
        digest = sha256(self._json().encode())
        for matrix in (self.second_moment, self.gate_moment):
            digest.update(str(tuple(matrix.shape)).encode())
            digest.update(matrix.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def whitener(self) -> Tensor:
        return whitener(self.second_moment)

    @cached_property
    def gate_whitener(self) -> Tensor:
        return whitener(self.gate_moment)

    def _json(self) -> str:
        return json.dumps(self.settings.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Write profile.json and profile.safetensors (upper triangles, float32) to `folder`, whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"second_moment": _triangle(self.second_moment), "gate_moment": _triangle(self.gate_moment)}
        for name, data in (
            ("profile.safetensors", safetensors.torch.save(tensors, metadata={"format": "pt"})),
            ("profile.json", self._json().encode()),
        ):
            temporary = folder / f".{name}.{os.getpid()}"
            temporary.write_bytes(data)
            os.replace(temporary, folder / name)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "BaseProfile":
        """Read what `save` wrote; ProfileError names what is missing or malformed."""
        folder = Path(folder)
        try:
            settings = Settings.model_validate_json((folder / "profile.json").read_bytes())
            tensors = safetensors.torch.load((folder / "profile.safetensors").read_bytes())
            moments = [_square(tensors[name]) for name in ("second_moment", "gate_moment")]
        except (OSError, ValidationError, KeyError, ValueError, safetensors.SafetensorError) as error:
            raise ProfileError(
                f"{folder} holds no readable base profile ({str(error).splitlines()[0]}): build one with `kedit profile`"
            ) from None
        if not all(bool(torch.isfinite(moment).all()) for moment in moments):
            raise ProfileError(
                f"the base profile in {folder} holds NaN or infinity: build it again with `kedit profile`"
            )
        return cls(settings, *moments)

    def replace(self, **changes: Any) -> "BaseProfile":
        """The same matrices under changed settings."""
        return replace(self, settings=self.settings.model_copy(update=changes))


def _triangle(matrix: Tensor) -> Tensor:
    """Upper triangle (d (d + 1) / 2,) float32 of a symmetric (d, d)."""
    rows, columns = torch.triu_indices(*matrix.shape)
    return matrix[rows, columns].float().contiguous()


def _square(triangle: Tensor) -> Tensor:
    size = int((8 * triangle.numel() + 1) ** 0.5 - 1) // 2
    if triangle.dtype != torch.float32 or triangle.ndim != 1 or size * (size + 1) // 2 != triangle.numel():
        raise ValueError(
            f"a second moment of {triangle.numel()} {triangle.dtype} entries is no triangle of a square float32 matrix"
        )
    matrix = torch.zeros(size, size)
    rows, columns = torch.triu_indices(size, size)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix

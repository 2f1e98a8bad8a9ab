"""The base profile: what is measured once per base model so that patches by different people fit together.

It fixes *where* facts are edited (one layer, one site), *what must not move* (the second moment C0 of ordinary text at that layer and
at the early layer where subjects are recognised), *how* values are optimised, and the thresholds and budgets of the install modes.
All of it is measured on the base; `id` is a digest of the content, so two profiles are the same profile or they are not.

Format 2 adds the second moment Cs of the inputs at the positions where ordinary facts are told, which a second drift gate reads.
It changes no answer of a patch, so such a profile also speaks for patches that name it without Cs: compare against `ids`.
"""

import json
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from torch import Tensor

from kedit_hub.base.moments import whitener
from kedit_hub.errors import KeditError, ProfileError
from kedit_hub.patch.safefile import read_tensors, write_tensors

Site = Literal["subject", "answer"]
MATRICES = ("second_moment", "gate_moment", "site_moment")  # the last of format 2
SITE_FIELDS = ("site_energy", "site_tokens")


class ValueSettings(BaseModel):
    """How values are optimised: Adam on delta / (|block output| / sqrt(m)), so the numbers mean the same on every base.

    The unit h0 of clamp and decay is the norm of the block's output at the site in the bare prompt, for every method. With `absolute`, as
    in published settings, it is the norm of what the value is added to: for ROME the edited map's own output, for PMET that of map and
    attention each, for the others the block's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    LATER: ClassVar[tuple[str, ...]] = (
        "kl",
        "anchor",
        "absolute",
        "eased",
    )  # off, they leave a profile what it was without them

    steps: int = Field(default=40, ge=1, le=1000)
    lr: float = Field(default=0.2, gt=0)
    clamp: float = Field(default=1.5, gt=0)  # |delta| <= clamp * h0
    weight_decay: float = Field(default=0.0, ge=0)  # times |delta| / h0
    stop_nll: float = Field(
        default=0.05, ge=0
    )  # done when every target token of every context is argmax and the mean NLL is below
    kl: float = Field(default=0.0, ge=0)  # times KL of the base to what follows "<subject> is a" (subject site only)
    anchor: float | None = Field(default=None, gt=0)  # |output + delta| is brought to this in the end
    absolute: bool = False  # the step is of delta itself and the decay |delta| / h0^2, as in published settings
    eased: bool = False  # PMET's: once the target is said everywhere its loss weighs a tenth, until the KL is small too

    @model_serializer(mode="wrap")
    def _said(self, said: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = said(self)
        off = {name for name in self.LATER if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in values.items() if name not in off}


class GateSettings(BaseModel):
    """Thresholds of the two-key gate: cosines in whitened space, chosen on dev edits."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    subject: float = Field(default=0.5, ge=-1, le=1)
    answer: float = Field(default=0.4, ge=-1, le=1)
    softness: float = Field(
        default=0.0, ge=0, le=2
    )  # width below `answer` over which an edit fades out; 0 = a hard edge

    @model_serializer(mode="wrap")
    def _said(self, said: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A hard gate says what it said before there was a soft one, so that profiles keep their ids."""
        values: dict[str, Any] = said(self)
        return values if self.softness else {name: value for name, value in values.items() if name != "softness"}


class Settings(BaseModel):
    """The part of a profile that is not a tensor, as it is saved in profile.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: Literal[1, 2] = 1  # 2: with the second moment at site positions
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
    site_energy: float | None = Field(default=None, gt=0)  # es = tr(W0 Cs W0^T), format 2
    site_tokens: int | None = Field(default=None, ge=1)  # positions behind Cs, format 2
    sweep: tuple[dict[str, Any], ...] = ()  # the measured table the choice was made from

    @model_validator(mode="after")
    def _site_belongs_to_format_2(self) -> Self:
        for name in SITE_FIELDS:
            if (getattr(self, name) is not None) != (self.format_version == 2):
                raise ValueError(f"{name} belongs to format_version 2 and only to it")
        return self


@dataclass(frozen=True)
class BaseProfile:
    settings: Settings
    second_moment: Tensor = field(repr=False)  # (d, d) float32, inputs of `module`
    gate_moment: Tensor = field(repr=False)  # (dg, dg) float32, inputs of `gate_module`
    site_moment: Tensor | None = field(
        default=None, repr=False
    )  # (d, d) float32, inputs of `module` where facts are told

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
        """64 hex digits over the settings and all matrices."""
        digest = sha256(self._json().encode())
        for matrix in self._moments().values():
            digest.update(str(tuple(matrix.shape)).encode())
            digest.update(matrix.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def ids(self) -> frozenset[str]:
        """The ids by which patches may name this profile: its own, and that of the same profile without the site moment."""
        return frozenset({self.id, self.bare().id})

    def bare(self) -> "BaseProfile":
        """The same profile without the second moment at site positions (format 1)."""
        if self.site_moment is None:
            return self
        nothing = dict.fromkeys(SITE_FIELDS)
        settings = self.settings.model_copy(update={"format_version": 1, **nothing})
        return BaseProfile(settings, self.second_moment, self.gate_moment)

    def with_sites(self, site_moment: Tensor, energy: float, tokens: int) -> "BaseProfile":
        """The same profile with Cs (d, d), tr(W0 Cs W0^T) and the number of positions behind it (format 2)."""
        update = {"format_version": 2, "site_energy": energy, "site_tokens": tokens}
        settings = self.settings.model_copy(update=update)
        return BaseProfile(settings, self.second_moment, self.gate_moment, site_moment.float())

    def _moments(self) -> dict[str, Tensor]:
        known = zip(MATRICES, (self.second_moment, self.gate_moment, self.site_moment))
        return {name: matrix for name, matrix in known if matrix is not None}

    @cached_property
    def whitener(self) -> Tensor:
        return whitener(self.second_moment)

    @cached_property
    def gate_whitener(self) -> Tensor:
        return whitener(self.gate_moment)

    def _json(self) -> str:
        """A profile of format 1 says what it said before there was a format 2, and so keeps its id."""
        unsaid = set(SITE_FIELDS) if self.settings.format_version == 1 else None
        said = self.settings.model_dump(mode="json", exclude=unsaid)
        return json.dumps(said, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Write profile.json and profile.safetensors (upper triangles, float32) to `folder`, whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: _triangle(matrix) for name, matrix in self._moments().items()}
        for name, data in (
            ("profile.safetensors", write_tensors(tensors)),
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
            tensors = read_tensors((folder / "profile.safetensors").read_bytes(), "profile.safetensors")
            if set(tensors) != set(MATRICES[: settings.format_version + 1]):
                raise ValueError(
                    f"it holds {', '.join(sorted(tensors))} and says it is of format {settings.format_version}"
                )
            moments = [_square(tensors[name]) for name in MATRICES[: len(tensors)]]
        except (OSError, ValidationError, ValueError, KeditError) as error:
            raise ProfileError(
                f"{folder} holds no readable base profile ({str(error).splitlines()[0]}): build one with `kedit profile`"
            ) from None
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

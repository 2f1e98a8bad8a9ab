"""The kinds of change a patch can make to one linear map W (m, d): x (d) -> W x (m). Law: a closed set, checked as one.

    associative   rows (k_i, r_i): "at key k_i the output shall move by r_i". No fixed matrix: a gate or a joint
                  least-squares solve over all patches of a stack turns rows into a change (ROME, MEMIT, AlphaEdit)
    lowrank       b @ a, with a (r, d) and b (m, r)   (MEND, DAFNet, LoRA)
    dense         one matrix (m, d)                   (fine-tuning)

A kind is a frozen dataclass of CPU tensors and a table of what each tensor must be; a new kind is a class in KINDS.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from kedit_hub.errors import LimitError, PatchFormatError, UnknownFormatError
from kedit_hub.limits import DEFAULT, Limits
from kedit_hub.patch.safefile import DTYPE_NAMES

_F32 = ("F32",)
_FLOATS = ("F32", "F16", "BF16")
_INDEX = ("I64",)


class Spec(NamedTuple):
    """What one tensor must be. dims: one letter per side, equal letters are equal sizes over all tensors of a delta."""

    dims: str
    dtypes: tuple[str, ...]
    optional: bool = False
    below: str = ""  # integer tensors: every entry i has 0 <= i < the size of this letter; "E" = number of edits


class Cost(NamedTuple):
    """bytes: stored size.  rank: of the change to W at most.  flops: extra multiply-adds x 2 per token and module."""

    bytes: int
    rank: int
    flops: int


class Delta:
    """Base of the kinds: validation, tensors in and out. Subclasses are frozen dataclasses whose specs name m and d."""

    kind: ClassVar[str]
    specs: ClassVar[Mapping[str, Spec]]

    def __post_init__(self) -> None:
        for name in self.specs:
            tensor = getattr(self, name)
            if isinstance(tensor, Tensor):
                object.__setattr__(self, name, tensor.detach().cpu().contiguous())

    def to_tensors(self) -> dict[str, Tensor]:
        """{tensor name: CPU tensor}, without the optional ones that are absent."""
        return {name: getattr(self, name) for name in self.specs if getattr(self, name) is not None}

    def meta(self) -> dict[str, str]:
        """The fields that are not tensors and are set; they are kept in the manifest."""
        names = [field.name for field in fields(self) if field.name not in self.specs]  # type: ignore[arg-type]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the linear map that is changed."""
        sizes = self._sizes(self.kind)
        return sizes["m"], sizes["d"]

    def validate(self, n_edits: int, limits: Limits = DEFAULT, where: str = "delta") -> None:
        """Shapes, dtypes, index ranges, bounds, finite values; PatchFormatError names `where` and the tensor."""
        sizes = self._sizes(where)
        bounds = {"m": limits.max_dim, "d": limits.max_dim, "e": limits.max_dim, "r": limits.max_rank}
        for letter, size in sizes.items():
            bound = bounds.get(letter, limits.max_rows)
            if size > bound:
                raise LimitError(f"{where} ({self.kind}): size {letter} is {size:,}; at most {bound:,} is taken.")
        for name, tensor in self.to_tensors().items():
            spec = self.specs[name]
            if spec.below:
                bound = n_edits if spec.below == "E" else sizes[spec.below]
                low, high = int(tensor.min()), int(tensor.max())
                if low < 0 or high >= bound:
                    raise PatchFormatError(
                        f"{where}/{name} points to {low if low < 0 else high}; it must lie in 0..{bound - 1}."
                    )
            elif not torch.isfinite(tensor).all():
                raise PatchFormatError(f"{where}/{name} holds NaN or infinity.")
            elif float(tensor.abs().max()) > limits.max_abs_value:
                largest = float(tensor.abs().max())
                raise LimitError(
                    f"{where}/{name} holds {largest:.3g}; values up to {limits.max_abs_value:g} are taken."
                )

    def _sizes(self, where: str) -> dict[str, int]:
        """{letter: size}, from tensors that agree with the specs and with each other."""
        sizes: dict[str, int] = {}
        for name, spec in self.specs.items():
            tensor = getattr(self, name)
            if tensor is None and spec.optional:
                continue
            if not isinstance(tensor, Tensor):
                raise PatchFormatError(f"{where}/{name} must be a tensor, not {type(tensor).__name__}.")
            if DTYPE_NAMES.get(tensor.dtype) not in spec.dtypes:
                raise PatchFormatError(
                    f"{where}/{name} has dtype {tensor.dtype}; {self.kind} takes {' or '.join(spec.dtypes)}."
                )
            if tensor.dim() != len(spec.dims) or 0 in tensor.shape:
                raise PatchFormatError(
                    f"{where}/{name} has shape {tuple(tensor.shape)}; it must be ({', '.join(spec.dims)})."
                )
            for letter, size in zip(spec.dims, tensor.shape):
                if sizes.setdefault(letter, size) != size:
                    raise PatchFormatError(
                        f"{where}/{name} has shape {tuple(tensor.shape)}: its {letter} must be {sizes[letter]}, "
                        f"as in the other tensors of this {self.kind} delta."
                    )
        return sizes

    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.to_tensors().values())

    def cost(self) -> Cost:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Associative(Delta):
    """Rows of an associative memory: at key k_i (input of the map) its output moves by residual r_i.

    keys (n, d) f32.  residuals, base_outputs (n, m) f32: wanted minus base output, and the base output itself.
    edit_index (n,) i64: which edit a row serves.
    context_keys (k, d), context_row (k,): more keys of a row, from other contexts.
    gate_keys (g, e), gate_edit (g,): keys of the edits' subjects at the input of `gate_module`, an earlier linear map.
    site: where keys were taken, "subject" (last token of the subject) or "answer" (positions that predict the target).
    """

    keys: Tensor
    residuals: Tensor
    base_outputs: Tensor
    edit_index: Tensor
    context_keys: Tensor | None = None
    context_row: Tensor | None = None
    gate_keys: Tensor | None = None
    gate_edit: Tensor | None = None
    site: str = "subject"
    gate_module: str | None = None

    kind: ClassVar[str] = "associative"
    specs: ClassVar[Mapping[str, Spec]] = MappingProxyType(
        {
            "keys": Spec("nd", _F32),
            "residuals": Spec("nm", _F32),
            "base_outputs": Spec("nm", _F32),
            "edit_index": Spec("n", _INDEX, below="E"),
            "context_keys": Spec("kd", _F32, optional=True),
            "context_row": Spec("k", _INDEX, optional=True, below="n"),
            "gate_keys": Spec("ge", _F32, optional=True),
            "gate_edit": Spec("g", _INDEX, optional=True, below="E"),
        }
    )

    def validate(self, n_edits: int, limits: Limits = DEFAULT, where: str = "delta") -> None:
        super().validate(n_edits, limits, where)
        if self.site not in ("subject", "answer"):
            raise PatchFormatError(f"{where} has site {self.site!r}; it must be 'subject' or 'answer'.")
        for group in (("context_keys", "context_row"), ("gate_keys", "gate_edit", "gate_module")):
            absent = [name for name in group if getattr(self, name) is None]
            if absent and len(absent) < len(group):
                raise PatchFormatError(f"{where} lacks {absent[0]}: {', '.join(group)} come together or not at all.")

    def cost(self) -> Cost:
        """As one low-rank side branch of all rows, n * (d + m) multiply-adds; the gate's own keys come on top."""
        n, d = self.keys.shape
        gate = sum(keys.numel() for keys in (self.context_keys, self.gate_keys) if keys is not None)
        m = self.residuals.shape[1]
        return Cost(self.nbytes(), min(n, m, d), 2 * (n * (d + m) + gate))


@dataclass(frozen=True, eq=False)
class LowRank(Delta):
    """W + b @ a.  a (r, d), b (m, r), float."""

    a: Tensor
    b: Tensor

    kind: ClassVar[str] = "lowrank"
    specs: ClassVar[Mapping[str, Spec]] = MappingProxyType({"a": Spec("rd", _FLOATS), "b": Spec("mr", _FLOATS)})

    def cost(self) -> Cost:
        (r, d), m = self.a.shape, self.b.shape[0]
        return Cost(self.nbytes(), min(r, m, d), 2 * r * (d + m))


@dataclass(frozen=True, eq=False)
class Dense(Delta):
    """W + delta.  delta (m, d), float."""

    delta: Tensor

    kind: ClassVar[str] = "dense"
    specs: ClassVar[Mapping[str, Spec]] = MappingProxyType({"delta": Spec("md", _FLOATS)})

    def cost(self) -> Cost:
        m, d = self.delta.shape
        return Cost(self.nbytes(), min(m, d), 2 * m * d)


KINDS: Mapping[str, type[Delta]] = MappingProxyType({cls.kind: cls for cls in (Associative, LowRank, Dense)})


def kind(name: Any, where: str) -> type[Delta]:
    """The class of a delta kind. Raises UnknownFormatError for a name outside KINDS."""
    if not isinstance(name, str) or name not in KINDS:
        raise UnknownFormatError(
            f"{where} has the delta kind {str(name)[:60]!r}; this version of kedit_hub knows {', '.join(KINDS)}. "
            "Update kedit_hub, or check where the patch comes from."
        )
    return KINDS[name]


def from_tensors(name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, str], where: str) -> Delta:
    """Build a delta of kind `name`. Tensors and meta must be exactly those the kind knows."""
    cls = kind(name, where)
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    required = {tensor for tensor, spec in cls.specs.items() if not spec.optional}
    given = set(tensors) | set(meta)
    if not set(tensors) <= set(cls.specs) or not given <= known or not required <= set(tensors):
        raise PatchFormatError(
            f"{where} ({name}) has {sorted(given)}; it needs {sorted(required)} and may have {sorted(known)}."
        )
    delta = cls(**tensors, **meta)
    if delta.meta() != dict(meta):
        raise PatchFormatError(f"{where} ({name}) must state {sorted(set(delta.meta()) - set(meta))} in the manifest.")
    return delta

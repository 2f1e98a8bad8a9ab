"""What all kinds of change to one linear map W (m, d): x (d) -> W x (m) share. Law: what a tensor must be is a table.

A kind is a frozen dataclass of CPU tensors with a table `specs` of what each must be; the fields that are not tensors go
into the manifest. What lies in memory is what was meant; `to_tensors` gives what is stored, `read` takes it back.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor

from kedit_hub.errors import LimitError, PatchFormatError
from kedit_hub.limits import DEFAULT, Limits
from kedit_hub.patch.safefile import DTYPE_NAMES, largest

F32 = ("F32",)
FLOATS = ("F32", "F16", "BF16")
INDEX = ("I64",)


class Spec(NamedTuple):
    """What one tensor must be. dims: one letter per side, equal letters are equal sizes over all tensors of a delta, "E" is the
    number of the patch's edits; a digit is that size."""

    dims: str
    dtypes: tuple[str, ...]
    optional: bool = False
    below: str = ""  # integer tensors: every entry i has 0 <= i < the size of this letter; "E" = edits, "*" = m d
    halved: bool = False  # may be stored as column-scaled float16 beside its scales, see half.py
    since: int = 1  # the format version that this tensor came with, where that is later than its kind


class Cost(NamedTuple):
    """bytes: stored size.  rank: of the change to W at most.  flops: extra multiply-adds x 2 per token and module."""

    bytes: int
    rank: int
    flops: int


class Delta:
    """Base of the kinds: validation, tensors in and out.

    Subclasses whose tensors do not show both m and d have a field `size` (m, d), which the manifest keeps as the shape.
    """

    kind: ClassVar[str]
    since: ClassVar[int]  # the format version that this kind came with
    specs: ClassVar[Mapping[str, Spec]]

    def __post_init__(self) -> None:
        for name in self.specs:
            tensor = getattr(self, name)
            if isinstance(tensor, Tensor):
                object.__setattr__(self, name, tensor.detach().cpu().contiguous())

    def tensors(self) -> dict[str, Tensor]:
        """{name: CPU tensor} as in memory, without the optional ones that are absent."""
        return {name: getattr(self, name) for name in self.specs if getattr(self, name) is not None}

    def to_tensors(self) -> dict[str, Tensor]:
        """{name: CPU tensor} as they are stored."""
        return self.tensors()

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], shape: tuple[int, int], where: str) -> Self:
        """The inverse of `to_tensors` and `meta`. shape: (m, d) as the manifest states it. PatchFormatError names `where`."""
        size = {"size": tuple(shape)} if "size" in cls.__dataclass_fields__ else {}  # type: ignore[attr-defined]
        required = {name for name, spec in cls.specs.items() if not spec.optional}
        known = cls.meta_names()
        given = set(tensors) | set(meta)
        if not (set(tensors) <= set(cls.specs) and set(meta) <= known and required <= set(tensors)):
            raise PatchFormatError(
                f"{where} ({cls.kind}) has {sorted(given)}; it needs {sorted(required)} and may have "
                f"{sorted({*cls.specs, *known})}."
            )
        delta = cls(**tensors, **meta, **size)
        if delta.meta() != dict(meta):
            raise PatchFormatError(
                f"{where} ({cls.kind}) must state {sorted(set(delta.meta()) - set(meta))} in the manifest."
            )
        return delta

    @classmethod
    def meta_names(cls) -> set[str]:
        """The fields that are not tensors and lie in the manifest under their own names."""
        return {field.name for field in fields(cls)} - set(cls.specs) - {"size"}  # type: ignore[arg-type]

    def meta(self) -> dict[str, Any]:
        """Those of them that are set."""
        values = {name: getattr(self, name) for name in sorted(self.meta_names())}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def version(self) -> int:
        """The lowest format version that can express this delta."""
        return max(self.since, *(self.specs[name].since for name in self.tensors()))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the linear map that is changed."""
        sizes = self._sizes(self.kind)
        return sizes["m"], sizes["d"]

    def validate(self, n_edits: int, limits: Limits = DEFAULT, where: str = "delta") -> None:
        """Shapes, dtypes, index ranges, bounds, finite values; PatchFormatError names `where` and the tensor."""
        sizes = self._sizes(where)
        if sizes.get("E", n_edits) != n_edits:
            raise PatchFormatError(f"{where} ({self.kind}) is of {sizes['E']} edits; the patch has {n_edits}.")
        bounds = {letter: limits.max_dim for letter in "mde"} | {"r": limits.max_rank, "z": limits.max_nonzeros}
        for letter, size in sizes.items():
            bound = bounds.get(letter, limits.max_rows)
            if size > bound:
                raise LimitError(f"{where} ({self.kind}): size {letter} is {size:,}; at most {bound:,} is taken.")
        beyond = {**sizes, "E": n_edits, "*": sizes["m"] * sizes["d"]}
        for name, tensor in self.tensors().items():
            spec = self.specs[name]
            if spec.below:
                low, high = int(tensor.min()), int(tensor.max())
                if low < 0 or high >= beyond[spec.below]:
                    raise PatchFormatError(
                        f"{where}/{name} points to {low if low < 0 else high}; it must lie in 0..{beyond[spec.below] - 1}."
                    )
                continue
            top = largest(tensor)
            if not math.isfinite(top):
                raise PatchFormatError(f"{where}/{name} holds NaN or infinity.")
            if top > limits.max_abs_value:
                raise LimitError(f"{where}/{name} holds {top:.3g}; values up to {limits.max_abs_value:g} are taken.")

    def together(self, where: str, *groups: tuple[str, ...]) -> None:
        """Refuse a delta that has some of a group of optional fields and lacks others."""
        for group in groups:
            absent = [name for name in group if getattr(self, name) is None]
            if absent and len(absent) < len(group):
                raise PatchFormatError(f"{where} lacks {absent[0]}: {', '.join(group)} come together or not at all.")

    def one_of(self, where: str, name: str, known: tuple[str, ...]) -> None:
        """Refuse a field outside its closed set."""
        value = getattr(self, name)
        if value not in known:
            raise PatchFormatError(f"{where} has {name} {value!r}; it must be {' or '.join(map(repr, known))}.")

    def positive(self, where: str, name: str) -> None:
        """Refuse a number that is absent, not finite or not above 0."""
        value = getattr(self, name)
        if not isinstance(value, float) or not 0 < value < float("inf"):
            raise PatchFormatError(f"{where} has {name} {value!r}; it must be a number above 0, such as 0.5.")

    def _sizes(self, where: str) -> dict[str, int]:
        """{letter: size}, from tensors that agree with the specs and with each other."""
        sizes: dict[str, int] = dict(zip("md", getattr(self, "size", ())))
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
            literal = zip(spec.dims, tensor.shape)
            if (
                tensor.dim() != len(spec.dims)
                or 0 in tensor.shape
                or any(letter.isdigit() and size != int(letter) for letter, size in literal)
            ):
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
        """Bytes of the stored tensors."""
        return sum(tensor.nbytes for tensor in self.to_tensors().values())

    def cost(self) -> Cost:
        raise NotImplementedError

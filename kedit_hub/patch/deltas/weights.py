"""Fixed changes D (m, d) of the weight W: low-rank, dense, and sparse where most entries stay. Law: W + D, and `change` is D x.

With `keys`, inputs of the map on the patch's own texts, a change also says what it is meant to do: at key k move the output
by D k. A joint solve then takes these rows in place of D, so that the patch keeps its effect on its own texts and leaves
the rest to the others.

    LowRank(a, b, keys=k, key_edit=torch.zeros(len(k), dtype=torch.int64))
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from kedit_hub.errors import PatchFormatError
from kedit_hub.limits import DEFAULT, Limits
from kedit_hub.patch.deltas.base import F32, FLOATS, INDEX, Cost, Delta, Spec

KEYS_PER_EDIT = 16  # a prompt and its target are about as many tokens; more rows would outweigh those of other patches
KEYS: Mapping[str, Spec] = MappingProxyType(
    {
        "keys": Spec("kd", F32, optional=True, since=2),
        "key_edit": Spec("k", INDEX, optional=True, below="E", since=2),
    }
)
SEEN: Mapping[str, Spec] = MappingProxyType(
    {
        "seen_rows": Spec("1", INDEX, optional=True, since=2),
        "seen_inputs": Spec("2d", F32, optional=True, since=2),
        "seen_gradients": Spec("2m", F32, optional=True, since=2),
    }
)


class Weights(Delta):
    """What the three have in common. keys (k, d) f32, key_edit (k,) i64: on the texts of which edit a key was read."""

    keys: Tensor | None
    key_edit: Tensor | None

    def validate(self, n_edits: int, limits: Limits = DEFAULT, where: str = "delta") -> None:
        super().validate(n_edits, limits, where)
        self.together(where, ("keys", "key_edit"))
        if self.key_edit is not None and int(self.key_edit.bincount().max()) > KEYS_PER_EDIT:
            edit = int(self.key_edit.bincount().argmax())
            raise PatchFormatError(
                f"{where}/keys holds {int(self.key_edit.bincount().max())} keys of edit {edit}; at most {KEYS_PER_EDIT} are taken."
            )

    def change(self, x: Tensor) -> Tensor:
        """D x of inputs x (n, d): (n, m) float64."""
        raise NotImplementedError


class Counted(Weights):
    """What rows the editor has read for it: seen_rows (1,) how many, seen_inputs (2, d) mean and variance of the inputs of the map,
    seen_gradients (2, m) those of the gradients at its outputs. Who edits on top goes on from there (UltraEdit); nothing else reads them.
    """

    seen_rows: Tensor | None
    seen_inputs: Tensor | None
    seen_gradients: Tensor | None

    def validate(self, n_edits: int, limits: Limits = DEFAULT, where: str = "delta") -> None:
        super().validate(n_edits, limits, where)
        self.together(where, ("seen_rows", "seen_inputs", "seen_gradients"))
        if self.seen_rows is None or self.seen_inputs is None or self.seen_gradients is None:
            return
        if int(self.seen_rows) < 1:
            raise PatchFormatError(f"{where}/seen_rows is {int(self.seen_rows)}; statistics are of one row at least.")
        for name, moments in (("seen_inputs", self.seen_inputs), ("seen_gradients", self.seen_gradients)):
            if float(moments[1].min()) < 0:
                raise PatchFormatError(f"{where}/{name} holds a variance below 0.")


@dataclass(frozen=True, eq=False)
class LowRank(Counted):
    """W + b @ a.  a (r, d), b (m, r), float.  (MEND, DAFNet, LoRA)"""

    a: Tensor
    b: Tensor
    keys: Tensor | None = None
    key_edit: Tensor | None = None
    seen_rows: Tensor | None = None
    seen_inputs: Tensor | None = None
    seen_gradients: Tensor | None = None

    kind: ClassVar[str] = "lowrank"
    since: ClassVar[int] = 1
    specs: ClassVar[Mapping[str, Spec]] = MappingProxyType(
        {"a": Spec("rd", FLOATS), "b": Spec("mr", FLOATS), **KEYS, **SEEN}
    )

    def change(self, x: Tensor) -> Tensor:
        return x.double() @ self.a.double().T @ self.b.double().T

    def cost(self) -> Cost:
        (r, d), m = self.a.shape, self.b.shape[0]
        return Cost(self.nbytes(), min(r, m, d), 2 * r * (d + m))


@dataclass(frozen=True, eq=False)
class Dense(Counted):
    """W + delta.  delta (m, d), float.  (fine-tuning)"""

    delta: Tensor
    keys: Tensor | None = None
    key_edit: Tensor | None = None
    seen_rows: Tensor | None = None
    seen_inputs: Tensor | None = None
    seen_gradients: Tensor | None = None

    kind: ClassVar[str] = "dense"
    since: ClassVar[int] = 1
    specs: ClassVar[Mapping[str, Spec]] = MappingProxyType({"delta": Spec("md", FLOATS), **KEYS, **SEEN})

    def smallest(self) -> "Dense | Sparse":
        """The exact form that takes fewer bytes: sparse pays 8 bytes per entry that is not zero for its position."""
        positions = self.delta.reshape(-1).nonzero()[:, 0]
        if not 0 < len(positions) * (8 + self.delta.element_size()) < self.delta.nbytes:
            return self
        size = (self.delta.shape[0], self.delta.shape[1])
        return Sparse(positions, self.delta.reshape(-1)[positions], size, self.keys, self.key_edit)

    def change(self, x: Tensor) -> Tensor:
        return x.double() @ self.delta.double().T

    def cost(self) -> Cost:
        m, d = self.delta.shape
        return Cost(self.nbytes(), min(m, d), 2 * m * d)


def fewest(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32, **keys: Tensor | None) -> LowRank | Dense:
    """The change b a of factors a (r, d) and b (m, r) in the form that takes fewer numbers: the factors, or their product."""
    if a.numel() + b.numel() > len(b) * a.shape[1]:
        return Dense((b.double() @ a.double()).to(dtype), **keys)
    return LowRank(a.to(dtype), b.to(dtype).contiguous(), **keys)


@dataclass(frozen=True, eq=False)
class Sparse(Weights):
    """W + a matrix whose entry at row-major position p (row p // d, column p % d) is its value, and 0 elsewhere.

    positions (z,) i64, strictly increasing.  values (z,) float, none of them 0.  size (m, d).  (masked fine-tuning, KN)
    """

    positions: Tensor
    values: Tensor
    size: tuple[int, int]
    keys: Tensor | None = None
    key_edit: Tensor | None = None

    kind: ClassVar[str] = "sparse"
    since: ClassVar[int] = 2
    specs: ClassVar[Mapping[str, Spec]] = MappingProxyType(
        {"positions": Spec("z", INDEX, below="*"), "values": Spec("z", FLOATS), **KEYS}
    )

    def validate(self, n_edits: int, limits: Limits = DEFAULT, where: str = "delta") -> None:
        super().validate(n_edits, limits, where)
        if not bool((self.positions[1:] > self.positions[:-1]).all()):
            raise PatchFormatError(f"{where}/positions must increase strictly: every entry of W is changed once.")
        if not bool((self.values != 0).all()):
            raise PatchFormatError(f"{where}/values holds a zero, which changes nothing. Leave its position out.")

    def dense(self) -> Tensor:
        """(m, d) in the dtype of the values."""
        m, d = self.size
        return torch.zeros(m * d, dtype=self.values.dtype).index_copy(0, self.positions, self.values).view(m, d)

    def change(self, x: Tensor) -> Tensor:
        places = torch.stack([self.positions // self.size[1], self.positions % self.size[1]])
        matrix = torch.sparse_coo_tensor(
            places, self.values.double(), self.size, is_coalesced=True, check_invariants=True
        )
        return (matrix @ x.double().T).T

    def cost(self) -> Cost:
        return Cost(self.nbytes(), min(len(self.values), *self.size), 2 * len(self.values))

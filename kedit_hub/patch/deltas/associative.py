"""Rows of an associative memory: the canonical kind, which ROME, MEMIT, AlphaEdit and their kin reduce to."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from kedit_hub.errors import PatchFormatError
from kedit_hub.limits import DEFAULT, Limits
from kedit_hub.patch.deltas.base import F32, INDEX, Cost, Delta, Spec
from kedit_hub.patch.deltas.half import decode, encode

SCALE = "_scale"  # the scales of tensor x are stored as x_scale


@dataclass(frozen=True, eq=False)
class Associative(Delta):
    """At key k_i (input of the map) its output moves by residual r_i. No fixed matrix: a gate or a joint least-squares solve over
    all patches of a stack turns rows into a change.

    keys (n, d) f32.  residuals, base_outputs (n, m) f32: wanted minus base output, and the base output itself.
    edit_index (n,) i64: which edit a row serves.
    context_keys (k, d), context_row (k,): more keys of a row, from other contexts.
    gate_keys (g, e), gate_edit (g,): keys of the edits' subjects at the input of `gate_module`, an earlier linear map.
    whitened_keys (n, d) f32: (C0 + rho I)^-1 k_i under the profile that the manifest names; with them a stack is solved
    without the profile's second moment C0 (d, d), which is larger than all patches together.
    counter_keys (c, d), counter_edit (c,): inputs at which an edit keeps silent; under a gate one that is nearer than every key
    of the edit's rows wins, and nothing is added.
    thresholds (E, 2) f32: cosines of each edit, subject and answer, from which on a gate counts a key as met, instead of the
    profile's.
    site: where keys were taken, "subject" (last token of the subject) or "answer" (positions that predict the target).
    precision: None, or "f16" when keys, residuals, base outputs, context, gate and counter keys are stored in half the space; in
    memory they are float32 always, so build such a delta with `halved`, which rounds them to what will be stored.
    """

    keys: Tensor
    residuals: Tensor
    base_outputs: Tensor
    edit_index: Tensor
    context_keys: Tensor | None = None
    context_row: Tensor | None = None
    gate_keys: Tensor | None = None
    gate_edit: Tensor | None = None
    whitened_keys: Tensor | None = None
    counter_keys: Tensor | None = None
    counter_edit: Tensor | None = None
    thresholds: Tensor | None = None
    site: str = "subject"
    gate_module: str | None = None
    precision: Literal["f16"] | None = None

    kind: ClassVar[str] = "associative"
    since: ClassVar[int] = 1
    specs: ClassVar[Mapping[str, Spec]] = MappingProxyType(
        {
            "keys": Spec("nd", F32, halved=True),
            "residuals": Spec("nm", F32, halved=True),
            "base_outputs": Spec("nm", F32, halved=True),
            "edit_index": Spec("n", INDEX, below="E"),
            "context_keys": Spec("kd", F32, optional=True, halved=True),
            "context_row": Spec("k", INDEX, optional=True, below="n"),
            "gate_keys": Spec("ge", F32, optional=True, halved=True),
            "gate_edit": Spec("g", INDEX, optional=True, below="E"),
            "whitened_keys": Spec("nd", F32, optional=True, since=2),
            "counter_keys": Spec("cd", F32, optional=True, halved=True, since=2),
            "counter_edit": Spec("c", INDEX, optional=True, below="E", since=2),
            "thresholds": Spec("E2", F32, optional=True, since=2),
        }
    )

    @property
    def version(self) -> int:
        return super().version if self.precision is None else 2

    def halved(self) -> "Associative":
        """The same rows rounded to column-scaled float16, to be stored in half the space. Whitened keys stay as they are."""
        rounded = {
            name: decode(*encode(tensor), name) if self.specs[name].halved else tensor
            for name, tensor in self.tensors().items()
        }
        return Associative(**rounded, site=self.site, gate_module=self.gate_module, precision="f16")

    def to_tensors(self) -> dict[str, Tensor]:
        if self.precision is None:
            return self.tensors()
        self._sizes("delta")  # refuses what has no rows to scale
        stored = {}
        for name, tensor in self.tensors().items():
            if self.specs[name].halved:
                stored[name], stored[name + SCALE] = encode(tensor)
                if not decode(stored[name], stored[name + SCALE], name).equal(tensor):
                    raise PatchFormatError(f"{name} is not rounded to float16. Build the delta with halved().")
            else:
                stored[name] = tensor
        return stored

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], shape: tuple[int, int], where: str) -> Self:
        if meta.get("precision") == "f16":
            halved = [name for name, spec in cls.specs.items() if spec.halved and name in tensors]
            lacking = [name for name in halved if name + SCALE not in tensors]
            if lacking:
                raise PatchFormatError(f"{where} ({cls.kind}) is stored as f16 and lacks {lacking[0] + SCALE}.")
            plain = {name: t for name, t in tensors.items() if name.removesuffix(SCALE) not in halved}
            whole = {name: decode(tensors[name], tensors[name + SCALE], f"{where}/{name}") for name in halved}
            tensors = plain | whole
        return super().read(tensors, meta, shape, where)

    def validate(self, n_edits: int, limits: Limits = DEFAULT, where: str = "delta") -> None:
        super().validate(n_edits, limits, where)
        self.one_of(where, "site", ("subject", "answer"))
        self.together(where, ("context_keys", "context_row"), ("gate_keys", "gate_edit", "gate_module"))
        self.together(where, ("counter_keys", "counter_edit"))
        if self.precision is not None:
            self.one_of(where, "precision", ("f16",))
        if self.thresholds is not None and bool((self.thresholds.abs() > 1).any()):
            edit = int((self.thresholds.abs() > 1).any(1).nonzero()[0, 0])
            subject, answer = self.thresholds[edit].tolist()
            raise PatchFormatError(
                f"{where}/thresholds of edit {edit} are {subject:g} and {answer:g}; a cosine lies in -1..1."
            )
        if self.whitened_keys is not None and bool(((self.keys * self.whitened_keys).sum(1) <= 0).any()):
            raise PatchFormatError(
                f"{where}/whitened_keys are not (C0 + rho I)^-1 of the keys: k . C^-1 k must be above 0 in every row."
            )

    def cost(self) -> Cost:
        """As one low-rank side branch of all rows, n * (d + m) multiply-adds; the gate's own keys come on top."""
        n, d = self.keys.shape
        gate = sum(k.numel() for k in (self.context_keys, self.gate_keys, self.counter_keys) if k is not None)
        m = self.residuals.shape[1]
        return Cost(self.nbytes(), min(n, m, d), 2 * (n * (d + m) + gate))

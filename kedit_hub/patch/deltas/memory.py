"""Changes that are no change of a weight: extra neurons, a codebook, a side memory, a memory of facts in words.

Each hangs on one linear map P: x (d) -> y (m) of the base; x is its input and y its output at one position of a text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from kedit_hub.errors import LimitError, PatchFormatError
from kedit_hub.limits import DEFAULT, Limits
from kedit_hub.patch.deltas.base import F32, FLOATS, INDEX, Cost, Delta, Spec

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
POSITIONS = ("last", "every")
ROUTINGS = ("norm", "mask")
SCOPES = ("lexical", "projection", "model", "cross")
ANSWERS = ("prompt", "model")


@dataclass(frozen=True, eq=False)
class Neurons(Delta):
    """More units of the feed-forward block that ends in P:  y + sum_i h_i v_i.  (T-Patcher, CaliNET)

        h_i = act(x' . k_i + b_i)              or, with multipliers u,   h_i = act(x' . k_i + b_i) (x' . u_i)

    x' (e): the input of `input_module`, a linear map that runs before P (the block's first one); None: P's own input.
    keys, multipliers (n, e); biases (n,); values (n, m); edit_index (n,): which edit a unit serves, where it serves one.
    """

    keys: Tensor
    biases: Tensor
    values: Tensor
    size: tuple[int, int]
    multipliers: Tensor | None = None
    edit_index: Tensor | None = None
    activation: str = "relu"
    input_module: str | None = None

    kind: ClassVar[str] = "neurons"
    since: ClassVar[int] = 2
    specs: ClassVar[Mapping[str, Spec]] = MappingProxyType(
        {
            "keys": Spec("ne", FLOATS),
            "biases": Spec("n", FLOATS),
            "values": Spec("nm", FLOATS),
            "multipliers": Spec("ne", FLOATS, optional=True),
            "edit_index": Spec("n", INDEX, optional=True, below="E"),
        }
    )

    def validate(self, n_edits: int, limits: Limits = DEFAULT, where: str = "delta") -> None:
        super().validate(n_edits, limits, where)
        self.one_of(where, "activation", ACTIVATIONS)
        if self.input_module is None and self.keys.shape[1] != self.size[1]:
            raise PatchFormatError(
                f"{where}/keys are {self.keys.shape[1]} wide, the input of {where} is {self.size[1]} wide. State the "
                "input_module whose input they read."
            )

    def cost(self) -> Cost:
        n, e = self.keys.shape
        m = self.values.shape[1]
        reads = 1 if self.multipliers is None else 2
        return Cost(self.nbytes(), min(n, *self.size), 2 * n * (reads * e + m))


@dataclass(frozen=True, eq=False)
class Codebook(Delta):
    """Where the input lies within the radius of its nearest key (Euclidean), the output is that entry's value.  (GRACE)

        j = argmin_i |x - k_i|;   y <- v_j  if |x - k_j| <= radius_j, at the positions named by `positions`:
        "last"   only the last token of a prompt, when it is first read;  "every"   every position

    keys (n, d) f32.  values (n, m) f32.  radii (n,) f32, above 0.  edit_index (n,): which edit an entry serves.
    """

    keys: Tensor
    values: Tensor
    radii: Tensor
    edit_index: Tensor
    positions: str = "last"

    kind: ClassVar[str] = "codebook"
    since: ClassVar[int] = 2
    specs: ClassVar[Mapping[str, Spec]] = MappingProxyType(
        {
            "keys": Spec("nd", F32),
            "values": Spec("nm", F32),
            "radii": Spec("n", F32),
            "edit_index": Spec("n", INDEX, below="E"),
        }
    )

    def validate(self, n_edits: int, limits: Limits = DEFAULT, where: str = "delta") -> None:
        super().validate(n_edits, limits, where)
        self.one_of(where, "positions", POSITIONS)
        if not bool((self.radii > 0).all()):
            raise PatchFormatError(f"{where}/radii holds {float(self.radii.min()):g}; a radius is above 0.")

    def cost(self) -> Cost:
        n, d = self.keys.shape
        return Cost(self.nbytes(), min(n, self.values.shape[1], d), 2 * n * d)


@dataclass(frozen=True, eq=False)
class SideMemory(Delta):
    """A second weight beside P that answers only where it is routed to:  y + delta x  or  y + delta (M_j * x).

    routing "norm" (WISE): the whole pass, when the mean of |delta x| over its positions is at least `threshold`.
    routing "mask" (MEMOIR): f = mean of x over the positions of the prompt, minus `background`; A(x) = `permutation` of
        the indices of the k largest |f|; j = the mask that shares most with A(x), used when it shares at least
        threshold * k; M_j * x keeps the entries of x that mask j names.

    delta (m, d) float.  masks (n, k) i64, each row strictly increasing.  mask_edit (n,): which edit a mask serves.
    background (d,) f32.  permutation (d,) i64, each index once.
    """

    delta: Tensor
    masks: Tensor | None = None
    mask_edit: Tensor | None = None
    background: Tensor | None = None
    permutation: Tensor | None = None
    routing: str = "norm"
    threshold: float | None = None

    kind: ClassVar[str] = "sidememory"
    since: ClassVar[int] = 2
    specs: ClassVar[Mapping[str, Spec]] = MappingProxyType(
        {
            "delta": Spec("md", FLOATS),
            "masks": Spec("nk", INDEX, optional=True, below="d"),
            "mask_edit": Spec("n", INDEX, optional=True, below="E"),
            "background": Spec("d", F32, optional=True),
            "permutation": Spec("d", INDEX, optional=True, below="d"),
        }
    )

    def validate(self, n_edits: int, limits: Limits = DEFAULT, where: str = "delta") -> None:
        super().validate(n_edits, limits, where)
        self.one_of(where, "routing", ROUTINGS)
        self.positive(where, "threshold")
        self.together(where, ("masks", "mask_edit", "background", "permutation"))
        if (self.routing == "mask") != (self.masks is not None):
            raise PatchFormatError(
                f"{where} is routed by {self.routing}: masks come with routing 'mask', and only there."
            )
        if self.masks is None or self.permutation is None:
            return
        if self.masks.shape[1] > 1 and not bool((self.masks[:, 1:] > self.masks[:, :-1]).all()):
            raise PatchFormatError(f"{where}/masks must increase strictly within each row.")
        if not self.permutation.sort().values.equal(torch.arange(len(self.permutation))):
            raise PatchFormatError(f"{where}/permutation must name every index once.")

    def cost(self) -> Cost:
        m, d = self.delta.shape
        masks = 0 if self.masks is None else self.masks.numel()
        return Cost(self.nbytes(), min(m, d), 2 * (m * d + masks))


@dataclass(frozen=True, eq=False)
class Facts(Delta):
    """The edits themselves, in words, put to use when a question falls into the scope of one.  (SERAC, IKE)

    No weight changes; P is where the base is recognised, and what a projection reads. edit_index (n,): the facts.
    Fact i is in scope of a question when its similarity s_i is the largest and at least `threshold` (0 < threshold <= 1):

        scope "lexical"      s_i = share of the words of edit i's prompt that occur in the question (case folded)
        scope "projection"   s_i = exp(-scale |q - embeddings_i|^2),  q = projection @ x,  x = input of P at the last token
        scope "model"        the same with q = the embedding of the question by `scope_model`, an encoder
        scope "cross"        s_i = what `scope_model`, a cross-encoder, gives the pair (fact, question)

    answer "prompt": the base answers with the fact put before the question.  "model": `answer_model` does, told the same.
    told: how many of the facts in scope are put there at most (absent: 1). demonstrations: texts of which the `shown` that share most
    words with the question come before them; the two come together.
    Models are named as owner/name@<commit>, a trained editor by the first 40 digits of its id. embeddings (n, e) f32,
    projection (e, d) f32.
    """

    edit_index: Tensor
    size: tuple[int, int]
    embeddings: Tensor | None = None
    projection: Tensor | None = None
    scope: str = "lexical"
    answer: str = "prompt"
    threshold: float | None = None
    scale: float | None = None
    scope_model: str | None = None
    answer_model: str | None = None
    told: int | None = None
    shown: int | None = None
    demonstrations: tuple[str, ...] | None = None

    kind: ClassVar[str] = "facts"
    since: ClassVar[int] = 2
    specs: ClassVar[Mapping[str, Spec]] = MappingProxyType(
        {
            "edit_index": Spec("n", INDEX, below="E"),
            "embeddings": Spec("ne", F32, optional=True),
            "projection": Spec("ed", F32, optional=True),
        }
    )

    def validate(self, n_edits: int, limits: Limits = DEFAULT, where: str = "delta") -> None:
        super().validate(n_edits, limits, where)
        self.one_of(where, "scope", SCOPES)
        self.one_of(where, "answer", ANSWERS)
        self.positive(where, "threshold")
        if self.threshold is not None and self.threshold > 1:
            raise PatchFormatError(f"{where} has threshold {self.threshold!r}; a similarity is at most 1.")
        near = self.scope in ("projection", "model")
        needs = {
            "embeddings": near,
            "scale": near,
            "projection": self.scope == "projection",
            "scope_model": self.scope in ("model", "cross"),
            "answer_model": self.answer == "model",
        }
        for name, needed in needs.items():
            if needed != (getattr(self, name) is not None):
                verb = "needs" if needed else "has no"
                raise PatchFormatError(f"{where} with scope {self.scope!r} and answer {self.answer!r} {verb} {name}.")
        self.together(where, ("shown", "demonstrations"))
        for name in ("told", "shown"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= limits.max_told:
                raise LimitError(f"{where} has {name} {value!r}; 1 to {limits.max_told} are taken.")
        texts = self.demonstrations or ()
        if self.demonstrations is not None and not 1 <= len(texts) <= limits.max_probes:
            raise LimitError(f"{where} has {len(texts):,} demonstrations; 1 to {limits.max_probes:,} are taken.")
        if any(len(text) > limits.max_text_chars for text in texts):
            raise LimitError(f"{where} has a demonstration of more than {limits.max_text_chars:,} characters.")
        if self.scale is not None:
            self.positive(where, "scale")

    def cost(self) -> Cost:
        """flops: of finding the scope, once per question."""
        looked = sum(t.numel() for t in (self.embeddings, self.projection) if t is not None)
        return Cost(self.nbytes(), 0, 2 * looked)

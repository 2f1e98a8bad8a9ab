"""T-Patcher (Huang et al. 2023): a neuron for every mistake, in the last feed-forward block. Law: silent wherever it was not called.

For every target token that the base does not say, one neuron (k, b, v); q are the inputs of the MLP at the positions that should predict
this token, in the edit's prompt and its author's paraphrases. With M the inputs on unrelated text,

    L = L_edit + a L_act + c L_mem
    L_edit   mean NLL of the targets, all neurons of the batch at work, as they will be
    L_act    mean over (neuron, q) of exp(-(q.k + b))                                  it fires where it is called
    L_mem    mean over (neuron, q) of S(M k + b - beta) + S((M - q) k - gamma)         and not on other text
             S(z) = mean of exp over the `top` largest entries of z

(their eq. 5 to 9). Published: edits one by one, each neuron with those before it in place; here the neurons of a patch at once, which a
patch of one edit does not tell apart. M holds what the model itself says, or the caller's `texts`, and the edits' own texts wherever
they predict no target.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from kedit_hub.base.families import edited_linear, encoder_decoder, linear_shape
from kedit_hub.base.tokens import encode
from kedit_hub.editors.job import Clock, Job, Result
from kedit_hub.editors.memory.asked import late_layer, questions_of, until_all_take
from kedit_hub.editors.memory.trained import made, packed, unpacked
from kedit_hub.editors.memory.units import ROWS, Fitted, Ground, Units, fit, ground, inputs_on, readers, wrong
from kedit_hub.editors.own_words import learnt_end, sample_texts
from kedit_hub.editors.places import Texts
from kedit_hub.edits import Edit
from kedit_hub.errors import EditError
from kedit_hub.evaluate.protocols import continuations
from kedit_hub.patch.deltas import Neurons


class UnrelatedTexts(BaseModel):
    """Settings that say where text comes from on which nothing shall change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    memory_texts: int = Field(default=200, ge=1, le=10_000)  # that the model writes, by the seed, where none are given
    texts: Texts = Field(default=(), exclude=True)  # instead


class TPatcherSettings(UnrelatedTexts):
    """What a user may set. layer None: the last one, as published."""

    layer: int | None = None
    steps: int = Field(default=100, ge=1, le=10_000)
    lr: float = Field(default=0.05, gt=0)
    stop_nll: float = Field(default=0.05, ge=0)
    activation: float = Field(default=1.0, ge=0)  # a
    memory: float = Field(default=10.0, ge=0)  # c
    beta: float = -3.0
    gamma: float = -3.0
    top: int = Field(default=100, ge=1)  # entries of M that count for a neuron
    paraphrases: bool = True
    failed: Literal["raise", "drop"] = "raise"


def t_patcher(job: Job) -> Result:
    """Neurons of all edits. An edit that the base says already gets none; EditError where that is true of all of them."""
    settings = job.settings
    assert isinstance(settings, TPatcherSettings)
    clock = Clock()
    end = learnt_end(job)
    layer = late_layer(job.model, settings.layer, 1.0)
    path, linear = edited_linear(job.model, layer)
    reader = readers(job.model, layer)[0]
    unrelated = unrelated_inputs(job, reader, settings)

    def attempt(edits: list[Edit], name: str) -> tuple[Tensor, tuple[Tensor, Calls, Fitted]]:
        asked = questions_of(job.tokenizer, edits, end, paraphrases=settings.paraphrases, model=job.model)
        on = ground(job.model, layer, reader, asked)
        calls = called(job.model, layer, on)
        fitted = _fit(job, layer, on, calls, unrelated, name)
        return fitted.said[asked.own], (asked.edit, calls, fitted)

    edits, dropped, (of, calls, fitted) = until_all_take(job, "T-Patcher", layer, attempt)
    units = fitted.units
    delta = Neurons(
        units.keys, units.biases, units.values, linear_shape(linear), edit_index=calls.edit, activation="relu", input_module=reader
    )  # fmt: skip
    told = made(job, edits, dropped, of, fitted, clock)
    return Result({path: delta}, edits, told, {"layer": layer, **settings.model_dump(exclude={"layer", "failed"})})


class Calls:
    """Which neuron is called where. edit (n,): of neurons; neuron, row, position (p,): the calls, each neuron's own."""

    def __init__(self, edit: Tensor, neuron: Tensor, row: Tensor, position: Tensor):
        self.edit, self.neuron, self.row, self.position = edit, neuron, row, position


def called(model: torch.nn.Module, layer: int, on: Ground) -> Calls:
    """A neuron for every (edit, number of the target token) that the base gets wrong in some question of the edit."""
    row, position = wrong(model, layer, on).nonzero(as_tuple=True)
    if not len(row):
        raise EditError(
            "the base says all these targets already, in all their questions: there is nothing for T-Patcher to correct"
        )
    asked = on.asked
    number = position - asked.encoded.prompt_last[row]  # of the target token, 0 the first
    slots, neuron = (asked.edit[row] * asked.encoded.input_ids.shape[1] + number).unique(return_inverse=True)
    return Calls(slots // asked.encoded.input_ids.shape[1], neuron, row, position)


def unrelated_inputs(job: Job, reader: str, settings: UnrelatedTexts) -> Tensor:
    """(p, e) of the texts given, or of texts the model writes from nothing."""
    texts = list(settings.texts)
    if not texts:
        texts = sample_texts(job.model, job.tokenizer, settings.memory_texts, seed=job.seed)
    parts = [texts[start : start + ROWS] for start in range(0, len(texts), ROWS)]
    if encoder_decoder(job.model):  # it is unrelated what the decoder says when it is asked them
        model: Any = job.model
        said = continuations(model, job.tokenizer, texts, new_tokens=8)
        pairs = [(text, answer) for text, answer in zip(texts, said) if answer.strip()]
        if not pairs:
            raise EditError('the base says nothing to these texts: pass other ones as settings={"texts": [...]}')
        asked = [zip(*pairs[start : start + ROWS]) for start in range(0, len(pairs), ROWS)]
        return torch.cat([inputs_on(job.model, reader, encode(job.tokenizer, *a, model=job.model)) for a in asked])
    return torch.cat([inputs_on(job.model, reader, encode(job.tokenizer, part)) for part in parts])


def quiet_inputs(on: Ground) -> Tensor:
    """(p, e) of the edits' own texts where they predict no token of a target."""
    answering = torch.zeros_like(on.asked.encoded.target_mask)
    answering[:, :-1] = on.asked.encoded.target_mask[:, 1:]
    return on.heard[(on.asked.encoded.position_ids > 0) & ~answering]


def memory_losses(
    units: Units, queries: Tensor, neuron: Tensor, memory: Tensor, *, beta: float, gamma: float, top: int
) -> tuple[Tensor, Tensor]:
    """L_act and L_mem. queries (p, e), of the neurons `neuron` (p,); memory (M, e)."""
    fired = (queries * units.keys[neuron]).sum(1) + units.biases[neuron]  # (p,)
    elsewhere = memory @ units.keys.T + units.biases  # (M, n)
    worst = elsewhere.topk(min(top, len(memory)), dim=0).values.T[
        neuron
    ]  # (p, top): for a neuron q.k + b is a constant
    silent = (worst - beta).exp().mean(1) + (worst - fired[:, None] - gamma).exp().mean(1)
    return (-fired).exp().mean(), silent.mean()


def _fit(job: Job, layer: int, on: Ground, calls: Calls, unrelated: Tensor, name: str) -> Fitted:
    settings, (wide, tall) = job.settings, on.size()
    queries = on.heard[calls.row, calls.position]  # (p, e)
    memory = torch.cat([unrelated, quiet_inputs(on)])
    scale = tall / on.hidden.shape[-1] ** 0.5
    start = torch.zeros(len(calls.edit), queries.shape[1], device=queries.device)
    neuron = calls.neuron.to(start.device)
    start.index_add_(0, neuron, queries - memory.mean(0))
    start = start / start.norm(dim=1, keepdim=True) ** 2 * torch.bincount(neuron)[:, None].to(start)
    begun = memory.mean(0) @ start.T

    def units_of(parameters: Sequence[Tensor]) -> Units:
        """keys in units of |x|, values in units of |h| / sqrt(m)."""
        keys, biases, values = parameters
        return Units(keys / wide, biases, values * scale)

    def more(units: Units) -> Tensor:
        fires, silent = memory_losses(
            units, queries, neuron, memory, beta=settings.beta, gamma=settings.gamma, top=settings.top
        )
        return settings.activation * fires + settings.memory * silent

    def work() -> dict[str, Tensor]:
        zero = torch.zeros(len(calls.edit), on.hidden.shape[-1], device=queries.device)
        parameters = [4 * start * wide, -4 * begun - 2, zero]  # about +2 where it is called, -2 on the mean of M
        found = fit(
            job.model, layer, on, parameters, units_of, activation="relu", steps=settings.steps, lr=settings.lr,
            stop_nll=settings.stop_nll, more=more,
        )  # fmt: skip
        return packed(found)

    return unpacked(job.memo(f"{name}-neurons", work))

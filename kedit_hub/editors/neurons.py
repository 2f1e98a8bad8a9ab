"""Knowledge neurons (KN, Dai et al. 2022): find the units of the MLPs that make the old answer likely, and rewrite what they write.

A unit i of layer l is an input of the editable linear map W, gated MLPs included; w is their vector at a prompt's last token. How much it
has to do with the answer y is its integrated gradient on the way from 0 to w, with the other units of its layer on the same way:

    Attr(l, i) = w_i / n * sum_{j=1..n} d P(y | x; w <- (j / n) w) / d w_i

For an answer of several tokens it is the mean over them, each given those before it. Kept are the units whose Attr is above `threshold`
times the largest of all layers. Then, with e(t) the embedding of a token,

    W[:, i] += s_i (2 e(new) - 2 e(old))                        answers of one token
    W[:, i] += s_i (sum e(new tokens) - sum e(old tokens))      others

s_i is the sign of w_i where the answer begins: published for units that are never negative, it has to be 1 there; in a gated MLP half of
them are, and the old answer would be made likelier.
Every edit is located on the same model and the changes are added up. The old answer is the edit's ground truth, or else the token that the
model says.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from kedit_hub.base.families import dense_weight, linear_shape, n_layers
from kedit_hub.base.signals import FP16_LOSS_SCALE, last_logits, quiet
from kedit_hub.base.tokens import Encoded, encode
from kedit_hub.editors.job import Clock, Job, Result
from kedit_hub.editors.keyed import inputs_of
from kedit_hub.editors.outcome import Weights, outcome
from kedit_hub.editors.places import Layers, Texts, linears
from kedit_hub.editors.rows import prefixed
from kedit_hub.edits import Edit
from kedit_hub.errors import EditFailedError
from kedit_hub.evaluate.protocols import on_device
from kedit_hub.patch.deltas import Sparse


class NeuronSettings(BaseModel):
    """What a user may set."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    layers: Layers | None = None  # where units are looked for; None: in all
    steps: int = Field(default=20, ge=1, le=1000)  # n
    # threshold and scale were chosen on 20 dev edits of Atlas; published are 0.2, which presets.py has, and in the authors' code 0.3
    threshold: float = Field(default=0.4, ge=0, lt=1)  # of the largest attribution
    shared: float | None = Field(default=None, ge=0, lt=1)  # None: the units of the prompt alone; else those that are
    # found in more than this share of prompt, paraphrases and the prompt after every one of the contexts
    contexts: Texts = ()
    scale: float = Field(default=1.0, gt=0)  # of the published change
    embedding: Literal["output", "input"] = "output"  # published: "input", which is the same where the two are tied


def neurons(job: Job) -> Result:
    """Whole columns of the maps of those layers that hold a unit of some edit. Nothing is drawn at random.

    EditFailedError names an edit of which no unit is found.
    """
    model, edits, settings = job.model, job.edits, job.settings
    assert isinstance(settings, NeuronSettings)
    clock = Clock()
    paths = linears(model, settings.layers or range(n_layers(model)))
    found: list[dict[str, Tensor]] = []
    for number, edit in enumerate(edits):
        found.append(job.memo(f"edit-{number}", partial(_located, model, job.tokenizer, edit, paths, settings)))
        job.advance(1)
    moves = torch.stack([_move(model, one["old"], one["new"], settings) for one in found], 1)  # (m, E)
    columns = {path: _columns(found, number, moves, model.get_submodule(path)) for number, path in enumerate(paths)}
    changed = {path: delta for path, delta in columns.items() if delta is not None}
    if not changed:
        raise EditFailedError(
            f'"{edits[0].prompt} -> {edits[0].target}" asks for the answer that is the old one already'
        )
    read, owner = inputs_of(edits, model, job.tokenizer, list(changed))
    deltas: dict[str, Weights] = {
        path: replace(delta, keys=read[path], key_edit=owner) for path, delta in changed.items()
    }
    how = settings.model_dump(exclude={"layers", "contexts"}, exclude_none=True)
    return Result(
        deltas, edits, outcome(job, deltas, clock), how | {"modules": paths, "contexts": list(settings.contexts)}
    )


def _located(
    model: Any, tokenizer: Any, edit: Edit, paths: Sequence[str], settings: NeuronSettings
) -> dict[str, Tensor]:
    """The units of one edit: "layer" (k,), a number in `paths`, "unit" (k,), "sign" (k,). "old", "new" (t,): tokens of its answers."""
    asked_in = (
        [edit.prompt] if settings.shared is None else [*prefixed(edit.prompt, settings.contexts), *edit.paraphrases]
    )
    prompts = list(dict.fromkeys(asked_in))  # a prompt that is given twice has one say
    bare, old = _tokens(model, tokenizer, edit.prompt, edit.ground_truth or edit.target)
    if edit.ground_truth is None:
        old = _said(model, bare)
    held, sign = torch.zeros(()), torch.zeros(())
    for prompt in prompts:
        asked, answer = _tokens(model, tokenizer, prompt, edit.ground_truth or edit.target)
        answer = old if edit.ground_truth is None else answer
        told = [attributions(model, path, asked, answer, settings.steps) for path in paths]
        score = torch.stack([one for one, _ in told])  # (L, d)
        if prompt == edit.prompt:
            sign = torch.stack([w.sign() for _, w in told])
        held = held + ((score > settings.threshold * score.max()) & (score > 0)).float()
    layer, unit = (held / len(prompts) > (settings.shared or 0.0)).nonzero(as_tuple=True)
    if not len(unit):
        raise EditFailedError(
            f'no unit of {len(paths)} layer(s) makes the old answer to "{edit.prompt}" likely in more than {settings.shared or 0:g} of '
            f"{len(prompts)} prompt(s): take a smaller `shared`, or another method"
        )
    new = _tokens(model, tokenizer, edit.prompt, edit.target)[1]
    return {"layer": layer, "unit": unit, "sign": sign[layer, unit], "old": old, "new": new}


def _tokens(model: Any, tokenizer: Any, prompt: str, answer: str) -> tuple[Encoded, Tensor]:
    """The row of the prompt, and the token ids of the answer behind it."""
    encoded = encode(tokenizer, [prompt], [answer], model=model)
    start = int(encoded.prompt_last[0]) + 1
    return encoded.columns(0, start), encoded.input_ids[0, start:]


@torch.no_grad()
def _said(model: Any, asked: Encoded) -> Tensor:
    """(1,) the token that the model says after a row."""
    with quiet(model):
        logits: Tensor = model(**on_device(model, asked).inputs(model), use_cache=False).logits
    return logits[0, -1:].argmax(-1).cpu()


def attributions(model: Any, path: str, asked: Encoded, answer: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Attr (d,) of every unit of one layer, the mean over the tokens of `answer` (t,) after the row `asked`, and w (d,) at its first."""
    told = [
        _attributions(model, path, asked.followed_by(answer[:t]), int(token), steps) for t, token in enumerate(answer)
    ]
    return torch.stack([score for score, _ in told]).mean(0), told[0][1]


@torch.enable_grad()
def _attributions(model: Any, path: str, row: Encoded, token: int, steps: int) -> tuple[Tensor, Tensor]:
    """The same for one token, all steps in one pass."""
    share = torch.arange(1, steps + 1) / steps  # (n,)
    held: list[Tensor] = []

    def scale(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]  # (n, T, d), n equal rows
        w = x[0, -1].detach().float()
        on_the_way = (share.to(w.device)[:, None] * w).requires_grad_()  # (n, d)
        held.extend([w, on_the_way])
        return (torch.cat([x[:, :-1], on_the_way[:, None].to(x.dtype)], 1), *args[1:])

    with quiet(model):
        handle = model.get_submodule(path).register_forward_pre_hook(scale)
        try:
            batch = on_device(model, row.take(torch.zeros(steps, dtype=torch.long)))
            logits = last_logits(model, 1, **batch.inputs(model), use_cache=False)
        finally:
            handle.remove()
        w, on_the_way = held
        factor = FP16_LOSS_SCALE if logits.dtype == torch.float16 else 1.0
        likely = logits[:, -1].float().softmax(-1)[:, token].sum()
        (slope,) = torch.autograd.grad(likely * factor, on_the_way)
    return (w * slope.sum(0) / (factor * steps)).cpu(), w.cpu()


def _move(model: Any, old: Tensor, new: Tensor, settings: NeuronSettings) -> Tensor:
    """(m,) what is added to a column: from the embeddings of the old answer's tokens to those of the new one's."""
    factor = 2.0 if len(old) == len(new) == 1 else 1.0
    return settings.scale * factor * (_embedded(model, new, settings).sum(0) - _embedded(model, old, settings).sum(0))


@torch.no_grad()
def _embedded(model: Any, tokens: Tensor, settings: NeuronSettings) -> Tensor:
    """(t, m) float32 rows of the input embedding, or of the output head."""
    if settings.embedding == "input":
        rows: Tensor = model.get_input_embeddings()(_placed(model, tokens))
    else:
        rows = dense_weight(model.get_output_embeddings())[tokens]
    return rows.float().cpu()


def _placed(model: Any, ids: Tensor) -> Tensor:
    device = model.get_input_embeddings().weight.device
    return ids if device.type == "meta" else ids.to(device)  # offloaded: it moves its inputs itself


def _columns(found: Sequence[dict[str, Tensor]], layer: int, moves: Tensor, module: nn.Module) -> Sparse | None:
    """The changed columns of one map (m, d); None where there are none. moves: (m, E)."""
    m, d = linear_shape(module)
    mine = [one["layer"] == layer for one in found]
    columns, at = torch.cat([one["unit"][own] for one, own in zip(found, mine)]).unique(return_inverse=True)
    change = [one["sign"][own] * moves[:, [edit]] for edit, (one, own) in enumerate(zip(found, mine))]  # (m, k) each
    values = torch.zeros(m, len(columns)).index_add(1, at, torch.cat(change, 1)).flatten()
    positions = (torch.arange(m)[:, None] * d + columns).flatten()  # row-major, increasing
    kept = values != 0
    return Sparse(positions[kept], values[kept], (m, d)) if bool(kept.any()) else None

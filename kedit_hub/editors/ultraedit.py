"""UltraEdit (arXiv 2505.14679): one backward pass, one least-squares solve, nothing trained.

    u (d,), delta = dL/dy (m,)              of every token row, at every edited map y = W u
    u^, delta^                              normalised by the running mean and deviation of the rows [u; delta] of maps of this shape
    v = -step * |u^|^2 delta^               where the output of a row shall go
    dW = argmin sum |dW u - v|^2 + ridge |dW|^2
       = ((K K^T + ridge I)^-1 V)^T K       K (T, d) the inputs of all T rows, V (T, m); T^2 numbers instead of d^2

All edits of a patch are one turn of the published loop: they share the solve. Rows are those that predict a token of the answer, unless
`rows` says otherwise: with every token of a prompt the edit reaches whatever begins alike.

The few rows of one edit make no statistics (of a single row the deviation is 0), so these begin with `warm` made-up edits: a text that the
model writes by itself, broken off, and asked to go on with a word of another one. They last as long as edits come, as published (the
lifelong normaliser): every patch carries the statistics of its own rows, and one that is made on a stack goes on from those of the
UltraEdit patches below, in place of made-up edits. So patches made one after another are the turns of the published loop.

The step is given as a share: the mean of |v| / |output of the block| over the rows would be `step` if u^ and delta^ were the unit normal
vectors that normalising aims at. So one number fits maps of every width, where the published eta = 1e-6 belongs to d = 4096 to 14336:
eta = step * |block output| / (d sqrt m). Of a map into the MLP's units it is a share of its own output. `eta` gives the published
number itself.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from kedit_hub.base.families import family_of, linear_shape, map_of, n_layers
from kedit_hub.base.signals import capture, gradients, quiet
from kedit_hub.base.tokens import answer_positions, encode
from kedit_hub.editors.job import Clock, Job, Result
from kedit_hub.editors.keyed import inputs_of
from kedit_hub.editors.outcome import Weights, outcome
from kedit_hub.editors.own_words import sample_texts
from kedit_hub.editors.places import Layers, Maps
from kedit_hub.editors.running import Running
from kedit_hub.errors import EditError
from kedit_hub.patch.deltas import Dense, LowRank
from kedit_hub.patch.deltas.weights import fewest
from kedit_hub.patch.patch import Patch

AT_ONCE = 16  # texts in one backward pass
LONGEST = 12  # words of a made-up prompt
PUNCTUATION = ".,;:!?"

Signals = dict[str, Tensor]


class UltraEditSettings(BaseModel):
    """What a user may set."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # step, rows and the default layers were chosen on 20 dev edits of Atlas, made one by one, among 6 settings
    layers: Layers | None = None  # None: the two before the last, as published for Mistral-7B (29 and 30 of 32)
    maps: Maps | None = (
        None  # {"gate": [11, 12], "up": [18]}: maps of the MLP with the layers of each; None: down, at `layers`
    )
    step: float = Field(default=0.5, gt=0)
    eta: float | None = Field(default=None, gt=0)  # the published step, in place of `step`
    ridge: float = Field(default=1.0, gt=0)
    rows: Literal["answer", "all"] = "answer"  # "all": of prompt and answer, but for the first token of a text
    warm: int = Field(default=64, ge=0, le=10_000)  # made-up edits that the statistics begin with

    @model_validator(mode="after")
    def _nothing_said_twice(self) -> Self:
        if self.maps is not None and self.layers is not None:
            raise ValueError("maps says the layers of every map: leave layers out")
        if self.eta is not None and "step" in self.model_fields_set:
            raise ValueError("eta is given in place of step: give one of them")
        return self


def ultraedit(job: Job) -> Result:
    """One change for each map. The seed is that of the texts of made-up edits.

    EditError where there are too few rows for statistics; edits that the model then does not say are in the patch, and named in what was
    measured.
    """
    model, settings = job.model, job.settings
    assert isinstance(settings, UltraEditSettings)
    clock = Clock()
    places = _places(model, settings)
    paths = [place.path for place in places]
    signals = partial(_signals, model, job.tokenizer, places, settings.rows)
    parts: list[Signals] = []
    for start in range(0, len(job.edits), AT_ONCE):
        asked = [(edit.prompt, edit.target) for edit in job.edits[start : start + AT_ONCE]]
        parts.append(job.memo(f"edits-{start}", partial(signals, asked)))
        job.advance(len(asked))
    mine = _joined(parts)
    shapes = [linear_shape(model.get_submodule(path)) for path in paths]
    before = seen_below(job.below, settings.rows)
    fresh = {shape for shape in shapes if shape not in before}
    warm = (
        job.memo("warm", partial(_warm, signals, model, job.tokenizer, settings.warm, job.seed))
        if settings.warm and fresh
        else {}
    )
    own: dict[tuple[int, int], Running] = {(m, d): Running.empty(d + m) for m, d in shapes}  # of maps of one shape
    for told in (warm, mine):
        for number, shape in enumerate(shapes):
            if told and (told is mine or shape in fresh):
                rows = torch.cat([told[f"u-{number}"], told[f"delta-{number}"]], 1)
                own[shape] = own[shape].joined(Running.of(rows))
    statistics = {shape: before[shape].joined(new) if shape in before else new for shape, new in own.items()}
    down = [place.path for place in places if place.what == "down"]  # of these alone a stack measures what keys weigh
    read, owner = inputs_of(job.edits, model, job.tokenizer, down) if down else ({}, None)
    deltas: dict[str, Weights] = {}
    for number, (path, shape) in enumerate(zip(paths, shapes)):
        keys = mine[f"u-{number}"]
        if settings.eta is None:
            size = settings.step * float(mine[f"norm-{number}"].mean())
        else:
            size = settings.eta * shape[1] * math.sqrt(shape[0])
        wanted = targets(keys, mine[f"delta-{number}"], statistics[shape], size)
        change = solved(keys, wanted, settings.ridge)
        count, inputs, slopes = seen(own[shape], shape)
        deltas[path] = replace(
            change,
            keys=read.get(path),
            key_edit=owner if path in read else None,
            seen_rows=count,
            seen_inputs=inputs,
            seen_gradients=slopes,
        )
    unused = set() if settings.eta is None else {"step"}
    how = settings.model_dump(exclude={"layers", "maps"} | unused, exclude_none=True) | {
        "modules": paths,
        "rows_solved": [len(mine[f"u-{number}"]) for number in range(len(paths))],
    }
    return Result(deltas, job.edits, outcome(job, deltas, clock), how)


@dataclass(frozen=True)
class Place:
    """A map that is edited. what: "down" is the editable one of the block."""

    layer: int
    what: str
    path: str


def _places(model: Any, settings: UltraEditSettings) -> list[Place]:
    """From the first layer on, the maps of a layer in the order in which they were named."""
    depth = n_layers(model)
    maps = settings.maps or {"down": settings.layers or tuple(range(max(depth - 3, 0), max(depth - 1, 1)))}
    wanted = {(layer, what): None for what, layers in maps.items() for layer in layers}
    return [Place(at, what, map_of(model, at, what)[0]) for at, what in sorted(wanted, key=lambda one: one[0])]


def seen(statistics: Running, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The statistics of rows [u; delta] as a change of a weight carries them: seen_rows, seen_inputs, seen_gradients."""
    m, d = shape
    moments = torch.stack([statistics.mean, statistics.squares / max(statistics.count, 1)]).float()
    inputs, slopes = moments.split([d, m], 1)
    return torch.tensor([statistics.count]), inputs, slopes


def seen_below(below: Sequence[Patch], rows: str) -> dict[tuple[int, int], Running]:
    """By shape of the map, the statistics of the UltraEdit patches below that were made of such rows. A patch has one of every shape."""
    found: dict[tuple[int, int], Running] = {}
    for patch in below:
        if patch.manifest.settings.get("rows") != rows:
            continue
        carried = {
            delta.shape: delta
            for delta in patch.deltas.values()
            if isinstance(delta, (LowRank, Dense)) and delta.seen_rows is not None
        }
        for shape, delta in carried.items():
            assert delta.seen_rows is not None and delta.seen_inputs is not None and delta.seen_gradients is not None
            mean, squares = torch.cat([delta.seen_inputs, delta.seen_gradients], 1).double()
            count = int(delta.seen_rows)
            told = Running(count, mean, squares * count)
            found[shape] = found[shape].joined(told) if shape in found else told
    return found


def targets(keys: Tensor, gradients: Tensor, statistics: Running, size: float) -> Tensor:
    """(T, m) float64: where the output of every row shall go. size: what the step comes to, in units of the output."""
    d, m = keys.shape[1], gradients.shape[1]
    if statistics.count < 2:
        raise EditError("the statistics of a single row are none: leave warm above 0, or give more edits")
    u, delta = statistics.normalised(torch.cat([keys, gradients], 1)).split([d, m], 1)
    return -size / (d * math.sqrt(m)) * u.square().sum(1, keepdim=True) * delta


def solved(keys: Tensor, wanted: Tensor, ridge: float) -> LowRank | Dense:
    """The least-squares change for rows K (T, d) and V (T, m), by Cholesky in float64; in the form that takes fewer numbers."""
    rows, d = keys.shape
    k, v = keys.double(), wanted.double()
    if rows > d:
        factor = torch.linalg.cholesky(k.T @ k + ridge * torch.eye(d, dtype=torch.float64))
        return Dense(torch.cholesky_solve(k.T @ v, factor).T.float())
    factor = torch.linalg.cholesky(k @ k.T + ridge * torch.eye(rows, dtype=torch.float64))
    return fewest(k, torch.cholesky_solve(v, factor).T)


def _signals(
    model: Any,
    tokenizer: Any,
    places: Sequence[Place],
    rows: Literal["answer", "all"],
    asked: Sequence[tuple[str, str]],
) -> Signals:
    """Of every map, by its number in `places`: "u" (T, d), "delta" (T, m), and "norm" (T,) of what its step is a share of: the block's
    output, or its own."""
    prompts, answers = zip(*asked)
    encoded = encode(tokenizer, prompts, answers)
    wanted = answer_positions(encoded) if rows == "answer" else encoded.position_ids > 0
    blocks = family_of(model).layers
    beside = [f"{blocks}.{place.layer}" if place.what == "down" else place.path for place in places]
    found = gradients(model, [place.path for place in places], encoded)
    outputs = capture(model, beside, encoded, outputs=True)
    told: Signals = {}
    for number, (place, output) in enumerate(zip(places, beside)):
        u, delta, hidden = (x.cpu()[wanted] for x in (*found[place.path], outputs[output]))
        felt = delta.any(1)  # padding, and what comes too late to matter, has no gradient
        told |= {f"u-{number}": u[felt], f"delta-{number}": delta[felt], f"norm-{number}": hidden[felt].norm(dim=1)}
    return told


def _joined(parts: Sequence[Signals]) -> Signals:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _warm(
    signals: Callable[[Sequence[tuple[str, str]]], Signals], model: Any, tokenizer: Any, count: int, seed: int
) -> Signals:
    """Signals of made-up edits."""
    with quiet(model):
        texts = sample_texts(model, tokenizer, count, seed=seed, new_tokens=2 * LONGEST)
    asked = made_up(texts, seed)
    return _joined([signals(asked[start : start + AT_ONCE]) for start in range(0, len(asked), AT_ONCE)])


def made_up(texts: Sequence[str], seed: int) -> list[tuple[str, str]]:
    """(prompt, target): every text broken off at a word drawn at random, and the word that stands there in the next text."""
    generator = torch.Generator().manual_seed(seed)
    words = [[word for word in text.split() if word.strip(PUNCTUATION)] for text in texts]
    words = [text for text in words if len(text) > 2]
    asked = []
    for text, other in zip(words, words[1:] + words[:1]):
        at = int(torch.randint(2, min(len(text), LONGEST), (1,), generator=generator))
        asked.append((" ".join(text[:at]), other[min(at, len(other) - 1)].strip(PUNCTUATION)))
    return asked

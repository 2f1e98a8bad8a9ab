"""GRACE (Hartvigsen et al. 2023): outputs of one late linear map replaced near stored inputs. Law: what an entry says is its value.

    questions -> keys q: inputs of the map at the last prompt token     (one pass, hooks)
              -> entries: which key, which radius, which questions      (decided in the order of the edits, `decide`)
              -> values: what the map must say there instead            (values.py, warm start from what it says now)

A question q with label y (exact token ids of the target) meets the book; j is the nearest entry and D = |q - k_j|:

    the book is empty, or D > eps_q + eps_j     a new entry with radius eps_q
    else, label_j == y                          eps_j <- max(eps_j, D): the entry covers q too
    else                                        a new entry with radius D/2; eps_j <- D/2 - 1e-5: the ball is split

Published: one eps for all, in units of the model's own activations, which mean nothing on another model; here eps_q = radius |q|. And
one value for each edit in turn, by 100 steps of Adam; here the values of all entries at once, each on all questions it covers, since
entries are decided by keys and labels alone.

On an encoder-decoder the map is one of the decoder (published for T5: of its encoder), and the prompt ends at the decoder's start token,
which all questions share: keys lie nearer to each other there, and later tokens of an answer hear of the entry through the layers above
alone. So take an earlier layer and a smaller radius than elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from kedit_hub.base.families import block_path, edited_linear
from kedit_hub.base.profile import ValueSettings
from kedit_hub.base.signals import observe
from kedit_hub.editors.job import Clock, Job, Made, Result
from kedit_hub.editors.memory.asked import Questions, late_layer, questions_of, until_all_take
from kedit_hub.editors.own_words import learnt_end
from kedit_hub.editors.rows import Rows
from kedit_hub.editors.values import optimise_values
from kedit_hub.edits import Edit
from kedit_hub.errors import EditError
from kedit_hub.patch.deltas import Codebook

ROUNDS = 4  # units of the base's dtype by which an input moves with the company it is read in, as a share of its length
MARGIN = 1e-5  # of a split, so that no input lies in both halves


class GraceSettings(BaseModel):
    """What a user may set. layer None: late, at the share of the depth that was published (27 of 32, 18 of 28)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    layer: int | None = None
    radius: float = Field(default=0.6, gt=0)  # eps of a new entry, as a share of the length of its key
    value: ValueSettings = ValueSettings(steps=100, lr=0.2, clamp=2.0)
    paraphrases: bool = True  # the author's paraphrases are questions too; published GRACE has the prompt alone
    failed: Literal["raise", "drop"] = "raise"
    batch_edits: int = Field(default=32, ge=1)  # entries optimised at once; bounds memory, changes no result


@dataclass(frozen=True)
class Entries:
    """n entries over N questions."""

    key: tuple[int, ...]  # (n,) the question whose key it is
    radii: tuple[float, ...]  # (n,)
    covers: tuple[int, ...]  # (N,) the entry that each question came to


def decide(
    keys: Tensor, labels: Sequence[tuple[int, ...]], radii: Sequence[float], spare: Sequence[float] | None = None
) -> Entries:
    """The rule of the module docstring. keys (N, d); radii: eps_q of every question. Distances in float64.

    spare: how far every question's input may come to lie elsewhere in other company; a ball that is widened to it takes so much more.
    """
    exact = keys.double()
    key: list[int] = []
    eps: list[float] = []
    covers: list[int] = []
    for q, label in enumerate(labels):
        if key:
            distances = (exact[key] - exact[q]).norm(dim=1)
            j = int(distances.argmin())
            distance = float(distances[j])
        if not key or distance > radii[q] + eps[j]:
            eps.append(radii[q])
        elif labels[key[j]] == label:
            eps[j] = max(eps[j], distance + (0.0 if spare is None else spare[q]))
            covers.append(j)
            continue
        else:
            eps.append(distance / 2)
            eps[j] = distance / 2 - MARGIN
        key.append(q)
        covers.append(len(key) - 1)
    return Entries(tuple(key), tuple(eps), tuple(covers))


def grace(job: Job) -> Result:
    """One codebook of all edits. EditFailedError names every edit whose own question is not answered, unless settings.failed == "drop"."""
    settings = job.settings
    assert isinstance(settings, GraceSettings)
    clock = Clock()
    end = learnt_end(job)
    layer = late_layer(job.model, settings.layer, 0.75)
    path, _ = edited_linear(job.model, layer)

    def attempt(
        edits: list[Edit], name: str
    ) -> tuple[Tensor, tuple[Questions, Entries, Tensor, Tensor, dict[str, Tensor], Tensor]]:
        asked = questions_of(job.tokenizer, edits, end, paraphrases=settings.paraphrases, model=job.model)
        keys, outputs = _signals(job, asked, path)
        lengths = keys.norm(dim=1)
        spare = ROUNDS * torch.finfo(job.model.dtype).eps * lengths  # type: ignore[call-overload]
        entries = decide(keys, asked.labels(), (settings.radius * lengths).tolist(), spare.tolist())
        _check_apart(entries, edits, asked)
        values = _values(job, asked, entries, layer, name)
        good = (values["success"] > 0)[torch.tensor(entries.covers)]  # (N,)
        return good[asked.own], (asked, entries, keys, outputs, values, good)

    edits, dropped, found = until_all_take(job, "GRACE", layer, attempt)
    asked, entries, keys, outputs, values, good = found
    made = (values["success"] > 0).nonzero()[:, 0].tolist()  # an entry of paraphrases alone may fail
    at = torch.tensor([entries.key[n] for n in made])
    book = Codebook(
        keys=keys[at],
        values=(outputs[at] + values["delta"][made]).float(),
        radii=torch.tensor([entries.radii[n] for n in made]),
        edit_index=asked.edit[at],
    )
    share = torch.zeros(len(edits)).scatter_reduce(0, asked.edit, good.float(), "mean", include_self=False)
    told = Made(
        edits=len(job.edits),
        dropped=[edit.prompt for edit in dropped],
        not_converged=[edit.prompt for edit, said in zip(edits, share.tolist()) if said < 1],
        value_success=len(edits) / len(job.edits),
        context_success=share.mean().item(),
        value_norm=values["norm"].mean().item(),
        nll=values["nll"].mean().item(),
        **clock.times(),
    )
    how = {"layer": layer, "radius": settings.radius, "paraphrases": settings.paraphrases}
    how |= {f"value.{name}": setting for name, setting in settings.value.model_dump().items()}
    return Result({path: book}, edits, told, how)


def _signals(job: Job, asked: Questions, path: str) -> tuple[Tensor, Tensor]:
    """Inputs (N, d) and outputs (N, m) of the map at the last prompt token of every question."""
    rows, ends = torch.arange(len(asked.edit)), asked.encoded.prompt_last
    keys, outputs = observe(job.model, [path], [path], asked.encoded)
    return keys[path].cpu()[rows, ends], outputs[path].cpu()[rows, ends]


def _values(job: Job, asked: Questions, entries: Entries, layer: int, name: str) -> dict[str, Tensor]:
    """By entry: "delta" (n, m) to what the map says, "success", "nll", "norm" (n,)."""
    covers = torch.tensor(entries.covers)
    whole = block_path(job.model, layer)
    parts = []
    for start in range(0, len(entries.key), job.settings.batch_edits):
        stop = min(start + job.settings.batch_edits, len(entries.key))

        def work(start: int = start, stop: int = stop) -> dict[str, Tensor]:
            mine = ((covers >= start) & (covers < stop)).nonzero()[:, 0]
            rows = _rows(asked, mine, covers[mine] - start, stop - start)
            hidden = observe(job.model, [], [whole], rows.encoded)[1][whole]
            found = optimise_values(job.model, layer, rows, hidden, job.settings.value, answer_site=False)
            told = {"success": found.success.long(), "nll": found.nll, "norm": found.norm}
            return {"delta": found.delta[:, 0], **told}

        parts.append(job.memo(f"{name}-entries-{start}", work))
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _rows(asked: Questions, index: Tensor, entry: Tensor, entries: int) -> Rows:
    """The questions `index` as context rows of entries; what changes is the last token of the prompt."""
    encoded = asked.encoded.take(index)
    every = torch.ones(len(index), dtype=torch.bool)
    nowhere = torch.full((len(index),), -1)
    return Rows(encoded, asked.core[index], entry, every, encoded.prompt_last[:, None], nowhere, entries)


def _check_apart(entries: Entries, edits: Sequence[Edit], asked: Questions) -> None:
    """EditError where two questions with different answers are one to the map, so that no ball is left to either."""
    for number, radius in enumerate(entries.radii):
        if radius <= 0:
            edit = edits[int(asked.edit[entries.key[number]])]
            raise EditError(
                f'"{edit.prompt} -> {edit.target}" and another edit of this batch with another target have the same key at this layer: '
                "GRACE cannot tell them apart. Take one of them out, or choose another layer."
            )

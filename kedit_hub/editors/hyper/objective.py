"""What a change is worth: the edits' answers likelier, also asked otherwise, and everything else as it was.

    L = c_rel NLL(edit) + c_gen NLL(rephrase) + c_loc KL(p_base || p_edited)        means over rows of means over answer tokens

Law: the base is never changed and asked for no gradient: a change lives in hooks, y + (x a^T) b, and is gone when the block ends.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.signals import quiet, target_nll
from kedit_hub.base.tokens import Encoded, answer_positions, encode
from kedit_hub.editors.hyper.lessons import Lesson, kept
from kedit_hub.editors.hyper.rows import Factors

TINY = 1e-6  # keeps log(1 - p) finite


@dataclass(frozen=True)
class Weights:
    """rel, gen, loc: of the three parts. keeps: locality probes drawn for each edit."""

    rel: float
    gen: float
    loc: float
    keeps: int


@contextmanager
def installed(
    model: nn.Module, factors: Factors, owners: Mapping[str, Tensor] | None = None, rows: Tensor | None = None
) -> Iterator[None]:
    """The model with W_io + a^T b at every named map, wherever it is. owners (R,), rows (B,): only a row of the batch with the same number
    is changed."""

    def hook_for(path: str) -> Any:
        a, b = factors[path]
        mask = None
        if owners is not None and rows is not None:
            mask = (rows.to(a.device)[:, None] == owners[path][None, :]).float()[:, None, :]  # (B, 1, R)

        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            there = output.device
            inner = args[0].to(there, torch.float32) @ a.to(there).T
            inner = inner if mask is None else inner * mask.to(there)
            return output + (inner @ b.to(there)).to(output.dtype)

        return hook

    handles = [model.get_submodule(path).register_forward_hook(hook_for(path)) for path in factors]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Questions:
    """Texts of some episodes, edits and their rephrases first, then replies to make less likely, then what is to be kept."""

    pairs: list[tuple[str, str]]
    episode: Tensor  # (B,) which episode a text belongs to
    edit: slice  # the edits themselves
    otherwise: slice
    unwanted: slice
    keep: slice
    fractions: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)  # of the rows of each part that are here

    def of(self, rank: int, size: int) -> "Questions":
        """Every `size`-th row: what one of several processes asks. The losses of all add up to that of the whole."""
        if size == 1:
            return self
        parts = (self.edit, self.otherwise, self.unwanted, self.keep)
        own = [[i for i in range(part.start, part.stop) if i % size == rank] for part in parts]
        rows = [i for part in own for i in part]
        shares = [len(mine) / max(1, part.stop - part.start) for mine, part in zip(own, parts)]
        edit, otherwise, unwanted, keep = slices(own)
        return Questions(
            [self.pairs[i] for i in rows], self.episode[torch.tensor(rows, dtype=torch.long)], edit, otherwise, unwanted, keep,
            (shares[0], shares[1], shares[2], shares[3]),
        )  # fmt: skip


def slices(parts: Sequence[Sequence[Any]]) -> list[slice]:
    """Where each part lies when they stand one after the other."""
    ends = [sum(map(len, parts[:n])) for n in range(len(parts) + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def ask(
    episodes: Sequence[Sequence[Lesson]],
    keeps: int,
    rng: random.Random,
    asked: Sequence[Sequence[Lesson]] | None = None,
    phrased: Callable[[Lesson, str], str] = lambda lesson, prompt: prompt,
) -> Questions:
    """One rephrase and `keeps` probes drawn for every lesson. asked: the lessons that are asked about, where these are not all; no probe
    is of what any lesson of the episode changes. phrased: how a question about an edit is put; probes are asked as they are."""
    edit, other, bad, keep = [], [], [], []
    for number, episode in enumerate(episodes):
        for lesson in episode if asked is None else asked[number]:
            target = lesson.edit.target
            edit.append((phrased(lesson, lesson.edit.prompt), target, number))
            if lesson.wanted:
                question, reply = rng.choice(lesson.wanted)
                other.append((phrased(lesson, question), reply, number))
            elif lesson.asked_otherwise:
                other.append((phrased(lesson, rng.choice(lesson.asked_otherwise)), target, number))
            if lesson.unwanted:
                question, reply = rng.choice(lesson.unwanted)
                bad.append((phrased(lesson, question), reply, number))
            free = kept(lesson, episode)
            keep += [(*pair, number) for pair in rng.sample(free, min(keeps, len(free)))]
    everything = [*edit, *other, *bad, *keep]
    at = slices([edit, other, bad, keep])
    return Questions(
        [(prompt, target) for prompt, target, _ in everything], torch.tensor([number for *_, number in everything]),
        at[0], at[1], at[2], at[3],
    )  # fmt: skip


def objective(
    model: nn.Module,
    tokenizer: Any,
    questions: Questions,
    factors: Factors,
    weights: Weights,
    owners: Mapping[str, Tensor] | None = None,
    before: Factors | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, with a graph to the factors, and its parts. before: a change that the locality is measured against; None = the base."""
    if not questions.pairs:  # more processes than rows
        nothing = torch.stack([0.0 * (a.sum() + b.sum()) for a, b in factors.values()]).sum()
        return nothing, dict.fromkeys(("rel", "gen", "unlikely", "loc"), nothing)
    logits, encoded = answered(model, tokenizer, questions, factors, owners)
    nll = target_nll(logits, encoded)
    parts = {
        "rel": mean(nll[questions.edit]),
        "gen": mean(nll[questions.otherwise]),
        "unlikely": mean(unlikelihood(logits[questions.unwanted], rows_of(encoded, questions.unwanted))),
        "loc": logits.new_zeros(()),
    }
    if questions.keep.start < questions.keep.stop:
        own = rows_of(encoded, questions.keep)
        with torch.no_grad(), quiet(model), installed(model, before or {}):
            reference = model(**own.inputs(model), use_cache=False).logits
        parts["loc"] = mean(divergence(reference, logits[questions.keep], own))
    parts = {name: fraction * part for (name, part), fraction in zip(parts.items(), questions.fractions)}
    total = weights.rel * parts["rel"] + weights.gen * (parts["gen"] + parts["unlikely"]) + weights.loc * parts["loc"]
    return total, parts


def answered(
    model: nn.Module,
    tokenizer: Any,
    questions: Questions,
    factors: Factors,
    owners: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Encoded]:
    """Logits (B, T, V) of the changed model on all questions."""
    device = next(iter(factors.values()))[0].device
    encoded = encode(tokenizer, *map(list, zip(*questions.pairs)), device=device)
    rows = questions.episode if owners is not None else None
    with quiet(model), installed(model, factors, owners, rows):
        return model(**encoded.inputs(model), use_cache=False).logits, encoded


def rows_of(encoded: Encoded, part: slice) -> Encoded:
    return replace(encoded, **{name: value[part] for name, value in vars(encoded).items() if value is not None})


def mean(values: Tensor) -> Tensor:
    """Of no values 0."""
    return values.mean() if len(values) else values.new_zeros(())


def divergence(base: Tensor, edited: Tensor, encoded: Encoded) -> Tensor:
    """(B,) KL(p_base || p_edited), mean over each row's answer positions; logits (B, T, V)."""
    at = answer_positions(encoded)
    p, q = base[at].float().log_softmax(-1), edited[at].float().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    rows = at.nonzero()[:, 0]
    return torch.zeros(len(at), device=kl.device).index_add(0, rows, kl) / at.sum(1).clamp_min(1)


def unlikelihood(logits: Tensor, encoded: Encoded) -> Tensor:
    """(B,) -log(1 - p(token)), mean over each row's answer tokens (Welleck et al. 2020), for replies of the other sentiment."""
    at = answer_positions(encoded)
    rows, positions = at.nonzero(as_tuple=True)
    p = logits[rows, positions].float().softmax(-1).gather(1, encoded.input_ids[rows, positions + 1][:, None])[:, 0]
    lost = -(1 - p + TINY).log()
    return torch.zeros(len(at), device=lost.device).index_add(0, rows, lost) / at.sum(1).clamp_min(1)


@torch.no_grad()
def scored(
    model: nn.Module,
    tokenizer: Any,
    questions: Questions,
    factors: Factors,
    weights: Weights,
    owners: Mapping[str, Tensor] | None = None,
) -> dict[str, list[float]]:
    """Teacher-forced token accuracy of every edit and rephrase, and agreement with the base on what is to be kept; and the loss."""
    logits, encoded = answered(model, tokenizer, questions, factors, owners)
    with quiet(model):
        own = rows_of(encoded, questions.keep)
        unedited = model(**own.inputs(model), use_cache=False).logits.argmax(-1) if len(own.input_ids) else None
    right = torch.zeros_like(encoded.target_mask)
    right[:, :-1] = logits[:, :-1].argmax(-1) == encoded.input_ids[:, 1:]
    if unedited is not None:
        right[questions.keep] = logits[questions.keep].argmax(-1) == unedited
    at = answer_positions(encoded)
    accuracy = ((right & at).sum(1) / at.sum(1).clamp_min(1)).cpu()
    loss, _ = objective(model, tokenizer, questions, factors, weights, owners)
    parts = {"reliability": questions.edit, "generalization": questions.otherwise, "locality": questions.keep}
    return {name: accuracy[part].tolist() for name, part in parts.items()} | {"loss": [float(loss)]}

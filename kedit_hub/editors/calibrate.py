"""Counter-keys and thresholds of an edit, measured on the base while it is made. Law: both come from the edit's own keys and from texts
that are nobody's rephrase or probe.

    delta = calibrated(model, tokenizer, profile, edits, delta, counter_keys=8, thresholds=True, company=(), seed=0)

All cosines are of whitened keys, as the gate takes them (runtime/gate.py).

Counter-keys: what the base computes where another question about the same subject is answered. Such questions are asked by
the templates of other relations, or written by the base itself after the subject. A position counts as another question if
the base goes on with another token than after the edit's prompt, and its key is stored if it would silence none of the
edit's own:

    cos(c, k_i) < max over the other keys k_j of k_i's row of cos(k_i, k_j)       for every key k_i of the edit

(for a row with a single key: < half way between the profile's threshold and 1). The nearest that are left are kept.

Thresholds: lowest cosine that has to pass, p, and highest that must not, q, give

    threshold = (p + q) / 2, at most BAND away from the profile's; the profile's where either is unknown

Subject: p over the edit's subject keys, each against the others; q over all positions of the same prompt with other
subjects, and of the profile's context sentences. Answer: p over the keys of the edit's rows, each against the others of its
row; q over the other questions about the subject that no counter-key silences, and over the same prompt with other subjects
from where on these pass the edit's subject threshold.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.profile import BaseProfile
from kedit_hub.base.signals import capture, quiet
from kedit_hub.base.tokens import encode
from kedit_hub.editors.paraphrase import held_out, leaks, sampled, template, templates
from kedit_hub.edits import Edit, fold
from kedit_hub.evaluate.protocols import on_device
from kedit_hub.patch.deltas import Associative
from kedit_hub.runtime.gate import whiten

BAND = 0.2  # how far a threshold may move away from the profile's
QUESTIONS = 12  # other questions about the subject that are asked, from templates
SENTENCES = 2  # and sentences that the base writes after it
OTHERS = 8  # other subjects put into the edit's prompt
BATCH = 128  # texts read at once


@dataclass(frozen=True)
class Read:
    """Positions of texts on the base: inputs of the edited map and of the early one, whose they are, and what the base says next."""

    keys: Tensor  # (q, d)
    gate: Tensor  # (q, dg)
    of: Tensor  # (q,) -> edit
    next: Tensor  # (q,) token id
    text: Tensor  # (q,) -> text

    def take(self, index: Tensor) -> "Read":
        return Read(*(value[index] for value in vars(self).values()))


def calibrated(
    model: nn.Module,
    tokenizer: Any,
    profile: BaseProfile,
    edits: Sequence[Edit],
    delta: Associative,
    *,
    counter_keys: int,
    thresholds: bool,
    company: Sequence[Edit] = (),
    seed: int = 0,
) -> Associative:
    """The same rows with at most `counter_keys` counter-keys per edit, and with thresholds of their own if asked for.

    edits: those of the delta, in order. company: further edits whose subjects and phrasings may be borrowed; they are not made. Nothing
    of the model changes; deterministic in the seed.
    """
    kept_out = held_out([*edits, *company])
    own = Own(delta, profile)
    own_next = read(model, tokenizer, profile, [e.prompt for e in edits], range(len(edits)), last_only=True).next
    other = questions(model, tokenizer, profile, edits, company, kept_out, seed)
    other = other.take((other.next != own_next[other.of]).nonzero()[:, 0])
    near = own.nearest(other)
    counters = other.take(torch.zeros(0, dtype=torch.long))
    if counter_keys:
        chosen = nearest_few(near, other.of, own.admits(other), counter_keys)
        counters = other.take(chosen)
        delta = replace(
            delta,
            counter_keys=counters.keys if len(chosen) else None,
            counter_edit=counters.of if len(chosen) else None,
        )
    if thresholds:
        swapped = swaps(model, tokenizer, profile, edits, company, kept_out, seed)
        silenced = by_owner(
            whiten(other.keys, profile.whitener), other.of, whiten(counters.keys, profile.whitener), counters.of
        )
        delta = replace(delta, thresholds=own.thresholds(other, near, near > silenced, swapped, len(edits)))
    return delta


class Own:
    """The keys of a delta that move something, and its subject keys, whitened."""

    def __init__(self, delta: Associative, profile: BaseProfile):
        moving = delta.residuals.abs().amax(1) > 0  # a silent row needs no guard: what it answers stays as it is
        rows = torch.arange(len(delta.keys)) if delta.context_row is None else delta.context_row
        keys = delta.keys if delta.context_keys is None else delta.context_keys
        used = moving[rows].nonzero()[:, 0]
        self.profile = profile
        self.keys = whiten(keys[used], profile.whitener)  # (k, d)
        self.row = rows[used]
        self.of = delta.edit_index[self.row]
        self.alone = leave_one_out(self.keys, self.row)  # (k,)
        assert delta.gate_keys is not None and delta.gate_edit is not None
        self.subjects = whiten(delta.gate_keys, profile.gate_whitener)  # (g, dg)
        self.subject_of = delta.gate_edit

    def nearest(self, read: Read) -> Tensor:
        """(q,) cosine of the nearest key of the position's edit."""
        return by_owner(whiten(read.keys, self.profile.whitener), read.of, self.keys, self.of)

    def admits(self, read: Read) -> Tensor:
        """(q,) bool: which positions would, as counter-keys, silence none of their edit's own."""
        lone = (1 + self.profile.settings.gate.answer) / 2
        ceiling = torch.where(self.alone.isfinite(), self.alone, lone)  # (k,)
        excess = by_owner(
            whiten(read.keys, self.profile.whitener), read.of, self.keys, self.of, minus=ceiling
        )  # max over keys of cos - ceiling
        return excess < 0

    def thresholds(self, other: Read, near: Tensor, heard: Tensor, swapped: Read, edits: int) -> Tensor:
        """(E, 2) subject and answer threshold of every edit; `near` and `heard` (q,) belong to `other`."""
        gate = self.profile.settings.gate
        met = by_owner(whiten(swapped.gate, self.profile.gate_whitener), swapped.of, self.subjects, self.subject_of)
        subject = between(
            lowest(leave_one_out(self.subjects, self.subject_of), self.subject_of, edits),
            highest(met, swapped.of, edits),
            gate.subject,
        )
        through = seen(met >= subject[swapped.of], swapped.text)  # what the subject lets pass is the answer's to refuse
        wrong = torch.cat([near[heard], self.nearest(swapped)[through]])
        answer = between(
            lowest(self.alone, self.of, edits),
            highest(wrong, torch.cat([other.of[heard], swapped.of[through]]), edits),
            gate.answer,
        )
        return torch.stack([subject, answer], dim=1).float()


# -- the rules, on cosines ----------------------------------------------------------------------------------------------


def between(lowest: Tensor, highest: Tensor, usual: float, band: float = BAND) -> Tensor:
    """(E,) midpoint of what has to pass and what must not, at most `band` from the usual threshold; that one where either is unknown."""
    middle = (lowest + highest) / 2
    middle = torch.where(lowest.isfinite() & highest.isfinite(), middle, torch.full_like(middle, usual))
    return middle.clamp(max(-1.0, usual - band), min(1.0, usual + band))


def lowest(values: Tensor, of: Tensor, edits: int) -> Tensor:
    """(E,) the smallest finite value of every edit; inf where it has none."""
    known = values.isfinite()
    return torch.full((edits,), torch.inf).scatter_reduce(0, of[known], values[known], "amin")


def highest(values: Tensor, of: Tensor, edits: int) -> Tensor:
    """(E,) the largest finite value of every edit; -inf where it has none."""
    known = values.isfinite()
    return torch.full((edits,), -torch.inf).scatter_reduce(0, of[known], values[known], "amax")


def seen(hit: Tensor, text: Tensor) -> Tensor:
    """(q,) bool: whether this position or an earlier one of its text is a hit; positions of a text are in order."""
    if not len(text):
        return hit
    order = torch.arange(len(hit))
    first = torch.full((int(text.max()) + 1,), len(hit)).scatter_reduce(0, text[hit], order[hit], "amin")
    return order >= first[text]


def nearest_few(near: Tensor, of: Tensor, allowed: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest `near` (q,) of every owner among the allowed, in order of the owners."""
    index = allowed.nonzero()[:, 0]
    index = index[near[index].argsort(descending=True, stable=True)]
    index = index[of[index].argsort(stable=True)]
    place = _place(of[index])
    return index[place < count]


def leave_one_out(keys: Tensor, group: Tensor) -> Tensor:
    """(k,) largest cosine of every unit key (k, d) to another one of its group; -inf where it is alone."""
    return by_owner(keys, group, keys, group, itself=False)


def by_owner(
    queries: Tensor, query_of: Tensor, keys: Tensor, key_of: Tensor, *, minus: Tensor | None = None, itself: bool = True
) -> Tensor:
    """(q,) largest inner product of a query (q, d) with a key (k, d) of the same owner, less `minus` (k,) of the key; -inf without one.

    itself: False where queries and keys are the same list and a key is not to meet itself. One batched product over the owners, padded.
    """
    owners, owner = query_of.unique(return_inverse=True)
    at = torch.searchsorted(owners, key_of)
    used = (at < len(owners)) & (owners[at.clamp_max(max(len(owners) - 1, 0))] == key_of) if len(owners) else at < 0
    index = used.nonzero()[:, 0]
    best = torch.full((len(queries),), -torch.inf)
    if not len(index):
        return best
    order = index[at[index].argsort(stable=True)]  # keys by owner
    place = _place(at[order])
    table = torch.full((len(owners), int(place.max()) + 1), -1, dtype=torch.long)  # (owners, most keys of one)
    table[at[order], place] = order
    for chosen in torch.arange(len(queries)).split(BATCH):  # (BATCH, most, d) at once
        theirs = table[owner[chosen]]
        cosines = torch.einsum("qd,qcd->qc", queries[chosen].float(), keys[theirs.clamp_min(0)].float())
        if minus is not None:
            cosines = cosines - minus[theirs.clamp_min(0)]
        lacking = theirs < 0 if itself else (theirs < 0) | (theirs == chosen[:, None])
        best[chosen] = cosines.masked_fill(lacking, -torch.inf).amax(1)
    return best


def _place(owner: Tensor) -> Tensor:
    """(n,) 0, 1, 2, ... within every run of equal entries of a sorted (n,)."""
    if not len(owner):
        return owner
    start = torch.cat([torch.ones(1, dtype=torch.bool), owner[1:] != owner[:-1]]).nonzero()[:, 0]
    lengths = torch.diff(torch.cat([start, torch.tensor([len(owner)])]))
    return torch.arange(len(owner)) - start.repeat_interleave(lengths)


# -- the texts ----------------------------------------------------------------------------------------------------------


def questions(
    model: nn.Module,
    tokenizer: Any,
    profile: BaseProfile,
    edits: Sequence[Edit],
    company: Sequence[Edit],
    kept_out: frozenset[str],
    seed: int,
) -> Read:
    """Positions after which the base may answer another question about the subject: ends of prompts, and all of a sentence after it."""
    known = templates([*edits, *company])
    asked: list[str] = []
    of: list[int] = []
    for number, edit in enumerate(edits):
        if edit.relation is None:
            continue
        own = fold(edit.relation)
        theirs = [one for relation, found in known.items() if relation != own for one in found]
        rng = random.Random(f"{seed} questions {edit.prompt}")
        texts = [f"{before}{edit.subject}{after}" for before, after in rng.sample(theirs, len(theirs))]
        texts = [text for text in texts if not leaks(text, edit, kept_out)][:QUESTIONS]
        asked += texts
        of += [number] * len(texts)
    starts = [(number, str(edit.subject)) for number, edit in enumerate(edits) for _ in range(SENTENCES)]
    told = sampled(model, tokenizer, [subject for _, subject in starts], seed)
    said = [(number, text) for (number, _), text in zip(starts, told) if not leaks(text, edits[number], kept_out)]
    ends = read(model, tokenizer, profile, asked, of, last_only=True)
    inside = read(model, tokenizer, profile, [t for _, t in said], [number for number, _ in said], last_only=False)
    return Read(*(torch.cat([getattr(ends, name), getattr(inside, name)]) for name in vars(ends)))


def swaps(
    model: nn.Module,
    tokenizer: Any,
    profile: BaseProfile,
    edits: Sequence[Edit],
    company: Sequence[Edit],
    kept_out: frozenset[str],
    seed: int,
) -> Read:
    """All positions of every edit's prompt with other subjects, of its own relation first, and of the profile's context sentences."""
    subjects = {fold(str(e.subject)): e for e in [*edits, *company] if e.subject is not None}
    texts: list[str] = []
    of: list[int] = []
    for number, edit in enumerate(edits):
        asked = template(edit.prompt, edit.subject)
        if asked is None:
            continue
        others = [other for name, other in subjects.items() if name != fold(str(edit.subject))]
        random.Random(f"{seed} swaps {edit.prompt}").shuffle(others)
        others.sort(key=lambda other: other.relation is None or other.relation != edit.relation)  # stable
        found = [f"{asked[0]}{other.subject}{asked[1]}" for other in others]
        found = [text for text in found if not leaks(text, edit, kept_out)][:OTHERS]
        plain = [text for text in profile.settings.contexts if str(edit.subject) not in text]
        texts += [*found, *plain]
        of += [number] * (len(found) + len(plain))
    return read(model, tokenizer, profile, texts, of, last_only=False)


@torch.no_grad()
def read(
    model: Any, tokenizer: Any, profile: BaseProfile, texts: Sequence[str], of: Sequence[int], *, last_only: bool
) -> Read:
    """What the base computes at every position of the texts, or at their last ones; of: whose each text is."""
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, len(texts), BATCH):
        encoded = encode(tokenizer, texts[start : start + BATCH])
        inputs = capture(model, sorted({profile.module, profile.gate_module}), encoded)
        with quiet(model):
            said = model(**on_device(model, encoded).inputs(model), use_cache=False).logits.argmax(-1).cpu()
        real = encoded.attention_mask.bool()
        if last_only:
            real = real & (real.cumsum(1) == real.sum(1, keepdim=True))
        row, position = real.nonzero(as_tuple=True)
        parts.append(
            (
                inputs[profile.module].cpu()[row, position],
                inputs[profile.gate_module].cpu()[row, position],
                torch.tensor(list(of[start : start + BATCH]))[row],
                said[row, position],
                row + start,
            )
        )
    if not parts:
        empty = torch.zeros(0, dtype=torch.long)
        d, dg = len(profile.second_moment), len(profile.gate_moment)
        return Read(torch.zeros(0, d), torch.zeros(0, dg), empty, empty, empty)
    return Read(*(torch.cat(column) for column in zip(*parts)))

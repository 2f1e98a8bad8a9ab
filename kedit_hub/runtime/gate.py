"""The two-key gate: a stored row speaks only where its subject was seen and the question is its own.

For every token the gate asks two questions, both cosines in whitened space (k -> C0^(-1/2) k, so common directions do not count):

1. subject: has some position up to here, at an *early* layer, come as close to one of the edit's stored subject keys as the edit's
   subject threshold? What was seen is part of the sequence, so it lives as long as the KV cache that holds the sequence.
2. answer: is the input of the edited map here close to one of the keys of a row of such an edit?

Edit e may speak at a position when its subject was seen and r, the cosine of the nearest key of its rows, is

    r >= tau            its answer threshold (r > tau - softness, where the gate is soft)
    r >= c              the cosine of its own nearest counter-key: a text at which this edit has to keep silent
    r >= s              the cosine of the nearest silent key: a text at which every edit has to

Of the edits that may speak the pinned ones go first, then the one with the largest r, then the lowest row. So an edit that is nearest
but may not speak is in nobody's way, and the outcome is a function of the set. The residual of the nearest row is added, times
min(1, (r - (tau - softness)) / softness) where the gate is soft; everywhere else the output is left alone, bit for bit.
Rows never mix, so taking a patch out is exact by construction.

Beside the two whitenings and the product with the subject keys, the work for a token depends on the edits that its sequence has
named, not on how many there are; a selection of patches is looked at only for these.
"""

from copy import copy
from dataclasses import dataclass, field, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from kedit_hub.runtime import nearest
from kedit_hub.runtime.attach import Pass
from kedit_hub.runtime.remember import kept

NEVER = torch.iinfo(torch.int64).max


def whiten(keys: Tensor, by: Tensor) -> Tensor:
    """Unit vectors (..., d) in whitened space."""
    return F.normalize(keys.float() @ by.to(keys.device), dim=-1)


def _no_keys() -> Tensor:
    return torch.zeros(0, 0)


def _nobody() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class Bank:
    """The rows of all gated patches on one edited module. E edits, g subject keys, n rows, k answer keys. Keys are whitened unit
    vectors, float32."""

    subject_keys: Tensor  # (g, dg)
    subject_edit: Tensor  # (g,) -> edit
    keys: Tensor  # (k, d)
    key_row: Tensor  # (k,) -> row
    residuals: Tensor  # (n, m) float32
    row_edit: Tensor  # (n,) -> edit
    owners: tuple[str, ...]  # (E,) patch id of every edit
    thresholds: Tensor  # (E, 2) float32: subject, answer
    counter_keys: Tensor = field(default_factory=_no_keys)  # (c, d)
    counter_edit: Tensor = field(default_factory=_nobody)  # (c,) -> edit
    silent_keys: Tensor = field(default_factory=_no_keys)  # (s, d) of nobody in particular
    pinned: Tensor = field(default_factory=_nobody)  # (E,) bool, who goes first; empty: nobody
    softness: float = 0.0


class TwoKeyGate:
    """A branch (answer side) and a watcher (subject side) over one bank; see the module docstring."""

    def __init__(self, bank: Bank, subject_whitener: Tensor, answer_whitener: Tensor):
        self.bank = bank
        self.subject_whitener = subject_whitener
        self.answer_whitener = answer_whitener
        self._ears: dict[torch.device, Ear] = {}
        self._voices: dict[torch.device, _Voice] = {}

    def watch(self, x: Tensor, now: Pass) -> None:
        """x (B, T, dg): input of the early module. Notes since when each sequence has named which edits' subjects.

        The note is (B, K, 2) int64, up to K edits of each sequence and the position each was first named at; NEVER fills up.
        """
        batch, length = x.shape[:2]
        ear = self.ear(x.device)
        seen = self._earlier(now, batch, x.device)
        for query, key in ear.search.above(whiten(x.flatten(0, 1), ear.whitener)):
            if len(query):
                here = torch.stack([query // length, ear.edit[key], query % length + now.past])
                real = now.real(batch, length, x.device).flatten()[query]
                seen = self._joined(seen, here[:, real])
        now.lasting[self] = now.notes[id(self)] = seen

    def _earlier(self, now: Pass, batch: int, device: torch.device) -> Tensor:
        """(B, K, 2) from the part of the sequence that is already in the KV cache."""
        seen = kept(now.cache, self, batch) if now.past else None
        if seen is None:
            return torch.zeros(batch, 0, 2, dtype=torch.int64, device=device)
        seen = seen.to(device)
        return torch.where(seen[:, :, 1:] < now.past, seen, NEVER)  # a cropped cache forgets what it lost

    def _joined(self, seen: Tensor, here: Tensor) -> Tensor:
        """seen (B, K, 2) and here (3, p), rows of the batch, edits and positions, as one (B, K', 2). Everybody is heard: who may speak is
        asked at every pass, since a cache that one selection began may go on under another."""
        batch, edits = len(seen), len(self.bank.owners)
        row, edit, position = here
        old_row, old = (seen[:, :, 1] < NEVER).nonzero(as_tuple=True)
        old_edit, since = seen[old_row, old].unbind(1)
        code, which = torch.cat([old_row * edits + old_edit, row * edits + edit]).unique(return_inverse=True)
        first = torch.full_like(code, NEVER).scatter_reduce_(0, which, torch.cat([since, position]), "amin")
        row = code // edits  # ascending
        count = row.bincount(minlength=batch)
        slot = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        joined = seen.new_full((batch, int(count.max()), 2), NEVER)
        joined[row, slot] = torch.stack([code % edits, first], 1)
        return joined

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        """x (B, T, d), y (B, T, m): adds the residual of the nearest row wherever both keys match."""
        seen = now.notes.get(id(self))
        if seen is None or not seen.shape[1]:
            return y
        length, device = x.shape[1], x.device
        seen = seen.to(device)
        row, slot = (seen[:, :, 1] < NEVER).nonzero(as_tuple=True)
        edit, since = seen[row, slot].unbind(1)
        if now.selection is not None and len(row):
            heard_of, of = edit.unique(return_inverse=True)
            allowed = now.allowed([self.bank.owners[e] for e in heard_of.tolist()], len(seen), device)
            if allowed is not None:
                may = allowed[row, of]
                row, edit, since = row[may], edit[may], since[may]
        named, local = edit.unique(return_inverse=True)
        if not len(named):
            return y
        voice = self._voice(device)
        live = voice.of(named)
        first = seen.new_full((len(seen), len(named)), NEVER)
        first[row, local] = since
        position = torch.arange(now.past, now.past + length, device=device)
        where = (first.amin(1)[:, None] <= position).flatten().nonzero()[:, 0]  # positions with any edit seen
        step = max(1, nearest.BOUND // (live.width + len(named)))
        flat, out = x.flatten(0, 1), None
        for some in where.split(step):
            heard = first[some // length] <= position[some % length][:, None]
            fires, rows, scale = live.choose(whiten(flat[some], voice.whitener), heard)
            if len(rows):
                out = y.flatten(0, 1).clone() if out is None else out
                at = some[fires]
                added = live.residuals[rows] if scale is None else scale[:, None] * live.residuals[rows]
                out[at] = (out[at].float() + added.to(y.device)).to(y.dtype)
        return y if out is None else out.view_as(y)

    def ear(self, device: torch.device) -> "Ear":
        """What listens on this device; made at its first token."""
        if device not in self._ears:
            self._ears[device] = Ear.made(self.bank, self.subject_whitener, device)
        return self._ears[device]

    def _voice(self, device: torch.device) -> "_Voice":
        if device not in self._voices:
            self._voices[device] = _Voice.made(self.bank, self.answer_whitener, device)
        return self._voices[device]

    def owned(self, name: str) -> Self:
        other = copy(self)  # another branch over the same keys
        other.bank = replace(self.bank, owners=(name,) * len(self.bank.owners))
        return other


@dataclass(frozen=True, eq=False)
class Ear:
    """The subject side of a bank on one device."""

    whitener: Tensor
    search: nearest.Search
    edit: Tensor  # (g,)

    @classmethod
    def made(cls, bank: Bank, whitener: Tensor, device: torch.device) -> Self:
        thresholds = bank.thresholds[bank.subject_edit, 0].to(device)
        search = nearest.search(bank.subject_keys.to(device), thresholds)
        return cls(whitener.to(device), search, bank.subject_edit.to(device))


@dataclass(frozen=True, eq=False)
class _Grouped:
    """Things that belong to edits, found by edit: those of edit e are order[start[e] : start[e] + count[e]]."""

    order: Tensor
    start: Tensor
    count: Tensor

    @classmethod
    def made(cls, edit: Tensor, edits: int) -> Self:
        count = edit.bincount(minlength=edits)
        return cls(edit.argsort(stable=True), count.cumsum(0) - count, count)

    def of(self, edits: Tensor) -> tuple[Tensor, Tensor]:
        """(k,) what belongs to any of these edits, and (k,) -> which of them."""
        count = self.count[edits]
        which = torch.arange(len(edits), device=edits.device).repeat_interleave(count)
        offset = (self.start[edits] - (count.cumsum(0) - count))[which]
        return self.order[offset + torch.arange(len(which), device=edits.device)], which


@dataclass(frozen=True, eq=False)
class _Voice:
    """The answer side of a bank on one device."""

    whitener: Tensor
    keys: Tensor
    key_row: Tensor
    residuals: Tensor
    by_edit: _Grouped  # keys of rows
    counter_keys: Tensor
    counter_by_edit: _Grouped
    silent_keys: Tensor
    threshold: Tensor  # (E,)
    pinned: Tensor  # (E,) bool
    softness: float
    latest: "dict[str, _Live]"  # what was asked for last: while a text is decoded it is the same for every token

    @classmethod
    def made(cls, bank: Bank, whitener: Tensor, device: torch.device) -> Self:
        edits = len(bank.owners)
        pinned = bank.pinned.bool() if len(bank.pinned) else torch.zeros(edits, dtype=torch.bool)
        return cls(
            whitener.to(device),
            bank.keys.to(device),
            bank.key_row.to(device),
            bank.residuals.to(device),
            _Grouped.made(bank.row_edit[bank.key_row].to(device), edits),
            bank.counter_keys.to(device),
            _Grouped.made(bank.counter_edit.to(device), edits),
            bank.silent_keys.to(device),
            bank.thresholds[:, 1].to(device),
            pinned.to(device),
            bank.softness,
            {},
        )

    def of(self, edits: Tensor) -> "_Live":
        """What the named edits (L,) have to say."""
        latest = self.latest.get("live")
        if latest is None or not torch.equal(latest.edits, edits):
            latest = self.latest["live"] = self._gathered(edits)
        return latest

    def _gathered(self, edits: Tensor) -> "_Live":
        key, of = self.by_edit.of(edits)
        row, order = self.key_row[key].sort(stable=True)  # the first of equals is then the lowest row
        key, of = key[order], of[order]
        counter, counter_of = self.counter_by_edit.of(edits)
        keys = self.keys[key]
        if len(counter):
            keys = torch.cat([keys, self.counter_keys[counter]])
        return _Live(
            edits,
            keys.T,
            of,
            row,
            counter_of,
            self.silent_keys,
            (self.threshold[edits] - self.softness)[of],
            self.pinned[edits][of] if bool(self.pinned[edits].any()) else None,
            self.residuals,
            self.softness,
        )


@dataclass(frozen=True, eq=False)
class _Live:
    """The answer keys of L edits."""

    edits: Tensor  # (L,)
    keys: Tensor  # (d, k + c) of rows, and counter-keys
    of: Tensor  # (k,) -> edit
    row: Tensor  # (k,) ascending
    counter_of: Tensor  # (c,) -> edit
    silent_keys: Tensor  # (s, d)
    start: Tensor  # (k,) from where on a key counts
    pinned: Tensor | None  # (k,) bool; None = nobody
    residuals: Tensor
    softness: float

    @property
    def width(self) -> int:
        """Scores of one position."""
        return self.keys.shape[1] + len(self.silent_keys)

    def choose(self, queries: Tensor, heard: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """queries (p, d) whitened, heard (p, L) bool, whose subject was seen. (f,) positions at which something fires, (f,) which
        row there, and (f,) what its residual is multiplied with, None for 1."""
        scores = queries @ self.keys
        near = scores[:, : len(self.of)]
        may = heard[:, self.of] & (near > self.start if self.softness else near >= self.start)
        if len(self.counter_of):
            against = scores[:, len(self.of) :]
            index = self.counter_of.expand_as(against)
            counter = torch.full_like(heard, -2, dtype=near.dtype).scatter_reduce_(1, index, against, "amax")
            may &= near >= counter[:, self.of]
        if len(self.silent_keys):
            may &= near >= (queries @ self.silent_keys.T).amax(1, keepdim=True)
        if self.pinned is not None:
            first = may & self.pinned
            may = torch.where(first.any(1, keepdim=True), first, may)
        score, best = near.masked_fill(~may, -2.0).max(dim=1)  # the first of equals
        fires = (score > -2.0).nonzero()[:, 0]
        best = best[fires]
        scale = ((score[fires] - self.start[best]) / self.softness).clamp(max=1.0) if self.softness else None
        return fires, self.row[best], scale

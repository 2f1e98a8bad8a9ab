"""The two-key gate: a stored row speaks only where its subject was seen and the question is its own.

For every token the gate asks two questions, both cosines in whitened space (k -> C0^(-1/2) k, so common directions do not count):

1. subject: has some position up to here, at an *early* layer, come close to one of the edit's stored subject keys?
   A running maximum over positions; it is part of the sequence, so it lives as long as the KV cache that holds the sequence.
2. answer: is the input of the edited map here close to one of the keys of a row of such an edit?

The nearest row of a seen subject wins and its residual is added; everywhere else the output is left alone, bit for bit.
Rows never mix, so patches do not interfere and taking one out is exact by construction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from kedit_hub.runtime.attach import Pass

NEVER = torch.iinfo(torch.int64).max


def whiten(keys: Tensor, by: Tensor) -> Tensor:
    """Unit vectors (..., d) in whitened space."""
    return F.normalize(keys.float() @ by.to(keys.device), dim=-1)


@dataclass(frozen=True)
class Bank:
    """The rows of all gated patches on one edited module. E edits, g subject keys, n rows, k answer keys."""

    subject_keys: Tensor  # (g, dg) whitened unit vectors
    subject_edit: Tensor  # (g,) -> edit
    keys: Tensor  # (k, d) whitened unit vectors
    key_row: Tensor  # (k,) -> row
    residuals: Tensor  # (n, m) float32
    row_edit: Tensor  # (n,) -> edit
    owners: tuple[str, ...]  # (E,) patch id of every edit
    subject_threshold: float
    answer_threshold: float


@dataclass
class Seen:
    """First position at which each edit's subject was seen, per sequence: enough to survive decoding, cropping and padding."""

    gate: "TwoKeyGate"
    first: Tensor  # (B, E) int64, NEVER where not seen
    here: Tensor  # (B, T, E) bool: seen at or before this position

    def remember(self, cache: Any) -> None:
        if not isinstance(cache, _Remembering):
            kind: type = type(cache)
            cache.__class__ = _remembering(kind)
            cache.seen = WeakKeyDictionary()
        cache.seen[self.gate] = self.first


class _Remembering:
    """Mixed into the class of a KV cache: what was seen is copied, repeated and reordered with the sequences it is of."""

    seen: "WeakKeyDictionary[TwoKeyGate, Tensor]"

    def _rearrange(self, arranged: Callable[[Tensor], Tensor]) -> None:
        for gate, first in list(self.seen.items()):
            self.seen[gate] = arranged(first)

    def reorder_cache(self, beam_idx: Tensor, *args: Any, **kwargs: Any) -> Any:  # beam search
        self._rearrange(lambda first: first[beam_idx.to(first.device)])
        return super().reorder_cache(beam_idx, *args, **kwargs)  # type: ignore[misc]

    def batch_select_indices(self, indices: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._rearrange(lambda first: first[indices.to(first.device)])
        return super().batch_select_indices(indices, *args, **kwargs)  # type: ignore[misc]

    def batch_repeat_interleave(self, repeats: int, *args: Any, **kwargs: Any) -> Any:
        self._rearrange(lambda first: first.repeat_interleave(repeats, dim=0))
        return super().batch_repeat_interleave(repeats, *args, **kwargs)  # type: ignore[misc]


@cache
def _remembering(kind: type) -> type:
    return type(kind.__name__, (_Remembering, kind), {"__module__": kind.__module__})


class TwoKeyGate:
    """A branch (answer side) and a watcher (subject side) over one bank; see the module docstring."""

    def __init__(self, bank: Bank, subject_whitener: Tensor, answer_whitener: Tensor):
        self.bank = bank
        self.subject_whitener = subject_whitener
        self.answer_whitener = answer_whitener

    def watch(self, x: Tensor, now: Pass) -> None:
        """x (B, T, dg): input of the early module. Notes which edits' subjects have been seen by each position."""
        bank = self.bank
        batch, length, edits = x.shape[0], x.shape[1], len(bank.owners)
        near = whiten(x, self.subject_whitener) @ bank.subject_keys.to(x.device).T  # (B, T, g)
        best = near.new_full((batch, length, edits), -1.0)
        best.scatter_reduce_(2, bank.subject_edit.to(x.device).expand_as(near), near, "amax")
        hit = best >= bank.subject_threshold  # (B, T, E)
        real = now.real(batch, length)
        if real is not None:
            hit &= real[:, :, None]
        allowed = now.allowed(bank.owners, batch, x.device)
        if allowed is not None:
            hit &= allowed[:, None, :]

        first = self._earlier(now, batch, edits, x.device)
        positions = torch.arange(now.past, now.past + length, device=x.device)
        first_here = torch.where(hit, positions[None, :, None], NEVER).amin(dim=1)  # (B, E)
        first = torch.minimum(first, first_here)
        here = first[:, None, :] <= positions[None, :, None]
        now.notes[id(self)] = Seen(self, first, here)

    def _earlier(self, now: Pass, batch: int, edits: int, device: torch.device) -> Tensor:
        """(B, E) first positions from the part of the sequence that is already in the KV cache."""
        nothing = torch.full((batch, edits), NEVER, dtype=torch.int64, device=device)
        if now.past == 0 or not isinstance(now.cache, _Remembering):
            return nothing
        first = now.cache.seen.get(self)
        if first is None or first.shape[0] != batch:
            return nothing
        first = first.to(device)
        return torch.where(first < now.past, first, NEVER)  # a cropped cache forgets what it lost

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        """x (B, T, d), y (B, T, m): adds the residual of the nearest row wherever both keys match."""
        seen = now.notes.get(id(self))
        if seen is None or not bool(seen.here.any()):
            return y
        bank, device = self.bank, x.device
        edit_seen = seen.here.flatten(0, 1)  # (B*T, E)
        key_edit = bank.row_edit[bank.key_row].to(device)  # (k,)
        live = edit_seen.any(0)[key_edit].nonzero()[:, 0]  # keys of any edit seen anywhere in the batch
        where = edit_seen.any(1).nonzero()[:, 0]  # positions with any edit seen
        inputs = x.flatten(0, 1)[where]
        near = whiten(inputs, self.answer_whitener) @ bank.keys.to(device)[live].T  # (positions, live)
        near = near.masked_fill(~edit_seen[where][:, key_edit[live]], -1.0)
        score, best = near.max(dim=1)
        fire = score >= bank.answer_threshold
        if not bool(fire.any()):
            return y
        rows = bank.key_row.to(device)[live[best[fire]]]
        out = y.flatten(0, 1).clone()
        out[where[fire]] = (out[where[fire]].float() + bank.residuals.to(device)[rows]).to(y.dtype)
        return out.view_as(y)

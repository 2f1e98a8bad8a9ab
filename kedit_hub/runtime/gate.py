"""The two-key gate: a stored row speaks only where its subject was seen and the question is its own.

For every token the gate asks two questions, both cosines in whitened space (k -> C0^(-1/2) k, so common directions do not count):

1. subject: has some position up to here, at an *early* layer, come close to one of the edit's stored subject keys?
   A running maximum over positions; it is part of the sequence, so it lives as long as the KV cache that holds the sequence.
2. answer: is the input of the edited map here close to one of the keys of a row of such an edit?

The nearest row of a seen subject wins and its residual is added; everywhere else the output is left alone, bit for bit.
Rows never mix, so patches do not interfere and taking one out is exact by construction.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from kedit_hub.runtime.attach import Pass
from kedit_hub.runtime.remember import kept

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
        hit &= now.real(batch, length, x.device)[:, :, None]
        allowed = now.allowed(bank.owners, batch, x.device)
        if allowed is not None:
            hit &= allowed[:, None, :]

        first = self._earlier(now, batch, edits, x.device)
        positions = torch.arange(now.past, now.past + length, device=x.device)
        first_here = torch.where(hit, positions[None, :, None], NEVER).amin(dim=1)  # (B, E)
        first = torch.minimum(first, first_here)
        now.lasting[self] = first
        now.notes[id(self)] = (
            first[:, None, :] <= positions[None, :, None]
        )  # (B, T, E): seen at or before this position

    def _earlier(self, now: Pass, batch: int, edits: int, device: torch.device) -> Tensor:
        """(B, E) first positions from the part of the sequence that is already in the KV cache."""
        first = kept(now.cache, self, batch) if now.past else None
        if first is None:
            return torch.full((batch, edits), NEVER, dtype=torch.int64, device=device)
        first = first.to(device)
        return torch.where(first < now.past, first, NEVER)  # a cropped cache forgets what it lost

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        """x (B, T, d), y (B, T, m): adds the residual of the nearest row wherever both keys match."""
        seen = now.notes.get(id(self))
        if seen is None or not bool(seen.any()):
            return y
        bank, device = self.bank, x.device
        edit_seen = seen.to(device).flatten(0, 1)  # (B*T, E)
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

    def owned(self, name: str) -> Self:
        bank = replace(self.bank, owners=(name,) * len(self.bank.owners))
        return type(self)(bank, self.subject_whitener, self.answer_whitener)

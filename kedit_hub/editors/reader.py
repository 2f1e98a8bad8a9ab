"""What a model says of the targets while changes enter at the sites of their context rows, read again and again.

Of every row only what can change is run: the positions from its first site on, and only those that predict a token of the target go
through the head; the very last token predicts nothing. Rows with tails of a length are run together, so that a long target costs nothing to
the others, and rows of edits that are done are no longer run. What stands before the sites is read once, in strips (base/tails.py).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.signals import last_logits
from kedit_hub.base.strips import alike, strips
from kedit_hub.base.tails import Layers, Tail, remembered, same, tail_of
from kedit_hub.base.tokens import Encoded
from kedit_hub.editors.essence import Enter
from kedit_hub.editors.rows import Rows

CLOSE = 0.6  # tails run together are at least this share of the longest


@dataclass(frozen=True)
class Tokens:
    """What the model says of n context rows: the last of the W columns is the last token of the row."""

    row: Tensor  # (n,) which context rows
    nll: Tensor  # (n, W) -log p of the true token, 0 where it is not wanted
    right: Tensor  # (n, W) bool: it is argmax
    wanted: Tensor  # (n, W) bool: tokens of the target and the end of the answer
    core: Tensor  # (n, W) bool: tokens of the target alone

    def mean_nll(self) -> Tensor:
        return self.nll.sum(1) / self.wanted.sum(1)

    def all_right(self, which: Tensor) -> Tensor:
        return (self.right | ~which).all(1)


@dataclass(frozen=True)
class _Group:
    """n rows that are run together, of T' columns, of which the last k are the tail. The last token of the row is none of them."""

    row: Tensor  # (n,) which context rows
    edit: Tensor  # (n,)
    encoded: Encoded  # (n, T')
    tail: Tail
    hidden: Tensor  # (n, k, m) what the pass goes on from
    sites: Tensor  # (n, S) positions in the tail, -1 where there is none
    labels: Tensor  # (n, w) what the last w positions should say
    wanted: Tensor  # (n, w) bool

    def take(self, index: Tensor) -> "_Group":
        held: dict[str, Any] = {name: value[index] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **held, encoded=self.encoded.take(index), tail=self.tail.take(index))


class Reader:
    """rows: N context rows; fed (N, T, m): what forward passes go on from. places: at how many places of a site changes enter."""

    def __init__(self, model: nn.Module, enter: Enter, rows: Rows, fed: Tensor, places: int) -> None:
        self._model, self._enter, self._rows, self._places = model, enter, rows, places
        self._fed = fed
        end = rows.encoded.input_ids.shape[1] - 1  # the last token predicts nothing
        self._asked = rows.encoded.columns(0, end)
        self.width = int(rows.encoded.target_mask.sum(1).max())
        found = self._found(end)
        self._groups = self._live = found
        self._open = torch.ones(rows.edits, dtype=torch.bool, device=fed.device)

    def read(self, delta: Tensor, open_edits: Tensor) -> Tokens:
        """The rows of the edits that are open (E,), with delta (E, P, S, m) added at their sites."""
        if not torch.equal(open_edits, self._open):
            within = self._live if bool((open_edits <= self._open).all()) else self._groups
            kept = [(group, open_edits[group.edit].nonzero()[:, 0]) for group in within]
            self._live = [group if len(i) == len(group.row) else group.take(i) for group, i in kept if len(i)]
            self._open = open_edits.clone()
        rows, width = self._rows, self.width
        live = open_edits[rows.edit].nonzero()[:, 0]
        number = torch.zeros_like(rows.edit).index_put((live,), torch.arange(len(live), device=live.device))
        where, nll, right = [], [], []
        for group in self._live:
            logits = self._logits(group, delta)[group.wanted].float()  # (c, vocabulary)
            labels = group.labels[group.wanted]
            n, column = group.wanted.nonzero(as_tuple=True)
            where.append((number[group.row[n]], column + width - group.wanted.shape[1]))
            nll.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
            right.append(logits.argmax(-1) == labels)
        at = tuple(torch.cat(side) for side in zip(*where))
        empty = torch.zeros(len(live), width, device=live.device)
        last = slice(rows.encoded.input_ids.shape[1] - width, None)
        return Tokens(
            live,
            empty.index_put(at, torch.cat(nll)),
            empty.bool().index_put(at, torch.cat(right)),
            rows.encoded.target_mask[live, last],
            rows.core[live, last],
        )

    def _logits(self, group: _Group, delta: Tensor) -> Tensor:
        """(n, w, vocabulary) of the positions that predict the labels."""
        row, site = (group.sites >= 0).nonzero(as_tuple=True)
        own = delta[group.edit[row], :, site]  # (k, P, m)
        empty = torch.zeros_like(group.hidden, dtype=torch.float32)
        at = (row, group.sites[row, site])
        self._enter(
            group.hidden, [empty.index_put(at, own[:, place], accumulate=True) for place in range(self._places)]
        )
        inputs = group.tail.inputs(self._model, group.encoded)
        return last_logits(self._model, group.labels.shape[1], **inputs)

    @torch.no_grad()
    def _found(self, end: int) -> list[_Group]:
        rows = self._rows
        counts = rows.encoded.target_mask.sum(1)
        first = torch.where(rows.sites >= 0, rows.sites, end).amin(1)
        reach = torch.maximum(end - first, counts)  # (N,) positions that have to be run
        parts, whole, slot = self._whole(counts)
        nothing = torch.zeros(rows.edits, self._places, rows.sites.shape[1], self._fed.shape[-1], device=reach.device)
        groups = []
        for index in alike(reach, CLOSE):
            longest = int(self._asked.attention_mask[index].sum(1).max())
            columns = slice(end - longest, end)
            start = longest - int(reach[index].max())
            tail = tail_of(parts, index, columns, start) if parts else Tail()
            group = self._group(index, columns, tail)
            n, column = group.wanted.nonzero(as_tuple=True)
            if tail.start:
                said = self._logits(group, nothing)[n, column]
                before = whole[slot[index[n], column + self.width - group.wanted.shape[1]]]
                group = group if same(said, before) else self._group(index, columns, Tail())
            groups.append(group)
        return groups

    def _group(self, index: Tensor, columns: slice, tail: Tail) -> _Group:
        rows, total = self._rows, self._rows.encoded.input_ids.shape[1]
        start = columns.start + tail.start
        sites = rows.sites[index]
        width = int(rows.encoded.target_mask[index].sum(1).max())
        return _Group(
            index,
            rows.edit[index],
            self._asked.take(index).columns(columns.start, columns.stop),
            tail,
            self._fed[index, start : columns.stop],
            torch.where(sites >= 0, sites - start, -1),
            rows.encoded.input_ids[index, total - width :],
            rows.encoded.target_mask[index, total - width :],
        )

    def _whole(self, counts: Tensor) -> tuple[list[tuple[Any, Layers]], Tensor, Tensor]:
        """What the layers remember of every strip of the rows as they are (nothing where a cache can not be cut), the logits (c,
        vocabulary) of all wanted tokens, and which of them is that of a row and column (N, W)."""
        total = self._rows.encoded.input_ids.shape[1]
        if self._rows.encoded.asked is not None:  # an encoder-decoder, which keeps two caches
            return [], counts, counts
        slot = torch.zeros(len(self._rows.edit), self.width, dtype=torch.long, device=self._fed.device)
        parts, said, count = [], [], 0
        for strip in strips(self._asked):
            wanted = self._rows.encoded.target_mask[strip.rows, total - self.width :]
            kept = int(wanted.sum(1).max())
            hidden = self._fed[strip.rows, strip.columns]
            self._enter(hidden, [torch.zeros_like(hidden, dtype=torch.float32)] * self._places)
            inputs: dict[str, Any] = strip.encoded.inputs(self._model)
            output = self._model(**inputs, use_cache=True, logits_to_keep=kept)
            layers = remembered(output.past_key_values)
            if layers is None:
                return [], counts, counts
            parts.append((strip, layers))
            n, column = wanted.nonzero(as_tuple=True)
            said.append(output.logits[n, column - (self.width - kept)])
            slot[strip.rows[n], column] = torch.arange(count, count + len(n), device=slot.device)
            count += len(n)
        return parts, torch.cat(said), slot

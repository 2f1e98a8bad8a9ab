"""Which rows of a batch use which patches.

A selection is one set of patch ids per batch row. It is turned into a 0/1 mask by value on every forward pass: nothing is cached by
object identity, so a changed selection can never be answered from a stale mask.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from kedit_hub.errors import KeditError

Selection = tuple[frozenset[str], ...]


def as_selection(rows: Sequence[Sequence[str] | set[str] | frozenset[str] | str]) -> Selection:
    """One entry per batch row: a patch id or several; an empty entry is the unedited base."""
    return tuple(frozenset([row] if isinstance(row, str) else row) for row in rows)


@lru_cache(maxsize=256)
def _columns(owners: tuple[str, ...]) -> tuple[Mapping[str, int], Tensor]:
    """Distinct owners, numbered, and the number of every owner's. Kept by value: nothing but the names goes into it."""
    number = {owner: i for i, owner in enumerate(dict.fromkeys(owners))}
    return number, torch.tensor([number[owner] for owner in owners], dtype=torch.long)


def mask(selection: Selection, owners: tuple[str, ...], batch: int) -> Tensor:
    """(batch, len(owners)) bool: whether batch row b may use an item owned by patch owners[i].

    A batch that is a multiple of the selection (beams, several returned sequences) repeats every row's entry in place.
    """
    repeats, rest = divmod(batch, len(selection)) if selection else (0, 1)
    if rest or not repeats:
        raise KeditError(
            f"only([...]) names {len(selection)} rows but the batch has {batch}: give one entry per prompt of the batch"
        )
    number, columns = _columns(owners)
    places = [(row, number[name]) for row, names in enumerate(selection) for name in names if name in number]
    chosen = torch.zeros(len(selection), len(number), dtype=torch.bool)
    if places:
        rows, named = torch.tensor(places).T
        chosen[rows, named] = True
    return chosen[:, columns].repeat_interleave(repeats, dim=0)

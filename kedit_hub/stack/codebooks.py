"""Several codebooks on one module as one. Law: no input lies in two balls that want different things, in any order of patches.

Two entries are rivals when they come from different patches and their edits have different targets. Rivals whose balls touch
shrink, each to half their distance less MARGIN (the symmetric form of the split in GRACE, Hartvigsen et al. 2023, which
shrinks as entries come). The test is on the radii as stored, so the result is a function of the set. Entries of one patch
are left as its editor made them, so that a patch alone does what it says.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kedit_hub.edits import fold
from kedit_hub.patch.deltas import Codebook
from kedit_hub.patch.patch import Patch
from kedit_hub.runtime.codebook import CodebookBranch
from kedit_hub.runtime.sieve import distances
from kedit_hub.stack.stack import PatchStack
from kedit_hub.stack.stored import speaking

MARGIN = 1e-5
CHUNK = 256  # rows of the distance matrix held at once
SPARE = 1e-12  # of squared lengths: more than products round in float64


def union(books: Sequence[tuple[Patch, Codebook]], stack: PatchStack) -> tuple[CodebookBranch, dict[str, int]]:
    """The speaking entries of all codebooks, in the order given, and how many there are, shrank and fell silent.

    Rivals at one and the same key cannot both be right there: their radii fall below 0 and neither speaks.
    """
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    owners: list[str] = []
    targets: list[str] = []
    for patch, book in books:
        kept = speaking(patch, stack)[book.edit_index].nonzero()[:, 0]
        everywhere = torch.full((len(kept),), book.positions == "every")
        parts.append((book.keys[kept], book.values[kept], book.radii[kept], everywhere))
        owners += [patch.id] * len(kept)
        targets += [fold(patch.edits[edit].target) for edit in book.edit_index[kept].tolist()]
    keys, values, radii, everywhere = (torch.cat(part) for part in zip(*parts))
    fits = fitted(keys, radii, numbered(owners), numbered(targets))
    found = {"entries": len(keys), "shrunk": int((fits < radii).sum()), "silent": int((fits < 0).sum())}
    return CodebookBranch(keys, values, fits, everywhere, tuple(owners)), found


def fitted(keys: Tensor, radii: Tensor, owner: Tensor, target: Tensor) -> Tensor:
    """(n,) float32 radii under the rule above. keys (n, d); owner, target (n,) numbers that are equal where they are."""
    if len(owner.unique()) < 2:
        return radii
    exact, wide = keys.double(), radii.double()
    squares = exact.square().sum(1)
    shrunk = []
    for start in range(0, len(keys), CHUNK):
        here = slice(start, start + CHUNK)
        reach = (wide[here, None] + wide).square() + SPARE * (squares[here, None] + squares)
        rivals = (owner[here, None] != owner) & (target[here, None] != target)
        rough = torch.addmm(squares + squares[here, None], exact[here], exact.T, alpha=-2)  # squared, by products
        row, key = (rivals & (rough <= reach)).nonzero(as_tuple=True)
        distance = distances(exact[here], exact, row, key)
        touching = distance <= wide[here][row] + wide[key]
        half = distance[touching] / 2 - MARGIN
        shrunk.append(wide[here].scatter_reduce(0, row[touching], half, "amin"))
    return torch.cat(shrunk).float()


def numbered(names: Sequence[str]) -> Tensor:
    """(n,) int64: equal numbers for equal names."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names], dtype=torch.long)

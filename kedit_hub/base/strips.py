"""A padded batch in strips: rows of about equal length together, without the columns that only pad.

Texts of one batch differ in length by a factor of five and more, and a padded row costs as much as the longest. What a model computes of a
row does not depend on the rows beside it, so a batch may be read strip by strip; the rest of the code sees the padded batch as before.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from kedit_hub.base.tokens import Encoded

CLOSE = 0.8  # a strip holds rows of at least this share of its longest


@dataclass(frozen=True)
class Strip:
    rows: Tensor  # (n,) which rows of the batch
    first: int  # its first column is this one of the batch
    encoded: Encoded  # (n, T') of these rows

    @property
    def columns(self) -> slice:
        """Of the batch."""
        return slice(self.first, self.first + self.encoded.input_ids.shape[1])


def strips(encoded: Encoded) -> list[Strip]:
    """The rows of a batch (B, T), each in one strip, longest first."""
    found = []
    for rows in alike(encoded.attention_mask.sum(1), CLOSE):
        part = encoded.take(rows)
        used = part.attention_mask.any(0).nonzero()[:, 0]
        first, stop = int(used[0]), int(used[-1]) + 1
        found.append(Strip(rows, first, part.columns(first, stop)))
    return found


def alike(sizes: Tensor, share: float) -> Iterator[Tensor]:
    """Positions of `sizes` (n,) in groups, largest first: in a group nothing is smaller than `share` of its largest. Ties in order."""
    order = sizes.argsort(descending=True, stable=True)
    ranked = sizes[order].tolist()
    start = 0
    for position in range(1, len(ranked) + 1):
        if position == len(ranked) or ranked[position] < share * ranked[start]:
            yield order[start:position]
            start = position


def spread_out(parts: list[tuple[Strip, Tensor]], encoded: Encoded) -> Tensor:
    """(B, T, width) of the batch from (n, T', width) of its strips; zero in the columns that strips leave out."""
    like = parts[0][1]
    whole = like.new_zeros(*encoded.input_ids.shape, like.shape[-1])
    for strip, value in parts:
        whole[strip.rows.to(whole.device), strip.columns] = value
    return whole

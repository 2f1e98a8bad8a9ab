"""Which stored keys lie within a limit of which inputs, by Euclidean distance. Law: what is left out is farther than its limit.

    row, key = Sieve(keys).pairs(inputs, limits)          # few pairs that may be within, all that are among them
    distances(inputs, keys, row, key) <= limits           # is decided on differences, by the caller

A product of all inputs with all keys loses small distances between long vectors, and it reads every number of every key. Neither is
needed to tell who is far. Under f(x) = (A x, |x - A^T A x|), the rows of A orthonormal, no distance grows (Pythagoras, and the triangle
inequality for what A leaves), so what is too far apart in a few numbers is so in all. A: principal axes of some of the keys, which
tell most. Many keys on a CPU are read in 65 numbers each; those that may be near still, in 129; what is left then, in all.
"""

import torch
from torch import Tensor

WIDTHS = (64, 128)  # axes of the coarse levels, a quarter of the keys' width at most
MANY = 10_000  # keys from which on coarse levels pay
SAMPLE = 1_024  # keys that the axes are found from
SPARE = 1e-5  # of squared lengths: more than float32 rounds
BOUND = 1 << 23  # numbers laid out at once (32 MB)
BLOCK = 1 << 18  # the same where keys are gathered: what stays in a CPU's cache
FEW, ROWS = 4, 8  # a pair alone costs as much as FEW in a product, as FEW * ROWS in one of as many inputs

Pairs = tuple[Tensor, Tensor]  # (k,) inputs and (k,) keys, int64


class Sieve:
    """keys (n, d) float32. Made once for all lookups; making coarse levels takes about as long as a hundred lookups without them."""

    def __init__(self, keys: Tensor):
        self.keys = keys
        count, width = keys.shape
        coarse = count >= MANY and keys.device.type == "cpu"
        self.widths = sorted({min(w, width // 4) for w in WIDTHS} - {0}) if coarse else []
        with torch.no_grad():
            self.axes = _principal(keys, self.widths[-1]) if self.widths else None
            self.levels = self._seen(keys)
            self.squares = [level.norm(dim=1).square() for level in self.levels]

    def _seen(self, x: Tensor) -> list[Tensor]:
        """x (p, d) in ever more numbers, in the end in all."""
        if self.axes is None:
            return [x]
        parts = x.split(max(1, BOUND // x.shape[1]))
        finest = torch.cat([_projected(part, self.axes) for part in parts]) if parts else x
        return [*(_shortened(finest, w) for w in self.widths[:-1]), finest, x]

    @torch.no_grad()
    def pairs(self, inputs: Tensor, limits: Tensor) -> Pairs:
        """inputs (p, d) float32; limits: of squared distances, (n,) of every key or (p, 1) of every input."""
        none = torch.zeros(0, dtype=torch.long, device=inputs.device)
        rows, keys = [none], [none]
        step = max(1, BOUND // max(1, len(self.keys)))
        for start in range(0, len(inputs), step):
            here = slice(start, start + step)
            row, key = self._some(inputs[here], limits[here] if limits.ndim > 1 else limits)
            rows.append(row + start)
            keys.append(key)
        return torch.cat(rows), torch.cat(keys)

    def _some(self, inputs: Tensor, limits: Tensor) -> Pairs:
        pairs: Pairs | None = None
        spare, own_spare = SPARE * self.squares[-1], SPARE * inputs.square().sum(1)
        for seen, level, squares in zip(self._seen(inputs), self.levels, self.squares):
            if pairs is None or FEW * min(len(inputs), ROWS) * len(pairs[0]) > len(inputs) * len(level):
                rough = torch.addmm(squares - spare, seen, level.T, alpha=-2)
                rough += (seen.square().sum(1) - own_spare)[:, None]
                row, key = (rough <= limits).nonzero(as_tuple=True)
            elif level is not self.keys:
                row, key = pairs
                limit = limits.expand(len(inputs), len(level))[row, key] + own_spare[row] + spare[key]
                near = distances(seen, level, row, key).square() <= limit
                row, key = row[near], key[near]
            pairs = row, key
        return row, key


def distances(inputs: Tensor, keys: Tensor, row: Tensor, key: Tensor) -> Tensor:
    """(k,) Euclidean, from differences, of pairs of inputs (p, d) and keys (n, d)."""
    step = max(1, BLOCK // keys.shape[1])
    parts = [
        inputs.index_select(0, r).sub_(keys.index_select(0, k)).norm(dim=1)
        for r, k in zip(row.split(step), key.split(step))
    ]
    return torch.cat(parts) if parts else inputs.new_zeros(0)


def _projected(x: Tensor, axes: Tensor) -> Tensor:
    """(n, w + 1): along the axes (d, w), and the length of the rest, from the rest itself, since a difference of squares is not exact."""
    along = x @ axes
    return torch.cat([along, (x - along @ axes.T).norm(dim=1, keepdim=True)], 1)


def _shortened(x: Tensor, width: int) -> Tensor:
    """(n, width + 1): the first numbers, and the length of the rest."""
    return torch.cat([x[:, :width], x[:, width:].norm(dim=1, keepdim=True)], 1)


def _principal(keys: Tensor, width: int) -> Tensor:
    """(d, width) orthonormal columns: principal axes of a sample of the keys, the longest first. Any others would be right, and slower."""
    sample = keys[:: max(1, len(keys) // SAMPLE)][:SAMPLE]
    sample = sample / sample.abs().max().clamp_min(torch.finfo(sample.dtype).tiny)
    _, mixed = torch.linalg.eigh(sample @ sample.T)
    axes, _ = torch.linalg.qr(sample.T @ mixed.flip(1)[:, :width])
    return axes

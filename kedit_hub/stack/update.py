"""What a solved system tells and becomes when rows come and go, without being solved again. With M = (Omega^-1 + G)^-1, Y = R M:

    append      the factor of Omega^-1 + G is bordered: O(n^2 q) for q more rows
    without     M' = M_TT - M_TS M_SS^-1 M_ST,  Y' = R_T M'
    left_out    f_S = R_S - Y_S M_SS^-1: what the stack without the rows S says on their keys

All three are what solving from the rows themselves gives, so a row taken out is a row never added.

    held = append(hold(normal, lam), more)
    told = left_out(held.solution, held.normal, torch.tensor([0, 0, 1, 2, 2]))     # blocks are patches
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kedit_hub.errors import KeditError
from kedit_hub.stack.solve import Normal, Solution, finished, symmetric


@dataclass(frozen=True)
class Held:
    """A system at one lam with its lower Cholesky factor (n, n), to be grown by `append`."""

    normal: Normal
    lam: float
    factor: Tensor

    @cached_property
    def solution(self) -> Solution:
        return finished(self.normal, self.lam, self.factor)


def hold(normal: Normal, lam: float) -> Held:
    """Factor the system at `lam`, O(n^3)."""
    return Held(normal, lam, torch.linalg.cholesky(normal.system(lam)))


def append(held: Held, new: Normal) -> Held:
    """The system of the rows of both, in this order, with O(n^2 q + n q d) work for q new rows.

    new: prepared under the same preconditioner and moments. KeditError where rows were merged because they are more than the
    map has dimensions: those are prepared anew.
    """
    old = held.normal
    d, rows = len(old.keys), old.keys.shape[1] + new.keys.shape[1]
    if old.spread is not None or new.spread is not None or rows > d:
        raise KeditError(
            f"{rows} rows are more than the {d} dimensions of the map, and such systems do not grow row by row: prepare all "
            "rows together"
        )
    site, s1 = None, None
    if old.site is not None and new.site is not None and old.s1 is not None and new.s1 is not None:
        site, s1 = torch.cat([old.site, new.site], 1), _bordered(old.s1, old.u1.T @ new.site, new.s1)
    g12 = old.keys.T @ new.u1  # (n, q)
    joined = Normal(
        torch.cat([old.keys, new.keys], 1),
        torch.cat([old.residuals, new.residuals], 1),
        torch.cat([old.omega, new.omega]),
        torch.cat([old.targets, new.targets], 1),
        torch.cat([old.weights, new.weights]),
        torch.cat([old.u1, new.u1], 1),
        torch.cat([old.text, new.text], 1),
        site,
        _bordered(old.g1, g12, new.g1),
        _bordered(old.c1, old.u1.T @ new.text, new.c1),
        s1,
        None,
    )
    across = torch.linalg.solve_triangular(held.factor, g12 / held.lam, upper=False)  # (n, q)
    corner = torch.linalg.cholesky(symmetric(new.system(held.lam) - across.T @ across))
    factor = torch.zeros(rows, rows, dtype=torch.float64)
    n = len(held.factor)
    factor[:n, :n], factor[n:, :n], factor[n:, n:] = held.factor, across.T, corner
    return Held(joined, held.lam, factor)


def _bordered(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """[[a, b], [b^T, c]]."""
    return torch.cat([torch.cat([a, b], 1), torch.cat([b.T, c], 1)])


def without(solution: Solution, normal: Normal, rows: Tensor) -> Tensor:
    """Y of the stack with `rows` (s,) taken out, from the full solution: Y' = R_T (M_TT - M_TS M_SS^-1 M_ST). Shape (m, n - s)."""
    everywhere = torch.arange(len(normal.omega))[None]
    inverse = _blocks(normal, solution.lam, everywhere)[0]
    keep = torch.ones(len(inverse), dtype=torch.bool)
    keep[rows] = False
    cross = inverse[keep][:, rows]
    schur = inverse[keep][:, keep] - cross @ torch.linalg.solve(inverse[rows][:, rows], cross.T)
    return normal.residuals[:, keep] @ schur


@dataclass(frozen=True)
class LeftOut:
    """What the rest of the stack says on the keys of a block."""

    said: Tensor  # (m, n) float64: f of the stack without the row's block, at the row's key
    kappa: Tensor  # (n,) |f| / |r|; of rows that ask for no change, |f| over a typical |r|
    cosine: Tensor  # (n,) of f and r: near 1 the row is said already, below 0 the rest says the opposite


def left_out(solution: Solution, normal: Normal, blocks: Tensor) -> LeftOut:
    """For every row, the stack without the rows of its block. blocks (n,) int64: arange(n) leaves out single rows."""
    y = _multipliers(solution, normal)
    said = torch.empty_like(normal.residuals)
    labels, number = blocks.unique(return_inverse=True)
    sizes = torch.bincount(number, minlength=len(labels))
    order = number.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    for size in sizes.unique().tolist():  # blocks of one size are one batch
        index = order[starts[sizes == size][:, None] + torch.arange(size)]  # (b, s)
        inverse = _blocks(normal, solution.lam, index)  # (b, s, s)
        taken = torch.linalg.solve(inverse, y.T[index])  # (b, s, m): (Y_S M_SS^-1)^T
        said[:, index] = normal.residuals[:, index] - taken.permute(2, 0, 1)
    asked = normal.residuals.norm(dim=0)
    typical = asked[asked > 0].mean() if bool((asked > 0).any()) else torch.ones(())
    size_of = said.norm(dim=0)
    cosine = (said * normal.residuals).sum(0) / (size_of * asked).clamp_min(torch.finfo(torch.float64).tiny)
    return LeftOut(said, size_of / torch.where(asked > 0, asked, typical), cosine)


def _multipliers(solution: Solution, normal: Normal) -> Tensor:
    """Y = R M (m, n) of the rows as given."""
    if normal.spread is None:
        return solution.y
    back, rest, merged = _expansion(normal)
    return (solution.y - normal.targets * merged) @ back.T + normal.residuals * rest


def _blocks(normal: Normal, lam: float, index: Tensor) -> Tensor:
    """M_SS (b, s, s) for the b sets of s rows in index (b, s).

    Merged rows: with K = H E^T, M = B (M~ - J) B^T + diag(rest), M~ the inverse of the held system, B = Omega E and rest =
    omega where rows were merged (J = 1 there), B = E and rest = 0 where they are pinned (Woodbury).
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(normal.system(lam)))
    if normal.spread is None:
        return inverse[index[:, :, None], index[:, None, :]]
    back, rest, merged = _expansion(normal)
    part = back[index]  # (b, s, p)
    return part @ (inverse - torch.diag(merged)) @ part.mT + torch.diag_embed(rest[index])


def _expansion(normal: Normal) -> tuple[Tensor, Tensor, Tensor]:
    """B (n, p), rest (n,), diagonal of J (p,)."""
    assert normal.spread is not None
    pinned = normal.omega.isinf()
    scale = torch.where(pinned, 1.0, normal.omega)
    return scale[:, None] * normal.spread, torch.where(pinned, 0.0, normal.omega), (~normal.weights.isinf()).double()

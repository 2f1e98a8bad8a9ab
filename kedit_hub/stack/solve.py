"""The joint regularised least squares behind a stack. Matrices only: no model, no files, no patches.

One linear map y = W k of shape (m, d) is changed by D so that the n stored keys K (d, n) gain the residuals R (m, n):

    J(D) = tr(D A D^T) + sum_i omega_i |D k_i - r_i|^2          A = lam * (C0 + rho I)

with C0 = E[k k^T] the second moment of ordinary text (what must not move) and Omega = diag(omega) the trust in each row.

    dual    U = A^-1 K,  G = K^T U,  Y = R (Omega^-1 + G)^-1,  D = Y U^T        (n x n solve, rank-n factors)
    primal  D = R Omega K^T (A + K Omega K^T)^-1                                (d x d solve)

Both are the same matrix; sequential editing with a key history is the same matrix again (recursive least squares), so the result is
a function of the set of rows (Meng et al. 2022, MEMIT eq. 14, for the primal form). Everything is float64 and Cholesky, never an inverse.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kedit_hub.base.moments import RHO, regularised


@dataclass(frozen=True)
class Solution:
    """D = y @ u.T, kept factored; float64."""

    y: Tensor  # (m, n)
    u: Tensor  # (d, n)
    fit: Tensor  # (n,) 1 - |D k_i - r_i| / |r_i|: 1 = the row is reproduced exactly; |r| of a typical row where r_i = 0
    energy: float  # tr(D C0 D^T): mean squared change of the output on text; divided by the map's own energy it is the predicted drift
    lam: float


@dataclass(frozen=True)
class Normal:
    """What of the normal equations does not depend on lam (A scales with it): computed once, then every lam is an n x n solve."""

    keys: Tensor  # (d, n)
    residuals: Tensor  # (m, n)
    u1: Tensor  # (d, n)  (C0 + rho I)^-1 K
    g1: Tensor  # (n, n)  K^T u1
    c1: Tensor  # (n, n)  u1^T C0 u1
    omega: Tensor  # (n,)


def prepare(
    keys: Tensor, residuals: Tensor, second_moment: Tensor, omega: Tensor | None = None, rho: float = RHO
) -> Normal:
    """keys (d, n), residuals (m, n), second_moment (d, d), omega (n,) row weights > 0 (default 1)."""
    k, r, c0 = keys.double(), residuals.double(), second_moment.double()
    factor = torch.linalg.cholesky(regularised(c0, rho))
    u1 = torch.cholesky_solve(k, factor)
    weights = torch.ones(k.shape[1], dtype=torch.float64) if omega is None else omega.double()
    return Normal(k, r, u1, k.T @ u1, u1.T @ c0 @ u1, weights)


def prepare_whitened(
    keys: Tensor, residuals: Tensor, whitened: Tensor, ridge: float, omega: Tensor | None = None
) -> Normal:
    """The same from u1 = (C0 + ridge I)^-1 K (d, n) that is known already: no C0, and n x n work only.

    Of C0 the equations hold c1 alone, and  (C0 + ridge I) u1 = K  gives it:  c1 = u1^T C0 u1 = u1^T (K - ridge u1).
    Both products are symmetric but for the rounding of u1; the solvers take them as symmetric, so they are made so.
    """
    k, r, u1 = keys.double(), residuals.double(), whitened.double()
    weights = torch.ones(k.shape[1], dtype=torch.float64) if omega is None else omega.double()
    return Normal(k, r, u1, _symmetric(k.T @ u1), _symmetric(u1.T @ (k - ridge * u1)), weights)


def ridge(second_moment: Tensor, rho: float = RHO) -> float:
    """What `regularised` adds to the diagonal of C0: rho times its mean."""
    return rho * second_moment.diagonal().double().mean().item()


def consistent(keys: Tensor, whitened: Tensor) -> bool:
    """Whether u = A^-1 k can hold in every column for one and the same symmetric A: then k_i . u_j = k_j . u_i.

    A column that is wrong where another row's key would notice breaks this. Tolerance: keys stored as float16 are 2^-11 off.
    """
    k, u = keys.double(), whitened.double()
    g, size = k.T @ u, torch.outer(k.norm(dim=0), u.norm(dim=0))
    return bool(((g - g.T).abs() <= 2.0**-10 * (size + size.T)).all())


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def solve(normal: Normal, lam: float) -> Solution:
    """The dual form at one lam."""
    g = normal.g1 / lam
    system = g + torch.diag(1.0 / normal.omega)
    y = torch.cholesky_solve(normal.residuals.T, torch.linalg.cholesky(system)).T  # (m, n), the system is symmetric
    missed = y @ g - normal.residuals
    norms = normal.residuals.norm(dim=0)
    typical = norms[norms > 0].mean() if bool((norms > 0).any()) else torch.ones(())  # for rows that ask for no change
    fit = 1.0 - missed.norm(dim=0) / torch.where(norms > 0, norms, typical)
    energy = torch.einsum("ij,jk,ik->", y, normal.c1, y).item() / lam**2
    return Solution(y, normal.u1 / lam, fit, energy, lam)


def solve_primal(
    keys: Tensor, residuals: Tensor, second_moment: Tensor, lam: float, omega: Tensor | None = None, rho: float = RHO
) -> Tensor:
    """The primal form: D (m, d). Cheaper than the dual when n > d."""
    k, r = keys.double(), residuals.double()
    kw = k if omega is None else k * omega.double()
    system = lam * regularised(second_moment, rho) + kw @ k.T
    return torch.cholesky_solve(kw @ r.T, torch.linalg.cholesky(system)).T


def within_budget(normal: Normal, budget: float, *, low: float = 1e-3, high: float = 1e14) -> Solution:
    """The smallest lam in [low, high] whose energy tr(D C0 D^T) stays within `budget`: the best fit the drift budget allows.

    The energy falls monotonically with lam. Bisection runs on the eigenvalues of Omega^1/2 G1 Omega^1/2, so a trial costs O(m n^2),
    and the answer itself is one Cholesky solve.
    """
    root = normal.omega.sqrt()
    values, vectors = torch.linalg.eigh(root[:, None] * normal.g1 * root)
    rotated = normal.residuals * root @ vectors  # (m, n)
    core = vectors.T @ (root[:, None] * normal.c1 * root) @ vectors  # (n, n)
    core = (rotated.T @ rotated) * core

    def energy(lam: float) -> float:
        shrink = 1.0 / (lam + values.clamp_min(0.0))  # = (1 + g/lam)^-1 / lam
        return (shrink @ core @ shrink).item()

    if energy(low) <= budget:
        return solve(normal, low)
    a, b = low, high
    while b / a > 1.001:
        middle = (a * b) ** 0.5
        a, b = (middle, b) if energy(middle) > budget else (a, middle)
    return solve(normal, b)


def balanced_lambda(normal: Normal, fit: float = 0.95) -> float:
    """The lam at which the median row, alone, is fitted to `fit`: g / (lam + g) = fit for g = k^T (C0 + rho I)^-1 k."""
    return normal.g1.diagonal().median().item() * (1.0 - fit) / fit


def without(solution: Solution, normal: Normal, rows: Tensor) -> Tensor:
    """Y of the stack with `rows` (s,) taken out, from the full solution: Y' = R_T (M_TT - M_TS M_SS^-1 M_ST). Shape (m, n - s)."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(normal.g1 / solution.lam + torch.diag(1.0 / normal.omega)))
    keep = torch.ones(len(inverse), dtype=torch.bool)
    keep[rows] = False
    cross = inverse[keep][:, rows]
    schur = inverse[keep][:, keep] - cross @ torch.linalg.solve(inverse[rows][:, rows], cross.T)
    return normal.residuals[:, keep] @ schur

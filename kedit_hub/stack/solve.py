"""The joint regularised least squares behind a stack. Matrices only: no model, no files, no patches.

One linear map y = W k of shape (m, d) is changed by D so that the n stored keys K (d, n) gain the residuals R (m, n):

    J(D) = tr(D A D^T) + sum_i omega_i |D k_i - r_i|^2          A = lam * (C0 + rho I)

with C0 = E[k k^T] the second moment of ordinary text (what must not move) and Omega = diag(omega) the trust in each row.

    dual    U = A^-1 K,  G = K^T U,  Y = R (Omega^-1 + G)^-1,  D = Y U^T        (n x n solve, rank-n factors)
    primal  D = R Omega K^T (A + K Omega K^T)^-1                                (d x d solve)

Both are the same matrix; sequential editing with a key history is the same matrix again (recursive least squares), so the result is
a function of the set of rows (Meng et al. 2022, MEMIT eq. 14, for the primal form). Everything is float64 and Cholesky, never an inverse.

A^-1 may be any S = S1 / lam of kedit_hub.stack.preconditioner. More rows than dimensions are first turned into d rows with the
same normal equations (an orthogonal factor of K Omega^1/2), so that no system is larger than d x d and there is one path for all.
A row with omega = inf is pinned: met exactly, up to PIN.

    normal = prepare(keys, residuals, c0)          # once
    within_budget(normal, budget=0.05 * e0)        # the best fit that drift allows; or solve(normal, lam)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kedit_hub.base.moments import RHO, regularised
from kedit_hub.errors import KeditError
from kedit_hub.stack.preconditioner import Factored, Preconditioner, preconditioner, ridge

PIN = 1e-8  # Omega^-1 of a pinned row, relative to its own entry of G and to the Omega^-1 = 1 of ordinary rows
RESOLVED = 1e-13  # of G at least, so that pins at one key still leave a positive definite system
NEARNESS = 1e-3  # of log lam to the one that spends a budget exactly
STRIDE = 2.0  # of log lam in the search for one that overspends
PROBES = 8  # random vectors that whitened keys are checked with
MISS = 2.0**-9  # by which (C0 + ridge I) u may miss its key k, relative to |k|: four times the rounding of float16
ROUNDING = 2.0**-20  # of whitened keys stored as float32, as a share of |u| that C0 may magnify


@dataclass(frozen=True)
class Solution:
    """D = y @ u.T, kept factored; float64. p = n rows, or fewer where rows were merged."""

    y: Tensor  # (m, p)
    u: Tensor  # (d, p)
    fit: Tensor  # (n,) 1 - |D k_i - r_i| / |r_i|: 1 = the row is reproduced exactly; |r| of a typical row where r_i = 0
    energy: float  # tr(D C0 D^T): mean squared change of the output on text; divided by the map's own energy it is the predicted drift
    lam: float
    site_energy: float | None = None  # tr(D Cs D^T), where the second moment Cs at site positions was given
    asking: tuple[Tensor, Tensor] | None = None  # R_a (m, a), X_a (p, a), of few rows that ask: D = R_a (u X_a)^T


@dataclass(frozen=True)
class Normal:
    """What of the normal equations does not depend on lam (S scales with it): computed once, then every lam is a p x p solve.

    The p held rows are the n rows themselves, or, where more than d of them are not pinned, d rows that ask for the same.
    """

    keys: Tensor  # (d, n)
    residuals: Tensor  # (m, n)
    omega: Tensor  # (n,)
    targets: Tensor  # (m, p)  residuals of the held rows
    weights: Tensor  # (p,)    omega of the held rows
    u1: Tensor  # (d, p)  S1 times the held keys; (C0 + rho I)^-1 K by default
    text: Tensor  # (d, p)  C0 u1
    site: Tensor | None  # (d, p)  Cs u1, where the second moment at site positions is given
    g1: Tensor  # (p, p)  held keys^T u1
    c1: Tensor  # (p, p)  u1^T C0 u1
    s1: Tensor | None  # (p, p)  u1^T Cs u1
    spread: Tensor | None  # (n, p)  keys = held keys @ spread^T; None where the rows are held as they are

    def own(self) -> Tensor:
        """(n,) k_i^T S1 k_i of every row."""
        if self.spread is None:
            return self.g1.diagonal()
        return ((self.spread @ self.g1) * self.spread).sum(1)

    def system(self, lam: float) -> Tensor:
        """Omega^-1 + G (p, p) of the held rows, positive definite."""
        g = self.g1 / lam
        own = g.diagonal()
        pin = torch.maximum(PIN * own.clamp_max(1.0), RESOLVED * own)  # against A, and against rows of omega 1
        slack = torch.where(self.weights.isinf(), pin, 1.0 / self.weights)
        return g + torch.diag(slack)


def prepare(
    keys: Tensor,
    residuals: Tensor,
    second_moment: Tensor,
    omega: Tensor | None = None,
    rho: float = RHO,
    *,
    by: Preconditioner | None = None,
    site_moment: Tensor | None = None,
) -> Normal:
    """keys (d, n), residuals (m, n), second_moment (d, d), omega (n,) row weights > 0 (default 1; inf pins a row).

    by: S1, where it is known or not (C0 + rho I)^-1. site_moment: Cs (d, d), for the second drift gate.
    """
    rows = _rows(keys, residuals, omega)
    held, _, targets, weights, spread = _held(*rows)
    by = by or preconditioner("second-moment", second_moment, rho)
    u1 = by(held)
    text = held - by.ridge * u1 if isinstance(by, Factored) else second_moment.double() @ u1
    return _normal(rows, held, targets, weights, u1, text, site_moment, spread)


def prepare_whitened(
    keys: Tensor,
    residuals: Tensor,
    whitened: Tensor,
    ridge: float,
    omega: Tensor | None = None,
    *,
    site_moment: Tensor | None = None,
) -> Normal:
    """The same from u1 = (C0 + ridge I)^-1 K (d, n) that is known already: no C0, and n x n work only.

    Of C0 the equations hold c1 alone, and  (C0 + ridge I) u1 = K  gives it:  c1 = u1^T C0 u1 = u1^T (K - ridge u1).
    """
    rows = _rows(keys, residuals, omega)
    held, mixed, targets, weights, spread = _held(*rows)
    u1 = whitened.double() if mixed is None else whitened.double() @ mixed
    return _normal(rows, held, targets, weights, u1, held - ridge * u1, site_moment, spread)


def _rows(keys: Tensor, residuals: Tensor, omega: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    weights = torch.ones(keys.shape[1], dtype=torch.float64) if omega is None else omega.double()
    return keys.double(), residuals.double(), weights


def _held(
    keys: Tensor, residuals: Tensor, omega: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
    """Held keys (d, p), how they are mixed from the given ones (n, p), their residuals, weights and spread.

    K Omega^1/2 = H Q^T with orthonormal Q (n, d): the rows (H, R Omega^1/2 Q, 1) have the normal equations of (K, R, Omega),
    for H H^T = K Omega K^T and R Omega^1/2 Q H^T = R Omega K^T. Pinned rows stay what they are.
    """
    soft, pinned = omega.isfinite(), omega.isinf()
    if int(soft.sum()) <= len(keys):
        return keys, None, residuals, omega, None
    root = omega[soft].sqrt()
    q, lower = torch.linalg.qr((keys[:, soft] * root).T)  # (s, d), (d, d)
    pins = pinned.nonzero()[:, 0]
    few, several = len(keys), len(pins)
    mixed = torch.zeros(len(omega), few + several, dtype=torch.float64)
    spread = mixed.clone()
    mixed[soft, :few] = root[:, None] * q
    spread[soft, :few] = q / root[:, None]
    mixed[pins, few + torch.arange(several)] = spread[pins, few + torch.arange(several)] = 1.0
    held = torch.cat([lower.T, keys[:, pins]], 1)
    weights = torch.cat([torch.ones(few, dtype=torch.float64), omega[pins]])
    return held, mixed, residuals @ mixed, weights, spread


def _normal(
    rows: tuple[Tensor, Tensor, Tensor],
    held: Tensor,
    targets: Tensor,
    weights: Tensor,
    u1: Tensor,
    text: Tensor,
    site_moment: Tensor | None,
    spread: Tensor | None,
) -> Normal:
    """All products are symmetric but for the rounding of u1; the solvers take them as symmetric, so they are made so."""
    g1, c1 = symmetric(held.T @ u1), symmetric(u1.T @ text)
    site = None if site_moment is None else site_moment.double() @ u1
    s1 = None if site is None else symmetric(u1.T @ site)
    return Normal(*rows, targets, weights, u1, text, site, g1, c1, s1, spread)


def symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part of (n, n)."""
    return (matrix + matrix.T) / 2


def agrees(keys: Tensor, whitened: Tensor, second_moment: Tensor, *, seed: int, rho: float = RHO) -> bool:
    """Whether (C0 + ridge I) u = k in every column of keys (d, n) and whitened (d, n), up to what they are rounded to.

    Freivalds' check by columns: a random h tells of the error e = (C0 + ridge I) u - k its component h . e, and
    h^T (C0 + ridge I) is computed once for all columns, so it costs PROBES d (d + n). What a column misses by more than a few
    times MISS goes unseen with a probability that falls with the power PROBES. seed: of the probes; from the content, so that
    who wrote the columns could not know them before.
    """
    d = len(keys)
    probes = torch.randn(d, PROBES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    seen = torch.cat([part.double() @ probes for part in second_moment.split(1024)])  # C0 h; C0 is never all float64
    seen += ridge(second_moment, rho) * probes
    largest = seen.norm(dim=0).max() / d**0.5  # of the order of |C0|: |C0 h| ~ |C0|_F
    error = torch.zeros(PROBES, keys.shape[1], dtype=torch.float64)
    sizes = torch.zeros(2, keys.shape[1], dtype=torch.float64)
    for rows in torch.arange(d).split(1024):
        k, u = keys[rows].double(), whitened[rows].double()
        error += seen[rows].T @ u - probes[rows].T @ k
        sizes += torch.stack([k.square().sum(0), u.square().sum(0)])
    missed, (k_norm, u_norm) = error.square().mean(0).sqrt(), sizes.sqrt()
    return bool((missed <= MISS * k_norm + ROUNDING * largest * u_norm).all())


def solve(normal: Normal, lam: float) -> Solution:
    """The dual form at one lam."""
    return finished(normal, lam, torch.linalg.cholesky(normal.system(lam)))


def finished(normal: Normal, lam: float, factor: Tensor) -> Solution:
    """The solution from the Cholesky factor (p, p) of normal.system(lam)."""
    y = torch.cholesky_solve(normal.targets.T, factor).T  # (m, p), the system is symmetric
    given = y @ (normal.g1 / lam)
    missed = (given if normal.spread is None else given @ normal.spread.T) - normal.residuals
    norms = normal.residuals.norm(dim=0)
    typical = norms[norms > 0].mean() if bool((norms > 0).any()) else torch.ones(())  # for rows that ask for no change
    fit = 1.0 - missed.norm(dim=0) / torch.where(norms > 0, norms, typical)
    site = None if normal.s1 is None else _energy(y, normal.s1, lam)
    return Solution(y, normal.u1 / lam, fit, _energy(y, normal.c1, lam), lam, site, _asking(normal, factor))


def _asking(normal: Normal, factor: Tensor) -> tuple[Tensor, Tensor] | None:
    """R_a (m, a) of the rows whose residual is not zero, and their columns X_a (p, a) of M = (Omega^-1 + G)^-1, from its factor.

    The others have a column of zeros in R, so D = R M U^T = R_a (U X_a)^T is of rank a. None where a = p, or a = 0.
    """
    asks = normal.residuals.any(0).nonzero()[:, 0]  # (a,)
    if not 0 < len(asks) < len(factor):
        return None
    if normal.spread is None:
        own = torch.zeros(len(asks), len(factor), dtype=torch.float64)
        own[torch.arange(len(asks)), asks] = 1.0
    else:  # targets = residuals @ mixed, and mixed is Omega spread, or spread itself where a row is pinned (`_held`)
        weight = torch.where(normal.omega.isinf(), 1.0, normal.omega)
        own = (normal.spread * weight[:, None])[asks]
    return normal.residuals[:, asks], torch.cholesky_solve(own.T, factor)


def _energy(y: Tensor, core: Tensor, lam: float) -> float:
    return ((y @ core) * y).sum().item() / lam**2


def factors(solution: Solution) -> tuple[Tensor, Tensor]:
    """D = y u^T as b q^T with orthonormal q (d, r), b (m, r), in float64; r counts the rows that ask for a change, not those held still.

    Near-equal keys that want different values give huge entries of y that cancel in D; in float32 they would not cancel.
    """
    y, u = solution.y, solution.u
    if solution.asking is not None:
        y, u = solution.asking[0], u @ solution.asking[1]
    q, r = torch.linalg.qr(u)
    return y @ r.T, q


def solve_primal(
    keys: Tensor, residuals: Tensor, second_moment: Tensor, lam: float, omega: Tensor | None = None, rho: float = RHO
) -> Tensor:
    """The primal form: D (m, d) at once, for checks; `solve` meets it at no more than d x d."""
    k, r = keys.double(), residuals.double()
    kw = k if omega is None else k * omega.double()
    system = lam * regularised(second_moment, rho) + kw @ k.T
    return torch.cholesky_solve(kw @ r.T, torch.linalg.cholesky(system)).T


def within_budget(
    normal: Normal, budget: float, *, site_budget: float | None = None, low: float = 1e-3, high: float = 1e14
) -> Solution:
    """The smallest lam in [low, high] whose energy tr(D C0 D^T) stays within `budget`: the best fit the drift budget allows.

    site_budget: bound on tr(D Cs D^T) too; it needs a Normal that was prepared with the site moment.
    Every trial of a lam is one Cholesky factor. KeditError where pinned rows alone cost more than a budget.
    """
    if site_budget is not None and normal.s1 is None:
        raise KeditError(
            f"a site budget of {site_budget:g} needs the second moment at site positions, and this base profile has none: "
            "measure it again with `kedit profile`, or leave the site budget out"
        )
    targets = normal.targets  # of m > p outputs only their triangular factor matters to an energy
    if len(targets) > targets.shape[1]:
        targets = torch.linalg.qr(targets, mode="r")[1]
    gates = [(normal.c1, budget)]
    if normal.s1 is not None and site_budget is not None:
        gates.append((normal.s1, site_budget))

    def excess(log_lam: float) -> float:
        """Log of the largest energy over its budget: 0 where the tightest gate is met exactly."""
        lam = math.exp(log_lam)
        y = torch.cholesky_solve(targets.T, torch.linalg.cholesky(normal.system(lam))).T
        return max(_over(_energy(y, core, lam), allowed) for core, allowed in gates)

    if excess(math.log(low)) <= 0.0:
        return solve(normal, low)
    start = max(normal.own().median().item(), low)
    least = _crossing(excess, math.log(low), math.log(start), math.log(high))
    if least is None and bool(normal.weights.isinf().any()):
        raise KeditError(
            f"the {int(normal.weights.isinf().sum())} pinned rows alone change more on ordinary text than the budget of "
            f"{budget:g} allows: allow more, or pin fewer patches"
        )
    return solve(normal, high if least is None else math.exp(least))


def _over(energy: float, allowed: float) -> float:
    if energy <= 0.0:
        return -math.inf
    return math.log(energy / allowed) if allowed > 0.0 else math.inf


def _crossing(excess: Callable[[float], float], a: float, start: float, end: float) -> float | None:
    """The end b of an interval [b - NEARNESS, b] with excess(b) <= 0 < excess(b - NEARNESS), given excess(a) > 0; None: none below `end`.

    log energy over log lam is nearly straight, so regula falsi (Illinois; Dowell and Jarratt 1971) takes few trials. Near the
    root the next trial keeps half of NEARNESS away from either end, so that both close in.
    """
    fa, b = math.inf, start
    while (
        fb := excess(b)
    ) > 0.0:  # a larger lam by at least the square root of what is too much, for energy ~ lam^-2 at most
        if b >= end:
            return None
        a, fa, b = b, fb, min(b + max(1.0, min(fb, 10.0)), end)
    while math.isinf(fa) and b - STRIDE > a:  # a smaller one, down to where the budget is overspent
        if (fx := excess(b - STRIDE)) > 0.0:
            a, fa = b - STRIDE, fx
        else:
            b, fb = b - STRIDE, fx
    side = 0
    while b - a > NEARNESS:
        x = (a * fb - b * fa) / (fb - fa) if math.isfinite(fa) and math.isfinite(fb) else (a + b) / 2
        x = min(max(x, a + NEARNESS / 2), b - NEARNESS / 2)
        if (fx := excess(x)) > 0.0:
            a, fa = x, fx
            fb = fb / 2 if side == 1 else fb
            side = 1
        else:
            b, fb = x, fx
            fa = fa / 2 if side == -1 else fa
            side = -1
    return b


def balanced_lambda(normal: Normal, fit: float = 0.95) -> float:
    """The lam at which the median row, alone, is fitted to `fit`: g / (lam + g) = fit for g = k^T (C0 + rho I)^-1 k."""
    return normal.own().median().item() * (1.0 - fit) / fit

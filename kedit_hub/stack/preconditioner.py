"""What a solve protects, as one matrix: S = E diag(f(s)) E^T / lam over the eigenvalues s of C0 = E diag(s) E^T, in D = Y (S K)^T.

    second-moment   f = 1 / (s + ridge)            MEMIT, ROME, EMMET: text directions cost what text weighs on them
    identity        f = 1 / c                      plain ridge regression on D
    null-space      f = 1[s < tau] / c             AlphaEdit (Fang et al. 2025): D lives where text hardly goes
    hybrid          f = 1[s < tau] / (s + ridge)   both

c is the mean eigenvalue of C0 + ridge I, so that one lam weighs the same against an average direction of text in all four.
tau is no fixed eigenvalue unless it is given, as their scale differs by base and corpus (AlphaEdit cuts the statistics of the models it
was published for at 2e-2): the null space is the span of the smallest eigenvalues that together carry at most SHARE of the trace, or of a
given part of all of them, so tau follows from the base.

    by = preconditioner("null-space", profile.second_moment)
    u1 = by(keys)                                  # S K at lam = 1
"""

import math
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from kedit_hub.base.moments import RHO, regularised
from kedit_hub.errors import KeditError

Kind = Literal["second-moment", "identity", "null-space", "hybrid"]
SHARE = 0.01  # of tr C0 that the null space may carry


@dataclass(frozen=True)
class Factored:
    """(C0 + ridge I)^-1 by its Cholesky factor (d, d), lower; no eigenvalues."""

    factor: Tensor
    ridge: float

    def __call__(self, keys: Tensor) -> Tensor:
        """(d, n) -> S K (d, n), float64."""
        return torch.cholesky_solve(keys, self.factor)


@dataclass(frozen=True)
class Spectral:
    """E diag(f) E^T with the q directions E (d, q) whose gain f (q,) is not zero."""

    vectors: Tensor
    gains: Tensor

    def __call__(self, keys: Tensor) -> Tensor:
        """(d, n) -> S K (d, n), float64."""
        return self.vectors @ (self.gains[:, None] * (self.vectors.T @ keys))


@dataclass(frozen=True)
class Scaled:
    """gain * I."""

    gain: float

    def __call__(self, keys: Tensor) -> Tensor:
        """(d, n) -> S K (d, n), float64."""
        return self.gain * keys


Preconditioner = Factored | Spectral | Scaled


def ridge(second_moment: Tensor, rho: float = RHO) -> float:
    """What `regularised` adds to the diagonal of C0: rho times its mean."""
    return rho * second_moment.diagonal().double().mean().item()


def mean_eigenvalue(second_moment: Tensor, rho: float = RHO) -> float:
    """c, of C0 + ridge I."""
    return second_moment.diagonal().double().mean().item() + ridge(second_moment, rho)


def lam_of(l2: float, second_moment: Tensor, rho: float = RHO) -> float:
    """The lam under which "null-space" and "identity" add `l2` to K^T P K as published: S / lam = P / l2, so lam = l2 / c."""
    return l2 / mean_eigenvalue(second_moment, rho)


def preconditioner(
    kind: Kind,
    second_moment: Tensor,
    rho: float = RHO,
    share: float = SHARE,
    rank: float | None = None,
    tau: float | None = None,
) -> Preconditioner:
    """S at lam = 1. One Cholesky (second-moment), one eigendecomposition (null-space, hybrid), or nothing (identity).

    share: of the trace that the null space may carry. rank: of its dimensions over d, in place of share; or tau: the eigenvalue below which
    they lie. KeditError when no direction is left, or none is kept out.
    """
    added = ridge(second_moment, rho)
    mean = mean_eigenvalue(second_moment, rho)
    match kind:
        case "second-moment":
            return Factored(torch.linalg.cholesky(regularised(second_moment, rho)), added)
        case "identity":
            return Scaled(1.0 / mean)
        case "null-space":
            _, vectors = _null_space(second_moment, share, rank, tau)
            return Spectral(vectors, torch.full((vectors.shape[1],), 1.0 / mean, dtype=torch.float64))
        case "hybrid":
            values, vectors = _null_space(second_moment, share, rank, tau)
            return Spectral(vectors, 1.0 / (values + added))
        case _:
            assert_never(kind)


def _null_space(second_moment: Tensor, share: float, rank: float | None, tau: float | None) -> tuple[Tensor, Tensor]:
    """The smallest eigenvalues (q,) that together carry at most `share` of the trace, or q = rank d, or all below tau, and their
    directions (d, q)."""
    values, vectors = torch.linalg.eigh(second_moment.double())  # ascending
    values = values.clamp_min(0.0)  # of a float32 matrix some come out below
    size = len(values)
    if rank is not None:
        count = int(rank * size)
        if not count:
            raise KeditError(
                f"a null space of {rank:g} of {size} dimensions is empty: take null_rank={_at_least(1 / size)} or more"
            )
    elif tau is not None:
        count = int((values < tau).sum())
        if count in (0, size):
            raise KeditError(
                f"{'no' if count == 0 else 'every'} eigenvalue of the second moment lies below {tau:g} (they go from {values[0]:.3g} to "
                f"{values[-1]:.3g}), so the null space {'is empty' if count == 0 else 'keeps nothing out'}: say its size with null_rank, "
                "a share of the dimensions"
            )
    else:
        count = int((values.cumsum(0) <= share * values.sum()).sum())
        if not count:
            raise KeditError(
                f"no direction of the second moment carries as little as {share:g} of its trace, so its null space is empty: of an editor, "
                'say its size with null_rank, a share of the dimensions; else take preconditioner="second-moment"'
            )
    return values[:count], vectors[:, :count]


def _at_least(share: float) -> str:
    """In three digits, rounded up: what is said to be enough is enough."""
    digits = 2 - math.floor(math.log10(share))
    return f"{math.ceil(share * 10**digits) / 10**digits:g}"

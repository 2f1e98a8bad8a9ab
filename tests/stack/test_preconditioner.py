"""Every S against formulas as published, by explicit inverses and projectors."""

import pytest
import torch
from torch import Tensor

from kedit_hub.base.moments import RHO
from kedit_hub.errors import KeditError
from kedit_hub.stack.preconditioner import Kind, Preconditioner, Spectral, _at_least, lam_of, preconditioner, ridge
from kedit_hub.stack.solve import prepare, solve, within_budget
from tests.stack.test_solve import LAM, SHAPES, apart, change, moment, problem

KINDS: tuple[Kind, ...] = ("second-moment", "identity", "null-space", "hybrid")
SHARE = 0.1


def dense(kind: Kind, c0: Tensor, share: float = SHARE) -> Tensor:
    """E diag(f(s)) E^T (d, d), written from the definition of f."""
    values, vectors = torch.linalg.eigh(c0)
    added = RHO * values.mean()
    order = values.argsort()
    inside = torch.zeros_like(values)
    inside[order] = (values[order].cumsum(0) <= share * values.sum()).double()
    mean = (values + added).mean()
    f = {
        "second-moment": 1 / (values + added),
        "identity": torch.ones_like(values) / mean,
        "null-space": inside / mean,
        "hybrid": inside / (values + added),
    }[kind]
    return vectors @ torch.diag(f) @ vectors.T


def made(kind: Kind, c0: Tensor) -> Preconditioner:
    return preconditioner(kind, c0, share=SHARE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_solve_under_every_preconditioner(kind: Kind, shape: tuple[int, int, int]) -> None:
    keys, residuals, corpus, omega = problem(*shape)
    c0 = moment(corpus)
    s = dense(kind, c0) / LAM
    expected = residuals @ torch.linalg.inv(torch.diag(1 / omega) + keys.T @ s @ keys) @ keys.T @ s
    by = made(kind, c0)
    assert apart(by(keys), LAM * s @ keys) < 1e-9
    solution = solve(prepare(keys, residuals, c0, omega, by=by), LAM)
    assert apart(change(solution), expected) < 1e-9
    assert solution.energy == pytest.approx(torch.trace(expected @ c0 @ expected.T).item(), rel=1e-8)
    missed = (expected @ keys - residuals).norm(dim=0) / residuals.norm(dim=0)
    assert torch.allclose(solution.fit, 1 - missed, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_alphaedits_published_formula(shape: tuple[int, int, int]) -> None:
    """Fang et al. 2025: Delta = R K^T P (K K^T P + alpha I)^-1, P the projector on the null space."""
    keys, residuals, corpus, _ = problem(*shape)
    c0 = moment(corpus)
    values, vectors = torch.linalg.eigh(c0)
    null = vectors[:, values.cumsum(0) <= SHARE * values.sum()]
    p = null @ null.T
    alpha = LAM * (values.mean() + ridge(c0))
    published = residuals @ keys.T @ p @ torch.linalg.inv(keys @ keys.T @ p + alpha * torch.eye(len(c0)).double())
    found = change(solve(prepare(keys, residuals, c0, by=made("null-space", c0)), LAM))
    assert (found - published).abs().max() < 1e-12
    assert apart(found, published) < 1e-12
    outside = torch.eye(len(c0)).double() - p
    assert (found @ outside).norm() < 1e-12 * found.norm() and found.norm() > 0.01


def test_identity_is_ridge_regression_on_the_scale_of_the_mean_direction() -> None:
    """Where text weighs all directions alike, it is the second moment's own solve: lam means the same."""
    keys, residuals, _, omega = problem(7, 11, 5)
    flat = 2.5 * torch.eye(11).double()
    one, other = (
        prepare(keys, residuals, flat, omega, by=preconditioner(k, flat)) for k in ("identity", "second-moment")
    )
    assert apart(change(solve(one, LAM)), change(solve(other, LAM))) < 1e-12


def test_the_null_space_protects_text() -> None:
    """At one fit budget of |D|: the same rows cost less drift in the null space than anywhere."""
    keys, residuals, corpus, _ = problem(7, 11, 3)
    c0 = moment(corpus)
    energies = {kind: solve(prepare(keys, residuals, c0, by=made(kind, c0)), 1e-6).energy for kind in KINDS}
    assert energies["null-space"] < 0.3 * energies["identity"]


def test_no_direction_left_is_said() -> None:
    with pytest.raises(KeditError, match=r"null space is empty.*null_rank"):
        preconditioner("null-space", torch.eye(5), share=0.1)


@pytest.mark.parametrize("size", [2, 3, 7, 49, 96, 100, 127, 688, 1000])
def test_the_remedy_of_an_empty_null_space_works(size: int) -> None:
    with pytest.raises(KeditError, match="is empty: take null_rank=") as caught:
        preconditioner("null-space", torch.eye(size), rank=0.5 / size)
    named = float(str(caught.value).partition("null_rank=")[2].split()[0])
    found = preconditioner("null-space", torch.eye(size), rank=named)
    assert isinstance(found, Spectral) and found.vectors.shape[1] == 1


def test_what_is_said_to_be_enough_is_enough() -> None:
    assert all(int(float(_at_least(1 / size)) * size) == 1 for size in range(2, 30_000))


def test_alphaedit_as_published_by_threshold_and_l2() -> None:
    """P of the eigenvalues below tau, and L2 I added to P K K^T, at any scale of the second moment."""
    keys, residuals, corpus, _ = problem(7, 11, 5)
    for scale in (0.01, 1.0, 40.0):
        c0 = scale * moment(corpus)
        values, vectors = torch.linalg.eigh(c0)
        tau, l2 = float(values[3:5].mean()), 10.0
        null = vectors[:, :4]
        p = null @ null.T
        published = residuals @ torch.linalg.solve(p @ keys @ keys.T + l2 * torch.eye(len(c0)).double(), p @ keys).T
        by = preconditioner("null-space", c0, tau=tau)
        found = change(solve(prepare(keys, residuals, c0, by=by), lam_of(l2, c0)))
        assert apart(found, published) < 1e-9


@pytest.mark.parametrize(("tau", "said"), [(0.5, "no eigenvalue.*is empty"), (2.0, "every eigenvalue.*keeps nothing")])
def test_a_threshold_at_which_nothing_is_cut_is_refused(tau: float, said: str) -> None:
    with pytest.raises(KeditError, match=f"{said}.*null_rank"):
        preconditioner("null-space", torch.eye(5), tau=tau)


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_is_kept_under_every_preconditioner(kind: Kind) -> None:
    keys, residuals, corpus, omega = problem(7, 11, 5)
    c0 = moment(corpus)
    normal = prepare(keys, residuals, c0, omega, by=made(kind, c0))
    budget = 0.3 * solve(normal, 1e-3).energy
    solution = within_budget(normal, budget)
    assert 0.99 * budget < solution.energy <= budget

"""Two drift gates: on text and at site positions; the smallest lam that keeps both."""

import pytest
import torch
from torch import Tensor

from kedit_hub.base.moments import regularised
from kedit_hub.errors import KeditError
from kedit_hub.stack.preconditioner import ridge
from kedit_hub.stack.solve import Normal, prepare, prepare_whitened, solve, within_budget
from tests.stack.test_solve import SHAPES, change, moment, problem


def both(shape: tuple[int, int, int]) -> tuple[Normal, Tensor, Tensor]:
    """A problem whose site positions look like its keys."""
    keys, residuals, corpus, omega = problem(*shape)
    generator = torch.Generator().manual_seed(3)
    sites = (keys @ torch.randn(keys.shape[1], 30, generator=generator, dtype=torch.float64)).T
    sites += torch.randn(sites.shape, generator=generator, dtype=torch.float64)
    c0, cs = moment(corpus), moment(sites)
    return prepare(keys, residuals, c0, omega, site_moment=cs), c0, cs


@pytest.mark.parametrize("shape", SHAPES)
def test_the_site_energy_is_the_measured_one(shape: tuple[int, int, int]) -> None:
    normal, c0, cs = both(shape)
    solution = solve(normal, 2.0)
    d = change(solution)
    assert solution.site_energy == pytest.approx(torch.trace(d @ cs @ d.T).item(), rel=1e-9)
    assert solve(prepare(normal.keys, normal.residuals, c0), 2.0).site_energy is None
    whitened = torch.linalg.solve(regularised(c0), normal.keys)
    known = prepare_whitened(normal.keys, normal.residuals, whitened, ridge(c0), normal.omega, site_moment=cs)
    assert solve(known, 2.0).site_energy == pytest.approx(solution.site_energy, rel=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [(0.9, 0.2), (0.2, 0.9), (0.05, 0.05)])
def test_the_tighter_gate_decides(shape: tuple[int, int, int], share: tuple[float, float]) -> None:
    normal, _, _ = both(shape)
    free = solve(normal, 1e-3)
    assert free.site_energy is not None
    budget, site_budget = share[0] * free.energy, share[1] * free.site_energy
    solution = within_budget(normal, budget, site_budget=site_budget)
    assert solution.site_energy is not None
    assert solution.energy <= budget and solution.site_energy <= site_budget
    nearly = solve(normal, solution.lam / 1.01)
    assert nearly.site_energy is not None
    assert nearly.energy > budget or nearly.site_energy > site_budget
    one, other = within_budget(normal, budget), within_budget(normal, 1e9, site_budget=site_budget)
    assert solution.lam == pytest.approx(max(one.lam, other.lam), rel=3e-3)


def test_a_site_budget_needs_the_site_moment() -> None:
    keys, residuals, corpus, _ = problem(7, 11, 5)
    with pytest.raises(KeditError, match="kedit profile"):
        within_budget(prepare(keys, residuals, moment(corpus)), 1.0, site_budget=1.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_few_trials(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial is a Cholesky factor of the whole system, so they are counted."""
    normal, _, _ = both(shape)
    trials = []
    system = Normal.system
    monkeypatch.setattr(Normal, "system", lambda self, lam: (trials.append(lam), system(self, lam))[1])
    for share in (0.9, 0.5, 0.1, 1e-3, 1e-6):
        trials.clear()
        within_budget(normal, share * solve(normal, 1e-3).energy)
        assert len(trials) <= 16, share


def test_no_budget_at_all_leaves_next_to_nothing() -> None:
    normal, _, _ = both(SHAPES[0])
    assert within_budget(normal, 0.0).lam == 1e14


# -- pins ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lam", [1e-3, 1.0, 1e6])
def test_pinned_rows_are_met_at_any_lam_and_the_rest_bends_around_them(shape: tuple[int, int, int], lam: float) -> None:
    """Equality constraints, by the KKT system of the same objective."""
    keys, residuals, corpus, omega = problem(*shape)
    c0 = moment(corpus)
    pinned = torch.tensor([1, 3])
    soft = [i for i in range(shape[2]) if i not in pinned]
    omega[pinned] = torch.inf
    solution = solve(prepare(keys, residuals, c0, omega), lam)
    assert solution.fit[pinned].min() > 1 - 1e-6
    d, k = shape[1], keys[:, soft] * omega[soft]
    quadratic = lam * regularised(c0) + k @ keys[:, soft].T
    exact = torch.zeros(2, 2).double()
    system = torch.cat([torch.cat([quadratic, keys[:, pinned]], 1), torch.cat([keys[:, pinned].T, exact], 1)])
    right = torch.cat([residuals[:, soft] @ k.T, residuals[:, pinned]], 1)
    expected = torch.linalg.solve(system, right.T)[:d].T
    assert (change(solution) - expected).norm() < 1e-5 * expected.norm()


def test_two_pins_at_one_key_share_what_they_ask_for() -> None:
    keys, residuals, corpus, _ = problem(7, 11, 5)
    keys[:, 1] = keys[:, 0]
    omega = torch.tensor([torch.inf, torch.inf, 1.0, 1.0, 1.0])
    d = change(solve(prepare(keys, residuals, moment(corpus), omega), 1.0))
    assert torch.allclose(d @ keys[:, 0], (residuals[:, 0] + residuals[:, 1]) / 2, atol=1e-4)


def test_pins_that_cost_more_than_the_budget_are_refused() -> None:
    keys, residuals, corpus, omega = problem(7, 11, 5)
    omega[:3] = torch.inf
    normal = prepare(keys, residuals, moment(corpus), omega)
    floor = solve(normal, 1e14).energy
    assert within_budget(normal, 1.1 * floor).fit[:3].min() > 1 - 1e-6
    with pytest.raises(KeditError, match="3 pinned rows alone"):
        within_budget(normal, 0.9 * floor)

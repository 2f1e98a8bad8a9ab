"""The joint solve against slow float64 references written from the equations, by the inverses the library avoids."""

import itertools

import pytest
import torch
from torch import Tensor

from kedit_hub.base.moments import regularised
from kedit_hub.stack.preconditioner import ridge
from kedit_hub.stack.solve import (
    Normal,
    Solution,
    agrees,
    balanced_lambda,
    factors,
    prepare,
    prepare_whitened,
    solve,
    solve_primal,
    within_budget,
)
from kedit_hub.stack.update import without

SHAPES = [(7, 11, 5), (9, 9, 4), (6, 8, 15)]  # (m, d, n): ordinary, square, more rows than dimensions
LAM, RHO = 3.0, 1e-3


def problem(m: int, d: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """keys (d, n), residuals (m, n), corpus (tokens, d) with a decaying spectrum, omega (n,)."""
    g = torch.Generator().manual_seed(seed)
    corpus = torch.randn(400, d, generator=g, dtype=torch.float64) @ torch.diag(torch.logspace(0, -1.5, d).double())
    corpus = corpus @ torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]
    keys = torch.randn(d, n, generator=g, dtype=torch.float64)
    residuals = torch.randn(m, n, generator=g, dtype=torch.float64)
    omega = torch.rand(n, generator=g, dtype=torch.float64) * 4 + 0.1
    return keys, residuals, corpus, omega


def moment(corpus: Tensor) -> Tensor:
    return corpus.T @ corpus / len(corpus)


def preservation(c0: Tensor, lam: float = LAM, rho: float = RHO) -> Tensor:
    """A = lam (C0 + rho tr(C0)/d I)."""
    return lam * (c0 + rho * torch.trace(c0) / len(c0) * torch.eye(len(c0), dtype=torch.float64))


def reference(keys: Tensor, residuals: Tensor, a: Tensor, omega: Tensor) -> Tensor:
    """The stationary point of J(D) = tr(D A D^T) + sum_i omega_i |D k_i - r_i|^2, by an explicit inverse."""
    big = torch.diag(omega)
    return residuals @ big @ keys.T @ torch.linalg.inv(a + keys @ big @ keys.T)


def change(solution: Solution) -> Tensor:
    return solution.y @ solution.u.T


def apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize(("shape", "asking"), [((7, 11, 5), 2), ((9, 9, 8), 1), ((6, 8, 15), 3), ((6, 8, 15), 12)])
def test_rows_that_ask_for_no_change_take_no_rank(shape: tuple[int, int, int], asking: int, pinned: bool) -> None:
    """Held still by n - a rows, a rows make a change of rank a, and it is the same change."""
    keys, residuals, corpus, omega = problem(*shape)
    order = torch.randperm(shape[2], generator=torch.Generator().manual_seed(1))
    residuals[:, order[asking:]] = 0.0
    if pinned:
        omega[order[0]] = torch.inf
    solution = solve(prepare(keys, residuals, moment(corpus), omega), LAM)
    b, q = factors(solution)
    assert b.shape[1] == q.shape[1] == min(asking, len(keys))
    assert apart(b @ q.T, change(solution)) < 1e-11
    assert torch.allclose(q.T @ q, torch.eye(q.shape[1], dtype=torch.float64), atol=1e-12)
    if not pinned:
        assert apart(b @ q.T, reference(keys, residuals, preservation(moment(corpus)), omega)) < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
def test_primal_dual_and_reference_are_one_matrix(shape: tuple[int, int, int]) -> None:
    keys, residuals, corpus, omega = problem(*shape)
    c0 = moment(corpus)
    expected = reference(keys, residuals, preservation(c0), omega)
    assert apart(change(solve(prepare(keys, residuals, c0, omega), LAM)), expected) < 5e-10
    assert apart(solve_primal(keys, residuals, c0, LAM, omega), expected) < 5e-10
    assert expected.shape == shape[:2]
    plain = reference(keys, residuals, preservation(c0), torch.ones(shape[2], dtype=torch.float64))
    assert apart(change(solve(prepare(keys, residuals, c0), LAM)), plain) < 5e-10  # omega is 1 by default
    assert apart(solve_primal(keys, residuals, c0, LAM), plain) < 5e-10
    assert apart(plain, expected) > 0.01


def test_the_solution_is_the_minimum_of_the_objective() -> None:
    keys, residuals, corpus, omega = problem(7, 11, 5)
    c0 = moment(corpus)
    a = preservation(c0)

    def objective(d: Tensor) -> float:
        return (torch.trace(d @ a @ d.T) + (omega * (d @ keys - residuals).square().sum(0)).sum()).item()

    best = change(solve(prepare(keys, residuals, c0, omega), LAM))
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        step = torch.randn(best.shape, generator=generator, dtype=torch.float64) * 1e-3
        assert objective(best + step) > objective(best)


def test_memits_published_formula() -> None:
    """Meng et al. 2023, eq. 14: Delta = R K^T (lam C0 + K K^T)^-1; no ridge, no row weights."""
    keys, residuals, corpus, _ = problem(7, 11, 5)
    c0 = moment(corpus)
    published = residuals @ keys.T @ torch.linalg.inv(LAM * c0 + keys @ keys.T)
    assert apart(change(solve(prepare(keys, residuals, c0, rho=0.0), LAM)), published) < 5e-10


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_sequential_editing_with_a_history_of_keys_is_the_joint_solve_in_any_order(order: tuple[int, ...]) -> None:
    """Recursive least squares, block by block, each block asking for what the change so far still misses."""
    keys, residuals, corpus, omega = problem(7, 11, 6)
    c0 = moment(corpus)
    p = torch.linalg.inv(preservation(c0))
    total = torch.zeros(7, 11, dtype=torch.float64)
    for block in order:
        here = slice(2 * block, 2 * block + 2)
        k, r = keys[:, here], residuals[:, here]
        gain = torch.linalg.inv(torch.diag(1 / omega[here]) + k.T @ p @ k) @ k.T @ p
        total = total + (r - total @ k) @ gain
        p = p - p @ k @ gain
    assert apart(change(solve(prepare(keys, residuals, c0, omega), LAM)), total) < 5e-10


def test_the_order_of_rows_does_not_matter() -> None:
    keys, residuals, corpus, omega = problem(7, 11, 6)
    c0 = moment(corpus)
    expected = change(solve(prepare(keys, residuals, c0, omega), LAM))
    for seed in range(5):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        shuffled = change(solve(prepare(keys[:, order], residuals[:, order], c0, omega[order]), LAM))
        assert apart(shuffled, expected) < 1e-12


@pytest.mark.parametrize("rows", [[0], [3, 1], [0, 1, 2, 4, 5]])
def test_taking_rows_out_is_never_having_added_them(rows: list[int]) -> None:
    keys, residuals, corpus, omega = problem(7, 11, 6)
    normal = prepare(keys, residuals, moment(corpus), omega)
    full = solve(normal, LAM)
    rest = [i for i in range(6) if i not in rows]
    never = solve(prepare(keys[:, rest], residuals[:, rest], moment(corpus), omega[rest]), LAM)
    y = without(full, normal, torch.tensor(rows))
    assert (y - never.y).abs().max() < 1e-9
    assert (y @ full.u[:, rest].T - change(never)).abs().max() < 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_predicted_energy_is_the_measured_one(shape: tuple[int, int, int]) -> None:
    keys, residuals, corpus, omega = problem(*shape)
    solution = solve(prepare(keys, residuals, moment(corpus), omega), LAM)
    measured = torch.stack([(change(solution) @ token).square().sum() for token in corpus]).mean().item()
    assert solution.energy == pytest.approx(measured, rel=1e-9)


def test_fit_is_one_where_the_row_is_met_and_says_how_much_is_missed() -> None:
    keys, residuals, corpus, omega = problem(7, 11, 5)
    solution = solve(prepare(keys, residuals, moment(corpus), omega), LAM)
    for i in range(5):
        missed = (change(solution) @ keys[:, i] - residuals[:, i]).norm() / residuals[:, i].norm()
        assert solution.fit[i].item() == pytest.approx(1 - missed.item(), abs=1e-9)
    met = solve(prepare(keys, residuals, moment(corpus), torch.full((5,), 1e9)), LAM)
    assert met.fit.min() > 1 - 1e-6


def misfit(normal: Normal, solution: Solution) -> float:
    return (normal.omega * (change(solution) @ normal.keys - normal.residuals).square().sum(0)).sum().item()


def test_more_lambda_means_less_energy_and_less_fit() -> None:
    keys, residuals, corpus, omega = problem(7, 11, 6)
    normal = prepare(keys, residuals, moment(corpus), omega)
    trail = [solve(normal, 10.0**e) for e in range(-3, 6)]
    assert all(a.energy > b.energy for a, b in itertools.pairwise(trail))
    assert all(misfit(normal, a) < misfit(normal, b) for a, b in itertools.pairwise(trail))
    assert trail[0].fit.mean() > 0.99 and trail[-1].fit.mean() < 0.05


@pytest.mark.parametrize("share", [0.9, 0.3, 0.01])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_budget_is_met_and_spent(shape: tuple[int, int, int], share: float) -> None:
    keys, residuals, corpus, omega = problem(*shape)
    normal = prepare(keys, residuals, moment(corpus), omega)
    budget = share * solve(normal, 1e-3).energy
    solution = within_budget(normal, budget)
    assert 0.99 * budget < solution.energy <= budget
    assert solve(normal, solution.lam / 1.01).energy > budget  # no smaller lambda would do
    assert apart(change(solution), reference(keys, residuals, preservation(moment(corpus), solution.lam), omega)) < 1e-9


def test_a_budget_that_binds_nothing_leaves_the_smallest_lambda() -> None:
    keys, residuals, corpus, _ = problem(7, 11, 5)
    normal = prepare(keys, residuals, moment(corpus))
    assert within_budget(normal, 1e9).lam == 1e-3
    assert within_budget(normal, 1e9, low=0.5).lam == 0.5


@pytest.mark.parametrize("fit", [0.5, 0.95])
def test_balanced_lambda_fits_the_median_row_alone(fit: float) -> None:
    keys, residuals, corpus, _ = problem(7, 11, 5)
    c0 = moment(corpus)
    normal = prepare(keys, residuals, c0)
    lam = balanced_lambda(normal, fit)
    alone = [solve(prepare(keys[:, [i]], residuals[:, [i]], c0), lam).fit.item() for i in range(5)]
    assert sorted(alone)[2] == pytest.approx(fit, abs=1e-9)


@pytest.mark.parametrize("n", [1, 4])
def test_heavy_rows_are_met_exactly(n: int) -> None:
    """Equality constraints: D = R (K^T A^-1 K)^-1 K^T A^-1; for one row that is ROME, Meng et al. 2022, eq. 2."""
    keys, residuals, corpus, _ = problem(7, 11, n)
    c0 = moment(corpus)
    inverse = torch.linalg.inv(preservation(c0))
    closed = residuals @ torch.linalg.inv(keys.T @ inverse @ keys) @ keys.T @ inverse
    if n == 1:
        u = inverse @ keys
        assert apart(closed, residuals @ u.T / (keys.T @ u)) < 1e-12
    heavy = change(solve(prepare(keys, residuals, c0, torch.full((n,), 1e9)), LAM))
    assert apart(heavy, closed) < 1e-6
    assert apart(heavy @ keys, residuals) < 1e-6


def test_a_square_map_is_not_transposed() -> None:
    keys, residuals, corpus, _ = problem(9, 9, 3)
    d = change(solve(prepare(keys, residuals, moment(corpus), torch.full((3,), 1e9)), LAM))
    assert apart(d @ keys, residuals) < 1e-6
    assert apart(d.T @ keys, residuals) > 0.5


@pytest.mark.parametrize("gap", [0.0, 1e-14, 1e-10, 1e-6, 1e-3])
@pytest.mark.parametrize("heavy", [1.0, 1e6])
def test_near_equal_keys_do_not_blow_up(gap: float, heavy: float) -> None:
    """J(D) <= J(0) bounds the energy of every solution by the rows' own size, however near the keys are."""
    keys, residuals, corpus, _ = problem(7, 11, 5)
    direction = torch.randn(11, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    keys[:, 1] = keys[:, 0] + gap * direction
    c0 = moment(corpus)
    normal = prepare(keys, residuals, c0, torch.full((5,), heavy))
    for solution in (solve(normal, LAM), within_budget(normal, 1.0)):
        d = change(solution)
        bound = (normal.omega * residuals.square().sum(0)).sum()
        assert torch.trace(d @ preservation(c0, solution.lam) @ d.T) <= bound
        assert torch.isfinite(d).all()
    if gap <= 1e-10:  # indistinguishable keys share what they ask for
        middle = (residuals[:, 0] + residuals[:, 1]) / 2
        met = change(solve(normal, 1e-3)) @ keys[:, 0]
        assert apart(met, middle) < (0.1 if heavy == 1.0 else 1e-3)


def test_float32_rows_are_solved_in_float64() -> None:
    keys, residuals, corpus, omega = problem(7, 11, 5)
    single = [t.float() for t in (keys, residuals, moment(corpus), omega)]
    solution = solve(prepare(*single), LAM)
    assert solution.y.dtype == solution.u.dtype == torch.float64
    expected = reference(single[0].double(), single[1].double(), preservation(single[2].double()), single[3].double())
    assert apart(change(solution), expected) < 5e-10


def test_rows_that_ask_for_no_change_hold_the_map_where_it_is() -> None:
    """A zero residual is a wish too, and its fit is told on the scale of the others."""
    keys, residuals, corpus, _ = problem(7, 11, 5)
    residuals[:, 2] = 0.0
    c0 = moment(corpus)
    free = solve(prepare(keys[:, [0, 1, 3, 4]], residuals[:, [0, 1, 3, 4]], c0), LAM)
    held = solve(prepare(keys, residuals, c0), LAM)
    moved = (change(held) @ keys[:, 2]).norm()
    assert moved < 0.7 * (change(free) @ keys[:, 2]).norm()
    typical = residuals[:, [0, 1, 3, 4]].norm(dim=0).mean()
    assert held.fit[2].item() == pytest.approx(1 - (moved / typical).item(), abs=1e-9)
    nothing = solve(prepare(keys, torch.zeros(7, 5), c0), LAM)
    assert torch.equal(nothing.fit, torch.ones(5, dtype=torch.float64)) and nothing.energy == 0.0


@pytest.mark.parametrize("shape", SHAPES)
def test_known_whitened_keys_give_the_same_normal_equations_without_c0(shape: tuple[int, int, int]) -> None:
    keys, residuals, corpus, omega = problem(*shape)
    c0 = moment(corpus)
    added = ridge(c0, RHO)
    assert added == pytest.approx((RHO * torch.trace(c0) / len(c0)).item(), rel=1e-12)
    whitened = torch.linalg.inv(c0 + added * torch.eye(len(c0), dtype=torch.float64)) @ keys
    assert agrees(keys, whitened, c0, seed=0)
    known, normal = prepare_whitened(keys, residuals, whitened, added, omega), prepare(keys, residuals, c0, omega)
    for name in ("u1", "g1", "c1"):
        assert apart(getattr(known, name), getattr(normal, name)) < 1e-10
    if shape[2] <= shape[1]:
        assert apart(known.c1, whitened.T @ c0 @ whitened) < 1e-10
    expected = reference(keys, residuals, preservation(c0), omega)
    assert apart(change(solve(known, LAM)), expected) < 1e-10  # the dual
    assert apart(solve_primal(keys, residuals, c0, LAM, omega), expected) < 5e-10
    budget = 0.3 * solve(normal, 1e-3).energy
    with_it, without_it = within_budget(known, budget), within_budget(normal, budget)
    assert with_it.lam == pytest.approx(without_it.lam, rel=1e-9)
    assert apart(change(with_it), change(without_it)) < 1e-8


@pytest.mark.parametrize("shape", SHAPES)
def test_whitened_keys_of_float32_are_as_good_as_float32(shape: tuple[int, int, int]) -> None:
    keys, residuals, corpus, omega = problem(*shape)
    c0 = moment(corpus)
    normal = prepare(keys, residuals, c0, omega)
    whitened = torch.linalg.solve(regularised(c0), keys).float()
    known = prepare_whitened(keys, residuals, whitened, ridge(c0), omega)
    assert agrees(keys.float(), whitened, c0.float(), seed=0)
    assert torch.equal(known.g1, known.g1.T) and torch.equal(known.c1, known.c1.T)
    wide, narrow = solve(normal, LAM), solve(known, LAM)
    assert 0 < apart(change(narrow), change(wide)) < 1e-4  # 1.4e-5 with more rows than dimensions, else below 1e-6
    assert narrow.energy == pytest.approx(wide.energy, rel=1e-5)

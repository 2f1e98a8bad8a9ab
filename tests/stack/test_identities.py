"""The algebra of stacks on random problems: what adding, sequencing and removing really are. References by explicit inverses."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kedit_hub.base.moments import regularised
from kedit_hub.stack.solve import prepare, solve, solve_primal
from kedit_hub.stack.update import without

NEAR = 1e-9


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, list[list[int]]]:
    """keys (d, n), residuals (m, n), corpus (t, d), omega (n,), patches: the rows of each; n may exceed d."""
    m, d, n = draw(st.integers(1, 8)), draw(st.integers(1, 10)), draw(st.integers(1, 14))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    corpus = torch.randn(60, d, generator=g, dtype=torch.float64) @ torch.randn(d, d, generator=g, dtype=torch.float64)
    keys = torch.randn(d, n, generator=g, dtype=torch.float64)
    residuals = torch.randn(m, n, generator=g, dtype=torch.float64) * 10 ** draw(st.floats(-2, 2))
    omega = torch.rand(n, generator=g, dtype=torch.float64) * 4 + 0.1
    owner = torch.tensor(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    return keys, residuals, corpus, omega, [(owner == p).nonzero()[:, 0].tolist() for p in owner.unique().tolist()]


LAMBDAS = st.floats(-2, 3).map(lambda x: 10.0**x)
many = settings(max_examples=60, deadline=None)


def moment(corpus: Tensor) -> Tensor:
    return corpus.T @ corpus / len(corpus)


def change(keys: Tensor, residuals: Tensor, c0: Tensor, lam: float, omega: Tensor) -> Tensor:
    solution = solve(prepare(keys, residuals, c0, omega), lam)
    return solution.y @ solution.u.T


def close(a: Tensor, b: Tensor, scale: Tensor) -> bool:
    """Within NEAR of the size of the problem's answers: of a sum that nearly cancels no more can be asked."""
    return bool((a - b).norm() <= NEAR * scale.norm())


@many
@given(problems(), LAMBDAS)
def test_primal_is_dual(problem: tuple, lam: float) -> None:
    keys, residuals, corpus, omega, _ = problem
    c0 = moment(corpus)
    primal = solve_primal(keys, residuals, c0, lam, omega)
    assert close(change(keys, residuals, c0, lam, omega), primal, primal)


@many
@given(problems(), LAMBDAS, st.randoms(use_true_random=False))
def test_sequential_editing_with_a_history_is_joint_in_any_order(problem: tuple, lam: float, random: object) -> None:
    """Recursive least squares: P = A^-1 carries every key that was edited."""
    keys, residuals, corpus, omega, patches = problem
    c0 = moment(corpus)
    random.shuffle(patches)  # type: ignore[attr-defined]
    p = torch.linalg.inv(lam * regularised(c0))
    total = torch.zeros(len(residuals), len(keys), dtype=torch.float64)
    for rows in patches:
        k, r = keys[:, rows], residuals[:, rows]
        gain = torch.linalg.inv(torch.diag(1 / omega[rows]) + k.T @ p @ k) @ k.T @ p
        total = total + (r - total @ k) @ gain
        p = p - p @ k @ gain
    joint = change(keys, residuals, c0, lam, omega)
    assert (joint - total).norm() <= 1e-7 * joint.norm()  # the recursion itself loses digits


@many
@given(problems(), LAMBDAS)
def test_the_sum_of_patches_solved_alone_is_one_jacobi_sweep(problem: tuple, lam: float) -> None:
    """Y (Omega^-1 + G) = R by blocks from 0: Y = R blockdiag(Omega^-1 + G)^-1."""
    keys, residuals, corpus, omega, patches = problem
    c0 = moment(corpus)
    total = sum(change(keys[:, rows], residuals[:, rows], c0, lam, omega[rows]) for rows in patches)
    u = torch.linalg.inv(lam * regularised(c0)) @ keys
    system = torch.diag(1 / omega) + keys.T @ u
    blocks = torch.zeros_like(system)
    for rows in patches:
        index = torch.tensor(rows)
        blocks[index[:, None], index[None]] = system[index[:, None], index[None]]
    sweep = residuals @ torch.linalg.inv(blocks) @ u.T
    assert isinstance(total, Tensor) and close(total, sweep, sweep)


@many
@given(problems(), LAMBDAS)
def test_sequential_editing_without_a_history_is_one_gauss_seidel_sweep(problem: tuple, lam: float) -> None:
    """Every patch asks for what the change so far misses, and forgets the earlier keys."""
    keys, residuals, corpus, omega, patches = problem
    c0 = moment(corpus)
    total = torch.zeros(len(residuals), len(keys), dtype=torch.float64)
    for rows in patches:
        missed = residuals[:, rows] - total @ keys[:, rows]
        total = total + change(keys[:, rows], missed, c0, lam, omega[rows])
    u = torch.linalg.inv(lam * regularised(c0)) @ keys
    order = torch.tensor([row for rows in patches for row in rows])
    part = torch.tensor([number for number, rows in enumerate(patches) for _ in rows])
    system = (torch.diag(1 / omega) + keys.T @ u)[order][:, order]
    lower = system * (part[:, None] <= part[None])  # of Y L = R: block column q needs the blocks p <= q of Y
    sweep = residuals[:, order] @ torch.linalg.inv(lower) @ u[:, order].T
    assert close(total, sweep, sweep)


@many
@given(problems(), LAMBDAS)
def test_removing_is_never_having_added(problem: tuple, lam: float) -> None:
    keys, residuals, corpus, omega, patches = problem
    c0 = moment(corpus)
    normal = prepare(keys, residuals, c0, omega)
    full = solve(normal, lam)
    for rows in patches[:1] if len(patches) > 1 else []:
        rest = [i for i in range(keys.shape[1]) if i not in rows]
        y = without(full, normal, torch.tensor(rows))
        never = change(keys[:, rest], residuals[:, rest], c0, lam, omega[rest])
        u = torch.linalg.solve(lam * regularised(c0), keys[:, rest])
        assert close(y @ u.T, never, full.y @ full.u.T) or close(y @ u.T, never, never)


@many
@given(problems(), LAMBDAS)
def test_predicted_drift_is_the_measured_one(problem: tuple, lam: float) -> None:
    keys, residuals, corpus, omega, _ = problem
    solution = solve(prepare(keys, residuals, moment(corpus), omega), lam)
    measured = (corpus @ (solution.y @ solution.u.T).T).square().sum(1).mean().item()
    assert abs(solution.energy - measured) <= 1e-7 * measured


@many
@given(problems(), LAMBDAS)
def test_a_row_twice_is_a_row_of_twice_the_weight(problem: tuple, lam: float) -> None:
    """Stacks drop copies by id; this is why they must: a copy would count."""
    keys, residuals, corpus, omega, _ = problem
    c0 = moment(corpus)
    twice = change(torch.cat([keys, keys], 1), torch.cat([residuals, residuals], 1), c0, lam, torch.cat([omega, omega]))
    heavy = change(keys, residuals, c0, lam, 2 * omega)
    assert close(twice, heavy, heavy)


@many
@given(problems(), LAMBDAS)
def test_a_row_of_no_weight_is_no_row(problem: tuple, lam: float) -> None:
    keys, residuals, corpus, omega, patches = problem
    c0 = moment(corpus)
    faint = omega.clone()
    faint[patches[0]] = 1e-14
    rest = [i for i in range(keys.shape[1]) if i not in patches[0]]
    silent = change(keys, residuals, c0, lam, faint)
    never = change(keys[:, rest], residuals[:, rest], c0, lam, omega[rest]) if rest else torch.zeros_like(silent)
    assert (silent - never).norm() <= 1e-8 * change(keys, residuals, c0, lam, omega).norm()


@many
@given(problems(), LAMBDAS, st.randoms(use_true_random=False))
def test_the_order_of_rows_is_no_matter(problem: tuple, lam: float, random: object) -> None:
    keys, residuals, corpus, omega, _ = problem
    order = list(range(keys.shape[1]))
    random.shuffle(order)  # type: ignore[attr-defined]
    c0 = moment(corpus)
    one = change(keys, residuals, c0, lam, omega)
    assert close(change(keys[:, order], residuals[:, order], c0, lam, omega[order]), one, one)

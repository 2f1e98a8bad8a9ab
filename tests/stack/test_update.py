"""Rows that come and go, against solving from the rows themselves."""

import pytest
import torch
from torch import Tensor

from kedit_hub.base.moments import regularised
from kedit_hub.errors import KeditError
from kedit_hub.stack.preconditioner import preconditioner
from kedit_hub.stack.solve import Normal, agrees, prepare, solve
from kedit_hub.stack.update import append, hold, left_out, without
from tests.stack.test_solve import LAM, SHAPES, apart, change, moment, problem

BLOCKS = [(7, 11, 9), (9, 9, 8), (6, 8, 15)]


def normal_of(shape: tuple[int, int, int], pins: tuple[int, ...] = (), **more: object) -> tuple[Normal, Tensor]:
    keys, residuals, corpus, omega = problem(*shape)
    omega[list(pins)] = torch.inf
    return prepare(keys, residuals, moment(corpus), omega, **more), moment(corpus)  # type: ignore[arg-type]


def some(normal: Normal, c0: Tensor, rows: list[int], **more: object) -> Normal:
    return prepare(normal.keys[:, rows], normal.residuals[:, rows], c0, normal.omega[rows], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("pins", [(), (0, 5)])
@pytest.mark.parametrize("kind", ["second-moment", "hybrid"])
@pytest.mark.parametrize("steps", [(3, 4, 2), (1, 8), (8, 1)])
def test_a_bordered_system_is_the_system_of_all_rows(pins: tuple[int, ...], kind: str, steps: tuple[int, ...]) -> None:
    keys, residuals, corpus, omega = problem(7, 11, 9)
    omega[list(pins)] = torch.inf
    c0, cs = moment(corpus), moment(corpus[:50])
    by = preconditioner(kind, c0, share=0.3)  # type: ignore[arg-type]
    whole = prepare(keys, residuals, c0, omega, by=by, site_moment=cs)
    at = 0
    held = None
    for step in steps:
        part = some(whole, c0, list(range(at, at + step)), by=by, site_moment=cs)
        held = hold(part, LAM) if held is None else append(held, part)
        at += step
    assert held is not None
    expected = solve(whole, LAM)
    assert apart(change(held.solution), change(expected)) < 1e-9
    assert apart(held.factor, torch.linalg.cholesky(whole.system(LAM))) < 1e-9
    for name in ("g1", "c1", "s1", "text", "site", "u1"):
        assert apart(getattr(held.normal, name), getattr(whole, name)) < 1e-12
    assert held.solution.energy == pytest.approx(expected.energy, rel=1e-9)
    assert held.solution.site_energy == pytest.approx(expected.site_energy, rel=1e-9)


def test_what_is_appended_can_be_taken_out_again() -> None:
    whole, c0 = normal_of((7, 11, 9))
    first, second = some(whole, c0, [0, 1, 2, 3, 4, 5]), some(whole, c0, [6, 7, 8])
    held = append(hold(first, LAM), second)
    back = without(held.solution, held.normal, torch.tensor([6, 7, 8]))
    assert (back - solve(first, LAM).y).abs().max() < 1e-9


def test_more_rows_than_dimensions_do_not_grow_row_by_row() -> None:
    whole, c0 = normal_of((6, 8, 15))
    few, more = some(whole, c0, list(range(7))), some(whole, c0, [7, 8])
    with pytest.raises(KeditError, match="9 rows are more than the 8 dimensions"):
        append(hold(few, LAM), more)


@pytest.mark.parametrize("pins", [(), (2,), (0, 1, 4)])
@pytest.mark.parametrize("shape", BLOCKS)
@pytest.mark.parametrize("blocks", ["rows", "patches", "one"])
def test_what_the_rest_says(shape: tuple[int, int, int], pins: tuple[int, ...], blocks: str) -> None:
    """Against solving anew without each block; also with merged rows (n > d) and pinned ones."""
    normal, c0 = normal_of(shape, pins)
    n = shape[2]
    block = {"rows": torch.arange(n), "patches": (torch.arange(n) * 7 % 4).sort().values, "one": torch.zeros(n).long()}[
        blocks
    ]
    told = left_out(solve(normal, LAM), normal, block)
    for label in block.unique().tolist():
        gone = (block == label).nonzero()[:, 0]
        rest = [i for i in range(n) if i not in gone]
        d = change(solve(some(normal, c0, rest), LAM)) if rest else torch.zeros(shape[:2]).double()
        said = d @ normal.keys[:, gone]
        assert torch.allclose(told.said[:, gone], said, atol=1e-6 if pins else 1e-9)
        if rest:
            kappa = said.norm(dim=0) / normal.residuals[:, gone].norm(dim=0)
            assert torch.allclose(told.kappa[gone], kappa, atol=1e-6)
            cosine = torch.cosine_similarity(said, normal.residuals[:, gone], dim=0)
            assert torch.allclose(told.cosine[gone], cosine, atol=1e-6)


def test_a_duplicate_a_contradiction_and_a_stranger_are_told_apart() -> None:
    normal, c0 = normal_of((7, 40, 4))
    keys, residuals = normal.keys.clone(), normal.residuals.clone()
    keys[:, 1], residuals[:, 1] = keys[:, 0], residuals[:, 0]
    keys[:, 3], residuals[:, 3] = keys[:, 2], -residuals[:, 2]
    again = prepare(keys, residuals, c0)
    told = left_out(solve(again, 1e-3), again, torch.arange(4))
    assert told.cosine[:2].min() > 0.9 and told.cosine[2:].max() < -0.9
    assert told.kappa.min() > 0.5
    lonely_rows, _ = normal_of((7, 40, 2))
    lonely = left_out(solve(lonely_rows, 1e3), lonely_rows, torch.arange(2))
    assert lonely.kappa.max() < 0.3


def test_rows_that_ask_for_nothing_have_a_kappa_on_the_scale_of_the_others() -> None:
    normal, c0 = normal_of((7, 11, 5))
    residuals = normal.residuals.clone()
    residuals[:, 2] = 0
    held = prepare(normal.keys, residuals, c0)
    told = left_out(solve(held, LAM), held, torch.arange(5))
    typical = residuals[:, [0, 1, 3, 4]].norm(dim=0).mean()
    assert told.kappa[2].item() == pytest.approx((told.said[:, 2].norm() / typical).item()) and told.cosine[2] == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_latest_wins_is_a_weight_of_nothing(shape: tuple[int, int, int]) -> None:
    """omega -> 0 silences a row as if it had never been there, and its own weight brings it back."""
    normal, c0 = normal_of(shape)
    omega = normal.omega.clone()
    omega[2] = 1e-14
    silent = solve(prepare(normal.keys, normal.residuals, c0, omega), LAM)
    rest = [i for i in range(shape[2]) if i != 2]
    assert apart(change(silent), change(solve(some(normal, c0, rest), LAM))) < 1e-9
    again = prepare(normal.keys, normal.residuals, c0, normal.omega)
    assert torch.equal(change(solve(again, LAM)), change(solve(normal, LAM)))


# -- whitened keys on trust ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [5, 300])
@pytest.mark.parametrize("lie", ["none", "f16 keys", "one row", "scaled", "swapped", "keys", "noise", "one direction"])
def test_whitened_keys_are_believed_only_where_they_solve_their_equation(rows: int, lie: str) -> None:
    keys, residuals, corpus, _ = problem(7, 60, rows)
    c0 = moment(corpus).float()
    keys = keys.float()
    u = prepare(keys[:, :60], residuals, c0).u1 if rows <= 60 else torch.cat(
        [prepare(part, torch.zeros(7, part.shape[1]), c0).u1 for part in keys.split(60, 1)], 1
    )  # fmt: skip
    u = u.float()
    generator = torch.Generator().manual_seed(5)
    if lie == "f16 keys":
        keys = keys.half().float()
    elif lie == "one row":
        u[:, 3] *= 1.05
    elif lie == "scaled":
        u = 1.02 * u
    elif lie == "swapped":
        u[:, [0, 1]] = u[:, [1, 0]]
    elif lie == "keys":
        u = keys.clone()
    elif lie == "noise":
        u *= 1 + 0.05 * torch.randn(u.shape, generator=generator)
    elif lie == "one direction":  # a poisoned row: moves text along the largest direction
        u[:, 1] += 0.1 * u[:, 1].norm() * torch.linalg.eigh(c0.double())[1][:, -1].float()
    for seed in range(20):
        assert agrees(keys, u, c0, seed=seed) == (lie in ("none", "f16 keys"))


@pytest.mark.parametrize("shape", BLOCKS)
def test_every_row_knows_its_own_leverage(shape: tuple[int, int, int]) -> None:
    normal, c0 = normal_of(shape, (4,))
    expected = (normal.keys * torch.linalg.solve(regularised(c0), normal.keys)).sum(0)
    assert torch.allclose(normal.own(), expected, rtol=1e-9)

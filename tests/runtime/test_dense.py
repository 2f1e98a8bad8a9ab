"""Low-rank branches that became dense or were put side by side are the change they were."""

import pytest
import torch
from torch import Tensor

from kedit_hub.runtime.attach import Branch, Pass
from kedit_hub.runtime.linear import DenseBranch, LowRankBranch, side_by_side
from tests.runtime.loops import numbers

B, T = 3, 4


def low(rank: int, out: int, width: int, owners: tuple[str, ...], seed: int = 1) -> LowRankBranch:
    return LowRankBranch(numbers(rank, out, seed=seed), numbers(rank, width, seed=seed + 50), owners)


def slow(branches: list[LowRankBranch], x: Tensor, y: Tensor, rows: list[set[str]] | None) -> Tensor:
    """One rank and one row of the batch at a time, float64."""
    out = y.double().clone()
    for branch in branches:
        for u, v, owner in zip(branch.u.double(), branch.v.double(), branch.owners):
            for b in range(len(x)):
                if rows is None or owner in rows[b]:
                    out[b] += (x[b].double() @ v)[:, None] * u
    return out


@pytest.mark.parametrize(("out", "width"), [(6, 10), (8, 8), (10, 6)])
def test_it_is_dense_from_where_that_is_smaller(out: int, width: int) -> None:
    x, y = numbers(B, T, width, seed=3), numbers(B, T, out, seed=4)
    seen = set()
    for rank in range(1, 12):
        branch = low(rank, out, width, tuple(f"p{i % 3}" for i in range(rank)))
        seen.add(branch.is_dense)
        assert branch.is_dense == (rank * out + rank * width > out * width)
        assert torch.allclose(branch(x, y, Pass()).double(), slow([branch], x, y, None), atol=1e-4)
        rows = [{"p0"}, set(), {"p1", "p2"}]
        got = branch(x, y, Pass(selection=tuple(map(frozenset, rows))))
        assert torch.allclose(got.double(), slow([branch], x, y, rows), atol=1e-4)
        assert torch.equal(got[1], y[1])
        whole = branch.owned("all")
        got = whole(x, y, Pass(selection=(frozenset(["all"]), frozenset(), frozenset(["all"]))))
        assert torch.allclose(got.double()[[0, 2]], slow([branch], x, y, None)[[0, 2]], atol=1e-4)
        assert torch.equal(got[1], y[1])
    assert seen == {True, False}


def test_side_by_side_is_one_after_the_other() -> None:
    out, width = 6, 10
    dense = DenseBranch(numbers(out, width, seed=7), "d")
    lows = [low(2, out, width, ("a", "b"), 10), low(1, out, width, ("c",), 20), low(3, out, width, ("a",) * 3, 30)]
    branches: list[Branch] = [*lows[:2], dense, lows[2]]
    merged = side_by_side(branches)
    assert [type(branch) for branch in merged] == [LowRankBranch, DenseBranch, LowRankBranch]
    x, y = numbers(B, T, width, seed=3), numbers(B, T, out, seed=4)
    for now in (Pass(), Pass(selection=(frozenset("a"), frozenset(), frozenset("bcd")))):
        one, other = y, y
        for branch in branches:
            one = branch(x, one, now)
        for branch in merged:
            other = branch(x, other, now)
        assert torch.allclose(one, other, atol=1e-5)
    assert torch.equal(other[1], y[1])
    assert side_by_side([dense, lows[0], dense])[1] is lows[0]


def test_what_was_placed_without_gradients_lets_them_through() -> None:
    """The dense form is made on first use, which may be inside inference_mode."""
    branch = low(9, 6, 10, ("a",) * 9)
    x, y = numbers(B, T, 10, seed=3), numbers(B, T, 6, seed=4)
    with torch.inference_mode():
        branch(x, y, Pass())
    variable = x.clone().requires_grad_(True)
    branch(variable, y, Pass()).sum().backward()
    assert variable.grad is not None and torch.allclose(variable.grad, branch.matrix().sum(0).expand_as(x), atol=1e-4)

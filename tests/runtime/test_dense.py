"""Branches that became dense, were put side by side or summed are the change they were."""

from typing import Any, Self, cast

import pytest
import torch
from torch import Tensor

from kedit_hub.runtime.attach import Branch, Pass
from kedit_hub.runtime.linear import DenseBranch, LowRankBranch, SparseBranch, SumBranch, side_by_side
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


def sparse(count: int, out: int, width: int, owner: str, seed: int = 5) -> SparseBranch:
    places = torch.randperm(out * width, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    return SparseBranch(places, numbers(count, seed=seed), (out, width), owner)


class Rounds:
    """No linear map."""

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        return y.round(decimals=1)

    def owned(self, name: str) -> Self:
        return self


PASSES = [
    Pass(),
    Pass(selection=(frozenset("a"), frozenset(), frozenset("bcde"))),
    Pass(selection=(frozenset("d"), frozenset(), frozenset("d"))),
]


@pytest.mark.parametrize("now", PASSES)
@pytest.mark.parametrize(("out", "width"), [(6, 10), (8, 8), (10, 6)])
def test_side_by_side_is_one_after_the_other(now: Pass, out: int, width: int) -> None:
    d, e = DenseBranch(numbers(out, width, seed=7), "d"), DenseBranch(numbers(out, width, seed=8), "e")
    lows = [low(2, out, width, ("a", "b"), 10), low(1, out, width, ("c",), 20), low(1, out, width, ("a",), 30)]
    few, many = sparse(5, out, width, "e"), sparse(out * width - 3, out, width, "b", 6)
    rounds = Rounds()
    kinds = {
        "low": (lows, [LowRankBranch]),
        "one dense": ([d], [DenseBranch]),
        "dense": ([d, e], [SumBranch]),
        "all": ([lows[0], few, d, lows[1]], [SumBranch]),
        "few entries": ([few, lows[1]], [LowRankBranch, SparseBranch]),
        "many entries": ([many, few], [SumBranch]),
        "not linear": ([lows[0], d, rounds, e, lows[1], lows[2]], [SumBranch, Rounds, SumBranch]),
    }
    x, y = numbers(B, T, width, seed=3), numbers(B, T, out, seed=4)
    for branches, expected in kinds.values():
        merged = side_by_side(cast(list[Branch], branches))
        assert [type(branch) for branch in merged] == expected
        one, other = y, y
        for branch in branches:
            one = branch(x, one, now)
        for branch in merged:
            other = branch(x, other, now)
        assert torch.allclose(one, other, atol=1e-5)
        if now.selection is not None and rounds not in branches:
            assert torch.equal(other[1], y[1])
    assert side_by_side([lows[0], rounds])[0] is lows[0]


def test_a_sum_is_one_product_and_of_one_owner_if_it_is_owned(monkeypatch: pytest.MonkeyPatch) -> None:
    branches: list[Branch] = [DenseBranch(numbers(6, 10, seed=seed), f"p{seed}") for seed in range(5)]
    (merged,) = side_by_side(branches)
    assert isinstance(merged, SumBranch)
    x, y = numbers(B, T, 10, seed=13), numbers(B, T, 6, seed=14)
    ran: list[str] = []
    asked = DenseBranch.__call__

    def note(branch: DenseBranch, *given: Any) -> Tensor:
        ran.append(branch.owner)
        return asked(branch, *given)

    monkeypatch.setattr(DenseBranch, "__call__", note)
    whole = merged(x, y, Pass())
    expected = (
        y.double() + x.double() @ sum((numbers(6, 10, seed=seed).double() for seed in range(5)), torch.zeros(())).T
    )
    assert torch.allclose(whole.double(), expected, atol=1e-4) and ran == []
    got = merged.owned("all")(x, y, Pass(selection=(frozenset(["all"]), frozenset(), frozenset(["all"]))))
    assert torch.equal(got[[0, 2]], whole[[0, 2]]) and torch.equal(got[1], y[1]) and ran == []
    merged(x, y, Pass(selection=(frozenset(["p3"]), frozenset(), frozenset(["p1"]))))
    assert ran == ["p1", "p3"]


def test_a_sum_leaves_its_parts_as_they_were() -> None:
    parts = [DenseBranch(numbers(6, 10, seed=seed), f"p{seed}") for seed in range(3)]
    kept = [part.delta.clone() for part in parts]
    SumBranch(tuple(parts)).matrix()
    assert all(torch.equal(part.delta, before) for part, before in zip(parts, kept))


def test_what_was_placed_without_gradients_lets_them_through() -> None:
    """The dense form is made on first use, which may be inside inference_mode."""
    branch = low(9, 6, 10, ("a",) * 9)
    x, y = numbers(B, T, 10, seed=3), numbers(B, T, 6, seed=4)
    with torch.inference_mode():
        branch(x, y, Pass())
    variable = x.clone().requires_grad_(True)
    branch(variable, y, Pass()).sum().backward()
    assert variable.grad is not None and torch.allclose(variable.grad, branch.matrix().sum(0).expand_as(x), atol=1e-4)

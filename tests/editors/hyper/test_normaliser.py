"""The running statistics are those of all rows at once, however they came; dead dimensions stay finite."""

import pytest
import torch

from kedit_hub.editors.hyper.normaliser import BOUND, Normaliser


@pytest.mark.parametrize("sizes", [(50,), (1, 49), (7, 0, 1, 1, 41), (1,) * 50])
def test_statistics_are_those_of_all_rows(sizes: tuple[int, ...]) -> None:
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 100
    normaliser = Normaliser(6)
    for part in rows.split(list(sizes)):
        normaliser.observe(part)
    assert float(normaliser.count) == 50
    assert torch.allclose(normaliser.mean, rows.mean(0), rtol=1e-12)
    assert torch.allclose(normaliser.running.deviation(), rows.std(0), rtol=1e-9)
    assert torch.allclose(normaliser(rows), ((rows - rows.mean(0)) / rows.std(0)).float(), atol=1e-6)


def test_tiny_signals_keep_their_digits() -> None:
    rows = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * 1e-7 + 1e-3
    normaliser = Normaliser(3)
    normaliser.observe(rows)
    assert torch.allclose(normaliser(rows).std(0), torch.ones(3), atol=1e-3)


def test_one_row_and_no_row_are_no_accident() -> None:
    normaliser = Normaliser(4)
    normaliser.observe(torch.zeros(0, 4))
    assert float(normaliser.count) == 0 and torch.equal(normaliser(torch.ones(2, 4)), torch.ones(2, 4))
    normaliser.observe(torch.full((1, 4), 5.0))
    assert torch.equal(normaliser(torch.full((1, 4), 6.0)), torch.ones(1, 4))


def test_a_dimension_that_never_moved_does_not_explode() -> None:
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    rows[:, 2] = 0.25
    normaliser = Normaliser(5)
    normaliser.observe(rows)
    moved = rows[:1].clone()
    moved[:, 2] += 1e-3
    assert float(normaliser(moved)[0, 2]) == BOUND
    assert torch.isfinite(normaliser(rows)).all()
    dead = Normaliser(3)
    dead.observe(torch.ones(4, 3))
    assert torch.equal(dead(torch.ones(1, 3)), torch.zeros(1, 3))


def test_statistics_travel_in_the_state() -> None:
    one, other = Normaliser(3), Normaliser(3)
    one.observe(torch.randn(9, 3, generator=torch.Generator().manual_seed(0)))
    other.load_state_dict(one.state_dict())
    rows = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(one(rows), other(rows)) and {v.dtype for v in one.state_dict().values()} == {torch.float64}

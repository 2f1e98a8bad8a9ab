"""The searches: the exact one is a plain product, the approximate one finds no pair that is not there."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kedit_hub.runtime import nearest
from kedit_hub.runtime.nearest import Approximate, Exact, Search, search
from tests.runtime.loops import numbers


def pairs(found: Search, queries: Tensor) -> list[tuple[int, int]]:
    return sorted((int(q), int(k)) for query, key in found.above(queries) for q, k in zip(query, key))


def clustered(edits: int, per: int, width: int) -> Tensor:
    """(edits * per, width): `per` keys around each of `edits` directions."""
    centres = normalize(numbers(edits, width, seed=0), dim=1).repeat_interleave(per, 0)
    return normalize(centres + 0.6 * normalize(numbers(len(centres), width, seed=1), dim=1), dim=1)


@pytest.mark.parametrize("bound", [1, 50, 1 << 23])
def test_exact(bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "BOUND", bound)
    keys, queries = normalize(numbers(17, 5, seed=0), dim=1), normalize(numbers(23, 5, seed=1), dim=1)
    thresholds = torch.linspace(-1.0, 0.9, 17)
    expected = [
        (q, k) for q in range(23) for k in range(17) if float(queries[q].double() @ keys[k].double()) >= thresholds[k]
    ]
    found = pairs(Exact(keys, thresholds), queries)
    assert found == expected and 0 < len(found) < 17 * 23
    assert pairs(Exact(keys[:0], thresholds[:0]), queries) == []


def test_approximate_finds_nearly_all_and_nothing_else() -> None:
    pytest.importorskip("faiss")
    keys = clustered(600, 5, 64)
    queries = clustered(600, 1, 64)[:200]
    thresholds = 0.5 + 0.2 * torch.rand(len(keys), generator=torch.Generator().manual_seed(2))
    true = set(pairs(Exact(keys, thresholds), queries))
    found = pairs(Approximate(keys, thresholds), queries)
    assert len(found) == len(set(found)) and set(found) <= true and len(found) >= 0.98 * len(true) > 500
    assert pairs(Approximate(keys, thresholds), queries) == found  # the same set gives the same index


def test_one_query_at_a_time_is_all_at_once() -> None:
    pytest.importorskip("faiss")
    keys, queries = clustered(600, 5, 64), clustered(600, 1, 64)[:20]
    found = Approximate(keys, torch.full((3000,), 0.5))
    alone = [(q, k) for q in range(20) for _, k in pairs(found, queries[q : q + 1])]
    assert alone == pairs(found, queries) and alone


def test_few_keys_are_searched_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, thresholds = clustered(20, 5, 16), torch.full((100,), 0.5)
    assert isinstance(search(keys, thresholds), Exact)
    monkeypatch.setattr(nearest, "MANY", 99)
    monkeypatch.setattr(nearest, "find_spec", lambda _name: None)
    assert isinstance(search(keys, thresholds), Exact)  # nor are many, where faiss is not installed


def test_many_keys_are_searched_through_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(nearest, "MANY", 99)
    assert isinstance(search(clustered(20, 5, 16), torch.full((100,), 0.5)), Approximate)

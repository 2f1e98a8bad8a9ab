"""The sieve loses no pair that is within its limit, and what is nearest is what a search by differences in float64 finds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kedit_hub.runtime import sieve
from kedit_hub.runtime.attach import Pass
from kedit_hub.runtime.codebook import CodebookBranch
from kedit_hub.runtime.facts import Fact, FactsRouter, Piece
from kedit_hub.runtime.scope import Near
from kedit_hub.runtime.sieve import Sieve, distances
from tests.runtime.loops import numbers

LEVELS = pytest.mark.parametrize("many", [1, 10**9], ids=["coarse levels", "one product"])


def laid_out(seed: int, count: int, width: int, shift: float, rank: int) -> tuple[Tensor, Tensor]:
    """Keys, a third of them copies, near a subspace and far from the origin; inputs at keys, beside them and elsewhere."""
    drawn = torch.Generator().manual_seed(seed)
    keys = torch.randn(count, rank, generator=drawn) @ torch.randn(rank, width, generator=drawn) / rank**0.5
    keys += 0.05 * torch.randn(count, width, generator=drawn) + shift
    keys[2 * count // 3 :] = keys[: count - 2 * count // 3].clone()
    beside = keys[torch.arange(5) % count] + 0.2 * torch.randn(5, width, generator=drawn)
    return keys, torch.cat([keys[:3], beside, shift + torch.randn(4, width, generator=drawn)])


def exactly(inputs: Tensor, keys: Tensor) -> Tensor:
    return (inputs[:, None].double() - keys.double()).norm(dim=2)


@given(
    st.integers(0, 10**6),
    st.integers(1, 60),
    st.integers(1, 40),
    st.sampled_from([0.0, 3.0, 300.0]),
    st.integers(1, 40),
)
@settings(deadline=None, max_examples=25)
def test_no_pair_within_its_limit_is_lost(seed: int, count: int, width: int, shift: float, rank: int) -> None:
    keys, inputs = laid_out(seed, count, width, shift, rank)
    true = exactly(inputs, keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sieve, "WIDTHS", (2, 5))
        for many, few in ((1, 10**9), (1, 0), (10**9, 4)):
            patch.setattr(sieve, "MANY", many)
            patch.setattr(sieve, "FEW", few)
            patch.setattr(sieve, "BOUND", 64)
            made = Sieve(keys)
            assert (len(made.levels) > 1) == (many == 1 and width >= 4)
            quantile = true.flatten().sort().values[true.numel() // 3]
            for limits in (quantile.expand(count), true.amin(0), true.amin(1, keepdim=True), torch.zeros(count)):
                row, key = made.pairs(inputs, limits.float().square())
                found = torch.zeros_like(true, dtype=torch.int)
                found.index_put_((row, key), torch.ones(len(row), dtype=torch.int), accumulate=True)
                assert int(found.max()) <= 1
                assert not bool(((true <= limits) & (found == 0)).any())


def test_coarse_levels_leave_few_pairs() -> None:
    """What all of it is for: of 10,000 keys near a subspace hardly any are read in full."""
    keys, inputs = laid_out(1, 10_000, 64, 0.0, 6)
    made = Sieve(keys)
    assert [level.shape[1] for level in made.levels] == [17, 64]
    limits = torch.full((len(keys),), 0.5)
    within = exactly(inputs, keys) <= math.sqrt(0.5)
    row, _ = made.pairs(inputs, limits)
    assert int(within.sum()) <= len(row) < 4 * int(within.sum()) + 20 and len(row) < within.numel() / 100


def test_distances_come_from_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sieve, "BLOCK", 10)
    keys = 1000 + numbers(7, 5, seed=1) / 100
    inputs = keys[:3] + 0.001
    row, key = torch.tensor([0, 2, 2, 1]), torch.tensor([0, 6, 2, 5])
    assert torch.allclose(distances(inputs, keys, row, key).double(), exactly(inputs, keys)[row, key], rtol=1e-6)
    assert distances(inputs, keys, row[:0], key[:0]).shape == (0,)


def by_definition(x: Tensor, y: Tensor, book: CodebookBranch, now: Pass) -> Tensor:
    """GRACE's rule for every position by itself, in float64; no radius may lie on the edge."""
    out, real = y.clone(), now.real(*x.shape[:2], x.device)
    for row in range(len(x)):
        ends = int(real[row].nonzero().max()) if bool(real[row].any()) else -1
        for position in range(x.shape[1]):
            if not bool(real[row, position]):
                continue
            best, found = math.inf, -1
            for entry, key in enumerate(book.keys):
                allowed = now.selection is None or book.owners[entry] in now.selection[row]
                if allowed and (bool(book.everywhere[entry]) or (position == ends and now.past == 0)):
                    far = float((x[row, position].double() - key.double()).norm())
                    if far < best:
                        best, found = far, entry
            if found >= 0 and best <= float(book.radii[found]) * (1 + 1e-4):
                out[row, position] = book.values[found].to(y.dtype)
    return out


@LEVELS
@pytest.mark.parametrize("seed", range(4))
def test_a_codebook_is_its_definition(many: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies, balls within balls, entries that never speak, left and right padding, rows with patches of their own, half precision."""
    monkeypatch.setattr(sieve, "MANY", many)
    drawn = torch.Generator().manual_seed(seed)
    keys, inputs = laid_out(seed, 60, 16, 1.0, 5)
    radii = 0.2 + 3 * torch.rand(60, generator=drawn)
    radii[::7] = -1.0
    owners = tuple("abc"[i % 3] for i in range(60))
    book = CodebookBranch(keys, torch.randn(60, 3, generator=drawn), radii, torch.arange(60) % 2 == 0, owners)
    x = inputs[torch.randint(0, len(inputs), (4, 6), generator=drawn)]
    x = (x + 0.01 * torch.randn(x.shape, generator=drawn)).to([torch.float32, torch.bfloat16][seed % 2])
    y = torch.zeros(4, 6, 3, dtype=x.dtype)
    attention = torch.ones(4, 6)
    attention[1, :3], attention[2, 4:], attention[3] = 0, 0, 0
    chosen = (frozenset("a"), frozenset("bc"), frozenset("abc"), frozenset("abc"))
    changed = 0
    for selection in (None, chosen):
        for past in (0, 5):
            mask = torch.cat([torch.ones(4, past), attention], 1)
            now = Pass(attention=mask, past=past, selection=selection)
            out = book(x, y, now)
            assert torch.equal(out, by_definition(x, y, book, now))
            changed += int(out.any(2).sum())
            assert torch.equal(book.owned("a")(x, y, now), by_definition(x, y, book.owned("a"), now))
    assert changed > 5


@LEVELS
def test_a_trained_scope_tells_all_that_reach_their_threshold(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sieve, "MANY", many)
    keys, inputs = laid_out(3, 60, 16, 2.0, 5)
    thresholds = (0.05 + 0.9 * torch.rand(60, generator=torch.Generator().manual_seed(1))).double()
    router = FactsRouter(
        tuple(Fact(at, Piece("", ()), "p") for at in thresholds.tolist()),
        (Near(keys[:40], 0.3, projection=torch.eye(16)), Near(keys[40:], 0.1, projection=torch.eye(16))),
        lambda ids: "",
        None,
    )
    similar = router.similarities(["?"] * len(inputs), [inputs, inputs])
    scale = torch.tensor([0.3] * 40 + [0.1] * 20, dtype=torch.float64)
    ought = (-scale * exactly(inputs, keys).square()).exp()
    reached = ought >= thresholds
    assert 0 < int(reached.sum()) < reached.numel()
    assert torch.allclose(similar[reached], ought[reached], rtol=1e-9)
    assert bool((similar[~reached] < thresholds.expand_as(ought)[~reached]).all())

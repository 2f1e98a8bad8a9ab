"""The geometry of a stack against loops from the equations: rho, leaving rows out, cross-talk, and what the gate would let speak."""

import math

import pytest
import torch

from kedit_hub.runtime.gate import Bank
from kedit_hub.stack import overlap
from kedit_hub.stack.overlap import cross_talk, gate_fires, kind_of, left_out, near_pairs

N, D, M = 14, 9, 5
EDIT = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, 6, 6, 7, 7, 7])  # edit 5 is silent
PATCH = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3])
PLACES = [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0), ("c", 1), ("d", 0), ("d", 1)]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[(0, M), (1, D), (2, 17)], ids=["m<d", "m=d", "m>d"])
def rows(request):
    seed, m = request.param
    root = numbers(D, D, seed=seed)
    c0 = root @ root.T + torch.eye(D, dtype=torch.float64)
    keys, residuals = numbers(N, D, seed=seed + 10), numbers(N, m, seed=seed + 20)
    keys[6] = 2 * keys[3] + 0.1 * keys[6]  # edits 2 and 3 share a direction
    omega = numbers(N, seed=seed + 30).exp()
    return keys, keys @ torch.linalg.inv(c0), residuals, omega


def slow_pairs(keys, u1, residuals, least):
    """Every pair of rows of two edits, one by one; the closest of each pair of edits."""
    best = {}
    g = [[float(keys[i] @ u1[j]) for j in range(N)] for i in range(N)]
    for i in range(N):
        for j in range(N):
            rho = g[i][j] / math.sqrt(g[i][i] * g[j][j])
            if EDIT[i] < EDIT[j] and abs(rho) >= least:
                r, s = residuals[i], residuals[j]
                one = float((s * g[j][i] / g[j][j]).norm() / r.norm())  # j met exactly and alone, at the key of i
                other = float((r * g[i][j] / g[i][i]).norm() / s.norm())
                cosine = float(s @ r / (s.norm() * r.norm())) * math.copysign(1, rho)
                pair = (int(EDIT[i]), int(EDIT[j]))
                if abs(rho) > abs(best.get(pair, (0,))[0]):
                    best[pair] = (rho, max(one, other), cosine)
    return best


@pytest.mark.parametrize("block", [2, 1024])
def test_near_pairs(rows, block, monkeypatch):
    monkeypatch.setattr(overlap, "BLOCK", block)
    keys, u1, residuals, _ = rows
    for least in (0.3, 0.8):
        expected = slow_pairs(keys, u1, residuals, least)
        near, count = near_pairs(keys, u1, residuals, EDIT, PLACES, least)
        assert count == len(near) == len(expected)
        assert [abs(x.rho) for x in near] == sorted((abs(x.rho) for x in near), reverse=True)
        for x in near:
            pair = (PLACES.index(x.a), PLACES.index(x.b))
            assert (x.rho, x.kappa, x.cosine) == pytest.approx(expected[pair])
    assert (PLACES[2], PLACES[3]) in [(x.a, x.b) for x in near]


def test_only_the_closest_are_kept_and_all_are_counted(rows, monkeypatch):
    keys, u1, residuals, _ = rows
    every, count = near_pairs(keys, u1, residuals, EDIT, PLACES, 0.1)
    monkeypatch.setattr(overlap, "MAX_LISTED", 3)
    monkeypatch.setattr(overlap, "BLOCK", 3)
    few, counted = near_pairs(keys, u1, residuals, EDIT, PLACES, 0.1)
    assert counted == count > 3 and [(x.a, x.b) for x in few] == [(x.a, x.b) for x in every[:3]]


def test_rows_that_ask_for_no_change(rows):
    """Two of them are no pair; one beside a row that asks for something counts as a typical row does."""
    keys, u1, residuals, omega = rows
    residuals = residuals.clone()
    residuals[[3, 6]] = 0.0
    near, _ = near_pairs(keys, u1, residuals, EDIT, PLACES, 0.9)
    assert (PLACES[2], PLACES[3]) not in [(x.a, x.b) for x in near]
    residuals[3] = 1.0
    near, _ = near_pairs(keys, u1, residuals, EDIT, PLACES, 0.9)
    assert [(x.kind, x.cosine) for x in near if x.b == PLACES[3]] == [("interfering", 0.0)]
    assert all(math.isfinite(number) for told in left_out(keys @ u1.T, residuals, 1 / omega, PATCH) for number in told)


@pytest.mark.parametrize("group", [EDIT.unique(return_inverse=True)[1], PATCH], ids=["edits", "patches"])
def test_left_out_is_the_solve_without_them(rows, group):
    keys, u1, residuals, omega = rows
    g = keys @ u1.T / 0.7
    for number, (kappa, cosine, fit) in enumerate(left_out(g, residuals, 1 / omega, group)):
        s, t = group == number, group != number
        rest = torch.linalg.inv(torch.diag(1 / omega[t]) + g[t][:, t]) @ residuals[t]
        said, wanted = g[s][:, t] @ rest, residuals[s]
        assert kappa == pytest.approx(float(said.norm() / wanted.norm()), rel=1e-9)
        assert cosine == pytest.approx(float((said * wanted).sum() / (said.norm() * wanted.norm())), rel=1e-9)
        got = g[s] @ torch.linalg.inv(torch.diag(1 / omega) + g) @ residuals
        assert fit == pytest.approx(1 - float((got - wanted).norm() / wanted.norm()), rel=1e-9)


def test_classes_of_constructed_rows():
    """Orthonormal keys but for two that are equal: the same, the contrary, another value, and nothing to do with each other."""
    g = torch.eye(8, dtype=torch.float64)
    residuals = torch.zeros(8, 3, dtype=torch.float64)
    residuals[:, 0] = 1.0
    for a, b, value in ((0, 1, [1.0, 0, 0]), (2, 3, [-1.0, 0, 0]), (4, 5, [0, 1.0, 0])):
        g[a, b] = g[b, a] = 0.95
        residuals[b] = torch.tensor(value)
    told = left_out(g * 100, residuals, torch.ones(8, dtype=torch.float64), torch.arange(8))
    kinds = [kind_of(kappa, cosine) for kappa, cosine, _ in told]
    assert kinds == ["redundant"] * 2 + ["contradicting"] * 2 + ["interfering"] * 2 + ["independent"] * 2
    assert told[0][0] == pytest.approx(95 / 101) and told[6] == (0.0, 0.0, pytest.approx(100 / 101))
    near, count = near_pairs(
        torch.eye(8, dtype=torch.float64), g, residuals, torch.arange(8), [("p", i) for i in range(8)]
    )
    assert count == 3 and {(x.a[1], x.kind) for x in near} == {
        (0, "redundant"),
        (2, "contradicting"),
        (4, "interfering"),
    }
    assert all(x.rho == pytest.approx(0.95) for x in near)
    assert [kind_of(*x) for x in ((0.3, 1), (0.31, 0.71), (0.31, 0.5), (0.31, -0.3), (9, -0.31))] == [
        "independent", "redundant", "agreeing", "interfering", "contradicting"
    ]  # fmt: skip


def test_cross_talk(rows):
    keys, u1, _, omega = rows
    g1, lam = keys @ u1.T, numbers(4, seed=3).exp()
    totals = []
    for q in range(4):
        total = 0.0
        for p in range(4):
            if p != q:
                s, t = PATCH.eq(p), PATCH.eq(q)
                system = torch.diag(1 / omega[s]) + g1[s][:, s] / lam[p]
                total += float(torch.linalg.svdvals(torch.linalg.inv(system) @ g1[s][:, t] / lam[p])[0])
        totals.append(total)
    assert cross_talk(g1, 1 / omega, PATCH, lam) == pytest.approx(max(totals), rel=1e-9)
    assert cross_talk(g1[:3, :3], 1 / omega[:3], PATCH[:3], lam[:1]) == 0.0
    apart = torch.where(PATCH[:, None] == PATCH, g1, torch.zeros(()).double())
    assert cross_talk(apart, 1 / omega, PATCH, lam) == 0.0


def unit(*shape: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(numbers(*shape, seed=seed), dim=-1).float()


def gate(seed: int, **more) -> Bank:
    subject_edit, row_edit = torch.tensor([0, 1, 1, 2, 3, 3, 4]), torch.tensor([0, 1, 1, 2, 3, 4])
    thresholds = numbers(5, 2, seed=seed + 4).float().tanh() / 2
    return Bank(
        unit(7, 3, seed=seed), subject_edit, unit(9, 3, seed=seed + 1), torch.tensor([0, 1, 2, 2, 3, 3, 4, 5, 5]), torch.zeros(6, 2),
        row_edit, ("a", "a", "b", "c", "c"), thresholds, **more,
    )  # fmt: skip


def slow_fires(bank: Bank):
    found = {}
    of = bank.row_edit[bank.key_row]
    for a in range(5):
        for b in range(5):
            subjects = [
                float(q @ k)
                for q in bank.subject_keys[bank.subject_edit == a]
                for k in bank.subject_keys[bank.subject_edit == b]
            ]
            answers = []
            for q in bank.keys[of == a]:
                against = (
                    [float(q @ k) for k in bank.counter_keys[bank.counter_edit == b]] if len(bank.counter_edit) else []
                )
                against += [float(q @ k) for k in bank.silent_keys]
                for k in bank.keys[of == b]:
                    near = float(q @ k)
                    if near >= float(bank.thresholds[b, 1]) - bank.softness and near >= max(against, default=-2):
                        answers.append(near)
            if a != b and max(subjects) >= float(bank.thresholds[b, 0]) and answers:
                found[a, b] = (max(subjects), max(answers))
    return found


@pytest.mark.parametrize("block", [1, 128])
def test_gate_fires(block, monkeypatch):
    monkeypatch.setattr(overlap, "GATE_BLOCK", block)
    seen, places = 0, [("a", 0), ("a", 1), ("b", 0), ("c", 0), ("c", 1)]
    for seed in range(12):
        more = {}
        if seed % 3 == 1:
            more = {"counter_keys": unit(3, 3, seed=seed + 9), "counter_edit": torch.tensor([0, 3, 3])}
        if seed % 3 == 2:
            more = {"silent_keys": unit(2, 3, seed=seed + 9), "softness": 0.1}
        bank = gate(seed, **more)
        expected = slow_fires(bank)
        fires, count = gate_fires(bank)
        found = {(places.index(x.a), places.index(x.b)): (x.subject, x.answer) for x in fires}
        assert count == len(fires) and found.keys() == expected.keys()
        assert all(found[pair] == pytest.approx(expected[pair], abs=1e-6) for pair in found)
        seen += count
    assert seen > 20


def test_a_pinned_edit_goes_first():
    for pinned, first in (([0, 0, 0, 0, 0], set()), ([0, 1, 0, 0, 0], {("a", 1)})):
        fires, _ = gate_fires(gate(0, pinned=torch.tensor(pinned)))
        assert {x.b for x in fires if x.first} == first & {x.b for x in fires}
    assert ("a", 1) in {x.b for x in fires}


def test_a_thousand_patches_in_little_time():
    """1,000 patches of two rows, 2,000 gate keys and more: products only, no loop over pairs."""
    n, d = 2000, 64
    edit = torch.arange(n) // 2
    keys, residuals = numbers(n, d), numbers(n, 8, seed=1)
    near, count = near_pairs(keys, keys, residuals, edit, [(str(i), 0) for i in range(1000)])
    assert count > len(near) == overlap.MAX_LISTED
    told = left_out(keys @ keys.T / d, residuals, torch.ones(n, dtype=torch.float64), edit)
    assert len(told) == 1000

"""Every branch against a loop over positions written from the delta's docstring, on Linear and Conv1D, square and not."""

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit_hub.patch.deltas import Codebook, Delta, Dense, LowRank, Neurons, SideMemory, Sparse
from kedit_hub.runtime.attach import Branch, Pass
from kedit_hub.runtime.codebook import CodebookBranch
from kedit_hub.runtime.linear import DenseBranch, LowRankBranch, SparseBranch
from kedit_hub.runtime.neurons import NeuronsBranch, joined
from kedit_hub.runtime.sidememory import MaskRouted, NormRouted
from tests.runtime.loops import ACT, linear, numbers, padding, slow

SIZES = [(6, 10), (8, 8), (10, 6)]  # (out, in)
B, T = 4, 7
LENGTHS = [7, 4, 1, 6]


def deltas(out: int, width: int, x: Tensor) -> list[tuple[str, Delta, Branch]]:
    """One or more of every kind with its branch; some of what is stored lies near the inputs x (B, T, width)."""
    made: list[tuple[str, Delta, Branch]] = []
    a, b = numbers(3, width, seed=2), numbers(out, 3, seed=3)
    made.append(("lowrank", LowRank(a, b), LowRankBranch(b.T.contiguous(), a, ("p",) * 3)))
    dense = numbers(out, width, seed=4)
    made.append(("dense", Dense(dense), DenseBranch(dense, "p")))
    for name, count in (("sparse", 7), ("one entry", 1), ("all entries", out * width)):
        places = torch.randperm(out * width, generator=torch.Generator().manual_seed(5))[:count].sort().values
        values = numbers(count, seed=6)
        sparse = Sparse(places, values, (out, width))
        made.append((name, sparse, SparseBranch(places, values, (out, width), "p")))
    for activation in ACT:
        for more in (None, numbers(5, width, seed=7)):
            keys, biases, values = numbers(5, width, seed=8), numbers(5, seed=9), numbers(5, out, seed=10)
            units = Neurons(keys, biases, values, (out, width), more, None, activation)
            branch = NeuronsBranch(keys, biases, values, more, activation, None, ("p",) * 5)
            made.append((f"{activation} {'gated' if more is not None else ''}", units, branch))
    keys = torch.cat([x[:, 3], x[0, 6:], x[1, 3:4], numbers(2, width, seed=11)]) + 0.01
    values, radii = numbers(len(keys), out, seed=12), torch.linspace(0.01, 0.3 * width, len(keys))
    for positions in ("last", "every"):
        book = Codebook(keys, values, radii, torch.zeros(len(keys), dtype=torch.long), positions)
        everywhere = torch.full((len(keys),), positions == "every")
        made.append(
            (f"codebook {positions}", book, CodebookBranch(keys, values, radii, everywhere, ("p",) * len(keys)))
        )
    typical = (x @ dense.T).norm(dim=-1).mean().item()
    made.append(("norm", SideMemory(dense, threshold=typical), NormRouted(dense, typical, "p")))
    k = width // 2
    masks = torch.stack([numbers(width, seed=20 + i).argsort()[:k].sort().values for i in range(3)])
    background, permutation = numbers(width, seed=13) / 4, numbers(width, seed=14).argsort()
    for threshold in (0.1, 0.7):
        side = SideMemory(
            dense, masks, torch.tensor([0, 0, 0]), background, permutation, routing="mask", threshold=threshold
        )
        made.append((f"mask {threshold}", side, MaskRouted(dense, masks, background, permutation, threshold, "p")))
    return made


NAMES = [name for name, _, _ in deltas(8, 8, numbers(B, T, 8, seed=15))]


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("out", "width"), SIZES)
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_against_the_definition(kind: type[nn.Module], out: int, width: int, name: str, side: str) -> None:
    x, real = numbers(B, T, width, seed=15), padding(side, LENGTHS, T)
    delta, branch = next((delta, branch) for label, delta, branch in deltas(out, width, x) if label == name)
    with torch.no_grad():
        y = linear(kind, out, width)(x)
        got = branch(x, y, Pass(attention=None if side == "none" else real.long()))
    expected = slow(delta, x, y, real)
    assert torch.allclose(got[real].double(), expected[real], atol=1e-4)
    changed = (expected != y.double()).any(-1) & real
    assert torch.equal(got[real & ~changed], y[real & ~changed])  # where it says nothing, not a bit
    if (out, width) == (8, 8) and side == "none":
        count = int(changed.sum())
        assert count > 0 and (count < B * T or not name.startswith(("codebook", "norm", "mask 0.7")))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_may_not_keeps_its_bits_and_the_others_are_as_alone(name: str) -> None:
    x = numbers(B, T, 8, seed=15)
    branch = next(branch for label, _, branch in deltas(8, 8, x) if label == name)
    y = numbers(B, T, 8, seed=16)
    y[:, 0, 0] = -0.0  # adding zero would turn it into +0.0
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        rows = tuple(frozenset({"p"} if order[b] % 2 else {"q"} if b else set()) for b in range(B))
        out = branch(x, y, Pass(selection=rows))
        for b in range(B):
            alone = branch(x[b : b + 1], y[b : b + 1], Pass())[0]
            if "p" in rows[b]:
                assert torch.allclose(out[b], alone, atol=1e-5)
            else:
                assert torch.equal(out[b].view(torch.int32), y[b].view(torch.int32))
    everybody = branch.owned("everybody")
    everyone = tuple([frozenset({"everybody"})] * B)
    assert torch.allclose(everybody(x, y, Pass(selection=everyone)), branch(x, y, Pass()), atol=1e-5)
    assert torch.equal(everybody(x, y, Pass(selection=tuple([frozenset({"p"})] * B))), y)


@pytest.mark.parametrize("name", NAMES)
def test_a_bfloat16_module_is_changed_in_float32_and_rounded_once(name: str) -> None:
    x = numbers(B, T, 8, seed=15).bfloat16()
    delta, branch = next((delta, branch) for label, delta, branch in deltas(8, 8, x.float()) if label == name)
    with torch.no_grad():
        y = linear(nn.Linear, 8, 8).bfloat16()(x)
        got = branch(x, y, Pass())
    expected = slow(delta, x, y, torch.ones(B, T, dtype=torch.bool))
    assert got.dtype == torch.bfloat16
    assert not ((got.double() - expected).abs() > 2**-8 * expected.abs() + 1e-4).any()  # half a step of bfloat16


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("codebook")])
def test_what_has_a_gradient_passes_it_on(name: str) -> None:
    """Editors look through the patches that are attached already."""
    x = numbers(B, T, 8, seed=15)
    delta, branch = next((delta, branch) for label, delta, branch in deltas(8, 8, x) if label == name)
    variable = x.clone().requires_grad_(True)
    branch(variable, numbers(B, T, 8, seed=16), Pass()).square().sum().backward()
    step = numbers(B, T, 8, seed=17) * 1e-4
    y, real = numbers(B, T, 8, seed=16), torch.ones(B, T, dtype=torch.bool)
    up, down = (slow(delta, x.double() + s * step.double(), y, real).square().sum() for s in (1, -1))
    assert (variable.grad * step).sum().item() == pytest.approx((up - down).item() / 2, rel=2e-2, abs=1e-4)


def test_joined_neurons_are_one_after_the_other() -> None:
    """One branch for each way of reading the input; of whose units a row may use none, it keeps its bits."""

    def units(
        seed: int, owner: str, activation: str = "relu", more: bool = False, heard: str | None = None
    ) -> NeuronsBranch:
        keys, values = numbers(seed, 8, seed=seed), numbers(seed, 6, seed=seed + 10)
        gates = numbers(seed, 8, seed=seed + 20) if more else None
        return NeuronsBranch(keys, numbers(seed, seed=seed + 30), values, gates, activation, heard, (owner,) * seed)

    branches = [
        units(3, "a"),
        units(2, "b", "silu", True),
        units(4, "b"),
        units(1, "c", "silu", True),
        units(5, "c", "silu"),
    ]
    together = joined(branches)
    assert [branch.owners for branch in together] == [tuple("aaabbbb"), tuple("bbc"), tuple("ccccc")]
    x, y = numbers(B, T, 8, seed=15), numbers(B, T, 6, seed=16)
    y[3, :, 0] = -0.0  # adding zero would turn it into +0.0
    some = tuple(map(frozenset, ("a", "bc", "abc", "")))
    for selection in (None, some):
        one, other = y, y
        for branch in branches:
            one = branch(x, one, Pass(selection=selection))
        for branch in together:
            other = branch(x, other, Pass(selection=selection))
        assert torch.allclose(one, other, atol=1e-4)
        for b, names in enumerate(selection or ()):
            assert torch.equal(other[b].view(torch.int32), y[b].view(torch.int32)) == (not names)
    assert joined([units(2, "a", heard="up"), units(2, "b")])[1].input_module is None
    assert joined(branches[:1])[0] is branches[0]


@pytest.mark.parametrize("k", range(1, 11))
def test_a_mask_is_used_from_its_share_on(k: int) -> None:
    """Shares and thresholds such as 7/10 and 0.7 are equal, whatever 0.7 * 10 comes to."""
    x, y = torch.zeros(1, 1, 20), torch.ones(1, 1, 3)
    x[0, 0, :k] = torch.arange(k, 0, -1.0)  # A(x) = {0, ..., k - 1}
    delta, masks = torch.ones(3, 20), torch.arange(20)
    for shared in range(1, k + 1):
        mask = torch.cat([masks[:shared], masks[10 : 10 + k - shared]])[None]
        for threshold in (shared / k, float(f"{shared / k:.15f}1")):
            side = MaskRouted(delta, mask, torch.zeros(20), masks, threshold, "p")
            assert torch.equal(side(x, y, Pass()), y) == (threshold > shared / k)


def test_a_pass_is_routed_from_its_threshold_on() -> None:
    x, y = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]), torch.zeros(1, 2, 2)
    for threshold, routed in ((2.5, True), (2.6, False)):
        assert NormRouted(torch.eye(2), threshold, "p")(x, y, Pass()).any() == routed


def test_an_entry_speaks_up_to_its_radius() -> None:
    x, y = torch.tensor([[[3.0, 4.0]]]), torch.zeros(1, 1, 2)
    for radius, near in ((5.0, True), (4.99, False)):
        book = CodebookBranch(
            torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([radius]), torch.tensor([False]), ("p",)
        )
        assert book(x, y, Pass()).any() == near

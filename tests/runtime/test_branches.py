"""Weight branches against the merged weight, on Linear and Conv1D, square and not."""

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit_hub.runtime.attach import Branch, Pass
from kedit_hub.runtime.linear import DenseBranch, LowRankBranch

SIZES = [(6, 10), (8, 8), (10, 6)]  # (out, in)


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(kind: type[nn.Module], out: int, width: int) -> nn.Module:
    weight = numbers(out, width, seed=0)
    module: nn.Module = Conv1D(out, width) if kind is Conv1D else nn.Linear(width, out)
    module.weight.data = weight.T.contiguous() if kind is Conv1D else weight  # type: ignore[union-attr, assignment]
    module.bias.data = numbers(out, seed=1)  # type: ignore[union-attr, operator]
    return module


def merged(kind: type[nn.Module], out: int, width: int, change: Tensor) -> nn.Module:
    module = linear(kind, out, width)
    module.weight.data += change.T if kind is Conv1D else change  # type: ignore[union-attr, operator]
    return module


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize(("out", "width"), SIZES)
def test_branches_are_the_merged_weight(kind: type[nn.Module], out: int, width: int) -> None:
    u, v = numbers(3, out, seed=2), numbers(3, width, seed=3)
    dense = numbers(out, width, seed=4)
    x = numbers(2, 5, width, seed=5)
    for branch, change in (
        (LowRankBranch(u, v, ("a",) * 3), sum(torch.outer(u[i], v[i]) for i in range(3))),
        (DenseBranch(dense, "a"), dense),
    ):
        branch: Branch
        with torch.no_grad():
            got = branch(x, linear(kind, out, width)(x), Pass())
            assert torch.allclose(got, merged(kind, out, width, torch.as_tensor(change))(x), atol=1e-4)
            assert not torch.allclose(got, linear(kind, out, width)(x), atol=1e-1)


def test_a_bfloat16_module_is_changed_in_float32_and_rounded_once() -> None:
    module = linear(nn.Linear, 64, 128).bfloat16()
    u, v = numbers(40, 64, seed=2) / 40, numbers(40, 128, seed=3)
    x = numbers(1, 50, 128, seed=4).bfloat16()
    with torch.no_grad():
        y = module(x)
        got = LowRankBranch(u, v, ("a",) * 40)(x, y, Pass())
    exact = y.double() + x.double() @ v.double().T @ u.double()
    assert got.dtype == torch.bfloat16
    differs = (got.double() - exact).abs() > 2**-8 * exact.abs() + 1e-4  # half a step of bfloat16
    assert not differs.any()


@pytest.mark.parametrize("branch", ["low", "dense"])
def test_rows_that_use_no_patch_keep_their_bits(branch: str) -> None:
    made: Branch = (
        LowRankBranch(numbers(2, 6, seed=2), numbers(2, 10, seed=3), ("a", "b"))
        if branch == "low"
        else DenseBranch(numbers(6, 10, seed=4), "a")
    )
    x, y = numbers(3, 4, 10, seed=5), numbers(3, 4, 6, seed=6)
    y[1, 0, 0] = -0.0  # adding zero would turn it into +0.0
    out = made(x, y, Pass(selection=(frozenset({"a"}), frozenset(), frozenset({"c"}))))
    assert torch.equal(out[1:].view(torch.int32), y[1:].view(torch.int32))
    alone = made(x[:1], y[:1], Pass(selection=(frozenset({"a"}),)))
    assert torch.allclose(out[:1], alone, atol=1e-6) and not torch.allclose(out[0], y[0], atol=1e-2)

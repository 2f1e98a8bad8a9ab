"""What each kind of delta does to the output of its map, one position at a time in float64, from the docstrings. For tests only."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit_hub.patch.deltas import Codebook, Delta, Dense, LowRank, Neurons, SideMemory, Sparse


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(kind: type[nn.Module], out: int, width: int) -> nn.Module:
    weight = numbers(out, width, seed=0)
    module: nn.Module = Conv1D(out, width) if kind is Conv1D else nn.Linear(width, out)
    module.weight.data = weight.T.contiguous() if kind is Conv1D else weight  # type: ignore[union-attr, assignment]
    module.bias.data = numbers(out, seed=1)  # type: ignore[union-attr, operator]
    return module


def padding(side: str, lengths: Sequence[int], length: int) -> Tensor:
    """(B, T) bool: which positions are real."""
    places = torch.arange(length)[None]
    count = torch.tensor(lengths)[:, None]
    return {"none": places >= 0 * count, "left": places >= length - count, "right": places < count}[side]


ACT = {
    "relu": lambda z: max(z, 0.0),
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    "gelu_tanh": lambda z: z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
    "silu": lambda z: z / (1 + math.exp(-z)),
}


def slow(
    delta: Delta, x: Tensor, y: Tensor, real: Tensor, prompt: Sequence[int] | None = None, heard: Tensor | None = None
) -> Tensor:
    """y (B, T, m) as changed by one delta, float64; x (B, T, d), real (B, T).

    prompt: per row, how many of its positions the first pass read; the others came one pass each. None: one pass read all.
    heard (B, T, e): the input of the delta's input_module.
    """
    out = y.double().clone()
    for b in range(len(x)):
        places = real[b].nonzero()[:, 0].tolist()
        first = places if prompt is None else [t for t in places if t < prompt[b]]
        passes = [first, *([t] for t in places if t not in first)]
        told = x[b].double() if heard is None else heard[b].double()
        out[b] = _row(delta, x[b].double(), out[b], passes, told)
    return out


def _row(delta: Delta, x: Tensor, y: Tensor, passes: list[list[int]], heard: Tensor) -> Tensor:
    positions = [t for turn in passes for t in turn]
    match delta:
        case LowRank():
            for t in positions:
                y[t] += delta.b.double() @ (delta.a.double() @ x[t])
        case Dense():
            for t in positions:
                y[t] += delta.delta.double() @ x[t]
        case Sparse():
            width = delta.size[1]
            for t in positions:
                for place, value in zip(delta.positions.tolist(), delta.values.double()):
                    y[t, place // width] += value * x[t, place % width]
        case Neurons():
            for t in positions:
                for i in range(len(delta.keys)):
                    z = float(heard[t] @ delta.keys[i].double() + delta.biases[i].double())
                    h = ACT[delta.activation](z)
                    if delta.multipliers is not None:
                        h *= float(heard[t] @ delta.multipliers[i].double())
                    y[t] += h * delta.values[i].double()
        case Codebook():
            for t in positions if delta.positions == "every" else passes[0][-1:]:
                distances = [(x[t] - key.double()).norm().item() for key in delta.keys]
                j = distances.index(min(distances))
                if distances[j] <= delta.radii[j].item():
                    y[t] = delta.values[j].double()
        case SideMemory(routing="norm", threshold=float(threshold)):
            for turn in passes:
                if turn and sum((delta.delta.double() @ x[t]).norm().item() for t in turn) / len(turn) >= threshold:
                    for t in turn:
                        y[t] += delta.delta.double() @ x[t]
        case SideMemory(routing="mask", threshold=float(threshold)):
            mask = chosen(delta, x, passes[0])
            if mask is not None:
                keep = torch.zeros(x.shape[1], dtype=torch.float64)
                keep[delta.masks[mask]] = 1.0  # type: ignore[index]
                for t in positions:
                    y[t] += delta.delta.double() @ (keep * x[t])
        case _:
            raise TypeError(type(delta).__name__)
    return y


def active(delta: SideMemory, x: Tensor, prompt: list[int]) -> set[int]:
    """A(x) of a prompt at these positions of x (T, d), as many indices as a mask has."""
    assert delta.masks is not None and delta.background is not None and delta.permutation is not None
    feature = (sum(x[t].double() for t in prompt) / len(prompt) - delta.background.double()).abs().tolist()
    strongest = sorted(range(len(feature)), key=lambda i: -feature[i])[: delta.masks.shape[1]]
    return {int(delta.permutation[i]) for i in strongest}


def chosen(delta: SideMemory, x: Tensor, prompt: list[int]) -> int | None:
    assert delta.masks is not None and delta.threshold is not None
    if not prompt:
        return None
    mine = active(delta, x, prompt)
    shared = [len(mine & set(mask)) for mask in delta.masks.tolist()]
    best = shared.index(max(shared))
    return best if shared[best] / delta.masks.shape[1] >= delta.threshold else None

"""A placebo of what is installed: the same places, gates and sizes, and noise in place of what the patches say.

An edit that is believed to do something should do more than a change of the same size that knows nothing. Law: a placebo acts exactly
where and as strongly as what it stands for: keys, gates, thresholds and radii stay, and only directions are drawn, from a seed.

    rows          each residual, value or stored output becomes a random vector of the same norm
    D of weights  a random matrix of the same Frobenius norm; of a low-rank change D = U^T V the U alone, so what it reads stays
"""

from dataclasses import replace
from typing import assert_never, cast

import torch
from torch import Tensor

from kedit_hub.errors import PlaceboError
from kedit_hub.runtime.attach import Branch, Plan, Watcher
from kedit_hub.runtime.codebook import CodebookBranch
from kedit_hub.runtime.gate import TwoKeyGate
from kedit_hub.runtime.linear import DenseBranch, Linear, LowRankBranch, SparseBranch, SumBranch, summed
from kedit_hub.runtime.neurons import NeuronsBranch
from kedit_hub.runtime.sidememory import MaskRouted, NormRouted

Hung = (
    LowRankBranch
    | DenseBranch
    | SparseBranch
    | SumBranch
    | TwoKeyGate
    | NeuronsBranch
    | CodebookBranch
    | NormRouted
    | MaskRouted
)


def placebo(plan: Plan, seed: int) -> Plan:
    """The plan with noise in every branch, drawn in the order of their paths. PlaceboError where facts in words have none."""
    if plan.routers:
        raise PlaceboError("facts in words have no placebo: there is no noise of the size of a sentence")
    generator = torch.Generator().manual_seed(seed)
    branches: dict[str, list[Branch]] = {}
    stands_for: dict[int, Hung] = {}
    for path in sorted(plan.branches):
        branches[path] = []
        for branch in plan.branches[path]:
            made = _noise(cast(Hung, branch), generator)
            stands_for[id(branch)] = made
            branches[path].append(made)
    watchers: dict[str, list[Watcher]] = {
        path: [cast(TwoKeyGate | NeuronsBranch, stands_for[id(watch.__self__)]).watch for watch in watching]  # type: ignore[attr-defined]
        for path, watching in plan.watchers.items()
    }
    return Plan(branches, watchers)


def _noise(branch: Hung, generator: torch.Generator) -> Hung:
    match branch:
        case LowRankBranch():
            u = torch.randn(branch.u.shape, generator=generator)
            size = branch.matrix().norm()
            found = (u.T @ branch.v).norm()
            return replace(branch, u=u * (size / found if found > 0 else 0.0))
        case DenseBranch():
            return replace(branch, delta=_whole(branch.delta, generator))
        case SparseBranch():
            return replace(branch, values=_whole(branch.values, generator))
        case SumBranch():
            parts = tuple(cast(Linear, _noise(part, generator)) for part in branch.parts)
            factor = branch.matrix().norm() / summed(parts).norm().clamp_min(1e-30)
            return SumBranch(tuple(_times(part, factor) for part in parts))
        case TwoKeyGate():
            bank = replace(branch.bank, residuals=_rows(branch.bank.residuals, generator))
            return TwoKeyGate(bank, branch.subject_whitener, branch.answer_whitener)
        case NeuronsBranch() | CodebookBranch():
            return replace(branch, values=_rows(branch.values, generator))
        case NormRouted() | MaskRouted():
            return replace(branch, delta=_whole(branch.delta, generator))
        case _:
            assert_never(branch)


def _times(branch: Linear, factor: Tensor) -> Linear:
    match branch:
        case LowRankBranch():
            return replace(branch, u=factor * branch.u)
        case DenseBranch():
            return replace(branch, delta=factor * branch.delta)
        case SparseBranch():
            return replace(branch, values=factor * branch.values)
        case _:
            assert_never(branch)


def _rows(stored: Tensor, generator: torch.Generator) -> Tensor:
    """(n, m): random directions with the norms of the rows of `stored`."""
    drawn = torch.randn(stored.shape, generator=generator)
    return drawn * (stored.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True).clamp_min(1e-30))


def _whole(stored: Tensor, generator: torch.Generator) -> Tensor:
    """Of the shape and the norm of `stored`."""
    drawn = torch.randn(stored.shape, generator=generator)
    return drawn * (stored.norm() / drawn.norm().clamp_min(1e-30))

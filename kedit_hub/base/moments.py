"""Second moments of a linear map's inputs, C0 = E[k k^T] over ordinary text, and the two things made from them.

Never inverted: the solver takes a Cholesky factor of the regularised C0, the gate its inverse square root by eigenvalues.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode

RHO = 1e-3  # ridge on C0, relative to its mean eigenvalue: C0 of a small corpus is singular to working precision


def regularised(second_moment: Tensor, rho: float = RHO) -> Tensor:
    """C0 + rho * (tr C0 / d) I in float64, shape (d, d)."""
    c0 = second_moment.double()
    return c0 + rho * c0.diagonal().mean() * torch.eye(len(c0), dtype=torch.float64)


def whitener(second_moment: Tensor, rho: float = RHO) -> Tensor:
    """C0^(-1/2) (d, d) float32, symmetric, with the same relative ridge the solver uses."""
    values, vectors = torch.linalg.eigh(regularised(second_moment, rho))
    return (vectors * values.rsqrt() @ vectors.T).float()


def batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Texts sorted by length, `size` at a time: little padding, the same sum."""
    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def second_moments(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    paths: list[str],
    *,
    batch_size: int = 64,
    skip_first: bool = True,
) -> tuple[dict[str, Tensor], int]:
    """C0 (d, d) float64 of the inputs of every named module, all in one pass over the texts, and the number of tokens counted.

    Padding never counts; the first position is skipped by default: its activations (attention sinks) are orders of magnitude larger
    than the rest and would be all that C0 sees.
    """
    sums: dict[str, Tensor] = {}
    tokens = 0
    for batch in batches(texts, batch_size):
        encoded = encode(tokenizer, batch)
        keep = encoded.attention_mask.bool()
        if skip_first:
            keep[:, 0] = False
        for path, inputs in capture(model, paths, encoded).items():
            keys = inputs[keep.to(inputs.device)].double().cpu()  # (tokens, d)
            sums[path] = sums.get(path, 0) + keys.T @ keys
        tokens += int(keep.sum())
    return {path: total / max(tokens, 1) for path, total in sums.items()}, tokens

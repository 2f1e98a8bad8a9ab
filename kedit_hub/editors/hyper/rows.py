"""What an editor network reads: inputs u and output gradients delta of every edited map, one row for each kept token.

Law: a row belongs to one edit and does not depend on the company it is read in; orientation never comes from a shape. A map is
y = u W_io with W_io (in, out), so that dL/dW_io = sum_t u_t (x) delta_t for Linear and Conv1D alike; a delta of a patch is of W (out, in),
the transpose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kedit_hub.base.signals import gradients
from kedit_hub.base.tokens import answer_positions, encode
from kedit_hub.errors import EditError
from kedit_hub.patch.deltas import Dense, LowRank
from kedit_hub.patch.deltas.weights import fewest

Tokens = Literal["all", "answer"]
BATCH = 32  # texts read at once


@dataclass(frozen=True)
class Rows:
    """Signals of one map. u (T, in), delta (T, out), edit (T,) int64: whose a row is, 0..edits-1, in order."""

    u: Tensor
    delta: Tensor
    edit: Tensor
    edits: int

    @property
    def lengths(self) -> Tensor:
        """(edits,) rows of each edit."""
        return torch.bincount(self.edit, minlength=self.edits)

    def to(self, device: torch.device) -> "Rows":
        return Rows(self.u.to(device), self.delta.to(device), self.edit.to(device), self.edits)


Signals = Mapping[str, Rows]  # by module path
Factors = dict[str, tuple[Tensor, Tensor]]  # by module path: a (R, in), b (R, out) of the change W_io + a^T b


def read(
    model: nn.Module, tokenizer: Any, pairs: Sequence[tuple[str, str]], paths: Sequence[str], tokens: Tokens
) -> dict[str, Rows]:
    """Signals of (prompt, target) pairs under the loss summed over pairs of the mean NLL of the target's tokens.

    tokens: "all" = every real token but the first, where attention sinks dwarf all else; "answer" = those that predict the target.
    Rows without a gradient are left out: in the last block a prompt's own tokens have none. EditError where a pair has no token left.
    """
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {path: [] for path in paths}
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        encoded = encode(tokenizer, [prompt for prompt, _ in batch], [target for _, target in batch])
        kept = encoded.attention_mask.bool() & (encoded.position_ids > 0)
        if tokens == "answer":
            kept &= answer_positions(encoded)
        bare = (~kept.any(1)).nonzero()[:, 0].tolist()
        if bare:
            raise EditError(
                f"the prompt {batch[bare[0]][0]!r} leaves no token to edit at: the first token of a text is never edited. "
                "Write a longer prompt"
            )
        for path, (u, delta) in gradients(model, paths, encoded).items():
            here = kept.to(delta.device) & (delta != 0).any(-1)
            found[path].append((u.to(delta.device)[here], delta[here], here.nonzero()[:, 0] + start))
    joined = {path: tuple(map(torch.cat, zip(*parts))) for path, parts in found.items()}
    return {path: Rows(u, delta, edit, len(pairs)) for path, (u, delta, edit) in joined.items()}


def join(parts: Sequence[Factors]) -> Factors:
    """The sum of changes, as factors side by side."""
    return {path: (torch.cat([p[path][0] for p in parts]), torch.cat([p[path][1] for p in parts])) for path in parts[0]}


def as_delta(a: Tensor, b: Tensor, half: bool, **keys: Tensor | None) -> LowRank | Dense:
    """The change as a patch stores it, a (R, in), b (R, out): low-rank of rank R <= rows, or the matrix where that takes fewer bytes."""
    a, b = a.detach().float().cpu(), b.detach().float().cpu()
    if half:  # factors of very unequal size would be rounded away
        size = (b.norm(dim=1) / a.norm(dim=1).clamp_min(1e-30)).clamp_min(1e-30).sqrt()[:, None]
        a, b = a * size, b / size
    return fewest(a, b.T, torch.float16 if half else torch.float32, **keys)

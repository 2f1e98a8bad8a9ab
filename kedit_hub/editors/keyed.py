"""Keys for a change of a weight that was made without: inputs of the changed map on the prompt and target of every edit.

Law: the change stays what it is; its keys say on which texts it is meant, so that a joint solve can keep it there alone.

    with_keys = keyed(patch, model, tokenizer)      # low-rank, dense and sparse deltas, the others as they were
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.editors.remake import remade
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError
from kedit_hub.patch.deltas import Delta, Dense, LowRank, Sparse
from kedit_hub.patch.deltas.weights import KEYS_PER_EDIT
from kedit_hub.patch.patch import Patch

BATCH = 32  # texts read at once


def keyed(patch: Patch, model: nn.Module, tokenizer: Any) -> Patch:
    """The same patch with keys, read on `model`, its base; the keys it had are replaced.

    KeditError where it changes no weight, WrongBaseError where `model` is another base.
    """
    patch.verify(model)
    paths = [path for path, delta in patch.deltas.items() if isinstance(delta, (LowRank, Dense, Sparse))]
    if not paths:
        held = ", ".join(sorted({delta.kind for delta in patch.deltas.values()}))
        raise KeditError(
            f"patch {patch.id[:12]} holds {held}: keys are given to changes of a weight (lowrank, dense, sparse). Stack it as it is"
        )
    read, edit = inputs_of(patch.edits, model, tokenizer, paths)
    deltas: dict[str, Delta] = dict(patch.deltas)
    for path in paths:
        delta = patch.deltas[path]
        assert isinstance(delta, (LowRank, Dense, Sparse))
        deltas[path] = replace(delta, keys=read[path], key_edit=edit)
    return remade([patch], deltas, patch.edits, model)


def inputs_of(
    edits: Sequence[Edit], model: nn.Module, tokenizer: Any, paths: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs (n, d) float32 of the named maps at the last KEYS_PER_EDIT tokens of every prompt and target, and whose they are (n,).

    The first token of a text is left out, as in second moments: what a model computes there is much the same for all texts.
    """
    found: dict[str, list[Tensor]] = {path: [] for path in paths}
    owner: list[Tensor] = []
    for start in range(0, len(edits), BATCH):
        batch = edits[start : start + BATCH]
        prompts, targets = [edit.prompt for edit in batch], [edit.target for edit in batch]
        encoded = encode(tokenizer, prompts, targets, side="left", model=model)
        wanted = encoded.position_ids > 0  # padding is at position 0 too
        if encoded.asked is not None:  # a row of the decoder begins where the answer is asked for
            wanted = encoded.attention_mask.bool()
        wanted[:, :-KEYS_PER_EDIT] = False
        for path, inputs in capture(model, paths, encoded).items():
            found[path].append(inputs.cpu()[wanted])
        owner.append(wanted.nonzero()[:, 0] + start)
    return {path: torch.cat(parts) for path, parts in found.items()}, torch.cat(owner)

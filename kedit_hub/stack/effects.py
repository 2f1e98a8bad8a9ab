"""What a change D of a weight is meant to do, as rows that a joint solve can take: at key k the output moves by D k.

Added up, two changes of one matrix act on each other's texts with all they have. Solved together from the inputs of their
own texts, each keeps its effect there and is held back elsewhere by the second moment, as rows of associative patches are
(what SimIE, 2025, does to the edits of any editor one after another, in one solve).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kedit_hub.base.profile import BaseProfile
from kedit_hub.patch.deltas.weights import KEYS_PER_EDIT, Weights
from kedit_hub.runtime.gate import whiten

ALIKE = 0.995  # cosine in the C0^-1 metric from which on two keys of one edit are one


@dataclass(frozen=True)
class Effect:
    """Rows of one change of a weight. n rows."""

    keys: Tensor  # (n, d) float32
    residuals: Tensor  # (n, m) float32
    edit: Tensor  # (n,) -> edit of the patch


def effect(delta: Weights, speaks: Tensor, profile: BaseProfile) -> Effect:
    """The rows of a keyed change: without the edits that are silent, and without keys that resemble an earlier one of their edit.

    speaks (E,) bool. profile: of the changed module; its C0 says which keys are alike.
    """
    assert delta.keys is not None and delta.key_edit is not None
    order = torch.argsort(delta.key_edit, stable=True)
    order = order[speaks[delta.key_edit[order]]]
    keys, edit = delta.keys[order], delta.key_edit[order]
    fresh = ~repeated(whiten(keys, profile.whitener), edit)
    return Effect(keys[fresh], delta.change(keys[fresh]).float(), edit[fresh])


def repeated(unit: Tensor, edit: Tensor) -> Tensor:
    """(n,) bool: rows that resemble an earlier row of their edit. unit (n, d) unit vectors; edit (n,) sorted."""
    found = torch.zeros(len(unit), dtype=torch.bool)
    for back in range(1, min(KEYS_PER_EDIT, len(unit))):  # an edit has no more rows than that
        cosine = (unit[back:] * unit[:-back]).sum(1)
        found[back:] |= (cosine > ALIKE) & (edit[back:] == edit[:-back])
    return found

"""A small patch whose id depends on its target."""

import torch
from torch import nn

from kedit_hub.edits import Edit
from kedit_hub.patch import BaseRef, LowRank, Patch
from kedit_hub.patch.fingerprint import fingerprint

PATH = "model.layers.0.mlp.down_proj"


def make_patch(target: str = "Rome", *, base: str = "org/base", method: str = "memit", scores: bool = True) -> Patch:
    module = nn.Linear(4, 3, bias=False)
    module.weight.data = torch.arange(12.0).reshape(3, 4) / 8
    delta = LowRank(a=torch.tensor([[1.0, 0.5, 0.25, 0.0]]), b=torch.tensor([[1.0], [2.0], [len(target) / 8]]))
    patch = Patch.create(
        deltas={PATH: delta},
        edits=[Edit("The capital of France is", target, "France", "Paris")],
        base=BaseRef(id=base, model_type="llama", fingerprint={PATH: fingerprint(module)}),
        method=method,
    )
    return patch.replace_evals({"protocols": {"generate": {"reliability": 1.0}}}) if scores else patch

"""A second model object over the same tensors.

Hooks live on module objects, so a patched model is a *view*: its own module tree, the base's own parameters. The base keeps giving
its own answers, any number of views (one per visitor, one per thread) can be patched differently, and none costs weight memory.
"""

import copy

import torch
from torch import nn


def is_dispatched(model: nn.Module) -> bool:
    """Whether accelerate moves this model's weights between devices or disk (its hooks are bound to the module objects)."""
    return any(getattr(module, "_hf_hook", None) is not None for module in model.modules())


def view_of(model: nn.Module) -> nn.Module:
    """A copy of the module tree that shares every parameter, buffer and quantization state with `model`."""
    shared: dict[int, object] = {}
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), getattr(module, "state", None)):
            if value is not None:
                shared[id(value)] = value
        for value in vars(module).values():
            if isinstance(value, torch.Tensor):
                shared[id(value)] = value
    return copy.deepcopy(model, shared)

"""ZeroGPU: a process of its own with an accelerator for one pure call. Law: whatever runs there takes a value and gives values; nothing it
does to a model is seen again. Elsewhere the call is made as it stands.
"""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch

SECONDS = 60  # asked for; a shorter call goes before longer ones

F = TypeVar("F", bound=Callable[..., Any])


def on_gpu(call: F) -> F:
    """The function, or generator, under `spaces.GPU` where the Hub's `spaces` package is there."""
    try:
        spaces = importlib.import_module("spaces")
    except ImportError:
        return call
    decorated: F = spaces.GPU(duration=SECONDS)(call)
    return decorated


def device() -> str:
    """Where a full-precision base is put: the accelerator, where there is one or ZeroGPU says that there will be."""
    return "cuda" if torch.cuda.is_available() else "cpu"

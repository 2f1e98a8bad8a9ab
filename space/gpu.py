"""ZeroGPU: a process of its own with an accelerator for one pure call. Law: whatever runs there takes a value and gives values; nothing it
does to a model is seen again. Elsewhere the call is made as it stands.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, TypeVar

SECONDS = 60  # asked for; a shorter call goes before longer ones

F = TypeVar("F", bound=Callable[..., Any])


def on_gpu(call: F) -> F:
    """The function, or generator, under `spaces.GPU` where the Hub's `spaces` package is there."""
    if importlib.util.find_spec("spaces") is None:
        return call
    decorated: F = importlib.import_module("spaces").GPU(duration=SECONDS)(call)
    return decorated

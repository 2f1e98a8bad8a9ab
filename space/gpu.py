"""ZeroGPU: a process of its own with an accelerator for one pure call. Law: what runs there takes a value and gives values; what it does
to a model, moving it to the accelerator too, is lost with the process. Elsewhere the call is made as it stands.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any, TypeVar

import torch

SECONDS = 60  # asked for; a shorter call goes before longer ones
INSIDE = "KEDIT_INSIDE_GPU_CALL"  # set in the process of a call, for as long as it runs

F = TypeVar("F", bound=Callable[..., Any])


def on_gpu(call: F) -> F:
    """The function, or generator, under `spaces.GPU` where the Hub's `spaces` package is there."""
    spaces = _spaces()
    if spaces is None:
        return call

    @wraps(call)
    def once(*args: Any) -> Any:
        os.environ[INSIDE] = "1"
        try:
            return call(*args)
        finally:
            os.environ.pop(INSIDE, None)

    @wraps(call)
    def each(*args: Any) -> Iterator[Any]:
        os.environ[INSIDE] = "1"
        try:
            yield from call(*args)
        finally:
            os.environ.pop(INSIDE, None)

    decorated: F = spaces.GPU(duration=SECONDS)(each if isgeneratorfunction(call) else once)
    return decorated


def device() -> str:
    """Where a full-precision base belongs now. ZeroGPU says everywhere that there is an accelerator; only inside a call there is."""
    there = torch.cuda.is_available() and (_spaces() is None or INSIDE in os.environ)
    return "cuda" if there else "cpu"


def _spaces() -> Any:
    try:
        return importlib.import_module("spaces")
    except ImportError:
        return None

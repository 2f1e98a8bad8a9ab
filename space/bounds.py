"""What is looked at before every forward pass of a model, so that long work ends in its midst.

with before_each_pass(model, look): ...      # look() may raise; then nothing more runs

Law: a view that outlives the block is not made inside it: it would take the bound along.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def before_each_pass(model: nn.Module, look: Callable[[], None]) -> Iterator[None]:
    """`look` is called before each forward pass of `model`, and of a view made of it meanwhile."""
    handle = model.register_forward_pre_hook(lambda *_: look())
    try:
        yield
    finally:
        handle.remove()

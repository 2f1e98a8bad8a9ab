"""What is looked at before every forward pass of a model, so that long work ends in its midst.

look = ending(stop, 60.0, "stopped", "took more than 60 s")
with before_each_pass(model, look): ...      # look() may raise; then nothing more runs

Law: a view that outlives the block is not made inside it: it would take the bound along.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from kedit_hub import KeditError
from kedit_hub.errors import LimitError
from space.state import Stop


def ending(stop: Stop, seconds: float, stopped: str, slow: str) -> Callable[[], None]:
    """A look that ends the work: KeditError(stopped) once `stop` is wished, LimitError(slow) when `seconds` from now are over."""
    until = time.monotonic() + seconds

    def look() -> None:
        if stop.wished:
            raise KeditError(stopped)
        if time.monotonic() > until:
            raise LimitError(slow)

    return look


@contextmanager
def before_each_pass(model: nn.Module, look: Callable[[], None]) -> Iterator[None]:
    """`look` is called before each forward pass of `model`, and of a view made of it meanwhile."""
    handle = model.register_forward_pre_hook(lambda *_: look())
    try:
        yield
    finally:
        handle.remove()

"""Where prompts end in a pass that reads prompts and their answers at once. Law: said by who knows, for one caller and one block.

Under a KV cache the first pass reads the prompt and nothing else. Teacher forcing reads both together, and what acts on the last token
of a prompt (a codebook, a masked side memory, facts in words) can then not see by itself where that is.

    with prompt_ends(batch.prompt_last):      # (B,) position of the last prompt token of every row
        model(**batch.inputs(model))
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_ENDS: ContextVar[Tensor | None] = ContextVar("ends of prompts", default=None)


@contextmanager
def prompt_ends(last: Tensor | None) -> Iterator[None]:
    """The passes of the block read texts whose prompts end at `last` (B,); None: where they end is not known."""
    token = _ENDS.set(last)
    try:
        yield
    finally:
        _ENDS.reset(token)


def told_ends() -> Tensor | None:
    """(B,) as told for the pass that begins, or None."""
    return _ENDS.get()

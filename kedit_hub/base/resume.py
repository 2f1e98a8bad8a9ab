"""Run only the layers above one block, starting from its cached output.

A change that enters at the output of block `layer` leaves everything below as it was, so an optimisation over such a change never has
to run the lower layers again. The model's own forward is used (masks, positions, head: all its own); the lower blocks just hand on
what they are given, and block `layer` returns what the caller feeds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.families import block, encoder_decoder, shortest


@contextmanager
def resumed(model: nn.Module, layer: int) -> Iterator[Callable[[Tensor], None]]:
    """Yields feed(hidden): the next forward passes continue from `hidden` (B, T, m) as the output of block `layer`."""
    if encoder_decoder(model):
        with _replaced(block(model, layer)) as feed:
            yield feed
        return
    fed: list[Tensor] = []
    wrapped = _returns_tuple(model, layer)

    def hand_on(hidden: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden, None) if wrapped else hidden

    def inject(hidden: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        given = fed[0].to(hidden.dtype)  # the caller may work in float32 on a bfloat16 model
        return (given, None) if wrapped else given

    blocks = [block(model, i) for i in range(layer + 1)]
    saved = [vars(b).get("forward") for b in blocks]  # accelerate keeps its own forward on the instance
    for i, b in enumerate(blocks):
        b.forward = inject if i == layer else hand_on
    try:
        yield lambda hidden: fed.__setitem__(slice(None), [hidden])
    finally:
        for b, before in zip(blocks, saved):
            if before is None:
                del b.forward
            else:
                b.forward = before


@contextmanager
def _replaced(whole: nn.Module) -> Iterator[Callable[[Tensor], None]]:
    """The same where the first block computes what all others read (the position bias of T5): the lower blocks are run, for nothing."""
    fed: list[Tensor] = []

    def inject(_module: nn.Module, _args: Any, output: Any) -> Any:
        if not fed:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        given = fed[0].to(hidden.dtype)
        return (given, *output[1:]) if isinstance(output, tuple) else given

    handle = whole.register_forward_hook(inject)
    try:
        yield lambda hidden: fed.__setitem__(slice(None), [hidden])
    finally:
        handle.remove()


def _returns_tuple(model: nn.Module, layer: int) -> bool:
    """Whether this model's blocks return (hidden, ...) or hidden alone: seen, not assumed, on a forward pass of one token."""
    seen: list[bool] = []
    hook = block(model, layer).register_forward_hook(
        lambda _module, _args, output: seen.append(isinstance(output, tuple))
    )
    try:
        with torch.no_grad():
            model(**shortest(model), use_cache=False)
    finally:
        hook.remove()
    return seen[0]

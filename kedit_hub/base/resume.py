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

from kedit_hub.base.families import block


@contextmanager
def resumed(model: nn.Module, layer: int) -> Iterator[Callable[[Tensor], None]]:
    """Yields feed(hidden): the next forward passes continue from `hidden` (B, T, m) as the output of block `layer`."""
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


def _returns_tuple(model: nn.Module, layer: int) -> bool:
    """Whether this model's blocks return (hidden, ...) or hidden alone: seen, not assumed, on a forward pass of one token."""
    seen: list[bool] = []
    hook = block(model, layer).register_forward_hook(
        lambda _module, _args, output: seen.append(isinstance(output, tuple))
    )
    try:
        with torch.no_grad():
            device = model.get_input_embeddings().weight.device  # type: ignore[operator]
            device = torch.device("cpu") if device.type == "meta" else device  # offloaded: it moves its inputs itself
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    finally:
        hook.remove()
    return seen[0]

"""What a branch has learnt of a sequence, kept with the KV cache that holds the sequence. Law: it lives, is copied, repeated
and reordered exactly as the cache is, and nothing is kept anywhere else.

    now.lasting[branch] = first        # (B, ...) one row per sequence; Attachment keeps it when the pass is over
    kept(now.cache, branch, batch)     # in a later pass: the same rows, where beam search has put them
"""

from collections.abc import Callable, Mapping
from functools import cache as memo
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor


def keep(cache: Any, lasting: Mapping[Any, Tensor]) -> None:
    """Put the states (B, ...) of branches into a KV cache, which from then on carries them along."""
    if not lasting:
        return
    if not isinstance(cache, _Remembering):
        kind: type = type(cache)
        cache.__class__ = _remembering(kind)
        cache.states = WeakKeyDictionary()
    for branch, state in lasting.items():
        cache.states[branch] = state


def kept(cache: Any, branch: Any, batch: int) -> Tensor | None:
    """The state of `branch` for the sequences of this cache, or None where it never saw them begin."""
    state = cache.states.get(branch) if isinstance(cache, _Remembering) else None
    return state if state is not None and len(state) == batch else None


class _Remembering:
    """Mixed into the class of a KV cache: states are copied, repeated and reordered with the sequences they are of."""

    states: "WeakKeyDictionary[Any, Tensor]"

    def _rearrange(self, arranged: Callable[[Tensor], Tensor]) -> None:
        for branch, state in list(self.states.items()):
            self.states[branch] = arranged(state)

    def reorder_cache(self, beam_idx: Tensor, *args: Any, **kwargs: Any) -> Any:  # beam search
        self._rearrange(lambda state: state[beam_idx.to(state.device)])
        return super().reorder_cache(beam_idx, *args, **kwargs)  # type: ignore[misc]

    def batch_select_indices(self, indices: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._rearrange(lambda state: state[indices.to(state.device)])
        return super().batch_select_indices(indices, *args, **kwargs)  # type: ignore[misc]

    def batch_repeat_interleave(self, repeats: int, *args: Any, **kwargs: Any) -> Any:
        self._rearrange(lambda state: state.repeat_interleave(repeats, dim=0))
        return super().batch_repeat_interleave(repeats, *args, **kwargs)  # type: ignore[misc]


@memo
def _remembering(kind: type) -> type:
    return type(kind.__name__, (_Remembering, kind), {"__module__": kind.__module__})

"""One uniform way to change a live model: branches beside its linear maps, hung on forward hooks.

The weights are never touched. A branch sees the input x and the output y of one module and returns the new output; taking the hooks
off restores bit-identical outputs. All branches of a module run in one hook, in the order given. The law of a branch: it computes in
float32 and casts once, and a row of the batch in which it has nothing to say keeps its bits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from kedit_hub.errors import NotReachedError
from kedit_hub.runtime.remember import keep
from kedit_hub.runtime.routing import Selection, mask


@dataclass
class Pass:
    """What the hooks of one forward pass share. Made when the backbone is entered, dropped when it returns."""

    attention: Any = None  # (B, past + T), (B, 1, T, keys) or one such per kind of layer; None = every token is real
    past: int = 0  # tokens already in the KV cache
    cache: Any = None
    selection: Selection | None = None  # None = every row uses every patch
    notes: dict[int, Any] = field(
        default_factory=dict
    )  # what a watcher heard for its branch, by id(branch), in this pass
    lasting: dict[Any, Tensor] = field(
        default_factory=dict
    )  # by branch: what stays true of each sequence (B, ...) later

    def allowed(self, owners: Sequence[str], batch: int, device: torch.device) -> Tensor | None:
        """(B, len(owners)) bool, or None when everything is allowed."""
        return None if self.selection is None else mask(self.selection, owners, batch).to(device)

    def real(self, batch: int, length: int, device: torch.device) -> Tensor:
        """(B, T) bool: which positions of this chunk are real tokens; without a mask all are."""
        known = self.attention
        if isinstance(known, Mapping):
            known = next(iter(known.values()), None)
        if known is None or known.ndim not in (2, 4):
            return torch.ones(batch, length, dtype=torch.bool, device=device)
        if known.ndim == 2:
            return known[:, self.past : self.past + length].bool().to(device)
        own = known[:, 0, :, self.past : self.past + length].diagonal(dim1=1, dim2=2)  # a real token sees itself
        return (own if own.dtype == torch.bool else own == 0).to(device)

    def prompt_end(self, batch: int, length: int, device: torch.device) -> Tensor:
        """(B, T) bool: the last real token of each row in the pass that starts its sequence; in later passes nowhere.

        A pass without a KV cache starts its sequences anew: its whole text is the prompt. A prompt that is fed in chunks
        ends here with the first of them.
        """
        real = self.real(batch, length, device)
        after = real.flip(1).cumsum(1).flip(1)  # real tokens from here on
        return real & (after == 1) & (self.past == 0)


class Branch(Protocol):
    """A change of one linear map: x (B, T, d) its input, y (B, T, m) its output so far."""

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor: ...

    def owned(self, name: str) -> Self:
        """The same change as the part of one owner, for a selection that names it so."""
        ...


class Attachment:
    """Branches on named modules of one model, from construction to `detach()`.

        attachment = Attachment(model, {"model.layers.3.mlp.down_proj": [branch]})
        ...                       # model answers as edited
        attachment.detach()       # bit-identical to before

    `watchers` are called with the *input* of their module before it runs (the gate listens to an early layer this way).
    """

    def __init__(
        self,
        model: nn.Module,
        branches: Mapping[str, Sequence[Branch]],
        watchers: Mapping[str, Sequence[Callable[[Tensor, Pass], None]]] | None = None,
    ):
        self.selection: Selection | None = None
        self.enabled = True
        self.reached: dict[str, int] = {}
        self._now = Pass()
        self._handles: list[Any] = []
        modules = dict(model.named_modules())
        backbone = getattr(model, "base_model", model)
        self._handles.append(backbone.register_forward_pre_hook(self._enter, with_kwargs=True))
        self._handles.append(backbone.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
        for path, watching in (watchers or {}).items():
            self.reached[path] = 0
            self._handles.append(modules[path].register_forward_pre_hook(self._watch(path, watching)))
        for path, hung in branches.items():
            self.reached[path] = 0
            self._handles.append(modules[path].register_forward_hook(self._branch(path, hung)))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def prove_reached(self, run: Callable[[], Any]) -> None:
        """Run the model once and raise NotReachedError for every hooked module the pass did not go through."""
        before = dict(self.reached)
        with torch.no_grad():
            run()
        missed = sorted(path for path, count in self.reached.items() if count == before[path])
        if missed:
            raise NotReachedError(
                f"the patch claims to change {', '.join(missed)}, but a forward pass never went through it: this model calls "
                "its layers in another way, so the edit would silently do nothing; nothing was attached"
            )

    def _enter(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        self._now = Pass(kwargs.get("attention_mask"), past, cache, self.selection)

    def _leave(self, _module: nn.Module, _args: Any, _kwargs: dict[str, Any], output: Any) -> None:
        cache = self._now.cache if self._now.cache is not None else getattr(output, "past_key_values", None)
        if cache is not None:
            keep(cache, self._now.lasting)
        self._now = Pass()

    def _watch(self, path: str, watching: Sequence[Callable[[Tensor, Pass], None]]) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self.reached[path] += 1
            if self.enabled:
                for watch in watching:
                    watch(args[0], self._now)

        return hook

    def _branch(self, path: str, hung: Sequence[Branch]) -> Callable[..., Tensor | None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor | None:
            self.reached[path] += 1
            if not self.enabled:
                return None
            for branch in hung:
                y = branch(args[0], y, self._now)
            return y

        return hook

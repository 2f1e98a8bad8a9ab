"""One uniform way to change a live model: branches beside its linear maps, hung on forward hooks.

The weights are never touched. A branch sees the input x and the output y of one module and returns the new output; taking the hooks
off restores bit-identical outputs. All branches of a module run in one hook, in the order given. The law of a branch: it computes in
float32 and casts once, and a row of the batch in which it has nothing to say keeps its bits.

What hangs on the model is the same for everybody: one hook per module, put there once. What a forward pass does at these hooks is its
caller's: a Plan, looked up when the pass enters the backbone and kept until it leaves. So one model serves many threads (and asyncio
tasks: the state is a context variable), each with a plan and a selection of its own.

    attachment = Attachment(model, {"model.layers.3.mlp.down_proj": [branch]})
    with attachment.within(enabled=False): ...    # the base, for this thread alone
    attachment.detach()                           # bit-identical to before, for everybody
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from kedit_hub.errors import NotReachedError
from kedit_hub.runtime.prompts import told_ends
from kedit_hub.runtime.remember import keep
from kedit_hub.runtime.routing import Selection, mask


class Branch(Protocol):
    """A change of one linear map: x (B, T, d) its input, y (B, T, m) its output so far."""

    def __call__(self, x: Tensor, y: Tensor, now: "Pass") -> Tensor: ...

    def owned(self, name: str) -> Self:
        """The same change as the part of one owner, for a selection that names it so."""
        ...


class Router(Protocol):
    """A change of what the whole model says: told the keyword arguments of a pass and its output, it returns the output. It may run the
    model again, on the rows it names to `within`; nothing routes there."""

    def __call__(
        self, model: nn.Module, given: Mapping[str, Any], output: Any, selection: Selection | None, within: Any
    ) -> Any: ...

    def owned(self, name: str) -> Self: ...


Watcher = Callable[[Tensor, "Pass"], None]
Place = tuple[Literal["input", "output", "whole"], str]  # a side of the module at a path; of the whole model
BACKBONE: Place = ("input", "")
WHOLE: Place = ("whole", "")


@dataclass(frozen=True, eq=False)
class Plan:
    """What a forward pass does at which module. Immutable, so that a pass ends as it began.

    watchers are called with the *input* of their module before it runs (the gate listens to an early layer this way).
    """

    branches: Mapping[str, Sequence[Branch]]
    watchers: Mapping[str, Sequence[Watcher]]
    routers: Sequence[Router] = field(default=(), kw_only=True)

    @property
    def places(self) -> frozenset["Place"]:
        whole: Sequence[Place] = [WHOLE] if self.routers else []
        outputs: Sequence[Place] = [("output", path) for path in self.branches]
        return frozenset([*whole, *outputs, *(("input", path) for path in self.watchers)])


NOTHING = Plan(MappingProxyType({}), MappingProxyType({}))


@dataclass
class Pass:
    """What the hooks of one forward pass share. Made when the backbone is entered, dropped when it returns."""

    attention: Any = None  # (B, past + T), (B, 1, T, keys) or one such per kind of layer; None = every token is real
    past: int = 0  # tokens already in the KV cache
    cache: Any = None
    selection: Selection | None = None  # None = every row uses every patch
    ends: Tensor | None = None  # (B,) where the prompts of the rows end, where the caller has told
    notes: dict[int, Any] = field(
        default_factory=dict
    )  # what a watcher heard for its branch, by id(branch), in this pass
    lasting: dict[Any, Tensor] = field(
        default_factory=dict
    )  # by branch: what stays true of each sequence (B, ...) later
    plan: Plan = NOTHING
    outer: "Pass | None" = None  # the pass in the middle of which this one runs
    masks: dict[Any, Tensor] = field(default_factory=dict)  # what `allowed` has answered, by value of its arguments

    def allowed(self, owners: Sequence[str], batch: int, device: torch.device) -> Tensor | None:
        """(B, len(owners)) bool, or None when everything is allowed."""
        if self.selection is None:
            return None
        key = (tuple(owners), batch, device)
        if key not in self.masks:
            self.masks[key] = mask(self.selection, key[0], batch).to(device)
        return self.masks[key]

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
        """(B, T) bool: the last token of each row's prompt in the pass that starts its sequence; in later passes nowhere.

        A pass without a KV cache starts its sequences anew. Its whole text is the prompt, unless the caller has told where that
        ends. A prompt that is fed in chunks ends here with the first of them.
        """
        prompt = self.prompt(batch, length, device)
        after = prompt.flip(1).cumsum(1).flip(1)  # tokens of the prompt from here on
        return prompt & (after == 1) & (self.past == 0)

    def prompt(self, batch: int, length: int, device: torch.device) -> Tensor:
        """(B, T) bool: the real tokens of this chunk without those of an answer, where the caller has told which these are."""
        real = self.real(batch, length, device)
        if self.ends is None or self.past or len(self.ends) != batch:
            return real
        return real & (torch.arange(length, device=device) <= self.ends.to(device)[:, None])


@dataclass(frozen=True)
class _State:
    """What one caller (a thread or an asyncio task) has in force on one attachment."""

    plan: Plan | None = None  # None = the one that is everybody's
    selection: Selection | None = None
    wanted: Selection | None = (
        None  # the patches that were chosen for each row, whatever owners the plan's branches have
    )
    enabled: bool = True
    now: Pass | None = None  # the innermost pass that runs


_IDLE = _State()
# By attachment, of those in use: a ContextVar of each attachment's own would stay in its thread's context for ever.
_STATES: ContextVar[Mapping["Attachment", _State]] = ContextVar("attachments in use", default=MappingProxyType({}))


class Attachment:
    """Branches on named modules of one model, from construction to `detach()`; see the module docstring.

    Callers may come from any number of threads. The plan that is everybody's can be changed at any time: a pass that runs ends with
    the plan it began with, and so does a whole generation inside `within(plan=attachment.plan)`.
    """

    def __init__(
        self,
        model: nn.Module,
        branches: Mapping[str, Sequence[Branch]] = NOTHING.branches,
        watchers: Mapping[str, Sequence[Watcher]] | None = None,
    ):
        self._model = model
        self.default = NOTHING  # the plan that is everybody's; `put` changes it
        self._handles: dict[Place, list[Any]] = {}
        self._proven: set[frozenset[Any]] = set()
        self._lock = threading.RLock()
        self._users = 0  # callers with a state that is not idle
        self._leaving = False
        self.put(Plan(branches, watchers or {}))

    # -- for everybody --------------------------------------------------------------------------------------------------------------

    def put(self, plan: Plan) -> None:
        """Make `plan` everybody's, from their next pass on."""
        with self._lock:
            self._hook(plan)
            self.default, self._leaving = plan, False

    def detach(self) -> None:
        """Nothing is everybody's plan, and the hooks go as soon as nobody is in the middle of something."""
        with self._lock:
            self.default, self._leaving = NOTHING, True
            self._set(_IDLE)
            self._unhook_if_idle()

    def prove(self, plan: Plan, run: Callable[[], Any]) -> None:
        """Run the model once as `plan` says; NotReachedError for every module of it the pass did not go through.

        A plan that goes the way of one that was proven is not run. After an error the model has the hooks it had. One thread at a time.
        """
        route = _route(plan)
        if route in self._proven:
            return
        fresh = self._hook(plan)
        reached: set[Place] = set()
        try:
            with torch.no_grad(), self.within(plan=_recorded(plan, reached), selection=None, enabled=True):
                run()
            if missed := sorted({path for _, path in plan.places - reached}):
                raise NotReachedError(
                    f"the patch claims to change {', '.join(missed)}, but a forward pass never went through it: this model "
                    "calls its layers in another way, so the edit would silently do nothing; nothing was attached"
                )
        except BaseException:
            with self._lock:
                for place in fresh:
                    self._unhook(place)
            raise
        self._proven.add(route)

    def strip(self, model: nn.Module) -> None:
        """Take these hooks off a deep copy of the model."""
        ours = {handle.id for handles in self._handles.values() for handle in handles}
        for module in model.modules():
            for name, hooks in vars(module).items():
                if name.startswith("_forward_"):
                    for number in ours & hooks.keys():
                        del hooks[number]

    # -- for one caller -------------------------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """The plan of this caller's next pass, if it is enabled."""
        mine = self._state().plan
        return self.default if mine is None else mine

    @property
    def selection(self) -> Selection | None:
        return self._state().selection

    @property
    def wanted(self) -> Selection | None:
        return self._state().wanted

    @contextmanager
    def within(self, **changes: Any) -> Iterator[None]:
        """This caller's `plan`, `selection`, `wanted` or `enabled`, for the length of the block. The plan's modules must be hooked."""
        before = self._state()
        self._set(replace(before, **changes))
        try:
            yield
        finally:
            self._set(before)  # also drops a pass that was interrupted in the block

    def _state(self) -> _State:
        return _STATES.get().get(self, _IDLE)

    def _set(self, state: _State) -> None:
        states = dict(_STATES.get())
        before = states.pop(self, _IDLE)
        if state is not _IDLE:
            states[self] = state
        _STATES.set(states)
        if (before is _IDLE) != (state is _IDLE):
            with self._lock:
                self._users += 1 if before is _IDLE else -1
                self._unhook_if_idle()

    # -- the hooks ------------------------------------------------------------------------------------------------------------------

    def _hook(self, plan: Plan) -> list[Place]:
        """Hook what the plan needs and is not hooked; which places these are."""
        with self._lock:
            fresh = sorted(plan.places - self._handles.keys())
            modules = {place: self._model.get_submodule(place[1]) for place in fresh}
            if fresh:
                _notice_hooks()
            if fresh and BACKBONE not in self._handles:
                backbone = _backbone(self._model)
                self._handles[BACKBONE] = [
                    backbone.register_forward_pre_hook(_untraced(self._enter), with_kwargs=True, prepend=True),
                    backbone.register_forward_hook(_untraced(self._leave), with_kwargs=True, always_call=True),
                ]
            for (side, path), module in modules.items():
                if side == "whole":
                    self._handles[WHOLE] = [module.register_forward_hook(_untraced(self._routed), with_kwargs=True)]
                    continue
                self._handles[side, path] = [
                    module.register_forward_pre_hook(_untraced(self._before(path)))
                    if side == "input"
                    else module.register_forward_hook(_untraced(self._after(path)))
                ]
            return fresh

    def _unhook(self, place: Place) -> None:
        for handle in self._handles.pop(place):
            handle.remove()

    def _unhook_if_idle(self) -> None:
        if self._leaving and not self._users:
            for place in list(self._handles):
                self._unhook(place)
            self._proven.clear()

    def _enter(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        now = self._begin()
        self._set(replace(self._state(), now=now))  # first of all, for `_leave` is called in any case
        now.attention, now.cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        now.past = int(now.cache.get_seq_length()) if now.cache is not None else 0

    def _begin(self) -> Pass:
        state = self._state()
        plan = self.plan if state.enabled else NOTHING
        return Pass(selection=state.selection, ends=told_ends(), plan=plan, outer=state.now)

    def _leave(self, _module: nn.Module, _args: Any, _kwargs: dict[str, Any], output: Any) -> None:
        state = self._state()
        now = state.now
        if now is None:
            return  # detached in the middle of the pass
        ended = replace(state, now=now.outer)
        self._set(_IDLE if ended == _IDLE else ended)
        cache = now.cache if now.cache is not None else getattr(output, "past_key_values", None)
        if cache is not None:
            keep(cache, now.lasting)

    def _before(self, path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            now = self._state().now or self._begin()  # a module that is called by itself is a pass of its own
            for watch in now.plan.watchers.get(path, ()):
                watch(args[0], now)

        return hook

    def _after(self, path: str) -> Callable[..., Tensor | None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor | None:
            now = self._state().now or self._begin()
            branches = now.plan.branches.get(path)
            if not branches:
                return None
            for branch in branches:
                y = branch(args[0], y, now)
            return y

        return hook

    def _routed(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        state = self._state()
        plan = self.plan if state.enabled else NOTHING
        given = kwargs | ({"input_ids": args[0]} if args else {})

        def within(rows: Sequence[int]) -> Any:
            chosen = state.selection
            if chosen is not None:
                repeats = len(given["input_ids"]) // len(chosen)
                chosen = tuple(chosen[row // repeats] for row in rows)
            return self.within(plan=replace(plan, routers=()), selection=chosen)

        for router in plan.routers:
            output = router(model, given, output, state.selection, within)
        return output


@dataclass(frozen=True, eq=False)
class _Recorder:
    """A branch and watcher that changes nothing and notes that it was called."""

    place: Place
    reached: set[Place]

    def watch(self, _x: Tensor, _now: Pass) -> None:
        self.reached.add(self.place)

    def __call__(self, x: Tensor, y: Tensor, now: Pass) -> Tensor:
        self.watch(x, now)
        return y

    def owned(self, name: str) -> Self:
        raise AssertionError(f"a recorder is nobody's, nor {name}'s")


@dataclass(frozen=True, eq=False)
class _RecordedRouter:
    recorder: _Recorder

    def __call__(self, model: nn.Module, given: Mapping[str, Any], output: Any, selection: Any, within: Any) -> Any:
        self.recorder.reached.add(self.recorder.place)
        return output

    def owned(self, name: str) -> Self:
        return self


def _backbone(model: nn.Module) -> nn.Module:
    """What a pass goes through that is told of masks and cache: of an encoder-decoder the decoder. Modules of its encoder are a pass each,
    since generation runs the encoder by itself."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
        return decoder
    return getattr(model, "base_model", model)


def _recorded(plan: Plan, reached: set[Place]) -> Plan:
    """The same, noting in `reached` which places a pass goes through."""
    return Plan(
        {path: [_Recorder(("output", path), reached), *hung] for path, hung in plan.branches.items()},
        {path: [_Recorder(("input", path), reached).watch, *watching] for path, watching in plan.watchers.items()},
        routers=[_RecordedRouter(_Recorder(WHOLE, reached)), *plan.routers] if plan.routers else (),
    )


def _route(plan: Plan) -> frozenset[Any]:
    """The places of a plan, and which of them must come before which: a watcher before its branch."""
    at = {id(branch): path for path, hung in plan.branches.items() for branch in hung}
    heard = {(path, at.get(id(getattr(w, "__self__", None)))) for path, ws in plan.watchers.items() for w in ws}
    return frozenset((*plan.places, *heard))


def _untraced(hook: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile ends a graph here and calls the hook as it is, so that compiled code follows every change of the plan."""
    disabled: Callable[..., Any] = torch.compiler.disable(hook)
    return disabled


def _notice_hooks() -> None:
    """Have torch.compile look at the hooks of modules, as it does not by itself.

    Otherwise code compiled for a module is reused for another one of its kind, whatever hangs on that: a patched view would answer
    as the base, in silence. What was compiled so is compiled anew.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.config.skip_nnmodule_hook_guards:
        dynamo.config.skip_nnmodule_hook_guards = False
        torch.compiler.reset()

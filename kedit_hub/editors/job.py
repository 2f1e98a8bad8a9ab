"""What every editor is given, and what it gives back. Law: an editor touches neither disk nor network, and leaves the model as it was.

An editor is a function of one Job that returns one Result. Long work goes piece by piece through `memo`: a piece that was finished before
the process was killed is handed back instead of being computed again.

    def make(job: Job) -> Result:
        for number, batch in enumerate(batches):
            tensors = job.memo(f"batch-{number}", lambda: worked_out(batch))
            job.advance(len(batch))

Where a piece holds all that the ones before it held (the state of a training), only the newest is kept: see `states`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from kedit_hub.base.profile import BaseProfile
from kedit_hub.edits import Edit
from kedit_hub.errors import ProfileError
from kedit_hub.patch.deltas import Delta
from kedit_hub.patch.patch import Patch

Advance = Callable[[int], None]  # how many more edits (or pieces of work) are finished
Moment = Callable[[str], Tensor]  # path of a linear map of the base -> second moment (d, d) of its inputs on text
Memo = Callable[[str, Callable[[], dict[str, Tensor]]], dict[str, Tensor]]  # name of a piece, how to compute it -> it


@runtime_checkable
class Keeping(Protocol):
    """A memo that can be asked what it holds, and told to let it go (kedit_hub.resuming)."""

    def holds(self, name: str) -> bool: ...

    def forget(self, name: str) -> None: ...


def compute(_name: str, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The memo that keeps nothing."""
    return work()


def states(memo: Memo, names: Sequence[str], work: Callable[[int], dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """One state after the other, each worked out from the one before it: work(n) of names[n]. Begun at the newest that is kept.

    A state is let go when the next is safely kept, where the memo can do that (`Keeping`).
    """
    keeping = memo if isinstance(memo, Keeping) else None
    first = 0
    if keeping is not None:
        first = next((n for n in reversed(range(len(names))) if keeping.holds(names[n])), 0)
        for name in names[:first]:
            keeping.forget(name)
    for number in range(first, len(names)):
        state = memo(names[number], partial(work, number))
        if keeping is not None and number > first:
            keeping.forget(names[number - 1])
        yield state


@dataclass(frozen=True)
class Job:
    """model: what is edited; where an editor is not `on_base`, it answers with the patches `below` already.

    profile: None for editors that do not go by one. settings: of the class that the editor's row names.
    """

    model: nn.Module
    tokenizer: Any
    edits: Sequence[Edit]
    settings: Any
    profile: BaseProfile | None = None
    seed: int = 0
    below: Sequence[Patch] = ()
    moments: Moment | None = None  # None: that of the profile is all that is known
    advance: Advance = lambda done: None
    memo: Memo = compute

    def moment(self, path: str) -> Tensor:
        """C0 (d, d) at the input of a linear map of the base, on ordinary text; ProfileError where nobody has measured it."""
        if self.profile is not None and path == self.profile.module:
            return self.profile.second_moment
        if self.moments is None:
            raise ProfileError(
                f"the second moment at {path} is not known, and the base profile is of another module: edit through "
                "kedit_hub.edit, which measures it, or at the profile's own layer"
            )
        return self.moments(path)


class Clock:
    """Seconds since it was made, by the wall and of the processor."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def times(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self._wall, "cpu_seconds": time.process_time() - self._cpu}


class Unconverged(BaseModel):
    """A value that is in the patch and was not stopped because every context says the target surely enough."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    value_norm: float  # |value| / |block output|
    nll: float  # mean over contexts
    contexts: float  # share of them that says the target
    at_clamp: bool  # whether the value is as large as it may be
    out_of_steps: bool


class Made(BaseModel):
    """What the editor measured while it worked; travels in the patch's scores. None: not a thing this editor has."""

    model_config = ConfigDict(frozen=True)

    edits: int
    dropped: list[str]  # prompts that were left out of the patch
    seconds: float
    cpu_seconds: float
    not_converged: list[str] | None = None  # prompts that are in it, though not every context says the target for sure
    unconverged: list[Unconverged] | None = None  # the first thousand of them, where a value was optimised for each
    value_success: float | None = None  # share of requested edits whose value makes the bare prompt say the target
    context_success: float | None = None  # mean share of contexts that say it
    value_norm: float | None = None  # mean |value| / |block output|
    nll: float | None = None
    said: float | None = None  # share of the edits in the patch that the model says with the finished change in place
    said_nll: float | None = None
    unsaid: list[str] | None = None  # prompts of the others
    paraphrases: dict[str, dict[str, int]] | None = None  # found, by source: how many were kept, leaked, unusable
    counter_keys: int | None = None


@dataclass(frozen=True)
class Result:
    """deltas: by module path. edits: those that are in the patch. settings: how it was made, as it is recorded in the patch."""

    deltas: Mapping[str, Delta]
    edits: Sequence[Edit]
    made: Made
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

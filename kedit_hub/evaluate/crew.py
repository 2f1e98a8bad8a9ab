"""One measurement on several processes, each with its own copy of the model. Law: what comes out is what one process would have got, in
the same order; and where one process fails, none goes on.

    accelerate launch -m kedit_hub.cli bench ...        # or: python -m torch.distributed.run --nproc-per-node 4 -m kedit_hub.cli bench ...

    with crew() as team:                                # one process: a team of one
        lengths = team.map(texts, len)                  # every process does its share by index and gets all the results
"""

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from kedit_hub.errors import CrewError, KeditError

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = datetime.timedelta(
    days=7
)  # one process may train for hours while the others wait; one that died is noticed at once


@dataclass(frozen=True)
class Crew:
    """rank: of this process. size: how many there are. gather: the values of all processes, in order of rank."""

    rank: int = 0
    size: int = 1
    gather: Callable[[Any], list[Any]] = lambda own: [own]

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def map(self, items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
        """[work(item) for item in items], each item done by one of the processes; all get all the results.

        The error of the first item that failed is raised in all of them. One that was not made on purpose is a bug: the process that has
        it raises it as it is, for the sake of its traceback, and the others a CrewError that names it.
        """
        done: dict[int, Result] = {}
        own: tuple[int, Exception] | None = None
        for at in range(self.rank, len(items), self.size):
            try:
                done[at] = work(items[at])
            except Exception as error:
                own = (at, error)
                break
        told = self.gather((done, None if own is None else (own[0], _told(own[1], self.rank))))
        if own is not None and not isinstance(own[1], KeditError):
            raise own[1]
        failed = [failure for _, failure in told if failure is not None]
        if failed:
            raise min(failed, key=lambda failure: failure[0])[1]
        results = {at: result for share, _ in told for at, result in share.items()}
        return [results[at] for at in range(len(items))]

    def each(self, work: Callable[[], Result]) -> Result:
        """work() in every process, and to each its own result; an error of one is raised in all, as by `map`.

        What can fail in one process alone belongs in here or in `map`: else the others would wait, or be given answers to another question.
        """
        own: list[Result] = []
        self.map(range(self.size), lambda _: own.append(work()))
        return own[0]


def _told(error: Exception, rank: int) -> KeditError:
    """What the other processes are told."""
    if isinstance(error, KeditError):
        return type(error)(str(error))
    return CrewError(f"process {rank} failed: {type(error).__name__}: {str(error)[:500]}")


def rank() -> int:
    """Of this process, as its launcher says; 0 without one."""
    return int(os.environ.get("RANK", "0")) if size() > 1 else 0


def size() -> int:
    """How many processes the launcher has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def crew() -> Iterator[Crew]:
    """The processes that `accelerate launch` or `torch.distributed.run` has started. Left in order, all wait for each other."""
    if size() == 1:
        yield Crew()
        return
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    device = torch.accelerator.current_accelerator(check_available=True)
    on_cpu = device is None or device.type == "mps"
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    if state.num_processes != size():  # each would do all the work, and write it
        raise CrewError(f"{size()} processes were started, and accelerate joins {state.num_processes}: start one alone")

    def gather(own: Any) -> list[Any]:
        try:
            return list(gather_object([own]))
        except RuntimeError as cause:  # the connection to a process that has ended
            raise CrewError(f"another process has ended: {str(cause).splitlines()[0][:200]}") from None

    try:
        yield Crew(state.process_index, state.num_processes, gather)
    finally:  # also on the way out of an error: threads of a group that outlive the interpreter abort the process
        state.destroy_process_group()

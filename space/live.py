"""What a long piece of work says while it runs, for a page that takes up each step in whatever thread is free.

for step in live(lambda tell: work(tell), stop): ...

Law: the work runs in one thread from beginning to end, since a lock belongs to the thread that took it; whoever stops listening stops it.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from space.state import Stop

T = TypeVar("T")


class _End:
    """Nothing more comes. error: what the work ended with, None where it is done."""

    def __init__(self, error: BaseException | None = None):
        self.error = error


def live(work: Callable[[Callable[[T], None]], object], stop: Stop) -> Iterator[T]:
    """Everything the work tells, as soon as it is told; then its error, where it has one. stop: what the work looks at now and then."""
    told: queue.SimpleQueue[T | _End] = queue.SimpleQueue()

    def run() -> None:
        try:
            work(told.put)
            told.put(_End())
        except BaseException as error:
            told.put(_End(error))

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    try:
        while not isinstance(item := told.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    except GeneratorExit:  # nobody listens any more
        stop.wished = True
        raise
    finally:
        worker.join()


def each(items: Callable[[], Iterator[T]], stop: Stop) -> Iterator[T]:
    """The same of a generator, which is then run through in the one thread."""

    def work(tell: Callable[[T], None]) -> None:
        for item in items():
            tell(item)

    return live(work, stop)

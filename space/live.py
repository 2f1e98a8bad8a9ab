"""What a long piece of work says while it runs, for a page that takes up each step in whatever thread is free.

for step in live(lambda: measured(...), stop): ...

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


def live(work: Callable[[], Iterator[T]], stop: Stop) -> Iterator[T]:
    """Every item of the work as soon as it is there; its error, where it has one. stop: what the work looks at between two steps."""
    told: queue.SimpleQueue[T | _End] = queue.SimpleQueue()

    def run() -> None:
        try:
            for item in work():
                told.put(item)
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
    except GeneratorExit:
        stop.wished = True
        raise
    finally:
        worker.join()

"""A crew of threads, for tests of what runs on several processes."""

import threading
from collections.abc import Callable
from typing import Any

from kedit_hub.evaluate.crew import Crew


def together(members: int, work: Callable[[Crew], Any]) -> list[Any]:
    """What `work` returns, or raises, in each member of a crew; by rank."""
    barrier, told = threading.Barrier(members), [None] * members
    results: list[Any] = [None] * members

    def member(rank: int) -> None:
        def gather(own: Any) -> list[Any]:
            told[rank] = own
            barrier.wait(timeout=60)
            everything = list(told)
            barrier.wait(timeout=60)
            return everything

        try:
            results[rank] = work(Crew(rank, members, gather))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results

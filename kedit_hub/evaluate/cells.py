"""What a benchmark is made of: cells, each a set of edits cut into patches and asked in one way. Law: which edits a cell holds follows from
the data set and the order seed alone, so every editor is given the same ones.

    single         every edit in a patch of its own, applied alone; the scores are averaged
    batch          n edits submitted together: one patch
    sequential     n edits in patches of `batch_size`, one after another; all are asked after the last one
    stack          n patches of one edit, made without knowing of each other, on one base together
    quantization   that stack, made in full precision and applied to bases in fewer bits

    for cell in plan(("batch", "stack"), pool(edits), n=(1, 10), order_seeds=(0, 1)):
        cell.batches            # the edits of each patch
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import get_args

from kedit_hub import strictjson
from kedit_hub.edits import Edit, questions
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.questions import questions as asked_of
from kedit_hub.evaluate.run import SUITES, Suite
from kedit_hub.stack.compose import Mode

WEIGHTS = "weights"  # not installed but written into the weights, patch after patch: the baseline of sequential editing
MODES = ("auto", *get_args(Mode), WEIGHTS)


@dataclass(frozen=True)
class Cell:
    """One measurement. mode: as asked for. batch_size: edits in each patch. edits: in the order they are made in."""

    suite: Suite
    mode: str
    batch_size: int
    seed: int
    order_seed: int
    edits: tuple[Edit, ...]

    @property
    def n(self) -> int:
        return len(self.edits)

    @cached_property
    def batches(self) -> tuple[tuple[Edit, ...], ...]:
        """The edits of each patch."""
        return tuple(self.edits[at : at + self.batch_size] for at in range(0, self.n, self.batch_size))


def pool(edits: Sequence[Edit], limit: int | None = None) -> list[Edit]:
    """The edits to choose from: the first `limit`, without those that ask what an earlier one asks already. Two answers to one question
    cannot both be right, and one question twice would be counted twice."""
    asked: set[tuple[str, ...]] = set()
    kept = []
    for edit in edits[:limit]:
        own = questions(edit)
        if not asked.intersection(own):
            kept.append(edit)
            asked.update(own)
    return kept


def plan(
    suites: Sequence[str],
    pool: Sequence[Edit],
    *,
    n: Sequence[int] = (1, 10, 100),
    batch_size: int = 1,
    seeds: Sequence[int] = (0,),
    order_seeds: Sequence[int] = (0,),
    modes: Sequence[str] = ("auto",),
) -> list[Cell]:
    """All cells, in the order they are measured in. KeditError for what cannot be planned.

    The n edits of a cell are the first n of the pool in the order that the order seed draws. Only `sequential` knows an order inside a
    cell; the others hold a set, and one that two orders have in common is measured once. `single` takes the largest n, in the first order.
    """
    check_names("suite", suites, SUITES)
    check_names("mode", modes, MODES)
    for name, values in (("n", n), ("seeds", seeds), ("order_seeds", order_seeds)):
        if not values:
            raise KeditError(f"{name} is empty: give at least one number")
    if min(n) < 1 or batch_size < 1:
        raise KeditError(f"n={min(n)} edits in patches of {batch_size} is no benchmark: give numbers of at least 1")
    if max(n) > len(pool):
        raise KeditError(f"n={max(n)} edits are asked for, and there are {len(pool)} that ask different questions")
    first: dict[tuple[object, ...], Cell] = {}  # of a set that two orders have in common
    for cell in _cells(suites, pool, sorted(set(n)), batch_size, seeds, order_seeds, modes):
        order = cell.order_seed if cell.suite == "sequential" else None
        first.setdefault((cell.suite, cell.mode, cell.batch_size, cell.seed, order, cell.edits), cell)
    if not first:
        raise KeditError(f'mode "{WEIGHTS}" belongs to the suite "sequential": ask for it too, or for another mode')
    return list(first.values())


def _cells(
    suites: Sequence[str],
    pool: Sequence[Edit],
    sizes: Sequence[int],
    batch_size: int,
    seeds: Sequence[int],
    order_seeds: Sequence[int],
    modes: Sequence[str],
) -> Iterator[Cell]:
    for suite in (suite for suite in SUITES if suite in suites):
        for mode in (mode for mode in modes if mode != WEIGHTS or suite == "sequential"):
            for seed in seeds:
                for order_seed in order_seeds[:1] if suite == "single" else order_seeds:
                    for size in sizes[-1:] if suite == "single" else sizes:
                        order = random.Random(order_seed).sample(range(len(pool)), len(pool))[:size]
                        places = order if suite == "sequential" else sorted(order)
                        per_patch = {"batch": size, "sequential": min(batch_size, size)}.get(suite, 1)
                        yield Cell(suite, mode, per_patch, seed, order_seed, tuple(pool[at] for at in places))


def check_names(what: str, given: Sequence[str], known: Iterable[str]) -> None:
    """KeditError that quotes the first of the `given` names that is not known."""
    known = list(known)
    odd = [given] if isinstance(given, str) or not given else [name for name in given if name not in known]
    if odd:
        raise KeditError(f"{odd[0]!r} names no {what}: pass a list of some of {', '.join(known)}")


def answers_by_relation(pool: Iterable[Edit]) -> dict[str, tuple[str, ...]]:
    """Wrong answers for `choice`, the same for all cells: every answer to a relation that edits and probes of the pool know of."""
    found: dict[str, set[str]] = {}
    for question in (question for edit in pool for question in asked_of(edit).questions):
        if question.relation is not None:
            rival = None if question.role == "locality" else question.rival  # which is of the edit's relation
            found.setdefault(question.relation, set()).update({question.target or "", rival or ""} - {""})
    return {relation: tuple(sorted(answers)) for relation, answers in sorted(found.items())}


def records_digest(edits: Sequence[Edit]) -> str:
    """64 hex digits over the records of these edits, in their order."""
    return sha256(strictjson.canonical([edit.to_record() for edit in edits])).hexdigest()

"""Textual conflicts: two edits that want different answers to one question, seen without running anything.

The same question is: the same subject, by any of its names, and relation, or the same prompt (`edits.questions`). The same answer
is: the target of one is the target or an alias of the other. Edits are put into bins by question and answer, so the time goes with
their number and with the number of contradictions, never with the number of pairs.

    find_conflicts([nantes, marseille])      # one Conflict: what is the capital of France?
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from kedit_hub.edits import Edit, questions, spellings
from kedit_hub.errors import ConflictError

MAX_CONFLICTS = 100_000  # a stack that contradicts itself more often has to be sorted out before it is listed
MAX_ANSWERS = 1_000  # different ones to one question

Place = tuple[str, int]  # (patch id, position of the edit in it)


class Holder(Protocol):
    """A patch, or what is to become one."""

    @property
    def id(self) -> str: ...
    @property
    def edits(self) -> Sequence[Edit]: ...


@dataclass(frozen=True)
class Conflict:
    """`earlier` and `later` are (patch id, position of the edit in it), in the order of the stack."""

    earlier: Place
    later: Place
    question: str
    targets: tuple[str, str]

    def __str__(self) -> str:
        told = (f'patch {who[:12]} says "{what}"' for (who, _), what in zip((self.earlier, self.later), self.targets))
        return f'"{self.question}": {", ".join(told)}'


def find_conflicts(patches: Sequence[Holder]) -> list[Conflict]:
    """Every pair of edits of different patches with one question and different answers, in the order of the later edit."""
    return _found(patches, within=False)


def contradictions_within(patches: Sequence[Holder]) -> list[Conflict]:
    """The same of two edits of one patch, which no order and no choice between patches can settle: its author has to."""
    return _found(patches, within=True)


def _found(patches: Sequence[Holder], *, within: bool) -> list[Conflict]:
    edits = [(patch.id, position, edit) for patch in patches for position, edit in enumerate(patch.edits)]
    bins: dict[tuple[str, ...], _Bin] = {}
    for number, (owner, _, edit) in enumerate(edits):
        answers = spellings(edit)
        for question in questions(edit):
            bins.setdefault(question, {}).setdefault(answers, {}).setdefault(owner, []).append(number)
    pairs: set[tuple[int, int]] = set()
    for question, answered in bins.items():
        if len(answered) > MAX_ANSWERS:
            raise _too_many(f"give {len(answered):,} different answers", question)
        for a, b in _contradicting(answered, within):
            pairs.add((min(a, b), max(a, b)))
            if len(pairs) > MAX_CONFLICTS:
                raise _too_many(f"contradict each other more than {MAX_CONFLICTS:,} times", question)
    found = []
    for a, b in sorted(pairs, key=lambda pair: pair[::-1]):
        (earlier, i, first), (later, j, second) = edits[a], edits[b]
        found.append(Conflict((earlier, i), (later, j), second.prompt, (first.target, second.target)))
    return found


_Bin = dict[tuple[str, ...], dict[str, list[int]]]  # of one question: answers -> patch id -> edits


def _contradicting(answered: _Bin, within: bool) -> Iterator[tuple[int, int]]:
    """Pairs of edits of one patch (within) or of two whose answers do not agree. Patches are paired, not edits, until two differ."""
    seen: list[tuple[str, frozenset[str], dict[str, list[int]]]] = []
    for answers, owners in answered.items():
        target, right = answers[0], frozenset(answers)
        for other, others_right, others in seen:
            if target in others_right or other in right:
                continue
            for owner in owners.keys() & others.keys() if within else owners:
                for rival in [owner] if within else others:
                    if (rival == owner) == within:
                        yield from product(others[rival], owners[owner])
        seen.append((target, right, owners))


def _too_many(what: str, question: tuple[str, ...]) -> ConflictError:
    return ConflictError(
        f'these patches {what}, for instance to "{" / ".join(question[1:])[:80]}": take patches out until the rest can be listed'
    )

"""`choice`: the answer among wrong answers of the same relation, ranked by mean NLL per token. Law: which wrong answers a question gets
follows from the question and the answers at hand alone, not from their order and not from a random generator.

    distractors("The capital of France is", "Lyon", right=("Lyon",), first=("Paris",), pool=["Rome", "Bonn", "Oslo", "Lyon"])
        -> ("Paris", "Bonn", "Rome", "Oslo")           the old answer first, then at most 8 others, picked by digest
    rank("Lyon", ("Paris", "Bonn", "Rome", "Oslo"), {"Lyon": 0.7, "Paris": 0.2, "Bonn": 3.0, "Rome": 4.0, "Oslo": 5.0})  -> 2

Among many likely answers an edit has to win outright, where a pair asks only for more than the old answer.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from kedit_hub.evaluate.metrics import normalise

MIN_DISTRACTORS, MAX_DISTRACTORS = 3, 9


def distractors(
    prompt: str, target: str, right: Iterable[str], first: Iterable[str], pool: Iterable[str]
) -> tuple[str, ...]:
    """At most MAX_DISTRACTORS wrong answers: those of `first`, then those of `pool` in the order of a digest over question and answer.

    right: answers that are not wrong (the target and its aliases).  Two answers that `normalise` makes equal are one.
    """
    seen = {normalise(answer) for answer in right}
    chosen: list[str] = []

    def drawn(answer: str) -> bytes:
        return hashlib.sha256("\0".join((prompt, target, answer)).encode()).digest()

    for answer in (*first, *sorted(set(pool), key=drawn)):
        if normalise(answer) not in seen and len(chosen) < MAX_DISTRACTORS:
            seen.add(normalise(answer))
            chosen.append(answer)
    return tuple(chosen)


def rank(target: str, others: Sequence[str], nll: Mapping[str, float | None]) -> int:
    """1 = likelier than every other answer; ties count against the target, and so does an NLL that is no number (None)."""
    own = nll[target]
    return 1 + sum(not less(own, nll[other]) for other in others)


def top(answers: Sequence[str], nll: Mapping[str, float | None]) -> str | None:
    """The likeliest answer, the first of equals; None where no NLL is a number."""
    known = [(value, i) for i, answer in enumerate(answers) if (value := nll[answer]) is not None]
    return answers[min(known)[1]] if known else None


def less(a: float | None, b: float | None) -> bool:
    """Whether an answer of NLL a is likelier than one of NLL b. None, no number, is likelier than nothing."""
    return a is not None and (b is None or a < b)

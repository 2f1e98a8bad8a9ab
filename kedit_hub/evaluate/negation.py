"""Does the model hold the new fact, or repeat its answer? The fact negated, and asked back as a question. Law: these numbers stand apart
and enter no average: models that were never edited do badly on them too, so the base stands beside.

    negated(edit)                 "It is not true that the capital of France is"       the new answer would be wrong here
    is_it_true(edit, "Lyon")      "Question: Is it true that the capital of France is Lyon? Answer:"       Yes against No

Edited models often repeat the new answer under negation: it was tied to the words, not to the fact.
"""

import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from kedit_hub.base.tokens import join
from kedit_hub.edits import Edit
from kedit_hub.evaluate.asking import Asking
from kedit_hub.evaluate.choice import less
from kedit_hub.evaluate.metrics import exact_match
from kedit_hub.evaluate.protocols import first_sentence

NEGATED = "It is not true that {}"
IS_IT_TRUE = "Question: Is it true that {}? Answer:"
ANSWER_OF = 'the answer to "{}" is {}'
YES, NO = "Yes", "No"

IS_A_QUESTION = "the prompt is a question: there is nothing to negate"
SEVERAL_SENTENCES = "the prompt has several sentences: it is not clear which one to turn"
NO_OLD_ANSWER = "the edit has no ground_truth to ask about"

# words that begin a sentence with a capital and nothing else; a name keeps its own
_SMALL = frozenset((
    "a", "an", "the", "in", "on", "at", "of", "for", "from", "by", "as", "to", "with", "this", "that", "these", "those",
    "it", "its", "his", "her", "their", "our", "what", "which", "who", "where", "when", "how",
))  # fmt: skip


def negated(edit: Edit) -> str | None:
    """The edit prompt under a negation, a text to continue; None for a question and for several sentences."""
    return None if _hindrance(edit) is not None else NEGATED.format(_lowered(edit.prompt, edit.subject))


def is_it_true(edit: Edit, answer: str) -> str | None:
    """A yes-or-no question whether `answer` is right; None for several sentences."""
    match _hindrance(edit):
        case None:
            return IS_IT_TRUE.format(join(_lowered(edit.prompt, edit.subject), answer))
        case reason if reason == IS_A_QUESTION:
            return IS_IT_TRUE.format(ANSWER_OF.format(_question(edit.prompt), answer))
    return None


def _hindrance(edit: Edit) -> str | None:
    if _question(edit.prompt):
        return IS_A_QUESTION
    return SEVERAL_SENTENCES if first_sentence(edit.prompt) != edit.prompt else None


def _question(prompt: str) -> str | None:
    """'What is it?' of 'What is it?' and of 'Question: What is it? Answer:'."""
    found = re.fullmatch(r"(?:(?:question|q): *)?([^\n]*?\?)(?:\s*(?:answer|a):)?", prompt, re.IGNORECASE)
    return found.group(1) if found else None


def _lowered(prompt: str, subject: str | None) -> str:
    """The prompt inside a sentence: 'The capital' -> 'the capital'. A subject is kept letter for letter."""
    first = prompt.split(maxsplit=1)[0]
    if first.lower() not in _SMALL or (subject is not None and prompt.startswith(subject)):
        return prompt
    return prompt[0].lower() + prompt[1:]


def negations(asked: Asking, edits: Sequence[Edit]) -> dict[str, Any]:
    """negated: share of negated prompts that still get the new answer (the lower, the better), exact match of what is said.
    fact_check: shares, by P(Yes) > P(No), of new answers confirmed, old answers denied, and edits with both.

    Each {"before": of the base, None without one, "after", "n": edits}; a model that always says yes has "new" 1 and "old" 0.
    left_out: edits of which one of these could not be asked, by reason.
    """
    left_out: Counter[str] = Counter()
    turned = {i: prompt for i, edit in enumerate(edits) if (prompt := negated(edit)) is not None}
    left_out.update(reason for edit in edits if (reason := _hindrance(edit)) is not None)
    new = {i: prompt for i, edit in enumerate(edits) if (prompt := is_it_true(edit, edit.target)) is not None}
    old = {
        i: prompt
        for i, edit in enumerate(edits)
        if edit.ground_truth is not None and (prompt := is_it_true(edit, edit.ground_truth)) is not None
    }
    left_out[NO_OLD_ANSWER] += sum(edit.ground_truth is None for edit in edits)

    said, said_by_base = asked.answers(turned.values()), asked.answers_of_base(turned.values())
    after, before = asked.nlls((prompt, answer) for prompt in (*new.values(), *old.values()) for answer in (YES, NO))

    def repeats(told: dict[str, str]) -> dict[int, float]:
        return {
            i: float(any(exact_match(told[prompt], answer) for answer in (edits[i].target, *edits[i].aliases)))
            for i, prompt in turned.items()
            if prompt in told
        }

    def holds(told: dict[tuple[str, str], float | None], questions: dict[int, str], right: str) -> dict[int, float]:
        wrong = NO if right == YES else YES
        return {i: float(less(told[q, right], told[q, wrong])) for i, q in questions.items() if (q, right) in told}

    confirmed = [holds(told, new, YES) for told in (before, after)]
    denied = [holds(told, old, NO) for told in (before, after)]
    both = [{i: c[i] * d[i] for i in c if i in d} for c, d in zip(confirmed, denied)]
    return {
        "negated": _compared(repeats(said_by_base), repeats(said)),
        "fact_check": {"new": _compared(*confirmed), "old": _compared(*denied), "both": _compared(*both)},
        "left_out": {reason: n for reason, n in left_out.items() if n},
    }


def _compared(before: dict[int, float], after: dict[int, float]) -> dict[str, Any]:
    return {
        "before": fmean(before.values()) if before else None,
        "after": fmean(after.values()) if after else None,
        "n": len(after),
    }

"""From what the models told to scores, one function for each protocol. Law: a score follows from what is recorded beside it and from
nothing else, so that a sheet can be checked without the models; only the tokens of `tf-token` are not recorded.

    score_generate(asked, questions)      asked: the models (asking.Asking), or the answers on a sheet (claims.py)

Locality is agreement with the base, whatever is right, except under `nll-pair`, which is scored as it was published.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from kedit_hub.evaluate.asking import Asking, Pair
from kedit_hub.evaluate.choice import MIN_DISTRACTORS, less, rank, top
from kedit_hub.evaluate.metrics import contains, exact_match, normalise
from kedit_hub.evaluate.scores import (
    NO_ANSWER,
    NO_BASE,
    NO_RELATION,
    NO_RIVAL,
    NO_TARGET,
    NOT_KNOWN,
    SAME_ANSWER,
    TOO_FEW,
    Outcome,
)


class Witness(Protocol):
    """Who tells what the models said: the models themselves, or a sheet. Base: empty where there is none."""

    def answers(self, prompts: Iterable[str]) -> dict[str, Any]: ...

    def answers_of_base(self, prompts: Iterable[str]) -> dict[str, str]: ...

    def nlls(self, pairs: Iterable[Pair]) -> tuple[dict[Pair, float | None], dict[Pair, float | None]]: ...


def score_generate(asked: Witness, questions: Sequence[Outcome]) -> None:
    """Normalised exact match with the target or one of its aliases; for locality the whole text must be that of the base."""
    after = asked.answers(question.prompt for question in questions)
    before = asked.answers_of_base(question.prompt for question in questions)
    for question in questions:
        question.answer_after = after[question.prompt]
        question.answer_before = before.get(question.prompt)
        right = () if question.target is None else (question.target, *question.aliases)
        if right:
            question.contains = any(contains(question.answer_after, answer) for answer in right)
            if question.answer_before is not None:
                question.before["generate"] = _exact(question.answer_before, right)
        if question.role != "locality":
            question.scores["generate"] = _exact(question.answer_after, right)
        elif question.answer_before is None:
            question.dropped["generate"] = NO_BASE
        else:
            question.scores["generate"] = float(question.answer_after == question.answer_before)
            if question.before.get("generate", 1.0) < 1.0:
                question.dropped["generate"] = NOT_KNOWN


def _exact(answer: str, right: Sequence[str]) -> float:
    return float(any(exact_match(answer, target) for target in right))


def score_tf_token(asked: Asking, questions: Sequence[Outcome]) -> None:
    """Along the target, never along an alias. A locality probe without a target is forced along the base's own answer."""
    told = asked.answers_of_base(question.prompt for question in questions if question.target is None)
    pairs = {id(q): (q.prompt, q.target if q.target is not None else told.get(q.prompt, "")) for q in questions}
    after, before = asked.forced(pair for pair in pairs.values() if pair[1])
    for question in questions:
        pair = pairs[id(question)]
        if question.target is not None and pair in before:
            question.before["tf-token"] = before[pair].accuracy
        if question.role != "locality":
            question.scores["tf-token"] = after[pair].accuracy
        elif asked.unedited is None:
            question.dropped["tf-token"] = NO_BASE
        elif pair not in before:
            question.dropped["tf-token"] = NO_ANSWER
        else:
            question.scores["tf-token"] = after[pair].agreement(before[pair])
            if question.before.get("tf-token", 1.0) < 1.0:
                question.dropped["tf-token"] = NOT_KNOWN


def score_nll_pair(asked: Witness, questions: Sequence[Outcome]) -> None:
    """1 where the target has the lower mean NLL per token, 0 where its rival has: the new answer against the old one, for locality
    the true answer against the new one (Meng et al. 2022). Nothing is left out because the base did not know it."""
    paired = []
    for question in questions:
        if question.target is None:
            question.dropped["nll-pair"] = NO_TARGET
        elif question.rival is None:
            question.dropped["nll-pair"] = NO_RIVAL
        elif normalise(question.rival) == normalise(question.target):
            question.dropped["nll-pair"] = SAME_ANSWER
        else:
            paired.append((question, question.target, question.rival))
    _weigh(asked, [(question, (target, rival)) for question, target, rival in paired])
    for question, target, rival in paired:
        question.scores["nll-pair"] = float(less(question.nll_after[target], question.nll_after[rival]))
        if question.nll_before:
            question.before["nll-pair"] = float(less(question.nll_before[target], question.nll_before[rival]))


def score_choice(asked: Witness, questions: Sequence[Outcome]) -> None:
    """1 where the target ranks first among its distractors; for locality, where the base and the edited model rank the same answer
    first, of probes that the base got right."""
    ranked = []
    for question in questions:
        if question.target is None:
            question.dropped["choice"] = NO_TARGET
        elif question.relation is None:
            question.dropped["choice"] = NO_RELATION
        elif len(question.distractors) < MIN_DISTRACTORS:
            question.dropped["choice"] = TOO_FEW
        else:
            ranked.append((question, question.target, (question.target, *question.distractors)))
    _weigh(asked, [(question, answers) for question, _, answers in ranked])
    for question, target, answers in ranked:
        if question.nll_before:
            question.before["choice"] = float(rank(target, question.distractors, question.nll_before) == 1)
        if question.role != "locality":
            question.scores["choice"] = float(rank(target, question.distractors, question.nll_after) == 1)
        elif not question.nll_before:
            question.dropped["choice"] = NO_BASE
        else:
            now, then = top(answers, question.nll_after), top(answers, question.nll_before)
            question.scores["choice"] = float(now is not None and now == then)
            if question.before["choice"] < 1.0:
                question.dropped["choice"] = NOT_KNOWN


def _weigh(asked: Witness, wanted: Sequence[tuple[Outcome, Sequence[str]]]) -> None:
    """Write the mean NLL of each answer on its question, of the edited model and of the base."""
    after, before = asked.nlls((question.prompt, answer) for question, answers in wanted for answer in answers)
    for question, answers in wanted:
        pairs = {answer: (question.prompt, answer) for answer in answers}
        question.nll_after |= {answer: after[pair] for answer, pair in pairs.items()}
        question.nll_before |= {answer: before[pair] for answer, pair in pairs.items() if pair in before}

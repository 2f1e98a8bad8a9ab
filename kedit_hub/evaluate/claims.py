"""What a patch claims of itself, read without a model. Law: an average is believed only as far as the recorded answers carry it.

    check_claims(patch)
        NoClaims()               no scores came with the patch
        NotComparable(reason)    scores that cannot be traced back to answers, or are not of this patch alone
        Inconsistent(faults)     scores that do not follow from the recorded answers, or answers to other questions
        Consistent(n)            every number follows from n recorded questions, which are all the patch's own

Consistent is not true: the answers themselves may be invented. `rescore.rescore` asks again.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from kedit_hub.evaluate.asking import Pair
from kedit_hub.evaluate.judging import Witness, score_choice, score_generate, score_nll_pair
from kedit_hub.evaluate.protocols import PROTOCOLS
from kedit_hub.evaluate.questions import drop_edited, give_distractors, questions
from kedit_hub.evaluate.scores import (
    LIKELIHOODS,
    NO_ANSWER,
    NO_BASE,
    NOT_KNOWN,
    ROLES,
    EditOutcome,
    Outcome,
    aggregate,
)
from kedit_hub.patch.patch import Patch
from kedit_hub.stack.compose import Mode

MAX_FAULTS = 50  # a stranger's file may have millions of them
ROUNDING = 1e-9


@dataclass(frozen=True)
class NoClaims:
    """The patch came without scores."""


@dataclass(frozen=True)
class NotComparable:
    """There are scores, and nothing to hold against them."""

    reason: str


@dataclass(frozen=True)
class Inconsistent:
    """The scores contradict themselves or the patch. faults: the first MAX_FAULTS of them, one line each."""

    faults: tuple[str, ...]


@dataclass(frozen=True)
class Consistent:
    """Every number follows from the recorded outcomes of the patch's own n questions."""

    n: int


@dataclass(frozen=True)
class Sheet:
    """A readable score sheet: right types, numbers in range. Whether it is right is another matter.

    protocols: the claimed averages by protocol id, JSON as it came. unknown: what a newer version may understand.
    """

    told: tuple[EditOutcome, ...]
    protocols: dict[str, dict[str, Any]]
    drift: dict[str, Any]
    environment: dict[str, Any]
    mode: str | None
    unknown: tuple[str, ...]


def check_claims(patch: Patch) -> NoClaims | NotComparable | Inconsistent | Consistent:
    """Whether the averages that came with a patch follow from the answers that came with it. Needs no model."""
    sheet = read_sheet(patch)
    if not isinstance(sheet, Sheet):
        return sheet
    faults = []
    for fault in _faults(patch, sheet):
        faults.append(fault)
        if len(faults) == MAX_FAULTS:
            break
    if faults:
        return Inconsistent(tuple(faults))
    if sheet.unknown:
        return NotComparable(f"this version of kedit_hub knows nothing of {', '.join(sheet.unknown)}: update it")
    return Consistent(sum(len(edit.questions) for edit in sheet.told))


def numbers(averages: Mapping[str, Any], *names: str) -> Iterator[tuple[str, float]]:
    """("locality neighbour", 0.5) for every number of the claimed averages `names`, whatever else stands there."""
    for name in names:
        value = averages.get(name)
        for path, leaf in _leaves(value, name):
            if _is_number(leaf):
                yield path, float(leaf)


# --- reading: a stranger wrote every byte of it -------------------------------------------------------------------


class _Unreadable(Exception):
    """Caught in read_sheet; its text is the fault."""


def read_sheet(patch: Patch) -> Sheet | NoClaims | NotComparable | Inconsistent:
    """The score sheet of a patch in checked types. Inconsistent: something in it has a type or a range it cannot have."""
    evals = patch.evals or {}
    if not {"protocols", "per_edit", "drift"} & set(evals):
        return NoClaims()
    try:
        patches, mode = _stack(evals.get("stack"))
        if patches is not None and patches != [patch.id]:
            return NotComparable(
                f"the scores are of a stack of {len(patches)} patch(es), not of this patch alone: score it by itself"
            )
        if "per_edit" not in evals:
            return NotComparable("only averages are stored, not the answers behind them: score the patch again")
        claimed = _object(evals.get("protocols", {}), "protocols")
        known = {name: _object(claimed[name], f"protocols {name}") for name in PROTOCOLS if name in claimed}
        drift = _object(evals.get("drift", {}), "drift")
        return Sheet(
            told=tuple(_edit(value, f"edit {i}") for i, value in enumerate(_list(evals["per_edit"], "per_edit"))),
            protocols=known,
            drift={name: _measure(drift[name], f"drift {name}") for name in DRIFT if name in drift}
            | {name: _text_or_none(drift[name], f"drift {name}") for name in _ABOUT if name in drift},
            environment=_object(evals.get("environment", {}), "environment"),
            mode=mode,
            unknown=(
                *(f"the protocol {_quoted(name)}" for name in sorted(set(claimed) - set(known))[:5]),
                *(f"the drift measure {_quoted(name)}" for name in sorted(set(drift) - {*DRIFT, *_ABOUT})[:5]),
            ),
        )
    except _Unreadable as cause:
        return Inconsistent((str(cause),))


DRIFT = ("ppl_before", "ppl_after", "kl", "tokens", "texts")
_ABOUT = ("texts_sha256", "reason")


def _stack(value: Any) -> tuple[list[str] | None, str | None]:
    """(patch ids, install mode) that the scores were taken with; None where the sheet does not say."""
    if value is None:
        return None, None
    patches, mode = _list(_object(value, "stack").get("patches"), "stack patches"), value.get("mode")
    if mode is not None and mode not in get_args(Mode):
        raise _Unreadable(f"stack mode is {_quoted(mode)}; it is one of {', '.join(get_args(Mode))}")
    return [_text(patch, "stack patches") for patch in patches], mode


def _edit(value: Any, where: str) -> EditOutcome:
    own = _object(value, where)
    first = _outcome({**own, "role": "reliability", "kind": ""}, where)
    probes = _list(own.get("probes"), f"{where} probes")
    return EditOutcome(
        id=_text_or_none(own.get("id"), f"{where} id"),
        subject=_text_or_none(own.get("subject"), f"{where} subject"),
        questions=[first, *(_outcome(probe, f"{where} probe {i}") for i, probe in enumerate(probes))],
    )


def _outcome(value: Any, where: str) -> Outcome:
    record = _object(value, where)
    role, contained = record.get("role"), record.get("contains")
    if role not in ROLES:
        raise _Unreadable(f"{where} has the role {_quoted(role)}; it is one of {', '.join(ROLES)}")
    if not (contained is None or isinstance(contained, bool)):
        raise _Unreadable(f"{where} contains is {_quoted(contained)}; it is true, false or null")
    return Outcome(
        role=role,
        kind=_text(record.get("kind"), f"{where} kind"),
        prompt=_text(record.get("prompt"), f"{where} prompt"),
        target=_text_or_none(record.get("target"), f"{where} target"),
        answer_before=_text_or_none(record.get("answer_before"), f"{where} answer_before"),
        answer_after=_text_or_none(record.get("answer_after"), f"{where} answer_after"),
        contains=contained,
        scores=_shares(record.get("scores"), f"{where} scores"),
        before=_shares(record.get("before"), f"{where} before"),
        distractors=tuple(
            _text(answer, f"{where} distractors")
            for answer in _list(record.get("distractors", []), f"{where} distractors")
        ),
        nll_before=_likelihoods(record.get("nll_before", {}), f"{where} nll_before"),
        nll_after=_likelihoods(record.get("nll_after", {}), f"{where} nll_after"),
        dropped={
            name: _text(reason, f"{where} dropped") for name, reason in _object(record.get("dropped"), where).items()
        },
    )


def _shares(value: Any, where: str) -> dict[str, float]:
    found = _object(value, where)
    for name, share in found.items():
        if not _is_number(share) or not 0 <= share <= 1:
            raise _Unreadable(f"{where} {_quoted(name)} is {_quoted(share)}; a score lies in 0..1")
    return {name: float(share) for name, share in found.items()}


def _likelihoods(value: Any, where: str) -> dict[str, float | None]:
    return {answer: _measure(nll, f"{where} {_quoted(answer)}") for answer, nll in _object(value, where).items()}


def _measure(value: Any, where: str) -> float | None:
    if value is not None and (not _is_number(value) or value < 0):
        raise _Unreadable(f"{where} is {_quoted(value)}; it is a finite number of at least 0, or null")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Unreadable(f"{where} is {_quoted(value)}, not an object")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Unreadable(f"{where} is {_quoted(value)}, not a list")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _Unreadable(f"{where} is {_quoted(value)}, not a text")
    return value


def _text_or_none(value: Any, where: str) -> str | None:
    return None if value is None else _text(value, where)


def _quoted(value: Any) -> str:
    """Enough of a stranger's value to find it again. repr of a bounded piece: a file may hold megabytes in one place."""
    if isinstance(value, dict | list):
        return f"a {type(value).__name__} of {len(value)}"
    shown = repr(value[:80] if isinstance(value, str) else value)
    return shown if len(shown) <= 100 else shown[:100] + "…"


# --- checking -----------------------------------------------------------------------------------------------------


def _faults(patch: Patch, sheet: Sheet) -> Iterator[str]:
    """Everything that does not fit together, first what was asked, then what was answered, then the averages."""
    fresh = [questions(edit) for edit in patch.edits]
    if len(sheet.told) != len(fresh):
        yield f"{len(sheet.told)} edits are scored, the patch has {len(fresh)}"
        return
    misasked = [
        fault for i, (told, own) in enumerate(zip(sheet.told, fresh)) for fault in _misasked(told, own, f"edit {i}")
    ]
    yield from misasked
    if misasked:
        return
    told = [question for edit in sheet.told for question in edit.questions]
    based = any(question.before or question.answer_before is not None for question in told)
    should_be = [question for edit in fresh for question in edit.questions]
    if "choice" in sheet.protocols:
        if sheet.environment.get("distractors") is None:
            give_distractors(fresh, None)
        else:  # given by whoever scored: they are not at hand, so they are taken as they are
            for question, should in zip(told, should_be):
                should.distractors = question.distractors
    unanswered = [
        *(_unanswered(told, based) if "generate" in sheet.protocols else ()),
        *(_unweighed(told, based) if set(LIKELIHOODS) & set(sheet.protocols) else ()),
    ]
    yield from unanswered
    if unanswered:
        return
    recorded = _Recorded(told)
    for name, score in _JUDGES.items():
        if name in sheet.protocols:
            score(recorded, should_be)
    if recorded.missing:
        yield from recorded.missing
        return
    drop_edited(fresh, patch.edits, patch.edits, tuple(sheet.protocols))
    for question, should in zip(told, should_be):
        yield from _unfounded(question, should, sheet.protocols, based)
    for name, claimed in sheet.protocols.items():
        yield from _unlike(claimed, aggregate(sheet.told, name), name)


def _misasked(told: EditOutcome, own: EditOutcome, where: str) -> Iterator[str]:
    if (told.id, told.subject) != (own.id, own.subject):
        yield f"{where} is scored as {_quoted(told.id)} about {_quoted(told.subject)}, another edit than the patch's"
    asked, wanted = Counter(map(_question, told.questions)), Counter(map(_question, own.questions))
    for what, found in (("was left out", wanted - asked), ("is no question of the patch", asked - wanted)):
        for role, _, prompt, target in found:
            yield f"{where}: {role} {_quoted(prompt)} -> {_quoted(target)} {what}"
    if asked == wanted and [*map(_question, told.questions)] != [*map(_question, own.questions)]:
        yield f"{where}: its questions stand in another order than in the patch"


def _question(outcome: Outcome) -> tuple[str, str, str, str | None]:
    return outcome.role, outcome.kind, outcome.prompt, outcome.target


def _unanswered(told: Sequence[Outcome], based: bool) -> Iterator[str]:
    """Generated answers that are missing, or that differ where one question is asked twice: each is asked only once."""
    first: dict[str, Outcome] = {}
    for question in told:
        if question.answer_after is None or (question.answer_before is not None) != based:
            yield f"{question.role} {_quoted(question.prompt)} has no recorded answer"
        other = first.setdefault(question.prompt, question)
        if (other.answer_after, other.answer_before) != (question.answer_after, question.answer_before):
            yield f"{_quoted(question.prompt)} is recorded with two different answers"


def _unweighed(told: Sequence[Outcome], based: bool) -> Iterator[str]:
    """Likelihoods of one model without the other's, or that differ where one answer to one question is recorded twice."""
    first: dict[Pair, tuple[float | None, float | None]] = {}
    for question in told:
        if set(question.nll_before) != (set(question.nll_after) if based else set()):
            yield f"{question.role} {_quoted(question.prompt)} has the likelihood of an answer by one of the two models only"
        for answer, nll in question.nll_after.items():
            both = (nll, question.nll_before.get(answer))
            if first.setdefault((question.prompt, answer), both) != both:
                yield f"{_quoted(question.prompt)} is recorded with two likelihoods of {_quoted(answer)}"


class _Recorded:
    """Stands where the models stood: hands what is recorded to the code that scores. missing: faults, what it was asked in vain."""

    def __init__(self, told: Sequence[Outcome]):
        self.after = {q.prompt: q.answer_after for q in told}
        self.before = {q.prompt: q.answer_before for q in told if q.answer_before is not None}
        self.nll_after = {(q.prompt, answer): nll for q in told for answer, nll in q.nll_after.items()}
        self.nll_before = {(q.prompt, answer): nll for q in told for answer, nll in q.nll_before.items()}
        self.missing: list[str] = []

    def answers(self, prompts: Iterable[str]) -> dict[str, Any]:
        return self.after

    def answers_of_base(self, prompts: Iterable[str]) -> dict[str, str]:
        return self.before

    def nlls(self, pairs: Iterable[Pair]) -> tuple[dict[Pair, float | None], dict[Pair, float | None]]:
        lost = [pair for pair in dict.fromkeys(pairs) if pair not in self.nll_after]
        self.missing += [
            f"{_quoted(prompt)} has no recorded likelihood of {_quoted(answer)}" for prompt, answer in lost
        ]
        return self.nll_after | dict.fromkeys(lost), self.nll_before and self.nll_before | dict.fromkeys(lost)


# the protocols whose scores follow from what is recorded; the tokens of tf-token are not
_JUDGES: dict[str, Callable[[Witness, Sequence[Outcome]], None]] = {
    "generate": score_generate,
    "nll-pair": score_nll_pair,
    "choice": score_choice,
}


def _unfounded(question: Outcome, should: Outcome, protocols: Iterable[str], based: bool) -> Iterator[str]:
    """What was noted of one question against what follows from its answers."""
    where = f"{question.role} {_quoted(question.prompt)}"
    if "choice" in protocols and question.distractors != should.distractors:
        yield f"{where}: its wrong answers to choose from are not those that the patch's own edits give"
    if question.contains != should.contains:
        yield f"{where}: contains is {question.contains}, the recorded answer gives {should.contains}"
    for name in protocols:
        because = should.dropped.get(name)
        if name in _JUDGES:
            for what, noted, found in (
                ("score", question.scores.get(name), should.scores.get(name)),
                ("score of the base", question.before.get(name), should.before.get(name)),
            ):
                if noted != found:
                    yield f"{where}: its {name} {what} is {_shown(noted)}, the recorded answers give {_shown(found)}"
        else:  # tokens are not recorded, so a score is taken as it is; that there is one, and why it counts, follows
            score, before = question.scores.get(name), question.before.get(name)
            local = question.role == "locality"
            silent = local and question.target is None and not question.answer_before  # nothing to be forced along
            if score is None and not (silent or (local and not based)):
                yield f"{where}: its {name} score is missing"
            if (before is not None) != (based and question.target is not None):
                yield f"{where}: its {name} score of the base is {_shown(before)}"
            if local and because is None:
                if not based:
                    because = NO_BASE
                elif before is not None and before < 1:
                    because = NOT_KNOWN
                elif silent and score is None:
                    because = NO_ANSWER
        reason = question.dropped.get(name)
        if reason != because:
            yield f"{where}: left out of {name} because {_quoted(reason)}; what is recorded gives {_quoted(because)}"


def _unlike(claimed: dict[str, Any], computed: dict[str, Any], protocol: str) -> Iterator[str]:
    """Averages that do not follow from the outcomes. What is not claimed is no fault."""
    if claimed.get("n", computed["n"]) != computed["n"]:
        yield f"{protocol} n: the numbers of probes are not those of the recorded outcomes"
    told = {
        path: leaf for name in claimed if name not in ("n", "interval") for path, leaf in _leaves(claimed[name], name)
    }
    should = {path: leaf for name in computed for path, leaf in _leaves(computed[name], name)}
    for path, value in told.items():
        if value is None:
            continue
        found = should.get(path)
        if not _is_number(value) or not _is_number(found) or abs(value - found) > ROUNDING:
            given = _shown(found) if _is_number(found) else "nothing"
            yield f"{protocol} {_quoted(path)} claims {_quoted(value)}, the recorded outcomes give {given}"
    for path, bounds in _leaves(claimed.get("interval"), ""):
        if not _around(bounds, should.get(path.strip())):
            yield f"{protocol} interval {_quoted(path.strip())} is {_quoted(bounds)}, which does not hold the average"


def _around(bounds: Any, average: Any) -> bool:
    """Bootstrap intervals are drawn at random, not alike by every numpy: that they hold the average is what can be held."""
    if bounds is None:
        return True
    if not isinstance(bounds, list) or len(bounds) != 2 or not all(map(_is_number, [*bounds, average])):
        return False
    low, high = bounds
    return bool(-ROUNDING <= low <= average + ROUNDING and average - ROUNDING <= high <= 1 + ROUNDING)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, everything that is no object) of nested objects; as deep as the file was allowed to nest."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path} {key}")
    else:
        yield path, value


def _shown(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4g}"

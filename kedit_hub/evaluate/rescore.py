"""Asking again: do the scores that came with a patch reproduce? Law: same questions, same protocols, same install mode, and whoever
wrote the scores is neither helped nor accused by what was not compared.

    m = kedit_hub.apply(patch, mode=claimed_mode(patch))
    result = rescore(patch, m)                  # Reproduced, NotReproduced, NotComparable or NoClaims
    record(patch, result).save(folder)          # the card then says how it went

A patch is not reproduced when an average is claimed better than it is measured by more than the tolerance. A measured average that is
better than claimed is listed and breaks no claim; so is every probe that was answered otherwise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from kedit_hub.errors import KeditError
from kedit_hub.evaluate.claims import (
    Consistent,
    Inconsistent,
    NoClaims,
    NotComparable,
    Sheet,
    check_claims,
    numbers,
    read_sheet,
)
from kedit_hub.evaluate.scores import Outcome, Scores
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.patch.card import sheet_digest
from kedit_hub.patch.fingerprint import LEVELS
from kedit_hub.patch.patch import Patch
from kedit_hub.stack.patched import PatchedModel

SCORES = ("reliability", "generalization", "locality", "locality_unfiltered", "portability", "contains", "score")
ROUNDING = 1e-6  # two runs on one machine agree to the bit; a share of tokens is at least 1/1000 apart from the next


@dataclass(frozen=True)
class Mismatch:
    """One question under one protocol that was answered or scored otherwise. None: not on the sheet, or not scored."""

    edit: int
    role: str
    kind: str
    prompt: str
    protocol: str
    claimed: float | None
    measured: float | None
    claimed_answer: str | None
    measured_answer: str | None


@dataclass(frozen=True)
class Average:
    """One average of the sheet. broken: it is claimed better than measured by more than the tolerance, or cannot be measured at all."""

    protocol: str
    name: str
    claimed: float
    measured: float | None
    broken: bool


@dataclass(frozen=True)
class Rescored:
    """What asking again gave.

    probes: questions asked.  not_compared: claims left aside, and why.  differences: {circumstance: (of the sheet, now)}.
    level: how surely the base was recognised ("exact", ...), None where nothing says it.  environment: as `evaluate` describes it.
    """

    patch_id: str
    tolerance: float
    probes: int
    mismatches: tuple[Mismatch, ...]
    averages: tuple[Average, ...]
    not_compared: tuple[str, ...]
    differences: dict[str, tuple[Any, Any]]
    level: str | None
    environment: dict[str, Any]

    @property
    def answered_differently(self) -> int:
        """How many of the probes differ under at least one protocol."""
        return len({(m.edit, m.role, m.kind, m.prompt) for m in self.mismatches})

    @property
    def broken(self) -> tuple[Average, ...]:
        return tuple(average for average in self.averages if average.broken)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return vars(self) | {
            "reproduced": isinstance(self, Reproduced),
            "answered_differently": self.answered_differently,
            "mismatches": [vars(mismatch) for mismatch in self.mismatches],
            "averages": [vars(average) for average in self.averages],
            "not_compared": list(self.not_compared),
            "differences": {name: list(pair) for name, pair in self.differences.items()},
        }

    def summary(self) -> str:
        """A few lines for a person."""
        done = "The scores reproduce" if isinstance(self, Reproduced) else "The scores do NOT reproduce"
        lines = [
            f"{done}: {self.probes} probes asked again, {self.answered_differently} answered differently, "
            f"{len(self.averages)} averages compared, {len(self.broken)} claimed too high (tolerance {self.tolerance:g})"
        ]
        for average in self.averages:
            measured = "nothing" if average.measured is None else f"{average.measured:.3f}"
            if average.broken or average.measured is None or abs(average.claimed - average.measured) > ROUNDING:
                lines.append(
                    f"  {'!' if average.broken else ' '} {average.protocol} {average.name}: claimed {average.claimed:.3f}, "
                    f"measured {measured}"
                )
        for m in self.mismatches[:20]:
            lines.append(
                f"    {m.protocol} {m.role} {m.prompt!r}: claimed {_told(m.claimed, m.claimed_answer)}, "
                f"measured {_told(m.measured, m.measured_answer)}"
            )
        if len(self.mismatches) > 20:
            lines.append(f"    and {len(self.mismatches) - 20} more")
        lines += [f"  not compared: {reason}" for reason in self.not_compared]
        if self.differences:
            told = ", ".join(f"{name} {was} -> {now}" for name, (was, now) in self.differences.items())
            lines.append(f"  other circumstances: {told}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Reproduced(Rescored):
    """No average is claimed better than it is measured by more than the tolerance."""


@dataclass(frozen=True)
class NotReproduced(Rescored):
    """At least one is."""


def rescore(
    patch: Patch,
    patched: PatchedModel,
    *,
    tolerance: float = 0.02,
    drift_texts: Sequence[str] | None = None,
    progress: bool = False,
) -> Reproduced | NotReproduced | NotComparable | NoClaims:
    """Ask every question of the patch again and compare with what its sheet claims.

    patched: a base with this patch alone, in the mode of the sheet (`claimed_mode`).
    drift_texts: what drift is measured on; None = the built-in texts. The claimed drift is compared only if it was measured on the same.
    KeditError for a tolerance outside 0..1.
    """
    if not 0 <= tolerance < 1:
        raise KeditError(f"the tolerance {tolerance!r} is no difference of two scores: pass a number from 0 to below 1")
    sheet = read_sheet(patch)
    match sheet:
        case NoClaims() | NotComparable():
            return sheet
        case Inconsistent(faults):
            return NotComparable(f"the score sheet cannot be read: {faults[0]}")
        case Sheet():
            sheet = _askable(sheet)
    hindrance = _hindrance(patch, patched, sheet)
    if hindrance is not None:
        return NotComparable(hindrance)
    scores = evaluate(
        patched, patch.edits, protocols=tuple(sheet.protocols), drift_texts=drift_texts, progress=progress
    )
    was, now = sheet.environment.get("quantization"), scores.environment["quantization"]
    if was != now:
        return NotComparable(
            f"the scores were taken on a base with quantization {str(was)[:80]!r}, this one has {str(now)!r}: load it alike"
        )
    averages = tuple(_averages(sheet, scores, tolerance))
    levels = patched.report.get("levels", {})
    kind = NotReproduced if any(average.broken for average in averages) else Reproduced
    return kind(
        patch_id=patch.id,
        tolerance=tolerance,
        probes=sum(len(edit.questions) for edit in scores.per_edit),
        mismatches=tuple(_mismatches(sheet, scores)),
        averages=averages,
        not_compared=tuple(_not_compared(sheet, scores)),
        differences=dict(_differences(sheet, scores)),
        level=max(levels.values(), key=LEVELS.index) if levels else None,
        environment=scores.environment,
    )


def claimed_mode(patch: Patch) -> str:
    """The install mode that the sheet of a patch was measured in, "auto" where it does not say: for `apply(mode=)`."""
    sheet = read_sheet(patch)
    return sheet.mode or "auto" if isinstance(sheet, Sheet) else "auto"


def record(patch: Patch, result: Reproduced | NotReproduced) -> Patch:
    """The same patch with a short note of the result among its scores, in place of an earlier one; its card then shows it.

    KeditError when the result is of another patch.
    """
    if result.patch_id != patch.id:
        raise KeditError(f"this is what asking patch {result.patch_id[:12]} again gave, not patch {patch.id[:12]}")
    evals = patch.evals or {}
    environment = result.environment
    return patch.replace_evals(
        {
            **evals,
            "rescored": {
                "reproduced": isinstance(result, Reproduced),
                "consistent": isinstance(check_claims(patch), Consistent),
                "tolerance": float(result.tolerance),
                "probes": result.probes,
                "mismatches": result.answered_differently,
                "broken": len(result.broken),
                "level": result.level,
                "versions": {name: environment[name] for name in ("python", "torch", "transformers")},
                "circumstances": {name: environment[name] for name in ("dtype", "quantization", "device", "machine")},
                "sheet": sheet_digest(evals),
            },
        }
    )


# --- what hinders a comparison ------------------------------------------------------------------------------------


def _askable(sheet: Sheet) -> Sheet:
    """Without `choice`, if it chose among wrong answers that somebody brought: only their digest is on the sheet."""
    if "choice" not in sheet.protocols or sheet.environment.get("distractors") is None:
        return sheet
    left = {name: averages for name, averages in sheet.protocols.items() if name != "choice"}
    return replace(sheet, protocols=left, unknown=(*sheet.unknown, "choice: its wrong answers are not at hand"))


def _hindrance(patch: Patch, patched: PatchedModel, sheet: Sheet) -> str | None:
    if patched.stack.ids != (patch.id,):
        return (
            f"the model answers with {len(patched.stack)} patch(es), the scores are of this patch alone: apply it alone"
        )
    mode = patched.report.get("mode")
    if sheet.mode is not None and mode != sheet.mode:
        return f"the scores were taken in mode {sheet.mode!r}, the patch is applied in mode {mode!r}: apply it alike"
    if not sheet.protocols:
        why = f" ({'; '.join(sheet.unknown)})" if sheet.unknown else ""
        return f"the sheet has no averages of a protocol that this version of kedit_hub knows and can ask again{why}"
    return None


def _not_compared(sheet: Sheet, scores: Scores) -> Iterator[str]:
    yield from sheet.unknown
    if sheet.mode is None:
        yield "the sheet does not say in which mode it was measured"
    if any(sheet.drift.get(name) is not None for name in _DRIFT) and not _same_texts(sheet, scores):
        yield "drift: it was measured on other texts than are at hand"


def _differences(sheet: Sheet, scores: Scores) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name, now in scores.environment.items():
        was = sheet.environment.get(name)
        if name != "protocols" and was != now:
            yield name, (was if isinstance(was, bool | int | float | None) else str(was)[:80], now)


# --- averages -----------------------------------------------------------------------------------------------------

_DRIFT = ("kl", "ppl_after")


def _averages(sheet: Sheet, scores: Scores, tolerance: float) -> Iterator[Average]:
    for protocol, claimed in sheet.protocols.items():
        found = dict(numbers(scores.protocols[protocol], *SCORES))
        for name, value in numbers(claimed, *SCORES):
            measured = found.get(name)
            yield Average(protocol, name, value, measured, measured is None or value - measured > tolerance)
    if _same_texts(sheet, scores):
        for name in _DRIFT:  # the lower, the better
            told, now = sheet.drift.get(name), scores.drift[name]
            if told is not None:
                allowed = (
                    tolerance if name == "kl" else tolerance * told
                )  # a perplexity is as large as its text makes it
                yield Average("drift", name, told, now, now is None or now - told > allowed)


def _same_texts(sheet: Sheet, scores: Scores) -> bool:
    return bool(scores.drift["tokens"]) and sheet.drift.get("texts_sha256") == scores.drift["texts_sha256"]


# --- probes -------------------------------------------------------------------------------------------------------


def _mismatches(sheet: Sheet, scores: Scores) -> Iterator[Mismatch]:
    """Every question of the patch, found on the sheet by what it asks; those the sheet lacks were answered by nobody."""
    for number, (now, told) in enumerate(zip_longest(scores.per_edit, sheet.told[: len(scores.per_edit)])):
        claimed = {_name(question): question for question in (told.questions if told else ())}
        for question in now.questions:
            then = claimed.get(_name(question)) or Outcome(
                question.role, question.kind, question.prompt, question.target
            )
            for protocol in sheet.protocols:
                was, found = then.scores.get(protocol), question.scores.get(protocol)
                same = was == found if was is None or found is None else abs(was - found) <= ROUNDING
                if not same or (protocol == "generate" and then.answer_after != question.answer_after):
                    yield Mismatch(
                        number, question.role, question.kind, question.prompt, protocol, was, found,
                        *((then.answer_after, question.answer_after) if protocol == "generate" else (None, None)),
                    )  # fmt: skip


def _name(outcome: Outcome) -> tuple[str, str, str]:
    return outcome.role, outcome.kind, outcome.prompt


def _told(score: float | None, answer: str | None) -> str:
    shown = "nothing" if score is None else f"{score:.3g}"
    return shown if answer is None else f"{shown} ({answer[:80]!r})"

"""What this page measures of a patch itself: its own probes asked again, and a look for what it does not declare. Law: the visitor
may stop either between any two forward passes, and they end by themselves after MAX_SECONDS, so that nobody waits for ever behind a
stranger's patch; neither ever says that a patch is harmless.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import takewhile
from typing import assert_never

from torch import nn

from kedit_hub import PatchedModel
from kedit_hub.demo.facts import true_facts
from kedit_hub.errors import LimitError
from kedit_hub.evaluate.claims import NoClaims, NotComparable
from kedit_hub.evaluate.drift import PLAIN_TEXTS
from kedit_hub.evaluate.rescore import Average, Mismatch, NotReproduced, Reproduced, claimed_mode, rescore
from kedit_hub.evaluate.scores import Scores
from kedit_hub.evaluate.screen import KINDS, Finding, Screened, screen
from kedit_hub.evaluate.suites import evaluate
from space import html
from space.believe import Asked
from space.bounds import before_each_pass, ending
from space.score_view import metric_told, scores_table
from space.sentences import Language, both, counted, spoken
from space.sentences import told as said
from space.state import Held, Stop, Workshop

MAX_PROBED_EDITS = 100  # of one patch
MAX_SECONDS = 60.0
FACTS = 30  # true facts drawn about the subjects of a patch, and as many about others
SHOWN = 50  # probes, or findings, in the table
MAX_AVERAGES = 200  # a patch may have as many kinds of probes as probes

Again = Reproduced | NotReproduced | NotComparable | Scores


def ask_again(workshop: Workshop, held: Held, stop: Stop) -> Again:
    """Ask a patch its own probes and compare with its scores; Scores where it came without. KeditError: see `_alone`."""
    with _alone(workshop, held, stop, claimed_mode(held.patch)) as patched:
        found = rescore(held.patch, patched)
        return evaluate(patched, held.patch.edits, drift_texts=[]) if isinstance(found, NoClaims) else found


def look(workshop: Workshop, held: Held, stop: Stop, seed: int) -> Screened:
    """Look for what a patch does and does not declare, among few questions drawn by the seed. KeditError: see `_alone`."""
    with _alone(workshop, held, stop) as patched:
        return screen(patched, true_facts(held.patch.edits, FACTS, seed), texts=PLAIN_TEXTS, seed=seed)


def any_seed() -> int:
    """Another one each time, so that no patch can be made for the questions of this page."""
    return secrets.randbelow(1 << 32)


@contextmanager
def _alone(workshop: Workshop, held: Held, stop: Stop, mode: str = "auto") -> Iterator[PatchedModel]:
    """A patch alone on its base at full precision, for this caller alone.

    KeditError: not trusted, too many edits, wrong base, stopped, took too long.
    """
    if len(held.patch.edits) > MAX_PROBED_EDITS:
        raise LimitError(both("probed_too_many", count=len(held.patch.edits), most=MAX_PROBED_EDITS))
    loaded = workshop.load(held.patch.manifest.base.id)
    with loaded.lock:
        patched = workshop.patched(loaded, [held], mode=mode)
        with bounded(patched.model, stop):
            yield patched


def bounded(
    model: nn.Module, stop: Stop, at_home: str = "kedit verify --rescore, kedit screen"
) -> AbstractContextManager[None]:
    """KeditError from the next forward pass of `model`, or of a view made of it meanwhile, once `stop` is wished or the time is up.

    at_home: how the same is done on a machine of one's own.
    """
    slow = both("probing_slow", seconds=MAX_SECONDS, at_home=at_home)
    return before_each_pass(model, ending(stop, MAX_SECONDS, both("probing_stopped"), slow))


def told(again: Again) -> Asked:
    """The result in one sentence, in both languages."""
    match again:
        case Reproduced():
            counts = {"probes": again.probes, "differently": again.answered_differently}
            return Asked(True, both("reproduced", **counts, averages=len(again.averages)))
        case NotReproduced():
            counts = {"probes": again.probes, "differently": again.answered_differently, "broken": len(again.broken)}
            return Asked(False, both("reproduced_not", **counts, averages=len(again.averages)))
        case NotComparable(reason):
            return Asked(None, both("not_comparable", reason=reason))
        case Scores():
            return Asked(None, both("came_without"))
        case _:
            assert_never(again)


# --- how it is shown ----------------------------------------------------------------------------------------------


def show(held: Held, again: Again, language: Language = "en") -> str:
    """The verdict, every average, and the probes that were answered or scored otherwise."""
    asked = told(again)
    kind = {True: "good", False: "error", None: "warning"}[asked.reproduced]
    where = said(language, "alone_on", name=held.name, base=held.patch.manifest.base.id)
    head = html.note(kind, spoken(language, asked.told), where)
    match again:
        case Reproduced() | NotReproduced():
            changed, mismatches = _changed(language, again.averages), _mismatches(language, again.mismatches)
            return head + changed + mismatches + _aside(language, again)
        case NotComparable():
            return head
        case Scores():
            return head + scores_table(again.to_dict(), language)
        case _:
            assert_never(again)


def _changed(language: Language, averages: tuple[Average, ...]) -> str:
    """The averages that came out otherwise than by the rounding of another machine; all of them below, folded."""
    moved = [a for a in averages if a.broken or html.number(a.measured) != html.number(a.claimed)]
    if not moved:
        return ""
    return f"<h3>{said(language, 'scores_otherwise')}</h3>{_averages(language, moved[:MAX_AVERAGES])}"


def _averages(language: Language, averages: Sequence[Average]) -> str:
    rows = [
        (
            f"{metric_told(a.name, language)} ({a.protocol})",
            html.number(a.claimed),
            html.number(a.measured),
            said(language, "no" if a.broken else "yes"),
        )
        for a in averages
    ]
    head = [said(language, key) for key in ("score", "claimed", "measured", "claim_kept")]
    return html.table(head, rows, classes="digits")


def _mismatches(language: Language, mismatches: tuple[Mismatch, ...]) -> str:
    if not mismatches:
        return ""
    rows = [
        (
            m.prompt,
            metric_told(f"{m.role} {m.kind}".strip(), language),
            m.protocol,
            _answer(language, m.claimed, m.claimed_answer),
            _answer(language, m.measured, m.measured_answer),
        )
        for m in mismatches[:SHOWN]
    ]
    more = html.more(language, len(mismatches) - SHOWN)
    head = [said(language, key) for key in ("head_probe", "head_role", "head_protocol", "claimed", "measured")]
    return f"<h3>{said(language, 'probes_otherwise')}</h3>{html.table(head, rows)}{more}"


def _answer(language: Language, score: float | None, answer: str | None) -> str:
    shown = html.number(score)
    return shown if answer is None else f"{shown}: {answer or said(language, 'nothing_said')}"


def _aside(language: Language, again: Reproduced | NotReproduced) -> str:
    """All averages; what was left aside, and what was not the same here."""
    rows = [(said(language, "not_compared"), reason) for reason in again.not_compared] + [
        (said(language, "other_circumstance", name=name), said(language, "then_now", was=was, now=now))
        for name, (was, now) in again.differences.items()
    ]
    count = said(language, "all_averages", count=len(again.averages))
    averages = _averages(language, again.averages[:MAX_AVERAGES])
    folded = f"<details><summary>{count}</summary>{averages}</details>"
    if rows:
        table = html.table((said(language, "what"), said(language, "how")), rows)
        folded += f"<details><summary>{said(language, 'circumstances')}</summary>{table}</details>"
    return folded


def show_look(held: Held, found: Screened, seed: int, language: Language = "en") -> str:
    """What was found and what was looked at. A clean report is shown in no colour of approval."""
    count = len(found.findings)
    looked = said(
        language,
        "effects_looked",
        name=held.name,
        questions=sum(found.asked.values()),
        rows=sum(found.rows.values()),
        texts=0 if found.drift is None else found.drift["texts"],
        seed=seed,
    )
    effects = counted(language, "effects", count) if count else said(language, "effects_none")
    summary = list(takewhile(lambda line: not line.startswith("Found"), found.summary().splitlines()))
    head = (said(language, "head_look"), said(language, "look_result"))
    folded = html.table(head, [_split(line) for line in summary])
    return (
        html.note("warning" if count else "info", effects, looked)
        + _findings(language, found.findings)
        + f"<details><summary>{said(language, 'looked_at')}</summary>{folded}</details>"
    )


def _split(line: str) -> tuple[str, str]:
    """ "not looked at: damage to ..." in two cells."""
    name, _, told = line.strip().partition(": ")
    return name, told


def _findings(language: Language, findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    rows = [(KINDS[finding.kind], *_finding(language, finding)) for finding in findings[:SHOWN]]
    head = [said(language, key) for key in ("what", "where", "without_it", "with_it")]
    return html.table(head, rows) + html.more(language, len(findings) - SHOWN)


def _finding(language: Language, finding: Finding) -> tuple[str, str, str]:
    """(where, without, with); what is no answer to a question is told in one sentence."""
    if "after" not in finding.evidence:
        return finding.sentence(), "", ""
    nothing = said(language, "nothing_said")
    before, after = (str(finding.evidence[side]) or nothing for side in ("before", "after"))
    return finding.where, before, after

"""What this page measures of a patch itself: its own probes asked again, and a look for what it does not declare. Law: the visitor
may stop either between any two forward passes, and they end by themselves after MAX_SECONDS, so that nobody waits for ever behind a
stranger's patch; neither ever says that a patch is harmless.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, assert_never

from torch import nn

from kedit_hub import KeditError, PatchedModel
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
from space.score_view import scores_table
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
        raise LimitError(
            f"This patch has {len(held.patch.edits):,} edits; up to {MAX_PROBED_EDITS} are measured here. Measure it on "
            "your machine: kedit verify --rescore, kedit screen."
        )
    loaded = workshop.load(held.patch.manifest.base.id)
    with loaded.lock:
        patched = workshop.patched(loaded, [held], mode=mode)
        with bounded(patched.model, stop):
            yield patched


@contextmanager
def bounded(model: nn.Module, stop: Stop, at_home: str = "kedit verify --rescore, kedit screen") -> Iterator[None]:
    """KeditError from the next forward pass of `model`, or of a view made of it meanwhile, once `stop` is wished or the time is up.

    at_home: how the same is done on a machine of one's own.
    """
    until = time.monotonic() + MAX_SECONDS

    def look(*_: Any) -> None:
        if stop.wished:
            raise KeditError("Stopped. Nothing was found out, for or against the patch.")
        if time.monotonic() > until:
            raise LimitError(
                f"This took longer than {MAX_SECONDS:g} s and was ended; nothing was found out, for or against the patch. "
                f"Measure it on your machine: {at_home}."
            )

    handle = model.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def told(again: Again) -> Asked:
    """The result in one sentence."""
    match again:
        case Reproduced() | NotReproduced():
            good = isinstance(again, Reproduced)
            kept = (
                f"none of {len(again.averages)} averages is claimed too high"
                if good
                else f"{len(again.broken)} of {len(again.averages)} averages are claimed too high"
            )
            return Asked(
                good,
                f"Reproduces its claims: {'yes' if good else 'NO'}. {again.probes:,} probes asked again, "
                f"{again.answered_differently:,} answered differently; {kept}.",
            )
        case NotComparable(reason):
            return Asked(None, f"Reproduces its claims: cannot be compared: {reason}.")
        case Scores():
            return Asked(None, "Reproduces its claims: cannot be compared: it came without scores.")
        case _:
            assert_never(again)


# --- how it is shown ----------------------------------------------------------------------------------------------


def show(held: Held, again: Again) -> str:
    """The verdict, every average, and the probes that were answered or scored otherwise."""
    asked = told(again)
    kind = {True: "good", False: "error", None: "warning"}[asked.reproduced]
    where = f"{held.name}, alone on {held.patch.manifest.base.id} at full precision."
    head = html.note(kind, asked.told, where)
    match again:
        case Reproduced() | NotReproduced():
            return head + _changed(again.averages) + _mismatches(again.mismatches) + _aside(again)
        case NotComparable():
            return head
        case Scores():
            return head + scores_table(again.to_dict())
        case _:
            assert_never(again)


def _changed(averages: tuple[Average, ...]) -> str:
    """The averages that came out otherwise than by the rounding of another machine; all of them below, folded."""
    moved = [a for a in averages if a.broken or html.number(a.measured) != html.number(a.claimed)]
    return f"<h3>Scores that came out otherwise</h3>{_averages(moved[:MAX_AVERAGES])}" if moved else ""


def _averages(averages: Sequence[Average]) -> str:
    rows = [
        (f"{a.name} ({a.protocol})", html.number(a.claimed), html.number(a.measured), "NO" if a.broken else "yes")
        for a in averages
    ]
    return html.table(("Score", "Claimed", "Measured", "Kept"), rows, classes="digits")


def _mismatches(mismatches: tuple[Mismatch, ...]) -> str:
    if not mismatches:
        return ""
    rows = [
        (m.prompt, f"{m.role} {m.kind}".strip(), m.protocol, _answer(m.claimed, m.claimed_answer), _answer(m.measured, m.measured_answer))
        for m in mismatches[:SHOWN]
    ]  # fmt: skip
    more = f'<p class="subtle">and {len(mismatches) - SHOWN:,} more.</p>' if len(mismatches) > SHOWN else ""
    table = html.table(("Probe", "Role", "Protocol", "Claimed", "Measured"), rows)
    return f"<h3>Probes that came out otherwise</h3>{table}{more}"


def _answer(score: float | None, answer: str | None) -> str:
    shown = html.number(score)
    return shown if answer is None else f"{shown}: {answer or '(nothing)'}"


def _aside(again: Reproduced | NotReproduced) -> str:
    """All averages; what was left aside, and what was not the same here."""
    rows = [("Not compared", reason) for reason in again.not_compared] + [
        (f"Other {name}", f"{was} then, {now} now") for name, (was, now) in again.differences.items()
    ]
    count = f"All {len(again.averages)} averages"
    folded = f"<details><summary>{count}</summary>{_averages(again.averages[:MAX_AVERAGES])}</details>"
    if rows:
        folded += f"<details><summary>Circumstances</summary>{html.table(('What', 'How'), rows)}</details>"
    return folded


def show_look(held: Held, found: Screened, seed: int) -> str:
    """What was found and what was looked at. A clean report is shown in no colour of approval."""
    count = len(found.findings)
    asked, rows = sum(found.asked.values()), sum(found.rows.values())
    texts = 0 if found.drift is None else found.drift["texts"]
    told = (
        f"Found: {count:,} {'effect' if count == 1 else 'effects'} beyond what this patch declares, or short of it."
        if count
        else "Found: nothing beyond what this patch declares, among these questions."
    )
    looked = (
        f"Looked at: {held.name} alone, with {asked:,} questions asked with and without it, {rows:,} stored vectors and "
        f"{texts:,} ordinary texts, drawn by seed {seed}; another look draws others. Nothing found is no proof: what was not "
        "asked is not known, and two patches may do together what neither does alone."
    )
    summary = list(takewhile(lambda line: not line.startswith("Found"), found.summary().splitlines()))
    folded = html.table(("Look", "What came of it"), [_split(line) for line in summary])
    return (
        html.note("warning" if count else "info", told, looked)
        + _findings(found.findings)
        + f"<details><summary>What was looked at</summary>{folded}</details>"
    )


def _split(line: str) -> tuple[str, str]:
    """ "not looked at: damage to ..." in two cells."""
    name, _, told = line.strip().partition(": ")
    return name, told


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    rows = [(KINDS[finding.kind], *_finding(finding)) for finding in findings[:SHOWN]]
    more = f'<p class="subtle">and {len(findings) - SHOWN:,} more.</p>' if len(findings) > SHOWN else ""
    return html.table(("What", "Where", "Without it", "With it"), rows) + more


def _finding(finding: Finding) -> tuple[str, str, str]:
    """(where, without, with); what is no answer to a question is told in one sentence."""
    if "after" not in finding.evidence:
        return finding.sentence(), "", ""
    before, after = (str(finding.evidence[side]) or "(nothing)" for side in ("before", "after"))
    return finding.where, before, after

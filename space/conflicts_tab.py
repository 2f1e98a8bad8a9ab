"""Conflicts: what gets in each other's way, as a matrix, pair by pair, and settled: by words, keys and gate at once, by behaviour on
a button.

Law: the report is the library's (kedit_hub.evaluate.conflicts), and a part that was not looked at is named, never passed off as clean.

    found = find(workshop, chosen, Winners("latest"))      # changes no model and puts nothing on one
    found = find(workshop, chosen, Winners("latest"), behaviour=True)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import gradio as gr

from kedit_hub import KeditError, PatchStack
from kedit_hub.api import find_profile
from kedit_hub.base.profile import BaseProfile
from kedit_hub.errors import ConflictError, LimitError
from kedit_hub.evaluate.conflicts import COLUMNS, PARTS, ConflictReport, conflicts
from kedit_hub.hub.client import printable
from space import html, measure
from space.choosing import Widgets, offer, several
from space.state import Held, Policy, Stop, Workshop, clashes, shortened
from space.words import say

MAX_EDITS = 500  # of all chosen patches, for a report that is made at every tick
MAX_ASKED_EDITS = 100  # whose questions are asked of every composition
SHOWN = 50  # findings in the table
MAX_SHOWN_PAIRS = 200
EMPTY = (
    "Choose two or more patches, or take those of your stack: then it is told here how they get in each other's way."
)
AT_HOME = "kedit_hub.evaluate.conflicts.conflicts(stack, profiles=..., model=..., tokenizer=..., behaviour=True)"
PARTS_TOLD = {"textual": "words", "geometric": "keys", "gate": "gate", "behavioural": "behaviour"}


@dataclass(frozen=True)
class Winners:
    """Who answers where patches disagree. pinned: patch ids."""

    policy: Policy
    pinned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """refused: why the patches are not stacked as they are; the report is then of the stack in which the latest wins."""

    report: ConflictReport
    patches: tuple[Held, ...]
    refused: str | None


def find(workshop: Workshop, patches: Sequence[Held], winners: Winners, *, behaviour: bool = False) -> Found:
    """KeditError: not trusted, too many edits, another base, took too long."""
    most = MAX_ASKED_EDITS if behaviour else MAX_EDITS
    count = sum(len(held.patch.edits) for held in patches)
    if len({held.patch.manifest.base.id for held in patches}) > 1:
        raise KeditError("These patches were made for different bases, and cannot be stacked.")
    if count > most:
        raise LimitError(
            f"These patches have {count:,} edits; conflicts of up to {most:,} are looked for here. On your machine: {AT_HOME}."
        )
    stack, refused = _stack(workshop, patches, winners)
    profiles = _profiles(patches)
    if not behaviour:
        return Found(conflicts(stack, profiles=profiles or None), tuple(patches), refused)
    if not profiles:
        raise KeditError("None of these patches has a base profile here, so they are not composed for every question.")
    loaded = workshop.load(patches[0].patch.manifest.base.id)
    with loaded.lock, measure.bounded(loaded.model, Stop(), AT_HOME):
        report = conflicts(stack, profiles=profiles, model=loaded.model, tokenizer=loaded.tokenizer, behaviour=True)
    return Found(report, tuple(patches), refused)


def _stack(workshop: Workshop, patches: Sequence[Held], winners: Winners) -> tuple[PatchStack, str | None]:
    admitted = [item.patch for item in workshop.admitted(patches)]
    try:
        return PatchStack(admitted, conflicts=winners.policy, pinned=winners.pinned), None
    except ConflictError:
        told = "As they are, these patches are refused: they disagree, and nothing says which of them answers. "
        return PatchStack(
            admitted, conflicts="latest"
        ), f"{told}What is said here holds when the patch chosen last does."


def _profiles(patches: Sequence[Held]) -> dict[str, BaseProfile]:
    """By path of the edited module, of the profiles that the patches were made under; none is measured here."""
    wanted = {path: held.patch.manifest.profile_id for held in patches for path in held.patch.deltas}
    known = {name: find_profile(name) for name in set(wanted.values()) if name is not None}
    found = {path: known[name] for path, name in wanted.items() if name is not None}
    return {path: profile for path, profile in found.items() if profile is not None}


# --- how it is shown ----------------------------------------------------------------------------------------------


def show(found: Found) -> str:
    """What was looked at, every finding with its remedy, and the drawing of who is near whom."""
    report = found.report
    names = {held.patch.id: printable(held.name) for held in found.patches}
    rows = [
        (part, kind, ", ".join(dict.fromkeys(names.get(name, name[:12]) for name in finding.patches)), *rest)
        for finding, (part, kind, _, *rest) in zip(report.findings[:SHOWN], report.table(), strict=False)
    ]
    more = len(report.findings) - len(rows)
    counted = Counter(f"{finding.part}: {finding.kind}" for finding in report.findings)
    kind, told = "warning", "Found: " + ", ".join(f"{name} ({count})" for name, count in counted.items()) + "."
    if not report.findings:
        kind, told = "good", "Nothing was found."
    table = html.table(COLUMNS, rows, classes="findings", label="Conflicts found") if rows else ""
    rest = f'<p class="subtle">and {more:,} more.</p>' if more > 0 else ""
    drawn = html.picture(report.svg(), "Heat map of the overlap of the chosen patches", "overlap.svg")
    refused = html.note("error", found.refused) if found.refused is not None else ""
    return f"{refused}{html.note(kind, told, _looked_at(found), *report.notes)}{table}{rest}{drawn}"


def _looked_at(found: Found) -> str:
    report = found.report
    missing = [PARTS_TOLD[part] for part in PARTS if part not in report.looked_at]
    done = [PARTS_TOLD[part] for part in report.looked_at]
    asked = ""
    if report.behaviour is not None:
        asked = f", {report.behaviour.asked:,} questions asked in mode {report.behaviour.mode}"
    about = ", ".join(shortened(printable(held.name), 60) for held in found.patches[:10])
    others = f" and {len(found.patches) - 10} more" if len(found.patches) > 10 else ""
    not_done = f" Not looked at: {', '.join(missing)}." if missing else ""
    return f"Looked at: {', '.join(done)} of {about}{others}{asked}.{not_done}"


# --- pair by pair -------------------------------------------------------------------------------------------------


def pairs(found: Found) -> list[tuple[str, str]]:
    """(what to read, "id id") of every pair that a finding names, the most often named first."""
    names = {held.patch.id: printable(held.name) for held in found.patches}
    kinds: dict[tuple[str, str], Counter[str]] = {}
    for finding in found.report.findings:
        known = [name for name in dict.fromkeys(finding.patches) if name in names]
        for pair in combinations(known[:10], 2):
            kinds.setdefault(pair, Counter())[finding.kind] += 1
    told = sorted(kinds.items(), key=lambda item: (-item[1].total(), item[0]))
    return [
        (f"{names[a]} | {names[b]}: {', '.join(counted)}", f"{a} {b}") for (a, b), counted in told[:MAX_SHOWN_PAIRS]
    ]


def explain(found: Found, a: str, b: str) -> str:
    """Everything the report says of two patches, and what can be done about it."""
    names = {held.patch.id: held.name for held in found.patches}
    rows = [
        (
            finding.kind,
            finding.what,
            ", ".join(f"{name} {value:.2f}" for name, value in finding.numbers.items()),
            finding.remedy,
        )
        for finding in found.report.findings
        if {a, b} <= set(finding.patches)
    ]
    head = f"First: {names.get(a, a[:12])}. Second: {names.get(b, b[:12])}."
    table = html.table(("Kind", "What", "Numbers", "What to do"), rows[:SHOWN], classes="findings", label="This pair")
    return f"{html.note('info', head)}{table}"


# --- the tab ------------------------------------------------------------------------------------------------------


def build(workshop: Workshop, own: Any, tried: Widgets, tab: gr.Tab) -> None:
    """The tab. own: the gr.State with the visitor's patches. What is settled here is settled in the visitor's stack."""
    shown = gr.State(None)  # the last Found
    with gr.Row(equal_height=True):
        chosen = several("conflicts-of")
        with gr.Column(scale=2, min_width=180):
            mine = gr.Button(say("from_try"), size="sm", elem_id="conflicts-mine")
            look = gr.Button(say("find_conflicts"), variant="primary", size="sm", elem_id="conflicts-find")
    report = gr.HTML(html.note("info", EMPTY), elem_id="conflict-report")
    behave = gr.Button(say("behave"), size="sm", elem_id="behave", visible=False)
    with gr.Group(visible=False, elem_id="pair") as settling:
        pair = gr.Dropdown([], label=say("pair"), elem_id="pair-choice")
        explained = gr.HTML(elem_id="pair-told")
        with gr.Row():
            sides = [
                gr.Button(say(name), size="sm", min_width=150, elem_id=f"settle-{name.replace('_', '-')}")
                for name in ("first_answers", "second_answers", "without_first", "without_second")
            ]
        settled = gr.HTML(elem_id="settled")

    def told(
        keys: list[str], own: tuple[Held, ...], policy: Policy, pinned: list[str], behaviour: bool
    ) -> tuple[Any, ...]:
        if len(keys) < 2:
            return html.note("info", EMPTY), None, gr.Button(visible=False), gr.Group(visible=False), gr.skip(), ""
        try:
            held = workshop.chosen(keys, own)
            pins = tuple(key for key in pinned if key in keys) if policy == "pin" else ()
            how = Winners(policy, pins) if clashes(held) else Winners("error")
            found = find(workshop, held, how, behaviour=behaviour)
        except KeditError as error:
            return html.refusal(error), None, gr.Button(visible=False), gr.Group(visible=False), gr.skip(), ""
        named = pairs(found)
        first = named[0][1] if named else None
        return (
            show(found), found, gr.Button(visible=not behaviour), gr.Group(visible=bool(named)),
            gr.Dropdown(named, value=first), explain(found, *first.split()) if first else "",
        )  # fmt: skip

    def on_report(keys: list[str], own: tuple[Held, ...], policy: Policy, pinned: list[str]) -> tuple[Any, ...]:
        return told(keys or [], own, policy, pinned, False)

    def on_behave(keys: list[str], own: tuple[Held, ...], policy: Policy, pinned: list[str]) -> tuple[Any, ...]:
        return told(keys or [], own, policy, pinned, True)

    def on_pair(both: str | None, shown: Found | None) -> str:
        return explain(shown, *both.split()) if both and shown else ""

    def settle(
        which: str, both: str | None, shown: Found | None, stack: list[str], keys: list[str], pinned: list[str]
    ) -> tuple[Any, ...]:
        """The visitor's stack as it is wanted: (patches of Try, policy, pinned, what is looked at, what was done)."""
        if not both or shown is None:
            return (gr.skip(),) * 4 + ("",)
        first, second = both.split()
        names = {held.patch.id: held.name for held in shown.patches}
        if which.startswith("without"):
            out = first if which == "without_first" else second
            left = [key for key in keys if key != out]
            note = html.note("good", f"{names[out]} was taken out of your stack.")
            return [key for key in stack if key != out], gr.skip(), gr.skip(), gr.Dropdown(value=left), note
        wins, loses = (first, second) if which == "first_answers" else (second, first)
        both_in = [*stack, *(key for key in (first, second) if key not in stack)]
        pins = [*(key for key in pinned if key not in (wins, loses)), wins]
        boxes = [(names.get(key, key[:12]), key) for key in both_in]
        note = html.note("good", f"{names[wins]} is pinned in your stack: where the two disagree, it answers.")
        return both_in, "pin", gr.CheckboxGroup(boxes, value=pins, visible=True), gr.skip(), note

    inputs = [chosen, own, tried.policy, tried.pinned]
    outputs = [report, shown, behave, settling, pair, explained]
    light: dict[str, Any] = {"concurrency_id": "conflicts", "concurrency_limit": 2, "api_visibility": "private"}
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    look.click(on_report, inputs, outputs, show_progress_on=[report], **light)
    chosen.change(on_report, inputs, outputs, show_progress_on=[report], **light)
    behave.click(
        on_behave, inputs, outputs, show_progress_on=[report], concurrency_id="model", concurrency_limit=1,
        api_visibility="private",
    )  # fmt: skip
    offer(workshop, tab, mine, chosen, own, tried)
    pair.input(on_pair, [pair, shown], explained, **private)
    for name, button in zip(("first_answers", "second_answers", "without_first", "without_second"), sides):
        button.click(
            partial(settle, name), [pair, shown, tried.patches, chosen, tried.pinned],
            [tried.patches, tried.policy, tried.pinned, chosen, settled], **private,
        ).then(on_report, inputs, outputs, **light)  # fmt: skip

"""Conflicts: what gets in each other's way, as a matrix, pair by pair, and settled: by words, keys and gate at once, by behaviour on
a button.

Law: the report is the library's (kedit_hub.evaluate.conflicts), and a part that was not looked at is named, never passed off as clean.

    found = find(workshop, chosen, Winners("latest"))      # changes no model and puts nothing on one
    found = find(workshop, chosen, Winners("latest"), behaviour=True)
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from space.sentences import Both, Language, both, language_of, spoken, told
from space.state import Held, Policy, Stop, Workshop, clashes, shortened
from space.words import say

MAX_EDITS = 500  # of all chosen patches, for a report that is made at every tick
MAX_ASKED_EDITS = 100  # whose questions are asked of every composition
SHOWN = 50  # findings in the table
MAX_SHOWN_PAIRS = 200
AT_HOME = "kedit_hub.evaluate.conflicts.conflicts(stack, profiles=..., model=..., tokenizer=..., behaviour=True)"


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
    refused: Both | None


def find(workshop: Workshop, patches: Sequence[Held], winners: Winners, *, behaviour: bool = False) -> Found:
    """KeditError: not trusted, too many edits, another base, took too long."""
    most = MAX_ASKED_EDITS if behaviour else MAX_EDITS
    count = sum(len(held.patch.edits) for held in patches)
    if len({held.patch.manifest.base.id for held in patches}) > 1:
        raise KeditError(both("other_bases"))
    if count > most:
        raise LimitError(both("conflicts_many", count=count, most=most, at_home=AT_HOME))
    stack, refused = _stack(workshop, patches, winners)
    profiles = _profiles(patches)
    if not behaviour:
        return Found(conflicts(stack, profiles=profiles or None), tuple(patches), refused)
    if not profiles:
        raise KeditError(both("conflicts_no_profile"))
    loaded = workshop.load(patches[0].patch.manifest.base.id)
    with loaded.lock, measure.bounded(loaded.model, Stop(), AT_HOME):
        report = conflicts(stack, profiles=profiles, model=loaded.model, tokenizer=loaded.tokenizer, behaviour=True)
    return Found(report, tuple(patches), refused)


def _stack(workshop: Workshop, patches: Sequence[Held], winners: Winners) -> tuple[PatchStack, Both | None]:
    admitted = [item.patch for item in workshop.admitted(patches)]
    try:
        return PatchStack(admitted, conflicts=winners.policy, pinned=winners.pinned), None
    except ConflictError:
        return PatchStack(admitted, conflicts="latest"), both("conflicts_refused")


def _profiles(patches: Sequence[Held]) -> dict[str, BaseProfile]:
    """By path of the edited module, of the profiles that the patches were made under; none is measured here."""
    wanted = {path: held.patch.manifest.profile_id for held in patches for path in held.patch.deltas}
    known = {name: find_profile(name) for name in set(wanted.values()) if name is not None}
    found = {path: known[name] for path, name in wanted.items() if name is not None}
    return {path: profile for path, profile in found.items() if profile is not None}


# --- how it is shown ----------------------------------------------------------------------------------------------


def show(found: Found, language: Language = "en") -> str:
    """What was looked at, every finding with its remedy, and the drawing of who is near whom."""
    report = found.report
    names = {held.patch.id: printable(held.name) for held in found.patches}
    rows = [
        (part, kind, ", ".join(dict.fromkeys(names.get(name, name[:12]) for name in finding.patches)), *rest)
        for finding, (part, kind, _, *rest) in zip(report.findings[:SHOWN], report.table(), strict=False)
    ]
    more = len(report.findings) - len(rows)
    counted = Counter(f"{finding.part}: {finding.kind}" for finding in report.findings)
    kinds = ", ".join(f"{name} ({count})" for name, count in counted.items())
    kind, summary = "warning", told(language, "conflicts_found", kinds=kinds)
    if not report.findings:
        kind, summary = "good", told(language, "conflicts_none")
    head = [told(language, f"column_{name}") for name in COLUMNS]
    table = html.table(head, rows, classes="findings", label=told(language, "conflicts_label")) if rows else ""
    drawn = html.picture(report.svg(), told(language, "overlap"), "overlap.svg", language)
    refused = html.note("error", spoken(language, found.refused)) if found.refused is not None else ""
    note = html.note(kind, summary, _looked_at(language, found), *report.notes)
    return f"{refused}{note}{table}{html.more(language, more)}{drawn}"


def _looked_at(language: Language, found: Found) -> str:
    report = found.report
    comma = told(language, "comma")
    missing = comma.join(told(language, f"part_{part}") for part in PARTS if part not in report.looked_at)
    asked = ""
    if report.behaviour is not None:
        mode = report.behaviour.mode
        asked = told(language, "conflicts_questions", count=report.behaviour.asked, mode=mode)
    about = comma.join(shortened(printable(held.name), 60) for held in found.patches[:10])
    left = len(found.patches) - 10
    others = told(language, "conflicts_others", count=left) if left > 0 else ""
    parts = comma.join(told(language, f"part_{part}") for part in report.looked_at)
    looked = told(language, "conflicts_looked", parts=parts, patches=f"{about}{others}", asked=asked)
    return looked + (told(language, "conflicts_not_looked", parts=missing) if missing else "")


# --- pair by pair -------------------------------------------------------------------------------------------------


def pairs(found: Found) -> list[tuple[str, str]]:
    """(what to read, "id id") of every pair that a finding names, the most often named first."""
    names = {held.patch.id: printable(held.name) for held in found.patches}
    kinds: dict[tuple[str, str], Counter[str]] = {}
    for finding in found.report.findings:
        known = [name for name in dict.fromkeys(finding.patches) if name in names]
        for pair in combinations(known[:10], 2):
            kinds.setdefault(pair, Counter())[finding.kind] += 1
    ranked = sorted(kinds.items(), key=lambda item: (-item[1].total(), item[0]))
    return [
        (f"{names[a]} | {names[b]}: {', '.join(counted)}", f"{a} {b}") for (a, b), counted in ranked[:MAX_SHOWN_PAIRS]
    ]


def explain(found: Found, a: str, b: str, *, language: Language = "en") -> str:
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
    pair = told(language, "first_second", first=names.get(a, a[:12]), second=names.get(b, b[:12]))
    head = [told(language, key) for key in ("kind", "head_what", "numbers", "what_to_do")]
    table = html.table(head, rows[:SHOWN], classes="findings", label=told(language, "this_pair"))
    return f"{html.note('info', pair)}{table}"


# --- the tab ------------------------------------------------------------------------------------------------------


def build(workshop: Workshop, own: Any, tried: Widgets, tab: gr.Tab) -> None:
    """The tab. own: the gr.State with the visitor's patches. What is settled here is settled in the visitor's stack."""
    shown = gr.State(None)  # the last Found
    with gr.Row(equal_height=True):
        chosen = several("conflicts-of")
        with gr.Column(scale=2, min_width=180):
            mine = gr.Button(say("from_try"), size="sm", elem_id="conflicts-mine")
            look = gr.Button(say("find_conflicts"), variant="primary", size="sm", elem_id="conflicts-find")
    report = gr.HTML(html.framed("info", say("conflicts_empty")), elem_id="conflict-report")
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

    def reported(
        keys: list[str], own: tuple[Held, ...], policy: Policy, pinned: list[str], behaviour: bool, language: Language
    ) -> tuple[Any, ...]:
        if len(keys) < 2:
            empty = html.note("info", told(language, "conflicts_empty"))
            return empty, None, gr.Button(visible=False), gr.Group(visible=False), gr.skip(), ""
        try:
            held = workshop.chosen(keys, own)
            pins = tuple(key for key in pinned if key in keys) if policy == "pin" else ()
            how = Winners(policy, pins) if clashes(held) else Winners("error")
            found = find(workshop, held, how, behaviour=behaviour)
        except KeditError as error:
            return html.refusal(error, language), None, gr.Button(visible=False), gr.Group(visible=False), gr.skip(), ""
        named = pairs(found)
        first = named[0][1] if named else None
        return (
            show(found, language), found, gr.Button(visible=not behaviour), gr.Group(visible=bool(named)),
            gr.Dropdown(named, value=first), explain(found, *first.split(), language=language) if first else "",
        )  # fmt: skip

    def on_report(
        keys: list[str], own: tuple[Held, ...], policy: Policy, pinned: list[str], request: gr.Request | None = None
    ) -> tuple[Any, ...]:
        return reported(keys or [], own, policy, pinned, False, language_of(request))

    def on_behave(
        keys: list[str], own: tuple[Held, ...], policy: Policy, pinned: list[str], request: gr.Request | None = None
    ) -> tuple[Any, ...]:
        return reported(keys or [], own, policy, pinned, True, language_of(request))

    def on_pair(two: str | None, shown: Found | None, request: gr.Request | None = None) -> str:
        return explain(shown, *two.split(), language=language_of(request)) if two and shown else ""

    def settle(
        which: str, language: Language, two: str | None, shown: Found | None, stack: list[str], keys: list[str], pinned: list[str]
    ) -> tuple[Any, ...]:  # fmt: skip
        """The visitor's stack as it is wanted: (patches of Try, policy, pinned, what is looked at, what was done)."""
        if not two or shown is None:
            return (gr.skip(),) * 4 + ("",)
        first, second = two.split()
        names = {held.patch.id: held.name for held in shown.patches}
        if which.startswith("without"):
            out = first if which == "without_first" else second
            left = [key for key in keys if key != out]
            note = html.note("good", told(language, "taken_out", name=names[out]))
            return [key for key in stack if key != out], gr.skip(), gr.skip(), gr.Dropdown(value=left), note
        wins, loses = (first, second) if which == "first_answers" else (second, first)
        both_in = [*stack, *(key for key in (first, second) if key not in stack)]
        pins = [*(key for key in pinned if key not in (wins, loses)), wins]
        boxes = [(names.get(key, key[:12]), key) for key in both_in]
        note = html.note("good", told(language, "pinned_now", name=names[wins]))
        return both_in, "pin", gr.CheckboxGroup(boxes, value=pins, visible=True), gr.skip(), note

    def settler(which: str) -> Callable[..., tuple[Any, ...]]:
        def on_settle(request: gr.Request | None, *said: Any) -> tuple[Any, ...]:
            return settle(which, language_of(request), *said)

        return on_settle

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
            settler(name), [pair, shown, tried.patches, chosen, tried.pinned],
            [tried.patches, tried.policy, tried.pinned, chosen, settled], **private,
        ).then(on_report, inputs, outputs, **light)  # fmt: skip

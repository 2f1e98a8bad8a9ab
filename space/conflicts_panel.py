"""What gets in each other's way among the chosen patches: by words, keys and gate as soon as two are chosen, by behaviour on a button.

Law: the report is the library's (kedit_hub.evaluate.conflicts), and a part that was not looked at is named, never passed off as clean.

    found = find(workshop, chosen, Winners("latest"))      # changes no model and puts nothing on one
    found = find(workshop, chosen, Winners("latest"), behaviour=True)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from kedit_hub import KeditError, PatchStack
from kedit_hub.api import find_profile
from kedit_hub.base.profile import BaseProfile
from kedit_hub.errors import ConflictError, LimitError
from kedit_hub.evaluate.conflicts import COLUMNS, PARTS, ConflictReport, conflicts
from kedit_hub.hub.client import printable
from space import html, measure
from space.state import MAX_PATCHES, Held, Policy, Stop, Workshop, clashes, shortened
from space.try_tab import Widgets

MAX_EDITS = 500  # of all chosen patches, for a report that is made at every tick
MAX_ASKED_EDITS = 100  # whose questions are asked of every composition
SHOWN = 50  # findings in the table
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


# --- the panel ----------------------------------------------------------------------------------------------------


def build(workshop: Workshop, own: Any, tried: Widgets) -> None:
    """Below what is chosen and asked; hidden while fewer than two patches are chosen. own: the gr.State with the visitor's patches."""
    with gr.Accordion("Conflicts of the chosen patches", open=False, visible=False, elem_id="conflicts") as panel:
        report = gr.HTML(elem_id="conflict-report")
        behave = gr.Button("Ask whether they break each other's answers", size="sm", elem_id="behave")

    def told(keys: list[str], own: tuple[Held, ...], policy: Policy, pinned: list[str], behaviour: bool) -> str:
        try:
            held = workshop.chosen(keys, own)
            pins = tuple(key for key in pinned if key in keys) if policy == "pin" else ()
            how = Winners(policy, pins) if clashes(held) else Winners("error")
            return show(find(workshop, held, how, behaviour=behaviour))
        except KeditError as error:
            return html.refusal(error)

    def on_report(keys: list[str], own: tuple[Held, ...], policy: Policy, pinned: list[str]) -> tuple[Any, str]:
        several = 2 <= len(keys) <= MAX_PATCHES
        return gr.Accordion(visible=several), told(keys, own, policy, pinned, False) if several else ""

    def on_behave(keys: list[str], own: tuple[Held, ...], policy: Policy, pinned: list[str]) -> str:
        return told(keys, own, policy, pinned, True)

    chosen = [tried.patches, own, tried.policy, tried.pinned]
    gr.on(
        [tried.patches.change, tried.policy.input, tried.pinned.input], on_report, chosen, [panel, report],
        concurrency_id="conflicts", concurrency_limit=2, api_visibility="private", show_progress="hidden",
    )  # fmt: skip
    behave.click(on_behave, chosen, report, concurrency_id="model", concurrency_limit=1, api_visibility="private")

"""Patch: what a patch holds, what it claims, whether that can be believed, and whether it keeps its claims when asked here and now."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from kedit_hub import KeditError
from kedit_hub.hub.client import printable
from space import believe, html, measure
from space.believe import Asked
from space.score_view import scores_table
from space.state import Held, Stop, Workshop
from space.words import say

SHOWN = 100  # edits in the table
RUNNING = '<div class="running"></div>'  # room for the progress bar


# --- how it is shown ----------------------------------------------------------------------------------------------


def card(held: Held, lines: Sequence[html.Line]) -> str:
    """Everything of a patch that a person should see before trusting it. lines: see believe.lines."""
    patch = held.patch
    manifest, provenance = patch.manifest, patch.manifest.provenance
    revision = f" at {manifest.base.revision[:12]}" if manifest.base.revision else ""
    edits = [
        (edit.prompt, edit.target, edit.ground_truth or "", len((*edit.rephrases, *edit.locality, *edit.portability)))
        for edit in patch.edits[:SHOWN]
    ]
    more = f'<p class="subtle">and {len(patch.edits) - SHOWN:,} more.</p>' if len(patch.edits) > SHOWN else ""
    tensors = [
        (path, entry.kind, name, f"{tensor.dtype} {' × '.join(map(str, tensor.shape))}", tensor.sha256[:16])
        for path, entry in manifest.modules.items()
        for name, tensor in entry.tensors.items()
    ]
    origin = [
        ("Patch id", patch.id),
        ("Made with", f"{manifest.method}, by {provenance.tool} {provenance.version}"),
        ("Base profile", manifest.profile_id or "none"),
        ("Seed", "not said" if provenance.seed is None else str(provenance.seed)),
        *(("Signed by", key) for key in patch.signers),
        ("Commit of the tool", provenance.commit or "not said"),
        *((f"Version of {name}", version) for name, version in provenance.versions.items()),
        *((f"Circumstance {name}", value) for name, value in provenance.environment.items()),
        *((f"Data set {item.id}", item.sha256 or item.revision or "") for item in provenance.datasets),
        *((f"Setting {name}", str(value)) for name, value in manifest.settings.items()),
    ]
    count = f"{len(patch.edits)} {'edit' if len(patch.edits) == 1 else 'edits'}"
    tensor_table = html.table(("Module", "Kind", "Tensor", "Type and shape", "SHA-256"), tensors)
    return (
        f'<article class="card"><h2>{html.text(held.name)}</h2>'
        f'<p class="subtle">{count} of what {html.text(manifest.base.id)}{html.text(revision)} knows, made with '
        f"{html.text(manifest.method)}. A patch may be wrong, by mistake or on purpose: nobody has checked these facts."
        f"</p><h3>Can it be believed?</h3>{html.facts(lines)}"
        f"<h3>Edits</h3>{html.table(('Prompt', 'New answer', 'Before', 'Probes'), edits)}{more}"
        f"<h3>Scores it claims</h3>{scores_table(patch.evals or {})}"
        f"<details><summary>{len(tensors)} tensors</summary>{tensor_table}</details>"
        f"<details><summary>Provenance and settings</summary>{html.table(('What', 'Value'), origin)}</details>"
        "</article>"
    )


# --- the tab ------------------------------------------------------------------------------------------------------


def choices(offered: Sequence[Held], asked: dict[str, Asked]) -> list[tuple[str, str]]:
    """By name too: patches of two bases may hold one edit."""
    return [
        (f"{believe.mark(held, asked.get(held.patch.id))}{printable(held.name)}: {held.title}", held.patch.id)
        for held in offered
    ]


def build(workshop: Workshop, own: Any, asked: Any, tab: gr.Tab) -> None:
    """The tab. own, asked: the gr.States with the visitor's patches and with what they measured."""
    offered = workshop.offered(())
    first = offered[0].patch.id if offered else None
    stop = gr.State(Stop())
    choice = gr.Dropdown(choices(offered, {}), value=first, label=say("patch"), elem_id="patch-choice")
    with gr.Row():
        again = gr.Button(say("ask_again"), variant="primary", elem_id="ask-again", interactive=bool(offered))
        look = gr.Button(say("look"), elem_id="look", interactive=bool(offered))
        halt = gr.Button(say("stop"), elem_id="stop", visible=False, scale=0, min_width=140)
    result = gr.HTML(elem_id="verdict")
    shown = gr.HTML("" if offered else html.note("info", "There is no patch yet: make one."), elem_id="card")

    def on_choice(key: str | None, own: tuple[Held, ...], asked: dict[str, Asked]) -> tuple[Any, ...]:
        return *on_card(key, own, asked), ""

    def usable(yes: bool) -> tuple[Any, Any]:
        return gr.Button(interactive=yes), gr.Button(interactive=yes)

    def on_card(key: str | None, own: tuple[Held, ...], asked: dict[str, Asked]) -> tuple[str, Any, Any]:
        if not key:
            return html.note("info", "There is no patch yet: make one."), *usable(False)
        try:
            held = workshop.chosen([key], own)[0]
            return card(held, believe.lines(workshop, held, asked.get(key))), *usable(True)
        except KeditError as error:
            return html.refusal(error), *usable(False)

    def on_own(own: tuple[Held, ...], asked: dict[str, Asked], key: str | None) -> Any:
        """The list with the visitor's own patches; what was chosen stays chosen."""
        keys = [held.patch.id for held in workshop.offered(own)]
        value = key if key in keys else (keys[0] if keys else None)
        return gr.Dropdown(choices(workshop.offered(own), asked), value=value)

    def begin(stop: Stop) -> tuple[Any, ...]:
        stop.wished = False
        return *usable(False), gr.Button(visible=True), gr.Dropdown(interactive=False), RUNNING

    def end() -> tuple[Any, ...]:
        return *usable(True), gr.Button(visible=False), gr.Dropdown(interactive=True)

    def on_stop(stop: Stop) -> None:
        stop.wished = True

    def on_again(
        key: str | None, own: tuple[Held, ...], asked: dict[str, Asked], stop: Stop,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (this default is how Gradio hands in its progress bar)
    ) -> tuple[str, dict[str, Asked]]:  # fmt: skip
        if not key:
            return "", asked
        progress(0.1, desc="Asking its probes")
        try:
            held = workshop.chosen([key], own)[0]
            found = measure.ask_again(workshop, held, stop)
        except KeditError as error:
            return html.refusal(error), asked
        return measure.show(held, found), {**asked, held.patch.id: measure.told(found)}

    def on_look(
        key: str | None, own: tuple[Held, ...], stop: Stop,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> str:  # fmt: skip
        if not key:
            return ""
        progress(0.1, desc="Asking what it does not declare")
        try:
            held, seed = workshop.chosen([key], own)[0], measure.any_seed()
            return measure.show_look(held, measure.look(workshop, held, stop, seed), seed)
        except KeditError as error:
            return html.refusal(error)

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    looking, drawn = [choice, own, asked], [shown, again, look]
    choice.change(on_choice, looking, [*drawn, result], **private)
    tab.select(on_card, looking, drawn, **private)
    own.change(on_own, [own, asked, choice], choice, **private)
    asked.change(on_card, looking, drawn, **private)
    asked.change(lambda own, asked: gr.Dropdown(choices(workshop.offered(own), asked)), [own, asked], choice, **private)
    for button, run, inputs, outputs in (
        (again, on_again, [choice, own, asked, stop], [result, asked]),
        (look, on_look, [choice, own, stop], [result]),
    ):
        started = button.click(begin, stop, [again, look, halt, choice, result], queue=False, **private)
        ran = started.then(run, inputs, outputs, show_progress_on=[result], **model)
        ran.then(end, None, [again, look, halt, choice], queue=False, **private)
    halt.click(on_stop, stop, None, queue=False, **private)

"""Patch: what a patch holds, what it claims, whether that can be believed, and whether it keeps its claims when asked here and now."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from kedit_hub import KeditError
from kedit_hub.hub.client import printable
from space import believe, html, measure
from space.believe import Asked
from space.score_view import scores_table
from space.sentences import Language, counted, language_of, told
from space.state import Held, Stop, Workshop
from space.words import say

SHOWN = 100  # edits in the table
RUNNING = '<div class="running"></div>'  # room for the progress bar


# --- how it is shown ----------------------------------------------------------------------------------------------


def card(held: Held, lines: Sequence[html.Line], language: Language = "en") -> str:
    """Everything of a patch that a person should see before trusting it. lines: see believe.lines."""
    patch = held.patch
    manifest, provenance = patch.manifest, patch.manifest.provenance
    revision = told(language, "at_revision", revision=manifest.base.revision[:12]) if manifest.base.revision else ""
    unsaid = told(language, "not_said")
    edits = [
        (edit.prompt, edit.target, edit.ground_truth or "", len((*edit.rephrases, *edit.locality, *edit.portability)))
        for edit in patch.edits[:SHOWN]
    ]
    more = html.more(language, len(patch.edits) - SHOWN)
    tensors = [
        (path, entry.kind, name, f"{tensor.dtype} {' × '.join(map(str, tensor.shape))}", tensor.sha256[:16])
        for path, entry in manifest.modules.items()
        for name, tensor in entry.tensors.items()
    ]
    made = told(language, "made_with_told", method=manifest.method, tool=provenance.tool, version=provenance.version)
    origin = [
        (told(language, "patch_id"), patch.id),
        (told(language, "made_with"), made),
        (told(language, "base_profile"), manifest.profile_id or told(language, "none")),
        (told(language, "seed_row"), unsaid if provenance.seed is None else str(provenance.seed)),
        *((told(language, "signer"), key) for key in patch.signers),
        (told(language, "tool_commit"), provenance.commit or unsaid),
        *((told(language, "version_of", name=name), version) for name, version in provenance.versions.items()),
        *((told(language, "circumstance", name=name), value) for name, value in provenance.environment.items()),
        *(
            (told(language, "data_set_named", name=item.id), item.sha256 or item.revision or "")
            for item in provenance.datasets
        ),
        *((told(language, "setting", name=name), str(value)) for name, value in manifest.settings.items()),
    ]

    def head(*keys: str) -> list[str]:
        return [told(language, key) for key in keys]

    about = told(
        language,
        "card_told",
        edits=counted(language, "edits", len(patch.edits)),
        base=manifest.base.id,
        revision=revision,
        method=manifest.method,
    )
    edit_table = html.table(head("head_prompt", "head_new_answer", "before", "head_probes"), edits)
    tensor_table = html.table(head("module", "kind", "tensor", "type_and_shape", "sha256"), tensors)
    origin_table = html.table(head("what", "value"), origin)
    return (
        f'<article class="card"><h2>{html.text(held.name)}</h2><p class="subtle">{html.text(about, 1000)}'
        f"</p><h3>{told(language, 'believed')}</h3>{html.facts(lines)}"
        f"<h3>{told(language, 'edits')}</h3>{edit_table}{more}"
        f"<h3>{told(language, 'scores_claimed')}</h3>{scores_table(patch.evals or {}, language)}"
        f"<details><summary>{counted(language, 'tensors', len(tensors))}</summary>{tensor_table}</details>"
        f"<details><summary>{told(language, 'provenance_settings')}</summary>{origin_table}</details>"
        "</article>"
    )


# --- the tab ------------------------------------------------------------------------------------------------------


def choices(offered: Sequence[Held], asked: dict[str, Asked], language: Language = "en") -> list[tuple[str, str]]:
    """By name too: patches of two bases may hold one edit."""
    marks = [believe.mark(held, asked.get(held.patch.id), language) for held in offered]
    return [
        (f"{mark}{printable(held.name)}: {held.titled(language)}", held.patch.id) for mark, held in zip(marks, offered)
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
    shown = gr.HTML("" if offered else html.framed("info", say("no_patch_yet")), elem_id="card")

    def on_choice(
        key: str | None, own: tuple[Held, ...], asked: dict[str, Asked], request: gr.Request | None = None
    ) -> tuple[Any, ...]:
        return *on_card(key, own, asked, request), ""

    def usable(yes: bool) -> tuple[Any, Any]:
        return gr.Button(interactive=yes), gr.Button(interactive=yes)

    def on_card(
        key: str | None, own: tuple[Held, ...], asked: dict[str, Asked], request: gr.Request | None = None
    ) -> tuple[str, Any, Any]:
        language = language_of(request)
        if not key:
            return html.note("info", told(language, "no_patch_yet")), *usable(False)
        try:
            held = workshop.chosen([key], own)[0]
            return card(held, believe.lines(workshop, held, asked.get(key), language), language), *usable(True)
        except KeditError as error:
            return html.refusal(error, language), *usable(False)

    def on_own(
        own: tuple[Held, ...], asked: dict[str, Asked], key: str | None, request: gr.Request | None = None
    ) -> Any:
        """The list with the visitor's own patches; what was chosen stays chosen."""
        keys = [held.patch.id for held in workshop.offered(own)]
        value = key if key in keys else (keys[0] if keys else None)
        return gr.Dropdown(choices(workshop.offered(own), asked, language_of(request)), value=value)

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
        request: gr.Request | None = None,
    ) -> tuple[str, dict[str, Asked]]:  # fmt: skip
        if not key:
            return "", asked
        language = language_of(request)
        progress(0.1, desc=told(language, "asking_probes"))
        try:
            held = workshop.chosen([key], own)[0]
            found = measure.ask_again(workshop, held, stop)
        except KeditError as error:
            return html.refusal(error, language), asked
        return measure.show(held, found, language), {**asked, held.patch.id: measure.told(found)}

    def on_look(
        key: str | None, own: tuple[Held, ...], stop: Stop,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        request: gr.Request | None = None,
    ) -> str:  # fmt: skip
        if not key:
            return ""
        language = language_of(request)
        progress(0.1, desc=told(language, "asking_undeclared"))
        try:
            held, seed = workshop.chosen([key], own)[0], measure.any_seed()
            return measure.show_look(held, measure.look(workshop, held, stop, seed), seed, language)
        except KeditError as error:
            return html.refusal(error, language)

    def on_asked(own: tuple[Held, ...], asked: dict[str, Asked], request: gr.Request | None = None) -> Any:
        return gr.Dropdown(choices(workshop.offered(own), asked, language_of(request)))

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    looking, drawn = [choice, own, asked], [shown, again, look]
    choice.change(on_choice, looking, [*drawn, result], **private)
    tab.select(on_card, looking, drawn, **private)
    own.change(on_own, [own, asked, choice], choice, **private)
    asked.change(on_card, looking, drawn, **private)
    gr.on([tab.select, asked.change], on_asked, [own, asked], choice, **private)
    for button, run, inputs, outputs in (
        (again, on_again, [choice, own, asked, stop], [result, asked]),
        (look, on_look, [choice, own, stop], [result]),
    ):
        started = button.click(begin, stop, [again, look, halt, choice, result], queue=False, **private)
        ran = started.then(run, inputs, outputs, show_progress_on=[result], **model)
        ran.then(end, None, [again, look, halt, choice], queue=False, **private)
    halt.click(on_stop, stop, None, queue=False, **private)

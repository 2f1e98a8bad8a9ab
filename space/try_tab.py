"""Try: patches chosen and stacked, one question, the answers side by side, and what stayed as it was."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from kedit_hub import KeditError
from space import answer_view, html, link, stack_builder, take_home
from space.asking import MAX_SEED, MODES, Answer, Heard, Question, answers, prove
from space.believe import Asked
from space.choosing import EXAMPLES, Widgets, choices, examples, wanted
from space.gpu import on_gpu
from space.sentences import language_of, spoken, told
from space.stack_builder import Tuned
from space.state import (
    MAX_NEW_TOKENS,
    MAX_PATCHES,
    MAX_QUESTION,
    Held,
    Policy,
    Stop,
    Workshop,
    clashes,
    kept,
    precisions,
)
from space.words import say

WINNERS = (("refuse", "error"), ("latest", "latest"), ("pin", "pin"))  # (text, policy)


@dataclass(frozen=True)
class Shown:
    """The answer on the page of one visitor, and what it answers."""

    question: Question
    answer: Answer


# --- the tab ------------------------------------------------------------------------------------------------------


def build(workshop: Workshop, own: Any, asked: Any, demo: gr.Blocks) -> Widgets:
    """The tab. own, asked: the gr.States with the visitor's patches (a tuple of Held) and what they measured ({id: Asked})."""
    first = next(iter(workshop.bases))
    offered = workshop.offered((), first)
    tuning = gr.State({})  # {patch id: Tuned}
    shown = gr.State(None)  # the last Shown
    stop = gr.State(Stop())
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            patches = gr.CheckboxGroup(
                choices(offered, {}),
                label=say("choose_patches"),
                info=say("choose_info" if offered else "no_patches"),
                elem_id="patches",
            )
            clash = gr.HTML(visible=False, elem_id="clash")
            policy = gr.Radio(
                [(say(text), name) for text, name in WINNERS], value="error", label=say("disagree"), visible=False,
                elem_id="policy-choice",
            )  # fmt: skip
            pinned = gr.CheckboxGroup([], label=say("pinned"), visible=False, elem_id="pinned")
            with gr.Accordion(say("stack"), open=True, visible=False, elem_id="stack-rows") as builder:
                stack_builder.build(workshop, patches, own, tuning)
            with gr.Accordion(say("add_from_hub"), open=False):
                ref = gr.Textbox(label=say("hub_repo"), placeholder=say("hub_name"), max_lines=1, max_length=300)
                add = gr.Button(say("add"), size="sm", elem_id="add")
                if os.getenv("OAUTH_CLIENT_ID"):
                    gr.LoginButton(size="sm")  # for private repos
                added = gr.HTML()
            with gr.Accordion(say("base_precision"), open=False, elem_id="base-precision"):
                base = gr.Radio(
                    [(item.title, item.id) for item in workshop.bases.values()], value=first, label=say("base")
                )
                precision = gr.Radio(
                    [((say("full_precision") if name == "float32" else name), name) for name in precisions()],
                    value="float32",
                    label=say("precision"),
                )
                mode = gr.Radio(
                    list(MODES), value="auto", label=say("mode"), info=say("mode_info"), elem_id="mode-choice"
                )
                placebo = gr.Checkbox(True, label=say("placebo"), elem_id="placebo")
                with gr.Row():
                    seed = gr.Number(0, label=say("seed"), minimum=0, maximum=MAX_SEED, precision=0, min_width=120)
                    length = gr.Slider(
                        1, MAX_NEW_TOKENS, 32, step=1, label=say("new_tokens"), min_width=160, buttons=[]
                    )
        with gr.Column(scale=7, min_width=340):
            question = gr.Textbox(
                label=say("question"), info=say("question_info"), lines=2, max_length=MAX_QUESTION, elem_id="question"
            )
            samples = gr.Dataset(
                components=[gr.Textbox(visible=False)],
                samples=examples(workshop, first, (), ()),
                label=say("or_click"),
                samples_per_page=EXAMPLES,
                elem_id="examples",
            )
            with gr.Row():
                button = gr.Button(say("ask"), variant="primary", elem_id="ask", scale=4)
                halt = gr.Button(say("stop"), elem_id="halt", scale=1, min_width=110)
            result = gr.HTML(elem_id="result")
            with gr.Group(visible=False, elem_id="after") as after:
                proof = gr.HTML(elem_id="proof", label=say("proof"))
                with gr.Tabs():
                    with gr.Tab(say("in_python")):
                        code = gr.Code(
                            label=say("take_home"), language="python", elem_id="code", interactive=False, lines=2,
                            max_lines=8, wrap_lines=True, show_line_numbers=False,
                        )  # fmt: skip
                    with gr.Tab(say("in_terminal")):
                        lines = gr.Code(
                            label=say("take_home"), language="shell", elem_id="shell", interactive=False, lines=2,
                            max_lines=10, wrap_lines=True, show_line_numbers=False,
                        )  # fmt: skip
                with gr.Row():
                    share = gr.Button(say("link_here"), elem_id="share", min_width=160)
                    download = gr.DownloadButton(say("download_json"), elem_id="download-json", min_width=160)
                address = gr.Textbox(
                    label=say("link"), info=say("link_info"), visible=False, elem_id="link", interactive=False, max_lines=3,
                    buttons=["copy"],
                )  # fmt: skip
                refused = gr.HTML(elem_id="link-refused")

    controls = [question, patches, own, tuning, base, precision, policy, pinned, mode, placebo, seed, length]

    def run(question: Question, stop: Stop) -> Iterator[Heard | Answer]:
        yield from answers(workshop, question, stop)

    run = on_gpu(run)

    def nothing() -> tuple[Any, ...]:
        return gr.Group(visible=False), "", "", None, gr.DownloadButton(value=None), gr.Textbox(visible=False), "", ""

    unchanged = (gr.skip(),) * 9

    def on_ask(request: gr.Request | None, stop: Stop, *said: Any) -> Iterator[tuple[Any, ...]]:
        """The answer as it grows, and then whole with all that belongs to it."""
        language = language_of(request)
        try:
            asked = wanted(workshop, *said)
            for step in run(asked, stop):
                if isinstance(step, Heard):
                    yield answer_view.growing(step, asked.placebo is not None, language), *unchanged[1:]
                else:
                    home = take_home.python(asked, workshop.endpoint)
                    data = json.dumps(answer_view.as_json(step, asked, home), indent=2, ensure_ascii=False).encode()
                    path = save_bytes_to_cache(data, "kedit-answer.json", download.GRADIO_CACHE)
                    yield (
                        answer_view.show(step, len(asked.patches), language), gr.Group(visible=True), home,
                        take_home.shell(asked, workshop.endpoint), Shown(asked, step), gr.DownloadButton(value=path),
                        gr.Textbox(visible=False), "", "",
                    )  # fmt: skip
        except KeditError as error:
            yield html.refusal(error, language), *nothing()

    def on_proof(shown: Shown | None, request: gr.Request | None = None) -> str:
        language = language_of(request)
        if shown is None or not shown.question.patches:
            return ""
        try:
            return answer_view.show_proof(prove(workshop, shown.question), shown.answer, language)
        except KeditError as error:
            return html.refusal(error, language)

    def begin(stop: Stop) -> None:
        stop.wished = False

    def on_halt(stop: Stop, request: gr.Request | None = None) -> str:
        stop.wished = True
        return html.note("info", told(language_of(request), "stopped"))

    def on_choice(
        keys: list[str], own: tuple[Held, ...], base: str, text: str, policy: Policy, pinned: list[str],
        request: gr.Request | None = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Conflicts, examples and, where the box is empty, a question for the chosen patches."""
        language = language_of(request)
        chosen = workshop.chosen(keys[:MAX_PATCHES], own)
        found = clashes(chosen)
        sentences = [spoken(language, clash) for clash in found[:5]]
        warning = html.note("warning", told(language, "disagree_here"), *sentences, *(["..."] if found[5:] else []))
        asked = examples(workshop, base, keys, own)
        prefilled = asked[0][0] if asked and keys and not (text or "").strip() else gr.skip()
        return (
            gr.HTML(warning, visible=bool(found)),
            gr.Radio(visible=bool(found)),
            gr.CheckboxGroup(
                choices(chosen, {}, language),
                value=[key for key in pinned if key in keys],
                visible=bool(found) and policy == "pin",
            ),
            gr.Dataset(samples=asked),
            prefilled,
            gr.Accordion(visible=bool(keys)),
        )

    def on_base(
        base: str, own: tuple[Held, ...], asked: dict[str, Asked], request: gr.Request | None = None
    ) -> tuple[Any, ...]:
        return (
            gr.CheckboxGroup(choices(workshop.offered(own, base), asked, language_of(request)), value=[]),
            gr.Dataset(samples=examples(workshop, base, (), own)),
        )

    def on_change(request: gr.Request | None, shown: str, stop: Stop, *said: Any) -> Iterator[tuple[Any, ...]]:
        """Keep a shown answer true to the choice beside it. Where none is shown one may be on its way, and is left alone."""
        if shown:
            yield from on_ask(request, stop, *said)
        else:
            yield unchanged

    def on_add(
        text: str,
        own: tuple[Held, ...],
        keys: list[str],
        base: str,
        asked: dict[str, Asked],
        login: gr.OAuthToken | None = None,
        request: gr.Request | None = None,
    ) -> tuple[Any, ...]:
        language = language_of(request)
        try:
            held = workshop.from_hub(text or "", login.token if login is not None else False)
            own = kept(own, held)
        except KeditError as error:
            return own, gr.CheckboxGroup(), html.refusal(error, language), text
        if held.patch.manifest.base.id != base:
            other = workshop.bases[held.patch.manifest.base.id].title
            return own, gr.CheckboxGroup(), html.note("info", told(language, "added_other_base", base=other)), ""
        offered = choices(workshop.offered(own, base), asked, language)
        updated = gr.CheckboxGroup(offered, value=list(dict.fromkeys([*keys, held.patch.id])))
        return own, updated, html.note("good", told(language, "added", where=held.where)), ""

    def on_share(shown: Shown | None, request: gr.Request | None = None) -> tuple[Any, str]:
        if shown is None:
            return gr.Textbox(visible=False), ""
        try:
            return gr.Textbox(f"?{link.query(shown.question)}", visible=True), ""
        except KeditError as error:
            return gr.Textbox(visible=False), html.refusal(error, language_of(request))

    def on_link(own: tuple[Held, ...], asked: dict[str, Asked], request: gr.Request) -> tuple[Any, ...]:
        """Whoever opened a link finds what it names. The last value: whether there is something to ask."""
        language = language_of(request)
        said: Mapping[str, str] = {name: str(value) for name, value in dict(request.query_params).items()}
        if not any(name in said for name in link.NAMES):
            names = gr.skip() if language == "en" else gr.CheckboxGroup(choices(offered, asked, language))
            return (*[gr.skip()] * 2, names, *[gr.skip()] * 11, False)
        try:
            found = link.read(workshop, said)
            for held in found.patches:
                own = kept(own, held) if held.origin == "hub" else own
        except KeditError as error:
            return (*[gr.skip()] * 13, html.refusal(error, language), False)
        keys = [held.patch.id for held in found.patches]
        tuned = {key: Tuned(share) for key, share in found.strengths}
        return (
            own, tuned, gr.CheckboxGroup(choices(workshop.offered(own, found.base), asked, language), value=keys), found.text,
            found.base, found.precision, found.conflicts,
            gr.CheckboxGroup(choices(found.patches, {}, language), value=list(found.pinned)), found.mode,
            found.placebo is not None, found.placebo or 0, found.max_new_tokens,
            gr.Accordion(open=True), gr.skip(), bool(found.text),
        )  # fmt: skip

    one_at_a_time: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    answered = [result, after, code, lines, shown, download, address, refused, proof]
    asking = {"inputs": [stop, *controls], "outputs": answered, "show_progress_on": [result], **one_at_a_time}
    changing = {**asking, "inputs": [result, stop, *controls]}
    running = []

    def proven(event: Any) -> Any:
        running.append(event)
        running.append(event.then(on_proof, shown, proof, show_progress="hidden", **one_at_a_time))

    def start(event: Any, **how: Any) -> None:
        proven(event(begin, stop, None, queue=False, **private, **how).then(on_ask, **asking))

    start(button.click)
    start(question.submit)
    proven(
        samples.click(lambda sample: sample[0], samples, question, **private)
        .then(begin, stop, None, queue=False, **private)
        .then(on_ask, **asking)
    )
    choosing = [patches, own, base, question, policy, pinned]
    proven(
        patches.change(on_choice, choosing, [clash, policy, pinned, samples, question, builder], **private)
        .then(begin, stop, None, queue=False, **private)
        .then(on_change, **changing)
    )
    policy.input(lambda policy: gr.CheckboxGroup(visible=policy == "pin"), policy, pinned, **private)
    tuned_by = [policy.input, pinned.input, precision.input, mode.input, placebo.input, seed.submit, length.release]
    proven(
        gr.on([*tuned_by, tuning.change], begin, stop, None, trigger_mode="always_last", queue=False, **private).then(
            on_change, **changing
        )
    )
    proven(
        base.input(on_base, [base, own, asked], [patches, samples], **private)
        .then(begin, stop, None, queue=False, **private)
        .then(on_change, **changing)
    )
    halt.click(on_halt, stop, result, queue=False, cancels=running, **private)
    gr.on(
        [add.click, ref.submit], on_add, [ref, own, patches, base, asked], [own, patches, added, ref],
        concurrency_id="hub", concurrency_limit=2, api_visibility="private",
    )  # fmt: skip

    def on_asked(own: tuple[Held, ...], base: str, asked: dict[str, Asked], request: gr.Request | None = None) -> Any:
        return gr.CheckboxGroup(choices(workshop.offered(own, base), asked, language_of(request)))

    asked.change(on_asked, [own, base, asked], patches, **private)
    share.click(on_share, shown, [address, refused], **private).then(
        None, address, address, js="(query) => query ? location.origin + location.pathname + query : query", **private
    )
    linked = gr.State(False)
    opened = demo.load(
        on_link, [own, asked],
        [own, tuning, patches, question, base, precision, policy, pinned, mode, placebo, seed, length, builder, result, linked],
        concurrency_id="hub", concurrency_limit=2, **private,
    )  # fmt: skip

    def on_linked(request: gr.Request | None, linked: bool, stop: Stop, *said: Any) -> Iterator[tuple[Any, ...]]:
        if linked:
            yield from on_ask(request, stop, *said)
        else:
            yield unchanged

    proven(opened.then(on_linked, **{**asking, "inputs": [linked, stop, *controls]}))
    return Widgets(base, precision, patches, policy, pinned, tuning)

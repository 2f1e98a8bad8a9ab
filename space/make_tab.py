"""Make: a sentence or a file in, a scored patch out; then look at it, stack it, take it home, or push it."""

import os
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

import kedit_hub
from kedit_hub import KeditError, Patch
from kedit_hub.api import EMBEDDED
from kedit_hub.evaluate.scores import Scores
from kedit_hub.hub.ref import repo_name
from space import html, measure
from space.believe import Asked
from space.choosing import Widgets, choices
from space.making import (
    MAX_ANSWER,
    MAX_PARAPHRASES,
    PREVIEW_LINES,
    Made,
    Wish,
    file_name,
    make,
    make_file,
    push_token,
    zipped,
)
from space.score_view import metric_told, scores_table
from space.sentences import Language, both, language_of, told
from space.state import MAX_QUESTION, Held, Stop, Workshop, can_edit, hub_endpoint, kept
from space.words import say

EXAMPLE_RELATIONS = ("capital", "landmark_city", "born_in", "language")


# --- how it is shown ----------------------------------------------------------------------------------------------


def show(made: Made, language: Language = "en") -> str:
    patch, reliability = made.held.patch, made.scores.protocols["generate"]["reliability"]
    edit, many, nothing = patch.edits[0], len(patch.edits) > 1, told(language, "nothing_said")
    if reliability == 1:
        count = len(patch.edits)
        done = told(language, "all_took", count=count) if many else told(language, "now_answers", target=edit.target)
        verdict = html.note("good", done + told(language, "made_in", seconds=made.seconds))
    else:
        short = told(language, "not_all_took") if many else told(language, "not_fully", target=edit.target)
        verdict = html.note("warning", short)
    found = made.value_success
    value = "" if found is None else f"<p>{told(language, 'value_found' if found == 1 else 'value_not_found')}</p>"
    before, after = (html.text(said.text or nothing, 2000) for said in (made.answer.base, made.answer.patched))
    return (
        f'{verdict}<div class="card"><h2>{html.text(edit.prompt)} …</h2>'
        f"<p>{told(language, 'said_before')} <strong>{before}</strong></p>"
        f"<p>{told(language, 'said_after')} <strong>{after}</strong></p>"
        f"{value}{scores_table(made.scores.to_dict(), language)}{probes(made.scores, language)}"
        f'<p class="subtle">{told(language, "made_patch", name=patch.id[:12], count=len(patch.deltas))}</p></div>'
    )


def probes(scores: Scores, language: Language = "en") -> str:
    """Every question of the edit with both answers, folded."""
    rows = [
        (
            metric_told(q.role + (f" {q.kind}" if q.kind else ""), language),
            q.prompt,
            q.answer_before or "",
            q.answer_after or "",
        )
        for edit in scores.per_edit
        for q in edit.questions
    ]
    kept = [q for edit in scores.per_edit for q in edit.questions if q.role == "locality"]
    same = sum(q.answer_before == q.answer_after for q in kept)
    neighbours = (
        told(language, "neighbours_kept", kept=same, count=len(kept)) if kept else told(language, "no_neighbours_known")
    )
    head = [told(language, key) for key in ("head_role", "asked", "before", "after")]
    return (
        f"<details><summary>{told(language, 'questions_asked', count=len(rows))}{neighbours}</summary>"
        f"{html.table(head, rows)}</details>"
    )


def contents(patch: Patch, language: Language = "en") -> str:
    """What a push would publish: its files, and those that are text as they will be."""
    files = patch.files()
    sizes = [(name, told(language, "bytes", count=len(data))) for name, data in files.items()]
    texts = {name: data for name, data in files.items() if name.endswith((".md", ".json"))}
    previews = "".join(
        f"<details><summary>{html.text(name)}</summary>"
        f"{html.lines(data.decode('utf-8', 'replace'), PREVIEW_LINES, language)}</details>"
        for name, data in texts.items()
    )
    return f"{html.table((told(language, 'file'), told(language, 'size')), sizes)}{previews}"


# --- the tab ------------------------------------------------------------------------------------------------------


def example_wishes(workshop: Workshop) -> list[list[str]]:
    """A few edits of the demo world: prompt, subject, new answer, paraphrases, relation."""
    if not any(base in EMBEDDED for base in workshop.bases):
        return []
    wanted = [next((e for e in workshop.world_edits if e.relation == name), None) for name in EXAMPLE_RELATIONS]
    return [
        [edit.prompt, edit.subject or "", edit.target, "\n".join(edit.paraphrases), edit.relation or ""]
        for edit in wanted
        if edit is not None
    ]


def build(workshop: Workshop, own: Any, asked: Any, tried: Widgets) -> None:
    """The tab. own, asked: the gr.States of the visitor; tried: where a patch made here can be chosen."""
    bases = [(base.title, base.id) for base in workshop.bases.values() if can_edit(base.id)]
    made = gr.State(None)  # the last Held made here
    stop = gr.State(Stop())
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            prompt = gr.Textbox(
                label=say("prompt"), info=say("prompt_info"), max_length=MAX_QUESTION,
                placeholder="The capital of France is", elem_id="make-prompt",
            )  # fmt: skip
            with gr.Row():
                subject = gr.Textbox(
                    label=say("subject"), info=say("subject_info"), max_length=MAX_ANSWER, placeholder="France",
                    elem_id="make-subject", min_width=140,
                )  # fmt: skip
                target = gr.Textbox(
                    label=say("new_answer"), info=say("new_answer_info"), max_length=MAX_ANSWER, placeholder="Lyon",
                    elem_id="make-target", min_width=140,
                )  # fmt: skip
            with gr.Accordion(say("more"), open=False):
                paraphrases = gr.Textbox(
                    label=say("paraphrases"), info=say("paraphrases_info"),
                    lines=3, max_length=MAX_PARAPHRASES * MAX_QUESTION,
                )  # fmt: skip
                relation = gr.Textbox(
                    label=say("relation"), info=say("relation_info"),
                    max_length=MAX_ANSWER, placeholder="capital",
                )  # fmt: skip
                methods = kedit_hub.methods()
                method = gr.Dropdown(
                    methods, value="memit" if "memit" in methods else methods[0], label=say("method"),
                    info=say("method_info"),
                )  # fmt: skip
                base = gr.Radio(
                    bases, value=bases[0][1] if bases else None, label=say("base"),
                    info=say("made_base_info"),
                )  # fmt: skip
            with gr.Row():
                button = gr.Button(say("make"), variant="primary", elem_id="make", scale=4)
                halt = gr.Button(say("stop"), elem_id="make-stop", scale=1, min_width=110)
            with gr.Accordion(say("upload"), open=False, elem_id="upload"):
                gr.HTML(f"<p class='subtle'>{say('file_told')}</p>")
                upload = gr.File(
                    file_types=[".json", ".jsonl", ".csv"], show_label=False, elem_id="edits-file", height=120
                )
                from_file = gr.Button(say("make_file"), elem_id="make-file")
            wishes = example_wishes(workshop)
            if wishes:
                gr.Examples(
                    wishes, [prompt, subject, target, paraphrases, relation], label=say("or_example"),
                    example_labels=[f"{wish[0]} → {wish[2]}" for wish in wishes], api_visibility="private",
                )  # fmt: skip
        with gr.Column(scale=6, min_width=340):
            result = gr.HTML(elem_id="made")
            with gr.Row(visible=False) as actions:
                stack = gr.Button(say("add_to_stack"), elem_id="stack")
                download = gr.DownloadButton(say("download_zip"), elem_id="download")
                else_ = gr.Button(say("what_else"), elem_id="what-else")
            stacked = gr.HTML(elem_id="stacked")
            with gr.Accordion(say("push_to_hub"), open=False, visible=False) as pushing:
                on_space = bool(os.getenv("OAUTH_CLIENT_ID"))
                if on_space:
                    gr.LoginButton()
                allowed = on_space or push_token(None) is not None
                files = gr.HTML()
                if allowed:
                    repo = gr.Textbox(label=say("hub_repo"), placeholder="user/name", max_length=200)
                    private = gr.Checkbox(label=say("private"))
                    as_pr = gr.Checkbox(label=say("as_pr"), elem_id="as-pr")
                    push = gr.Button(say("push"), elem_id="push")
                    pushed = gr.HTML()
                else:
                    gr.HTML(html.framed("info", say("no_login")))

    def shown(run: Any, language: Language) -> tuple[Any, ...]:
        try:
            done: Made = run()
        except KeditError as error:
            hidden = gr.Row(visible=False), gr.skip(), gr.Accordion(visible=False)
            return None, html.refusal(error, language), *hidden, "", ""
        patch = done.held.patch
        path = save_bytes_to_cache(zipped(patch), f"{file_name(patch)}.zip", download.GRADIO_CACHE)
        return (
            done.held, show(done, language), gr.Row(visible=True), gr.DownloadButton(value=path), gr.Accordion(visible=True),
            contents(patch, language), "",
        )  # fmt: skip

    def on_make(
        prompt: str, subject: str, target: str, paraphrases: str, relation: str, method: str, base: str,
        stop: Stop,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (this default is how Gradio hands in its progress bar)
        request: gr.Request | None = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        lines = tuple((paraphrases or "").splitlines())
        wish = Wish(prompt or "", subject or "", target or "", base or "", method, relation or "", lines)
        language = language_of(request)
        return shown(
            lambda: make(workshop, wish, lambda share, what: progress(share, desc=what), language, stop), language
        )

    def on_file(
        path: str | None, method: str, base: str, stop: Stop,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        request: gr.Request | None = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        language = language_of(request)

        def run() -> Made:
            if not path:
                raise KeditError(both("no_file"))
            return make_file(
                workshop, path, base or "", method, lambda share, what: progress(share, desc=what), language, stop
            )

        return shown(run, language)

    def on_else(
        held: Held | None, stop: Stop,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        request: gr.Request | None = None,
    ) -> str:  # fmt: skip
        """What the patch does beyond its edits: the same look that a stranger's patch gets."""
        language = language_of(request)
        if held is None:
            return html.note("error", told(language, "make_first"))
        progress(0.1, desc=told(language, "asking_undeclared"))
        try:
            seed = measure.any_seed()
            return measure.show_look(held, measure.look(workshop, held, stop, seed), seed, language)
        except KeditError as error:
            return html.refusal(error, language)

    def on_stack(
        held: Held | None, own: tuple[Held, ...], keys: list[str], base: str, asked: dict[str, Asked],
        request: gr.Request | None = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        language = language_of(request)
        if held is None:
            return own, gr.CheckboxGroup(), html.note("error", told(language, "make_first"))
        try:
            own = kept(own, held)
        except KeditError as error:
            return own, gr.CheckboxGroup(), html.refusal(error, language)
        value = [*keys, held.patch.id] if held.patch.manifest.base.id == base and held.patch.id not in keys else keys
        updated = gr.CheckboxGroup(choices(workshop.offered(own, base), asked, language), value=value)
        return own, updated, html.note("good", told(language, "in_stack"))

    def on_push(
        held: Held | None, repo: str, private: bool, as_pr: bool, login: gr.OAuthToken | None,
        request: gr.Request | None = None,
    ) -> str:  # fmt: skip
        token, language = push_token(login), language_of(request)
        try:
            if held is None:
                raise KeditError(both("make_first"))
            if token is None:
                raise KeditError(both("not_logged_in"))
            done = kedit_hub.push(
                held.patch,
                repo_name((repo or "").strip()),
                private=private,
                create_pr=as_pr,
                token=token,
                endpoint=hub_endpoint(),
            )
        except KeditError as error:
            return html.refusal(error, language)
        if done.pr_url is not None:
            return html.note("good", told(language, "proposed", url=done.pr_url))
        pushed = told(language, "pushed", url=done.url, commit=done.commit)
        return html.note("good", pushed, f"kedit_hub.apply('{done.repo_id}')")

    def begin(stop: Stop) -> None:
        stop.wished = False

    def on_stop(stop: Stop) -> None:
        stop.wished = True

    model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    outputs = [made, result, actions, download, pushing, files, stacked]
    wish = [prompt, subject, target, paraphrases, relation, method, base]
    at_once: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    for event, run, inputs, shows, at in (
        (button.click, on_make, [*wish, stop], outputs, result),
        (from_file.click, on_file, [upload, method, base, stop], outputs, result),
        (else_.click, on_else, [made, stop], [stacked], stacked),
    ):
        event(begin, stop, None, **at_once).then(run, inputs, shows, show_progress_on=[at], **model)
    halt.click(on_stop, stop, None, **at_once)
    stack.click(
        on_stack, [made, own, tried.patches, tried.base, asked], [own, tried.patches, stacked],
        api_visibility="private",
    )  # fmt: skip
    if allowed:
        push.click(
            on_push,
            [made, repo, private, as_pr],
            pushed,
            concurrency_id="hub",
            concurrency_limit=2,
            api_visibility="private",
        )

"""Make: a sentence in, a scored patch out; then stack it, take it home, or push it."""

import io
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

import kedit_hub
from kedit_hub import Edit, KeditError, Patch, Probe
from kedit_hub.api import EMBEDDED
from kedit_hub.errors import TrustError
from kedit_hub.evaluate.scores import Scores
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.hub.ref import repo_name
from space import asking, html
from space.asking import Answer, Question
from space.believe import Asked
from space.state import MAX_QUESTION, Held, Workshop, can_edit, hub_endpoint, kept, policy
from space.try_tab import Widgets, choices

MAX_ANSWER = 100  # characters of subject, answer and relation
MAX_PARAPHRASES = 8
NEIGHBOURS = 8
EXAMPLE_RELATIONS = ("capital", "landmark_city", "born_in", "language")

NO_LOGIN = (
    "Pushing needs a login. Download the zip, unpack it, and push it from your machine: "
    "kedit_hub.push(kedit_hub.Patch.load(folder), 'user/name')."
)
Progress = Callable[[float, str], None]


# --- the request, as a value --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """One edit as a visitor asks for it."""

    prompt: str
    subject: str
    target: str
    base: str
    method: str = "memit"
    relation: str = ""
    paraphrases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """A patch and what it does, measured on its base."""

    held: Held
    answer: Answer
    scores: Scores
    seconds: float

    @property
    def value_success(self) -> float | None:
        """Share of edits whose optimised value makes the bare prompt say the target; None: not said by the method."""
        return (self.held.patch.evals or {}).get("making", {}).get("value_success")


def make(workshop: Workshop, wish: Wish, progress: Progress = lambda share, what: None) -> Made:
    """Make the patch, ask before and after, score it on its own probes. KeditError: malformed, failed, ..."""
    edit = as_edit(workshop, wish)
    if not can_edit(wish.base):
        raise KeditError(
            f"No patches can be made on {wish.base[:80]!r} here; make one on your machine: kedit_hub.edit."
        )
    trust = policy()
    if trust is not None:  # a new patch has neither signer nor author, and every rule wants one of them
        raise TrustError(
            f"The trust policy of this page, {trust[0]}, takes no patch that nobody has signed or published, so none can be "
            "tried here. Make one on your machine: kedit_hub.edit."
        )
    started = time.perf_counter()
    progress(0.05, "Loading the base")
    loaded = workshop.load(wish.base)
    with loaded.lock:
        progress(0.15, f"{wish.method}: looking for the value")
        patch = kedit_hub.edit(loaded.model, [edit], wish.method, tokenizer=loaded.tokenizer, progress=False)
        progress(0.6, "Asking its probes")
        where = f"./{file_name(patch)}"
        patched = workshop.patched(loaded, [Held(patch, where, "made")])
        scores = evaluate(patched, list(patch.edits), base=loaded.model)
        patch = patch.replace_evals({**(patch.evals or {}), **scores.to_dict()})
        held = Held(patch, where, "made")
        progress(0.95, "Before and after")
        answer = asking.ask(workshop, Question(edit.prompt, (held,), wish.base))
    return Made(held, answer, scores, time.perf_counter() - started)


def as_edit(workshop: Workshop, wish: Wish) -> Edit:
    """The edit with held-out probes where the demo world has some. EditError, KeditError."""
    prompt, subject, target = wish.prompt.strip(), wish.subject.strip(), wish.target.strip()
    paraphrases = tuple(dict.fromkeys(line.strip() for line in wish.paraphrases if line.strip()))
    for name, value, bound in (
        ("The prompt", prompt, MAX_QUESTION),
        ("The subject", subject, MAX_ANSWER),
        ("The new answer", target, MAX_ANSWER),
        ("The relation", wish.relation, MAX_ANSWER),
        *((f"Paraphrase {number + 1}", line, MAX_QUESTION) for number, line in enumerate(paraphrases)),
    ):
        if len(value) > bound:
            raise KeditError(f"{name} has {len(value):,} characters; at most {bound} are taken here.")
    if len(paraphrases) > MAX_PARAPHRASES:
        raise KeditError(f"There are {len(paraphrases)} paraphrases; at most {MAX_PARAPHRASES} are taken here.")
    for name, value in (("prompt", prompt), ("subject", subject), ("new answer", target)):
        if not value:
            raise KeditError(f"The {name} is empty. Fill it in, or click an example.")
    edit = Edit(prompt, target, subject, relation=wish.relation.strip() or None, paraphrases=paraphrases)
    return with_probes(edit, workshop.world_edits) if wish.base in EMBEDDED else edit


def with_probes(edit: Edit, known: Sequence[Edit]) -> Edit:
    """The same edit with questions that score it: a known edit's own, else the same question about other subjects."""
    same = next((other for other in known if other.prompt == edit.prompt and other.subject == edit.subject), None)
    if same is not None:
        return replace(
            edit,
            ground_truth=same.ground_truth,
            rephrases=tuple(text for text in same.rephrases if text not in edit.paraphrases),
            locality=same.locality,
            portability=same.portability if same.target == edit.target else (),
            relation=edit.relation or same.relation,
        )
    neighbours = [
        Probe(other.prompt, other.ground_truth, "neighbour", other.subject, other.relation)
        for other in known
        if other.subject != edit.subject and _form(other) == _form(edit)
    ]
    return replace(edit, locality=tuple(neighbours[:NEIGHBOURS]))


def _form(edit: Edit) -> str:
    """The question with its subject left out."""
    return edit.prompt.replace(edit.subject or "", "{}", 1)


def file_name(patch: Patch) -> str:
    return f"kedit-{patch.id[:12]}"


def zipped(patch: Patch) -> bytes:
    """The folder of the patch as a zip; the same patch gives the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in patch.files().items():
            archive.writestr(zipfile.ZipInfo(f"{file_name(patch)}/{name}", (1980, 1, 1, 0, 0, 0)), data)
    return buffer.getvalue()


def push_token(login: gr.OAuthToken | None) -> str | None:
    """On a Space the visitor's login alone; elsewhere HF_TOKEN, when the app was started against a development hub."""
    if login is not None:
        return login.token
    if os.environ.get("SPACE_ID") or not (os.environ.get("KEDIT_HUB_ENDPOINT") or os.environ.get("HF_ENDPOINT")):
        return None
    return os.environ.get("HF_TOKEN") or None


# --- how it is shown ----------------------------------------------------------------------------------------------


def show(made: Made) -> str:
    patch, reliability = made.held.patch, made.scores.protocols["generate"]["reliability"]
    edit = patch.edits[0]
    said = html.text(made.answer.patched.text or "(nothing)", 2000)
    verdict = (
        html.note("good", f"The model now answers “{edit.target}”. Made in {made.seconds:.1f} s.")
        if reliability == 1
        else html.note("warning", f"The edit did not fully take: it should say “{edit.target}”. See the scores below.")
    )
    found = made.value_success
    value = "" if found is None else f"<p>Search for the value: {'succeeded' if found == 1 else 'failed'}.</p>"
    return (
        f'{verdict}<div class="card"><h2>{html.text(edit.prompt)} …</h2>'
        f"<p>Before: <strong>{html.text(made.answer.base.text or '(nothing)', 2000)}</strong></p>"
        f"<p>After: <strong>{said}</strong></p>{value}{scores_table(made.scores.to_dict())}{probes(made.scores)}"
        f'<p class="subtle">Patch {patch.id[:12]}, {len(patch.deltas)} module changed beside the base.</p></div>'
    )


def scores_table(evals: dict[str, Any]) -> str:
    """Averages of a score sheet, protocols side by side."""
    columns = sheets(evals)
    metrics = list(dict.fromkeys(metric for column in columns.values() for metric in column))
    if not metrics:
        return "<p>Not measured.</p>"
    rows = [(metric, *(html.number(columns[name].get(metric)) for name in columns)) for metric in metrics]
    return html.table(("Score", *columns), rows, classes="digits")


def sheets(evals: dict[str, Any] | None) -> dict[str, dict[str, float]]:
    """{protocol: numbers} of a score sheet, whatever a stranger wrote into it."""
    protocols = (evals or {}).get("protocols")
    found = protocols.items() if isinstance(protocols, dict) else ()
    return {name: numbers(sheet) for name, sheet in found if isinstance(sheet, dict)}


def numbers(sheet: dict[str, Any]) -> dict[str, float]:
    """{"reliability": x, "locality neighbour": y, ...} of one protocol of a score sheet."""
    found: dict[str, float] = {}
    for role in ("reliability", "generalization", "locality", "portability"):
        value = sheet.get(role)
        for kind, score in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(score, int | float) and not isinstance(score, bool):
                found[f"{role} {kind}".strip()] = float(score)
    return found


def probes(scores: Scores) -> str:
    """Every question of the edit with both answers, folded."""
    rows = [
        (q.role + (f" {q.kind}" if q.kind else ""), q.prompt, q.answer_before or "", q.answer_after or "")
        for edit in scores.per_edit
        for q in edit.questions
    ]
    kept = [q for edit in scores.per_edit for q in edit.questions if q.role == "locality"]
    same = sum(q.answer_before == q.answer_after for q in kept)
    neighbours = f", {same} of {len(kept)} neighbouring answers unchanged" if kept else ", no neighbours known"
    return (
        f"<details><summary>{len(rows)} questions asked{neighbours}</summary>"
        f"{html.table(('Role', 'Question', 'Before', 'After'), rows)}</details>"
    )


def contents(patch: Patch) -> str:
    """What a push would publish."""
    files = [(name, f"{len(data):,} bytes") for name, data in patch.files().items()]
    return html.table(("File", "Size"), files)


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
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            prompt = gr.Textbox(
                label="Prompt", info="The beginning of a sentence that holds the subject.", max_length=MAX_QUESTION,
                placeholder="The capital of France is", elem_id="make-prompt",
            )  # fmt: skip
            with gr.Row():
                subject = gr.Textbox(
                    label="Subject", info="Exactly as in the prompt.", max_length=MAX_ANSWER, placeholder="France",
                    elem_id="make-subject", min_width=140,
                )  # fmt: skip
                target = gr.Textbox(
                    label="New answer", info="What it shall say.", max_length=MAX_ANSWER, placeholder="Lyon",
                    elem_id="make-target", min_width=140,
                )  # fmt: skip
            with gr.Accordion("More: paraphrases, relation, method, base", open=False):
                paraphrases = gr.Textbox(
                    label="Paraphrases", info="Optional, one a line: they help the edit to carry over to other words.",
                    lines=3, max_length=MAX_PARAPHRASES * MAX_QUESTION,
                )  # fmt: skip
                relation = gr.Textbox(
                    label="Relation", info="Optional. Names the fact, so that contradicting patches are found.",
                    max_length=MAX_ANSWER, placeholder="capital",
                )  # fmt: skip
                methods = kedit_hub.methods()
                method = gr.Dropdown(
                    methods, value="memit" if "memit" in methods else methods[0], label="Method",
                    info="memit and rome stack in any company; the README says what each holds.",
                )  # fmt: skip
                base = gr.Radio(
                    bases, value=bases[0][1] if bases else None, label="Base model",
                    info="Patches are made at full precision, and work on int8 and nf4 too.",
                )  # fmt: skip
            button = gr.Button("Make the patch", variant="primary", elem_id="make")
            wishes = example_wishes(workshop)
            if wishes:
                gr.Examples(
                    wishes, [prompt, subject, target, paraphrases, relation], label="Or click an example",
                    example_labels=[f"{wish[0]} → {wish[2]}" for wish in wishes], api_visibility="private",
                )  # fmt: skip
        with gr.Column(scale=6, min_width=340):
            result = gr.HTML(elem_id="made")
            with gr.Row(visible=False) as actions:
                stack = gr.Button("Add to my stack", elem_id="stack")
                download = gr.DownloadButton("Download as zip", elem_id="download")
            stacked = gr.HTML()
            with gr.Accordion("Push to the Hub", open=False, visible=False) as pushing:
                on_space = bool(os.getenv("OAUTH_CLIENT_ID"))
                if on_space:
                    gr.LoginButton()
                allowed = on_space or push_token(None) is not None
                files = gr.HTML()
                if allowed:
                    repo = gr.Textbox(label="Hub repo", placeholder="user/name", max_length=200)
                    private = gr.Checkbox(label="Make a new repo private")
                    push = gr.Button("Push these files")
                    pushed = gr.HTML()
                else:
                    gr.HTML(html.note("info", NO_LOGIN))

    def on_make(
        prompt: str, subject: str, target: str, paraphrases: str, relation: str, method: str, base: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (this default is how Gradio hands in its progress bar)
    ) -> tuple[Any, ...]:  # fmt: skip
        try:
            lines = tuple((paraphrases or "").splitlines())
            wish = Wish(prompt or "", subject or "", target or "", base or "", method, relation or "", lines)
            done = make(workshop, wish, lambda share, what: progress(share, desc=what))
        except KeditError as error:
            hidden = gr.Row(visible=False), gr.skip(), gr.Accordion(visible=False)
            return None, html.refusal(error), *hidden, "", ""
        patch = done.held.patch
        path = save_bytes_to_cache(zipped(patch), f"{file_name(patch)}.zip", download.GRADIO_CACHE)
        return (
            done.held, show(done), gr.Row(visible=True), gr.DownloadButton(value=path), gr.Accordion(visible=True),
            contents(patch), "",
        )  # fmt: skip

    def on_stack(
        held: Held | None, own: tuple[Held, ...], keys: list[str], base: str, asked: dict[str, Asked]
    ) -> tuple[Any, ...]:
        if held is None:
            return own, gr.CheckboxGroup(), html.note("error", "Make a patch first.")
        try:
            own = kept(own, held)
        except KeditError as error:
            return own, gr.CheckboxGroup(), html.refusal(error)
        value = [*keys, held.patch.id] if held.patch.manifest.base.id == base and held.patch.id not in keys else keys
        updated = gr.CheckboxGroup(choices(workshop.offered(own, base), asked), value=value)
        return own, updated, html.note("good", "It is in your stack, on the first tab, until you leave the page.")

    def on_push(held: Held | None, repo: str, private: bool, login: gr.OAuthToken | None) -> str:
        token = push_token(login)
        try:
            if held is None:
                raise KeditError("Make a patch first.")
            if token is None:
                raise KeditError("You are not logged in. Log in with the button above.")
            done = kedit_hub.push(
                held.patch, repo_name((repo or "").strip()), private=private, token=token, endpoint=hub_endpoint()
            )
        except KeditError as error:
            return html.refusal(error)
        return html.note("good", f"Pushed to {done.url} at commit {done.commit}.", f"kedit_hub.apply('{done.repo_id}')")

    button.click(
        on_make, [prompt, subject, target, paraphrases, relation, method, base],
        [made, result, actions, download, pushing, files, stacked],
        concurrency_id="model", concurrency_limit=1, api_visibility="private", show_progress_on=[result],
    )  # fmt: skip
    stack.click(
        on_stack, [made, own, tried.patches, tried.base, asked], [own, tried.patches, stacked],
        api_visibility="private",
    )  # fmt: skip
    if allowed:
        push.click(
            on_push, [made, repo, private], pushed, concurrency_id="hub", concurrency_limit=2, api_visibility="private"
        )

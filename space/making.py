"""Making a patch: a wish or a file in, a scored patch out. Law: what a visitor brings is bounded before anything runs, and probes that
score an edit never helped to make it.
"""

import io
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gradio as gr

import kedit_hub
from kedit_hub import Edit, KeditError, Patch, Probe
from kedit_hub.api import EMBEDDED
from kedit_hub.errors import LimitError, TrustError
from kedit_hub.evaluate.scores import Scores
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.records.read import locate, read_bytes, sort_out
from space import asking
from space.asking import Answer, Question
from space.bounds import before_each_pass, ending
from space.sentences import Language, both, told
from space.state import MAX_QUESTION, Held, Stop, Workshop, can_edit, policy

MAX_ANSWER = 100  # characters of subject, answer and relation
MAX_PARAPHRASES = 8
NEIGHBOURS = 8
MAX_FILE_BYTES = 1 << 18
MAX_FILE_EDITS = 25  # of one file; a value takes about a second
MAX_PROBES = 60  # questions of one edit
MAX_SECONDS = 180.0  # of one patch, made and scored
PREVIEW_LINES = 200  # of one file

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


def make(
    workshop: Workshop, wish: Wish, progress: Progress = lambda share, what: None, language: Language = "en",
    stop: Stop | None = None,
) -> Made:  # fmt: skip
    """Make the patch, ask before and after, score it on its own probes. language: of what the progress says.

    KeditError: malformed, failed, stopped, took too long, ...
    """
    edit = as_edit(workshop, wish)
    _check_open(wish.base)
    return _made(workshop, [edit], wish.base, wish.method, progress, language, stop or Stop())


def make_file(
    workshop: Workshop, path: str, base: str, method: str, progress: Progress = lambda share, what: None,
    language: Language = "en", stop: Stop | None = None,
) -> Made:  # fmt: skip
    """One patch of all edits of a file. EditError, LimitError, KeditError: as `make`."""
    _check_open(base)
    edits = read_file(path)
    if base in EMBEDDED:
        known = workshop.world_edits
        edits = [edit if edit.rephrases or edit.locality else with_probes(edit, known) for edit in edits]
    return _made(workshop, edits, base, method, progress, language, stop or Stop())


def read_file(path: str) -> list[Edit]:
    """Edits of a JSON, JSONL or CSV file that a visitor brought, each within the bounds of the form. EditError, LimitError."""
    file = Path(path)
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise LimitError(both("file_large", size=size, most=MAX_FILE_BYTES))
    located = locate(read_bytes(file), "the file", file.suffix.lower(), MAX_FILE_EDITS + 1)
    edits = [record.edit for record in sort_out("the file", located).or_error().records]
    if not edits or len(edits) > MAX_FILE_EDITS:
        raise LimitError(both("file_many" if edits else "file_empty", most=MAX_FILE_EDITS))
    for number, edit in enumerate(edits, start=1):
        texts = [
            edit.prompt,
            *edit.paraphrases,
            *edit.rephrases,
            *(probe.prompt for probe in (*edit.locality, *edit.portability)),
        ]
        if max(map(len, texts)) > MAX_QUESTION or max(len(edit.target), len(edit.subject or "")) > MAX_ANSWER:
            raise LimitError(both("edit_long", number=number, prompt=MAX_QUESTION, target=MAX_ANSWER))
        if len(texts) > MAX_PROBES:
            raise LimitError(both("edit_many_probes", number=number, count=len(texts), most=MAX_PROBES))
    return edits


def _check_open(base: str) -> None:
    """KeditError where no patch can be made on this base, or tried under the policy."""
    if not can_edit(base):
        raise KeditError(both("base_closed", base=base[:80]))
    trust = policy()
    if trust is not None:  # a new patch has neither signer nor author, and every rule wants one of them
        raise TrustError(both("policy_closed", name=trust[0]))


def _made(
    workshop: Workshop, edits: list[Edit], base: str, method: str, progress: Progress, language: Language, stop: Stop
) -> Made:
    started = time.perf_counter()
    progress(0.05, told(language, "loading_base"))
    loaded = workshop.load(base)
    with loaded.lock:
        slow = both("making_slow", seconds=MAX_SECONDS)
        look = ending(stop, MAX_SECONDS, both("making_stopped"), slow)  # from now: waiting for others is nobody's fault
        one = told(language, "looking_value", method=method)
        progress(0.15, one if len(edits) == 1 else told(language, "looking_values", method=method, count=len(edits)))
        with before_each_pass(loaded.model, look):
            patch = kedit_hub.edit(loaded.model, edits, method, tokenizer=loaded.tokenizer, progress=False)
        progress(0.6, told(language, "asking_probes"))
        where = f"./{file_name(patch)}"
        patched = workshop.patched(loaded, [Held(patch, where, "made")])
        with before_each_pass(loaded.model, look), before_each_pass(patched.model, look):
            scores = evaluate(patched, list(patch.edits), base=loaded.model)
        patch = patch.replace_evals({**(patch.evals or {}), **scores.to_dict()})
        held = Held(patch, where, "made")
        progress(0.95, told(language, "before_after"))
        answer = asking.ask(workshop, Question(edits[0].prompt, (held,), base), stop)
    return Made(held, answer, scores, time.perf_counter() - started)


def as_edit(workshop: Workshop, wish: Wish) -> Edit:
    """The edit with held-out probes where the demo world has some. EditError, KeditError."""
    prompt, subject, target = wish.prompt.strip(), wish.subject.strip(), wish.target.strip()
    paraphrases = tuple(dict.fromkeys(line.strip() for line in wish.paraphrases if line.strip()))
    for name, value, bound in (
        (both("the_prompt"), prompt, MAX_QUESTION),
        (both("the_subject"), subject, MAX_ANSWER),
        (both("the_new_answer"), target, MAX_ANSWER),
        (both("the_relation"), wish.relation, MAX_ANSWER),
        *((both("the_paraphrase", number=number + 1), line, MAX_QUESTION) for number, line in enumerate(paraphrases)),
    ):
        if len(value) > bound:
            raise KeditError(both("field_long", field=name, count=len(value), most=bound))
    if len(paraphrases) > MAX_PARAPHRASES:
        raise KeditError(both("many_paraphrases", count=len(paraphrases), most=MAX_PARAPHRASES))
    for name, value in (
        (both("the_prompt"), prompt),
        (both("the_subject"), subject),
        (both("the_new_answer"), target),
    ):
        if not value:
            raise KeditError(both("field_empty", field=name))
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

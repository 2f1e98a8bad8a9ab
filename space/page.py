"""The whole page: five tabs over one workshop, and the same three things for programs (ask, make, patches)."""

import base64
from typing import Any, Literal, TypedDict

import gradio as gr

from kedit_hub import KeditError
from space import about_tab, asking, believe, board_tab, conflicts_panel, make_tab, patch_tab, take_home, try_tab
from space.asking import Question
from space.make_tab import Wish
from space.state import Workshop, clashes

TITLE = "KEdit Hub"
DOWNLOAD_SECONDS = 3600  # how long a zip is kept for its download


class EditFact(TypedDict):
    """What an edit asks for: after `prompt` the model shall say `target`."""

    prompt: str
    target: str


class PatchFacts(believe.Facts):
    """A patch as programs see it. name: what `ask` takes."""

    name: str
    id: str
    base: str
    method: str
    edits: list[EditFact]


def build(workshop: Workshop) -> gr.Blocks:
    """The app, not launched. Launch it with the theme and style of space.theme."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(DOWNLOAD_SECONDS, DOWNLOAD_SECONDS)) as demo:
        gr.HTML(
            f"<header><h1>{TITLE}: git for facts in language models</h1>"
            "<p>Choose a patch, ask, and see the base model's answer beside the patched one. "
            "The base is never changed.</p></header>",
            elem_id="masthead",
        )
        own = gr.State(())  # the visitor's patches: a tuple of Held
        asked = gr.State({})  # what asking their probes again gave this visitor: {patch id: Asked}
        with gr.Tab("Try"):
            tried = try_tab.build(workshop, own, asked, demo)
            conflicts_panel.build(workshop, own, tried)
        with gr.Tab("Make"):
            make_tab.build(workshop, own, asked, tried)
        with gr.Tab("Patch") as tab:
            patch_tab.build(workshop, own, asked, tab)
        with gr.Tab("Leaderboard") as tab:
            board_tab.build(workshop, tab)
        with gr.Tab("About") as tab:
            about_tab.build(tab)
        _programs(workshop)
    return demo.queue(max_size=32, default_concurrency_limit=1)


def _programs(workshop: Workshop) -> None:
    """Endpoints for gradio_client; their types and words are the documentation that clients see."""
    first = next(iter(workshop.bases))

    def patches() -> list[PatchFacts]:
        """The sample patches: name (what `ask` takes), id, base, method, the edits as (prompt, target), and what there is
        to believe each by: format_version, signers (public keys whose signatures were verified, none when unsigned),
        signed_for (repo and version in the signature), provenance (as its author says), claims (whether its scores follow
        from its recorded answers), rescored (what its author notes of asking again, or null).
        """
        return [
            {
                "name": held.name,
                "id": held.patch.id,
                "base": held.patch.manifest.base.id,
                "method": held.patch.manifest.method,
                "edits": [{"prompt": edit.prompt, "target": edit.target} for edit in held.patch.edits],
                **believe.facts(held),
            }
            for held in workshop.samples
        ]

    def ask(
        question: str,
        patches: list[str],
        base: str = first,
        precision: Literal["float32", "int8", "nf4"] = "float32",
        conflicts: Literal["error", "latest"] = "error",
        max_new_tokens: int = 32,
    ) -> dict[str, Any]:
        """Continue `question` with the base and with the patches: names of samples, or user/repo[@revision] on the Hub.

        Returns both answers, the most probable next tokens of both, the KL between them in nats, and what was applied.
        """
        try:
            if not isinstance(question, str) or not isinstance(patches, list) or len(patches) > 50:
                raise KeditError("ask takes a text and a list of at most 50 patches.")
            held = tuple(workshop.find(str(name)) for name in patches)
            wanted = Question(question, held, base, precision, conflicts, int(max_new_tokens))
            answer = asking.ask(workshop, wanted)
        except KeditError as error:
            raise gr.Error(str(error)) from None
        return {
            "base": answer.base.text,
            "patched": answer.patched.text,
            "kl": answer.kl,
            "next_token": {"base": answer.base.top, "patched": answer.patched.top},
            "mode": answer.mode,
            "why": answer.why,
            "modules": answer.modules,
            "conflicts": clashes(held),
            "code": take_home.python(wanted, workshop.endpoint),
        }

    def make(
        prompt: str,
        subject: str,
        target: str,
        paraphrases: list[str],
        relation: str = "",
        method: str = "memit",
        base: str = first,
    ) -> dict[str, Any]:
        """Make a patch of one edit: after `prompt`, which holds `subject`, the base shall say `target`.

        Returns its id, the answers before and after, its scores, and the patch folder as a base64 zip.
        """
        try:
            done = make_tab.make(
                workshop, Wish(prompt, subject, target, base, method, relation, tuple(map(str, paraphrases)))
            )
        except KeditError as error:
            raise gr.Error(str(error)) from None
        return {
            "id": done.held.patch.id,
            "before": done.answer.base.text,
            "after": done.answer.patched.text,
            "kl": done.answer.kl,
            "value_success": done.value_success,
            "scores": done.scores.protocols,
            "seconds": done.seconds,
            "zip": base64.b64encode(make_tab.zipped(done.held.patch)).decode(),
        }

    gr.api(patches, api_name="patches")
    gr.api(ask, api_name="ask", concurrency_id="model", concurrency_limit=1)
    gr.api(make, api_name="make", concurrency_id="model", concurrency_limit=1)

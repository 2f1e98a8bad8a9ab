"""The same things for programs and agents: typed endpoints, which are tools of the MCP server too. Law: nothing that the page does not do,
under the same limits; the types and words here are the documentation that clients see; no session is read, so nothing private is reached.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal, TypedDict

import gradio as gr

from kedit_hub import KeditError
from kedit_hub.evaluate.scores import Scores
from space import asking, believe, find_tab, making, measure, score_view, take_home
from space.asking import Question
from space.gpu import on_gpu
from space.making import Wish
from space.state import Held, Stop, Workshop, clashes, kept

NAMES = ("patches", "inspect", "ask", "make", "score", "search")


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


@contextmanager
def _told() -> Iterator[None]:
    """What is refused is told in its own words, anything else is a bug."""
    try:
        yield
    except KeditError as error:
        raise gr.Error(str(error)) from None


def _telling(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def told(*args: Any, **kwargs: Any) -> Any:
        with _told():
            return call(*args, **kwargs)

    return told


def _collected(workshop: Workshop, names: Sequence[str]) -> tuple[Held, ...]:
    """The patches with these names, in their order. LimitError as soon as those of the Hub are more than a visitor may hold."""
    own: tuple[Held, ...] = ()
    found: list[Held] = []
    for name in names:
        held = workshop.find(str(name))
        own = kept(own, held) if held.origin == "hub" else own
        found.append(held)
    return tuple(found)


def build(workshop: Workshop) -> None:
    """The endpoints, inside the Blocks of the page."""
    first = next(iter(workshop.bases))

    def facts(name: str) -> dict[str, Any]:
        held = workshop.find(str(name))
        return {
            "name": held.name,
            "id": held.patch.id,
            "base": held.patch.manifest.base.id,
            "method": held.patch.manifest.method,
            "edits": [{"prompt": edit.prompt, "target": edit.target} for edit in held.patch.edits],
            **believe.facts(held),
        }

    def patches() -> list[PatchFacts]:
        """List the sample patches of this page: what each edits, and what there is to believe it by.

        Returns:
            For each: name (what `ask` takes), id, base, method, edits as prompt and target, format_version, signers (public keys whose
            signatures were verified), signed_for, provenance (as its author says), claims (whether its scores follow from its recorded
            answers), rescored (what its author notes of asking again, or null).
        """
        return [facts(held.patch.id) for held in workshop.samples]  # type: ignore[misc]

    @_telling
    def inspect(patch: str) -> dict[str, Any]:
        """Look at one patch without running anything: edits with their probes, tensors, settings, scores, signers.

        Args:
            patch: The name of a sample, or user/repo or user/repo@revision of a public repo of the Hub.
        """
        held = workshop.find(str(patch))
        manifest = held.patch.manifest
        return {
            **facts(patch),
            "where": held.where,
            "records": [edit.to_record() for edit in held.patch.edits],
            "modules": {
                path: {
                    "kind": entry.kind,
                    "shape": list(entry.shape),
                    "tensors": {
                        name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "sha256": tensor.sha256}
                        for name, tensor in entry.tensors.items()
                    },
                }
                for path, entry in manifest.modules.items()
            },
            "settings": dict(manifest.settings),
            "requires": list(manifest.requires),
            "scores": score_view.sheets(held.patch.evals),
        }

    @_telling
    def ask(
        question: str,
        patches: list[str],
        base: str = first,
        precision: Literal["float32", "int8", "nf4"] = "float32",
        conflicts: Literal["error", "latest"] = "error",
        max_new_tokens: int = 32,
        mode: Literal["auto", "gated", "joint", "sum"] = "auto",
        strengths: list[float] | None = None,
        placebo_seed: int | None = None,
    ) -> dict[str, Any]:
        """Apply patches to a base and ask: the base's answer and the patched one side by side, and what moved. Nothing is kept.

        Args:
            question: The beginning of a sentence, which the model continues; at most 500 characters.
            patches: Names of samples, or user/repo[@revision] of public repos of the Hub; later ones win under "latest".
            base: The base model, as `patches` names it.
            precision: What the base is loaded in.
            conflicts: What happens where two patches answer one question: refuse, or the latest answers.
            max_new_tokens: The longest answer, 1 to 64.
            mode: How patches are installed; auto asks their probes.
            strengths: The share of its change that each patch makes, above 0 and up to 1, in the order of the patches.
            placebo_seed: Also ask a placebo, noise of the same size, drawn by this seed.

        Returns:
            Both answers (and the placebo's), the most probable next tokens, the KL between them in nats, and what was applied.
        """
        if not isinstance(question, str) or not isinstance(patches, list) or len(patches) > 50:
            raise KeditError("ask takes a text and a list of at most 50 patches.")
        held = _collected(workshop, patches)
        if strengths and len(strengths) != len(held):
            raise KeditError(f"There are {len(strengths)} strengths for {len(held)} patches: give one for each.")
        if strengths and len({one.patch.id for one in held}) < len(held):
            raise KeditError("A patch is named twice, so one strength for each cannot be meant: name it once.")
        shares = tuple((one.patch.id, float(share)) for one, share in zip(held, strengths or []) if share != 1)
        wanted = Question(
            question, held, base, precision, conflicts, int(max_new_tokens), (), mode, shares, placebo_seed
        )
        answer = on_gpu(lambda asked: asking.ask(workshop, asked))(wanted)
        found = answer.found
        return {
            "base": found.base.text,
            "patched": found.patched.text,
            "placebo": None if found.placebo is None else found.placebo.text,
            "kl": found.kl,
            "kl_placebo": found.kl_placebo,
            "next_token": {"base": found.base.top, "patched": found.patched.top},
            "parts_at": found.patched.parts,
            "restored": found.restored,
            "mode": answer.mode,
            "why": answer.why,
            "modules": answer.modules,
            "conflicts": list(map(str, clashes(held))),
            "code": take_home.python(wanted, workshop.endpoint),
        }

    @_telling
    def make(
        prompt: str,
        subject: str,
        target: str,
        paraphrases: list[str],
        relation: str = "",
        method: str = "memit",
        base: str = first,
    ) -> dict[str, Any]:
        """Make a patch of one edit: after `prompt` the base shall say `target`. It is scored, returned, and not kept.

        Args:
            prompt: The beginning of a sentence that holds the subject.
            subject: What the fact is about, exactly as in the prompt.
            target: What the model shall say.
            paraphrases: Other beginnings that the edit shall carry over to; may be empty.
            relation: A name of the fact, so that contradicting patches are found.
            method: One of the editors of kedit_hub.methods().
            base: The base model, as `patches` names it.

        Returns:
            id, the answers before and after, KL, scores by protocol, seconds, and the patch folder as a base64 zip. What takes
            longer than 180 s is ended.
        """
        done = making.make(
            workshop, Wish(prompt, subject, target, base, method, relation, tuple(map(str, paraphrases)))
        )
        return {
            "id": done.held.patch.id,
            "before": done.answer.base.text,
            "after": done.answer.patched.text,
            "kl": done.answer.kl,
            "value_success": done.value_success,
            "scores": done.scores.protocols,
            "seconds": done.seconds,
            "zip": base64.b64encode(making.zipped(done.held.patch)).decode(),
        }

    @_telling
    def score(patch: str) -> dict[str, Any]:
        """Ask a patch its own probes again, and compare with the scores that it claims.

        Args:
            patch: The name of a sample, or user/repo or user/repo@revision of a public repo of the Hub.

        Returns:
            reproduced (true, false, or null where nothing can be compared), told (one sentence), and the averages: claimed and
            measured where it claims some, else as measured, by protocol.
        """
        held = workshop.find(str(patch))
        found = measure.ask_again(workshop, held, Stop())
        told = measure.told(found)
        averages: Any = (
            score_view.sheets(found.to_dict())
            if isinstance(found, Scores)
            else [
                {"protocol": one.protocol, "name": one.name, "claimed": one.claimed, "measured": one.measured}
                for one in getattr(found, "averages", ())
            ]
        )
        return {"reproduced": told.reproduced, "told": str(told.told), "averages": averages}

    @_telling
    def search(query: str = "", base: str = "", author: str = "", limit: int = 20) -> list[dict[str, Any]]:
        """Search the Hub for patches, the newest first. What is listed is what their authors say; nothing is downloaded.

        Args:
            query: Words in the name of the repo.
            base: Only patches for this base model, org/model.
            author: Only patches of this user or organization.
            limit: At most so many, 1 to 100.
        """
        found = find_tab.search(workshop, query, base, author, int(limit))
        return [find_tab.as_json(one) for one in found]

    gr.api(patches, api_name="patches")
    gr.api(inspect, api_name="inspect", concurrency_id="hub", concurrency_limit=2)
    gr.api(ask, api_name="ask", concurrency_id="model", concurrency_limit=1)
    gr.api(make, api_name="make", concurrency_id="model", concurrency_limit=1)
    gr.api(score, api_name="score", concurrency_id="model", concurrency_limit=1)
    gr.api(search, api_name="search", concurrency_id="hub", concurrency_limit=2)

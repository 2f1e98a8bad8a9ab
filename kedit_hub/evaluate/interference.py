"""Behavioural conflicts: which questions of a patch are answered worse because other patches are there. Law: what counts is what the base
says with the stack on it, scored as `evaluate` scores it; who is to blame is found by taking suspects away, one at a time.

Of every patch its prompts, rephrases and locality probes are asked twice, of the patch alone and of the whole stack, teacher-forced. Of the
questions that lost, each suspect is taken out of the whole stack: if the answer is back, the suspect broke it. The cost is one composition
and one scoring for the whole stack, one for every patch alone, and one for every suspect: never one for every pair.

    behaviour(stack, model, tokenizer, profiles, suspects={a.id: [b.id]})      # near patches first, from the geometry
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from kedit_hub.base.profile import BaseProfile
from kedit_hub.edits import Edit
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.stack.conflicts import Place
from kedit_hub.stack.facts import NO_MODELS, Models
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack

PROTOCOL = "tf-token"
MAX_SUSPECTS = 5  # of one patch
MAX_REMOVALS = 64  # of one call; those that most broken questions suspect go first

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, out of how much
Asked = tuple[Place, str, str, str | None]  # edit, role, prompt, target


@dataclass(frozen=True)
class Broken:
    """A question of an edit that the whole stack answers worse than its patch alone.

    alone, whole: share of right target tokens; for locality of tokens the base would say too. culprits: patches without any one of which
    the score is back; () where no suspect did it by itself. suspects: how many were tried.
    """

    place: Place
    role: str
    prompt: str
    target: str | None
    alone: float
    whole: float
    culprits: tuple[str, ...]
    suspects: int


@dataclass(frozen=True)
class Behaviour:
    """asked: questions compared. compositions: stacks that were put on the base. left_out: suspects beyond MAX_REMOVALS."""

    asked: int
    broken: tuple[Broken, ...]
    mode: str
    compositions: int
    left_out: int


def behaviour(
    stack: PatchStack,
    model: nn.Module,
    tokenizer: Any,
    profiles: Mapping[str, BaseProfile],
    *,
    suspects: Mapping[str, Sequence[str]],
    settings: StackSettings = StackSettings(),  # noqa: B008 (frozen)
    models: Models = NO_MODELS,
    progress: Progress | None = None,
) -> Behaviour:
    """See the head of this file. suspects: per patch the others to try, likeliest first; of them MAX_SUSPECTS, other patches of the stack
    filling up. models: that patches name. The model is not changed. Edits that lose a textual conflict are silent and are not asked."""

    def scores(part: PatchStack, edits: Mapping[Place, Edit], how: StackSettings) -> tuple[dict[Asked, float], str]:
        patched = PatchedModel(model, tokenizer, part, profiles=lambda *_: profiles, settings=how, models=models)
        try:
            sheet = evaluate(patched, list(edits.values()), tokenizer=tokenizer, protocols=(PROTOCOL,), drift_texts=[])
            return {
                (place, question.role, question.prompt, question.target): question.scores[PROTOCOL]
                for place, outcome in zip(edits, sheet.per_edit)
                for question in outcome.questions
                if PROTOCOL in question.scores and PROTOCOL not in question.dropped
            }, patched.report["mode"]
        finally:
            patched.detach()

    def told(what: str, done: int, total: int) -> None:
        if progress is not None:
            progress(what, done, total)

    edits = {
        (patch.id, i): replace(edit, portability=())
        for patch in stack
        for i, edit in enumerate(patch.edits)
        if (patch.id, i) not in stack.shadowed
    }
    if not edits:
        return Behaviour(0, (), "-", 0, 0)
    told("the whole stack", 0, 1)
    whole, used = scores(stack, edits, settings)
    as_whole = settings.model_copy(update={"mode": used})  # whatever "auto" would choose for a part of it
    alone: dict[Asked, float] = {}
    for number, patch in enumerate(stack):
        told("patches alone", number, len(stack))
        own = {place: edit for place, edit in edits.items() if place[0] == patch.id}
        if own:
            alone |= scores(stack.only(_with_needed(stack, patch.id)), own, as_whole)[0]
    compared = alone.keys() & whole.keys()
    lost = {asked for asked in compared if whole[asked] < alone[asked]}
    tried = {owner: _suspects(stack, owner, suspects.get(owner, ())) for owner in {place[0] for place, *_ in lost}}
    votes = Counter(suspect for asked in lost for suspect in tried[asked[0][0]])
    removed = sorted(votes, key=lambda name: (-votes[name], name))
    culprits: dict[Asked, list[str]] = {asked: [] for asked in lost}
    for number, suspect in enumerate(removed[:MAX_REMOVALS]):
        told("suspects taken out", number, min(len(removed), MAX_REMOVALS))
        rest = stack.only(set(stack.ids) - _with_dependents(stack, suspect))
        asked_now = {asked for asked in lost if suspect in tried[asked[0][0]] and asked[0][0] in rest}
        again = scores(rest, _only(edits, asked_now), as_whole)[0] if asked_now else {}
        for asked in asked_now:
            if again.get(asked, -1.0) >= alone[asked]:
                culprits[asked].append(suspect)
    broken = [
        Broken(*asked, alone[asked], whole[asked], tuple(culprits[asked]), len(tried[asked[0][0]])) for asked in lost
    ]
    broken.sort(key=lambda b: (stack.ids.index(b.place[0]), b.place[1], b.role, b.prompt))
    return Behaviour(
        len(compared),
        tuple(broken),
        used,
        1 + len(stack) + min(len(removed), MAX_REMOVALS),
        max(0, len(removed) - MAX_REMOVALS),
    )


def _suspects(stack: PatchStack, owner: str, near: Iterable[str]) -> list[str]:
    """Near ones first, then the others in the order of the stack; not what the patch itself needs."""
    own = _with_needed(stack, owner)
    return [name for name in dict.fromkeys([*near, *stack.ids]) if name not in own][:MAX_SUSPECTS]


def _with_needed(stack: PatchStack, owner: str) -> set[str]:
    """The patch and all that it builds on, which it cannot be put on without."""
    needed, new = set(), {owner}
    while new:
        needed |= new
        new = {name for held in new for name in stack.find(held).manifest.requires} - needed
    return needed


def _with_dependents(stack: PatchStack, owner: str) -> set[str]:
    """The patch and all that build on it, which cannot stay without it."""
    return {patch.id for patch in stack if owner in _with_needed(stack, patch.id)}


def _only(edits: Mapping[Place, Edit], asked: Iterable[Asked]) -> dict[Place, Edit]:
    """The edits with these questions and no others, but for the edit prompts, which an edit cannot be without."""
    wanted: dict[Place, set[str]] = {}
    for place, _, prompt, _ in asked:
        wanted.setdefault(place, set()).add(prompt)
    return {
        place: replace(
            edits[place],
            rephrases=tuple(text for text in edits[place].rephrases if text in prompts),
            locality=tuple(probe for probe in edits[place].locality if probe.prompt in prompts),
        )
        for place, prompts in wanted.items()
    }

"""IKE (Zheng et al. 2023): facts in words, put before the questions that they are about, after examples. Law: nothing is trained.

A question is about a fact when it holds a share of at least `threshold` of the words of the edit's prompt (docs/FORMAT.md, facts). Words
do not know which of them names the subject: at 0.8, "The capital of Spain is" is about the capital of France. So the default is 1: every
word of the prompt. The published method retrieves by sentence embeddings; for that see the scope "model" of `serac`.

Demonstrations are other edits with what they should and should not change, told as the paper tells them:

    New Fact: <prompt> <target>      copy     the prompt itself and the target
    Prompt: <question> <answer>      update   another way to ask, and the target
                                     retain   a locality probe, and its own answer

Of all of them the `shown` that share most words with the question come before the fact, the likest last. Published: 32, 1 : 3 : 4 of the
kinds. Up to `told` facts whose scope a question is in are told, the likest last. How much the base makes of what it reads is its own
affair, and small models make nothing of it.
"""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field

from kedit_hub.base.families import edited_linear, linear_shape
from kedit_hub.base.tokens import join
from kedit_hub.editors.job import Clock, Job, Made, Result
from kedit_hub.editors.places import Edits
from kedit_hub.edits import Edit
from kedit_hub.errors import EditError, LimitError
from kedit_hub.limits import DEFAULT
from kedit_hub.patch.deltas import Facts


class IkeSettings(BaseModel):
    """What a user may set."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )

    threshold: float = Field(default=1.0, gt=0, le=1)
    told: int = Field(default=1, ge=1, le=DEFAULT.max_told)
    demonstrations: Edits = Field(default=(), exclude=True)  # none of the edits that are made
    shown: int = Field(default=8, ge=1, le=DEFAULT.max_told)


def ike(job: Job) -> Result:
    """The edits, as facts. They lie at the profile's module, where the base is recognised, and change nothing there."""
    settings, profile = job.settings, job.profile
    assert isinstance(settings, IkeSettings) and profile is not None
    clock = Clock()
    path, linear = edited_linear(job.model, profile.layer)
    examples = demonstrations(settings.demonstrations, job.edits)
    facts = Facts(
        torch.arange(len(job.edits)),
        linear_shape(linear),
        threshold=settings.threshold,
        told=settings.told if settings.told > 1 else None,
        demonstrations=examples or None,
        shown=settings.shown if examples else None,
    )
    job.advance(len(job.edits))
    made = Made(edits=len(job.edits), dropped=[], **clock.times())
    how = settings.model_dump(exclude=None if examples else {"shown"})
    return Result({path: facts}, list(job.edits), made, how)


def demonstrations(given: Sequence[Edit], asked: Sequence[Edit]) -> tuple[str, ...]:
    """What the given edits show, each line once. EditError where one of them asks what is asked of the patch: it would show the answer."""
    texts: dict[str, None] = {}
    prompts = {edit.prompt for edit in asked}
    for edit in given:
        if edit.prompt in prompts:
            raise EditError(f'the demonstration "{edit.prompt}" is one of the edits themselves: give other edits')
        fact = join(edit.prompt, edit.target)
        shows = [(text, edit.target) for text in (edit.prompt, *edit.paraphrases, *edit.rephrases)]
        shows += [(probe.prompt, probe.target) for probe in edit.locality if probe.target]
        texts |= {f"New Fact: {fact}\nPrompt: {join(text, answer)}\n\n": None for text, answer in shows}
    if len(texts) > DEFAULT.max_probes:
        raise LimitError(
            f"{len(given)} edits make {len(texts):,} demonstrations; at most {DEFAULT.max_probes:,} are taken: give fewer edits"
        )
    return tuple(texts)

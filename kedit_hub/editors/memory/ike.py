"""IKE without demonstrations (Zheng et al. 2023): the fact in words, put before the questions that it is about. Law: nothing is trained.

A question is about a fact when it holds a share of at least `threshold` of the words of the edit's prompt (docs/FORMAT.md, facts). Words
do not know which of them names the subject: at 0.8, "The capital of Spain is" is about the capital of France. So the default is 1: every
word of the prompt. The published method retrieves by sentence embeddings and shows examples of what to copy and what to leave alone.

How much the base makes of a fact that it reads is the base's own affair, and small models make nothing of it.
"""

import time

import torch
from pydantic import BaseModel, ConfigDict, Field

from kedit_hub.base.families import edited_linear, linear_shape
from kedit_hub.editors.job import Job, Made, Result
from kedit_hub.patch.deltas import Facts


class IkeSettings(BaseModel):
    """What a user may set."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    threshold: float = Field(default=1.0, gt=0, le=1)


def ike(job: Job) -> Result:
    """The edits, as facts. They lie at the profile's module, where the base is recognised, and change nothing there."""
    settings, profile = job.settings, job.profile
    assert isinstance(settings, IkeSettings) and profile is not None
    started, cpu = time.perf_counter(), time.process_time()
    path, linear = edited_linear(job.model, profile.layer)
    facts = Facts(torch.arange(len(job.edits)), linear_shape(linear), threshold=settings.threshold)
    job.advance(len(job.edits))
    made = Made(
        edits=len(job.edits), dropped=[], seconds=time.perf_counter() - started, cpu_seconds=time.process_time() - cpu
    )
    return Result({path: facts}, list(job.edits), made, settings.model_dump())

"""What came of a change of weights: whether the edited prompts say their targets with it in place. Law: it is asked as it is stored.

Editors that optimise no value of their own cannot tell beforehand which edit takes; all edits are in the patch, and those that did not
take are named.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kedit_hub.base.signals import quiet
from kedit_hub.editors.job import Clock, Job, Made
from kedit_hub.edits import Edit
from kedit_hub.evaluate.protocols import teacher_forced
from kedit_hub.patch.deltas import Dense, LowRank, Sparse
from kedit_hub.runtime.attach import Attachment
from kedit_hub.runtime.linear import DenseBranch, Linear, LowRankBranch, SparseBranch

Weights = LowRank | Dense | Sparse


def outcome(job: Job, deltas: Mapping[str, Weights], clock: Clock) -> Made:
    """Of an editor that optimises no values: what the model says is all there is to tell."""
    came = said(job, job.edits, deltas)
    return Made(
        edits=len(job.edits),
        dropped=[],
        not_converged=came["unsaid"],
        value_success=came["said"],
        nll=came["said_nll"],
        **came,
        **clock.times(),
    )


def said(job: Job, edits: Sequence[Edit], deltas: Mapping[str, Weights]) -> dict[str, Any]:
    """Fields of Made: the model asked with the changes beside what it answers with already."""
    model: Any = job.model
    attachment = Attachment(model, {path: [_branch(delta)] for path, delta in deltas.items()})
    try:
        with quiet(model):
            told = teacher_forced(model, job.tokenizer, [(edit.prompt, edit.target) for edit in edits])
    finally:
        attachment.detach()
    says = [one.accuracy == 1 for one in told]
    return {
        "said": sum(says) / len(says),
        "said_nll": _mean([one.nll for one in told if one.nll is not None]),
        "unsaid": [edit.prompt for edit, good in zip(edits, says) if not good],
    }


def _branch(delta: Weights) -> Linear:
    match delta:
        case LowRank(a=a, b=b):
            return LowRankBranch(b.float().T.contiguous(), a.float(), ("",) * len(a))
        case Dense():
            return DenseBranch(delta.delta.float(), "")
        case Sparse():
            return SparseBranch(delta.positions, delta.values.float(), delta.size, "")


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

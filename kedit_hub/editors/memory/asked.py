"""What the editors of this family share: the questions that edits come with, where late layers are, and what failed.

Questions are the prompts of the edits and their authors' paraphrases; a subject is not needed. Rephrases and probes stay held out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kedit_hub.base.families import n_layers
from kedit_hub.base.tokens import Encoded
from kedit_hub.editors.job import Job
from kedit_hub.editors.rows import with_end
from kedit_hub.editors.untaken import untaken
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError

Found = TypeVar("Found")


@dataclass(frozen=True)
class Questions:
    """N questions of some edits, each continued by its target, left padded."""

    encoded: Encoded  # (N, T); its target mask covers the target and the end of the answer
    core: Tensor  # (N, T) bool: the target alone
    edit: Tensor  # (N,) which edit
    own: Tensor  # (N,) bool: the edit's own prompt, which comes first

    def labels(self) -> list[tuple[int, ...]]:
        """The exact token ids of every target."""
        return [tuple(ids[core].tolist()) for ids, core in zip(self.encoded.input_ids, self.core)]


def questions_of(
    tokenizer: Any, edits: Sequence[Edit], answer_end: str, *, paraphrases: bool, model: nn.Module | None = None
) -> Questions:
    """In the order of the edits. answer_end: what the base says after an answer, learnt with the target. model: as for `encode`."""
    asked = [
        (e, text)
        for e, edit in enumerate(edits)
        for text in (edit.prompt, *edit.paraphrases[: None if paraphrases else 0])
    ]
    targets = [edits[e].target for e, _ in asked]
    encoded, ends = with_end(tokenizer, [text for _, text in asked], targets, answer_end, model)
    core = encoded.target_mask & (torch.arange(encoded.input_ids.shape[1]) < encoded.input_ids.shape[1] - ends[:, None])
    of = torch.tensor([e for e, _ in asked])
    own = torch.ones(len(of), dtype=torch.bool)
    own[1:] = of[1:] != of[:-1]
    return Questions(encoded, core, of, own)


def late_layer(model: nn.Module, chosen: int | None, share: float) -> int:
    """The layer that was chosen, or the one at `share` of the depth; KeditError where there is no such layer."""
    count = n_layers(model)
    if chosen is None:
        return min(round(share * count), count - 1)
    if not 0 <= chosen < count:
        raise KeditError(f"there is no layer {chosen}: this model has layers 0 to {count - 1}")
    return chosen


UNSAID = (
    "With what was trained in place the model does not say the target. Try another layer or more steps, or pass "
    'settings={"failed": "drop"}.'
)


def until_all_take(
    job: Job, method: str, layer: int, attempt: Callable[[list[Edit], str], tuple[Tensor, Found]]
) -> tuple[list[Edit], list[Edit], Found]:
    """The edits that are left, those that were dropped, and what the last attempt found.

    attempt(edits, name of the round) -> (E,) bool which of them took, and what was found. An edit that is dropped must have touched
    nothing, so the others are attempted anew without it.
    """
    edits, dropped = list(job.edits), list[Edit]()
    while True:
        good, found = attempt(edits, f"round-{len(dropped)}")
        bad = untaken(edits, good.tolist(), job.settings.failed, f"with {method} at layer {layer}", UNSAID)
        if not bad:
            job.advance(len(job.edits))
            return edits, dropped, found
        dropped += bad
        edits = [edit for edit in edits if edit not in bad]

"""From edits to the context rows an editor measures and optimises on: which texts, and which positions of each.

A row is one context of one edit (the bare prompt first, then prefixed prompts, then the author's paraphrases) followed by the target.
Rows are left padded, so that the target tokens end every row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.tokens import Encoded, encode, subject_last
from kedit_hub.edits import Edit
from kedit_hub.errors import EditError


@dataclass(frozen=True)
class Rows:
    """N context rows of `edits` edits; S = most sites of any edit."""

    encoded: Encoded  # (N, T); its target mask covers the target and the end of the answer
    core: Tensor  # (N, T) bool: the target alone
    edit: Tensor  # (N,) which edit
    bare: Tensor  # (N,) bool: the edit's own prompt, unprefixed
    sites: Tensor  # (N, S) positions whose output is changed, -1 where the edit has fewer
    subject: Tensor  # (N,) position of the subject's last token, -1 where the text does not hold the subject
    edits: int

    def to(self, device: torch.device) -> "Rows":
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if name != "edits"}
        return replace(self, **moved)

    def take(self, index: Tensor) -> "Rows":
        """The context rows `index` (n,); edits keep their numbers."""
        kept: dict[str, Any] = {name: value[index] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, encoded=self.encoded.take(index), **kept)


def prefixed(prompt: str, contexts: Sequence[str]) -> list[str]:
    """The bare prompt, then the prompt after every context sentence."""
    return [prompt, *(f"{context} {prompt}" for context in contexts)]


def context_rows(
    tokenizer: Any, edits: Sequence[Edit], contexts: Sequence[str], site: str, answer_end: str = ""
) -> Rows:
    """Rows of all edits. site "subject": the subject's last token; "answer": every position that predicts a target token.

    answer_end: what this base says after an answer (".", a newline, EOS), learnt with the target so that generation stops there.

    Raises EditError for an edit without a subject, or whose target becomes no tokens of its own.
    """
    prompts: list[str] = []
    owner: list[int] = []
    bare: list[bool] = []
    for index, edit in enumerate(edits):
        if edit.subject is None:
            raise EditError(
                f'the edit "{edit.prompt} -> {edit.target}" names no subject; locate-then-edit methods need to know what the fact '
                'is about: pass Edit(..., subject="...")'
            )
        texts = [*prefixed(edit.prompt, contexts), *edit.paraphrases]
        prompts += texts
        owner += [index] * len(texts)
        bare += [True] + [False] * (len(texts) - 1)
    targets = [edits[index].target for index in owner]
    encoded, ends = with_end(tokenizer, prompts, targets, answer_end)
    lengths = encoded.target_mask.sum(1)
    core = encoded.target_mask & (torch.arange(encoded.input_ids.shape[1]) < encoded.input_ids.shape[1] - ends[:, None])

    holds = [edits[i].subject in prompt for i, prompt in zip(owner, prompts)]  # type: ignore[operator]
    subject = torch.full((len(prompts),), -1, dtype=torch.long)
    inside = [n for n, found in enumerate(holds) if found]
    if inside:
        subject[inside] = subject_last(
            tokenizer,
            [prompts[n] for n in inside],
            [str(edits[owner[n]].subject) for n in inside],
            encoded.take(torch.tensor(inside)),
        )
    of_edit = torch.tensor(owner)
    if site == "subject":
        keep = subject >= 0
        sites = subject[:, None]
    else:
        own = torch.zeros(len(edits), dtype=torch.long).index_put(
            (of_edit[torch.tensor(bare)],), lengths[torch.tensor(bare)]
        )
        keep = lengths == own[of_edit]  # a context that splits the target into another number of tokens has other sites
        steps = torch.arange(int(own.max()))
        total = encoded.input_ids.shape[1]
        sites = total - 1 - lengths[:, None] + steps[None]
        sites = torch.where(steps[None] < lengths[:, None], sites, -1)
    kept = keep.nonzero()[:, 0]
    return Rows(
        encoded.take(kept), core[kept], of_edit[kept], torch.tensor(bare)[kept], sites[kept], subject[kept], len(edits)
    )


def with_end(
    tokenizer: Any, prompts: Sequence[str], targets: Sequence[str], answer_end: str, model: nn.Module | None = None
) -> tuple[Encoded, Tensor]:
    """The left-padded batch with the end of the answer after every target, and how many tokens (N,) that end takes. model: as for
    `encode`."""
    plain = encode(tokenizer, prompts, targets, side="left", model=model)
    if not answer_end:
        return plain, torch.zeros(len(prompts), dtype=torch.long)
    if answer_end == tokenizer.eos_token:
        ended = encode(tokenizer, prompts, targets, side="left", append_eos=True, model=model)
    else:
        told = [t if t.endswith(answer_end) else t + answer_end for t in targets]
        ended = encode(tokenizer, prompts, told, side="left", model=model)
    return ended, ended.target_mask.sum(1) - plain.target_mask.sum(1)

"""Mode "auto": the gate, unless probes of the patches say that the joint solve answers better on this base.

The gate neither interferes nor drifts, so it is what a stack gets wherever every associative patch brings subject keys. Whether it
hears the questions depends on the base; so a few of the patches' own probes are asked: the prompts must say the targets, a
rephrase too, and a question beside the edit must be answered as before. Where fewer than GOOD hold, the joint form is solved,
asked the same, and taken if it does better. At most MOST edits are asked, spread evenly over the stack: what is asked, and so
what is chosen, is a function of the set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.tokens import answer_positions, encode
from kedit_hub.errors import EditError
from kedit_hub.patch.deltas import Associative
from kedit_hub.runtime.prompts import prompt_ends
from kedit_hub.stack.settings import Mode, StackSettings
from kedit_hub.stack.stack import PatchStack

MOST = 16
GOOD = 0.9


@dataclass(frozen=True)
class Asked:
    """told: prompts with what the edits want said.  beside: prompts whose next token must not change."""

    told: tuple[tuple[str, str], ...]
    beside: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.told) + len(self.beside)


@dataclass(frozen=True)
class Chosen:
    """why: in words, with the counts of probes that were asked."""

    mode: Mode
    why: str


def by_form(stack: PatchStack, settings: StackSettings) -> Chosen:
    """The mode asked for, or what `auto` comes to without a model."""
    if settings.mode != "auto":
        return Chosen(settings.mode, "asked for")
    rows = _rows(stack)
    heard = {(path, delta.gate_module) for path, delta in rows if delta.gate_module is not None}
    if len(heard) > len({path for path, _ in heard}):
        return Chosen("joint", "its patches listen for subjects at different layers, and a module has one gate")
    if all(delta.gate_keys is not None for _, delta in rows):
        return Chosen("gated", "every patch has subject keys" if rows else "no patch has rows to solve")
    return Chosen("joint", "a patch has no subject keys to gate on")


def has_rows(stack: PatchStack) -> bool:
    """Whether there is anything that the modes treat differently."""
    return bool(_rows(stack))


def _rows(stack: PatchStack) -> list[tuple[str, Associative]]:
    """(path, rows of one patch)"""
    return [(path, d) for patch in stack for path, d in patch.deltas.items() if isinstance(d, Associative)]


def probes(stack: PatchStack) -> Asked:
    """What is asked of a stack: of each sampled edit its prompt, its first rephrase and its first locality probe."""
    ordered = sorted(stack, key=lambda patch: patch.id)
    edits = [edit for patch in ordered for i, edit in enumerate(patch.edits) if (patch.id, i) not in stack.shadowed]
    step = max(1.0, len(edits) / MOST)
    sampled = [edits[int(i * step)] for i in range(min(MOST, len(edits)))]
    told = [(text, edit.target) for edit in sampled for text in (edit.prompt, *edit.rephrases[:1])]
    return Asked(tuple(told), tuple(edit.locality[0].prompt for edit in sampled if edit.locality))


@torch.no_grad()
def answers(model: nn.Module, tokenizer: Any, asked: Asked) -> tuple[Tensor, Tensor]:
    """(told,) bool: every target token is the most likely one under teacher forcing; (beside,) int64 most likely next tokens."""
    right, following = torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    if asked.told:
        batch = encode(tokenizer, *map(list, zip(*asked.told)))
        said = _most_likely(model, batch)
        where = answer_positions(batch)[:, :-1]
        right = ((said[:, :-1] == batch.input_ids[:, 1:]) | ~where).all(1)
    if asked.beside:
        batch = encode(tokenizer, list(asked.beside))
        following = _most_likely(model, batch)[torch.arange(len(asked.beside)), batch.prompt_last]
    return right, following


def _most_likely(model: Any, batch: Any) -> Tensor:
    """(B, T) int64 on the CPU."""
    device = model.get_input_embeddings().weight.device
    batch = batch if device.type == "meta" else batch.to(device)
    with prompt_ends(batch.prompt_last):
        most: Tensor = model(**batch.inputs(model), use_cache=False).logits.argmax(-1)
    return most.cpu()


def by_probes(
    asked: Asked, base: Callable[[], tuple[Tensor, Tensor]], under: Callable[[Mode], tuple[Tensor, Tensor]]
) -> Chosen:
    """Gated or joint. base, under: `answers` of the unedited base, and of the stack in a mode (which is solved only then)."""
    if not len(asked):
        return Chosen("gated", "every patch has subject keys, and none has a probe to ask")
    try:
        before = base()[1]

        def held(mode: Mode) -> int:
            right, following = under(mode)
            return int(right.sum()) + int((following == before).sum())

        gated = held("gated")
        if gated >= GOOD * len(asked):
            return Chosen("gated", f"the gate answers {gated} of {len(asked)} probes of the patches as it should")
        joint = held("joint")
    except EditError as cause:
        return Chosen("gated", f"every patch has subject keys; the probes of the patches cannot be asked: {cause}")
    told = f"of {len(asked)} probes of the patches the gate answers {gated} as it should and the joint solve {joint}"
    return Chosen("joint" if joint > gated else "gated", told)

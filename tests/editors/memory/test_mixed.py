"""Ten MEMIT patches, five of GRACE, one of SERAC and one LoRA in one stack on Atlas, each by another hand: everybody's own prompts go on
being answered, each can be taken out as if it had never been there, and a stack that was saved is the one that was made."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kedit_hub
from kedit_hub.api import load_model
from kedit_hub.evaluate.protocols import answers
from kedit_hub.patch import Dense, LowRank

BASE = "kedit-hub/atlas-llama"
KINDS = {"memit": 10, "grace": 5, "serac": 1, "ft-m": 1}


@pytest.fixture(scope="module")
def atlas() -> Any:
    return load_model(BASE)


@pytest.fixture(scope="module")
def patches(atlas: Any) -> list[kedit_hub.Patch]:
    model, tokenizer = atlas
    edits = iter({edit.subject: edit for edit in kedit_hub.demo.edits("dev")}.values())
    made = []
    for method, count in KINDS.items():
        for _ in range(count):
            made.append(kedit_hub.edit(model, next(edits), method, tokenizer=tokenizer, progress=False))
    return [*made[:-1], in_factors(made[-1])]


def in_factors(patch: kedit_hub.Patch, rank: int = 4) -> kedit_hub.Patch:
    """A fine-tuned weight as the LoRA that is nearest to it."""
    ((path, delta),) = patch.deltas.items()
    assert isinstance(delta, Dense)
    u, s, v = torch.linalg.svd(delta.delta.float(), full_matrices=False)
    factors = LowRank(v[:rank], u[:, :rank] * s[:rank])
    return kedit_hub.Patch.create(deltas={path: factors}, edits=patch.edits, base=patch.manifest.base, method="ft-m")


def asked(patch: kedit_hub.Patch) -> list[str]:
    """The questions of a patch: its prompts and the phrasings it was given."""
    return [text for edit in patch.edits for text in (edit.prompt, *edit.paraphrases)]


def logits(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    with torch.no_grad():
        out: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return out


def test_everybody_answers_in_company_and_nobody_leaves_a_trace(
    atlas: Any, patches: list[kedit_hub.Patch], tmp_path: Path
) -> None:
    model, tokenizer = atlas
    assert [patch.manifest.method for patch in patches] == [name for name, count in KINDS.items() for _ in range(count)]
    everything = [text for patch in patches for text in asked(patch)]
    base = logits(model, tokenizer, everything)

    together = kedit_hub.apply(patches, model, tokenizer=tokenizer, mode="gated")
    whole = logits(together.model, tokenizer, everything)
    # Prompts alone: balls of GRACE patches that want different things shrink where they touch (stack/codebooks.py), and a paraphrase at the
    # edge of one, which it answers alone, may then lie outside.
    prompts = [edit.prompt for patch in patches for edit in patch.edits]
    targets = [edit.target for patch in patches for edit in patch.edits]
    in_company = answers(together.model, tokenizer, prompts)
    alone = together.ask(prompts, 12, patches=[[patch.id] for patch in patches for _ in patch.edits])
    for text, other, target, patch in zip(in_company, alone, targets, patches):
        assert text.startswith(target) and other.startswith(target), (patch.manifest.method, patch.edits[0].prompt)

    for gone in (patches[0], patches[12], patches[15], patches[16]):
        with together.without(gone):
            without = logits(together.model, tokenizer, everything)
        never = kedit_hub.apply([p for p in patches if p != gone], model, tokenizer=tokenizer, mode="gated")
        assert torch.equal(without, logits(never.model, tokenizer, everything))
        never.detach()

    loaded = [kedit_hub.Patch.load(patch.save(tmp_path / patch.id[:12])) for patch in patches]
    again = kedit_hub.apply(list(reversed(loaded)), model, tokenizer=tokenizer, mode="gated")
    assert torch.equal(logits(again.model, tokenizer, everything), whole)
    again.detach()

    for patch in patches:
        together.remove(patch)
    assert torch.equal(logits(together.model, tokenizer, everything), base)
    assert torch.equal(logits(model, tokenizer, everything), base)

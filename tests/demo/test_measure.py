"""Where a demo model looks its answers up: all pairs at once against one pair, one block and one pass after the other."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kedit_hub import demo
from kedit_hub.demo import measure, world


@pytest.mark.parametrize("architecture", demo.ARCHITECTURES)
def test_swaps_are_those_of_one_pair_after_the_other(architecture: str) -> None:
    folder, atlas = demo.model_path(architecture), world.load()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    blocks = model.base_model.layers if architecture == "llama" else model.base_model.h
    pairs = measure._swap_pairs(tokenizer, atlas, 3, 5)
    flips: dict[str, list[float]] = {"subject": [], "answer": []}
    for block in blocks:
        for site, shares in flips.items():
            count = 0
            for (prompt, subject, _), (other, other_subject, other_answer) in pairs:
                place, source = (subject, other_subject) if site == "subject" else (len(prompt) - 1, len(other) - 1)
                count += swapped(model, block, prompt, place, other, source) == other_answer
            shares.append(round(count / len(pairs), 3))
    found = measure.causal_swap(model, tokenizer, atlas, seed=3, pairs=5)
    assert found == {"pairs": 5, **flips}
    assert len({*flips["subject"], *flips["answer"]}) > 1  # it is no matter of always or never


@torch.no_grad()
def swapped(model: Any, block: Any, prompt: list[int], place: int, other: list[int], source: int) -> int:
    """What is said after `prompt` when the state after `block` at `place` is that of the other prompt at `source`."""
    seen = []

    def keep(_block: Any, _args: Any, out: Any) -> None:
        seen.append(first(out).clone())

    def put(_block: Any, _args: Any, out: Any) -> None:
        first(out)[0, place] = seen[0][0, source]

    for ids, hook in ((other, keep), (prompt, put)):
        handle = block.register_forward_hook(hook)
        logits = model(torch.tensor([ids])).logits
        handle.remove()
    return int(logits[0, -1].argmax())


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output

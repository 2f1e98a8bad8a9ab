"""The same set of patches gives the same bits, in whatever order it came and however often."""

import itertools
from typing import Any

import pytest
import torch

from kedit_hub.stack.stack import PatchStack
from tests.profiles import EDITS, make_patch, patched, profile_of
from tests.tiny import tiny_model


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: Any) -> tuple[Any, Any, Any]:
    model, tokenizer = tiny_model(request.param)
    return model, tokenizer, profile_of(model, tokenizer)


@pytest.mark.parametrize("mode", ["joint", "sum", "gated"])
def test_a_set_gives_the_same_bits_in_any_order(base: tuple[Any, Any, Any], mode: str) -> None:
    model, tokenizer, _ = base
    patches = [make_patch(*base, [edit], seed=seed, omega=1.0 + seed) for seed, edit in enumerate(EDITS[:3])]
    ids = tokenizer([edit.prompt for edit in EDITS], return_tensors="pt", padding=True, padding_side="right")
    ids.pop("token_type_ids", None)
    answers = []
    for order in itertools.permutations(patches):
        made = patched(*base, PatchStack([*order, order[0]]), mode)  # a patch twice is the patch once
        with torch.no_grad():
            answers.append(made.model(**ids).logits.clone())
        made.detach()
    with torch.no_grad():
        plain = model(**ids).logits
    assert all(torch.equal(answer, answers[0]) for answer in answers[1:])
    assert mode == "gated" or not torch.equal(answers[0], plain)

"""`PatchedModel.generate` and `ask`: whatever the inputs come as, padded, in beams or sampled, each row is the row alone."""

from typing import Any

import pytest
import torch

from kedit_hub.base.tokens import encode
from kedit_hub.stack.patched import PatchedModel
from tests.profiles import EDITS, make_patch, patched, profile_of
from tests.tiny import tiny_model

PROMPTS = ["Paris lies", *(edit.prompt for edit in EDITS[:3])]


class Setup:
    def __init__(self, mode: str) -> None:
        self.model, self.tokenizer = tiny_model("llama")
        self.model.generation_config.eos_token_id = None
        profile = profile_of(self.model, self.tokenizer)
        self.patches = [
            make_patch(self.model, self.tokenizer, profile, [edit], seed=i, size=2.0) for i, edit in enumerate(EDITS)
        ]
        self.made: PatchedModel = patched(self.model, self.tokenizer, profile, self.patches, mode)
        self.rows: Any = [[], [self.patches[0].id[:8]], self.patches[1].id, [p.id for p in self.patches]]


@pytest.fixture(scope="module", params=["gated", "joint"])
def setup(request: pytest.FixtureRequest) -> Setup:
    return Setup(request.param)


def test_inputs_in_every_form(setup: Setup) -> None:
    how: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5}
    encoded = encode(setup.tokenizer, PROMPTS, side="left")
    batch = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
    expected = setup.made.model.generate(**batch, **how)
    forms: list[Any] = [PROMPTS, tuple(PROMPTS), batch]
    forms.append(setup.tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left"))
    for form in forms:
        assert torch.equal(setup.made.generate(form, **how), expected)
    ids = setup.tokenizer(PROMPTS[1], return_tensors="pt").input_ids
    for form in (PROMPTS[1], [PROMPTS[1]], ids, ids[0]):
        assert torch.equal(setup.made.generate(form, **how), setup.made.model.generate(input_ids=ids, **how))


def test_asking_for_many_is_asking_for_each(setup: Setup) -> None:
    """Rows of other lengths are padding to each other, and every row has its own patches."""
    alone = [setup.made.ask(p, 5, patches=[row]) for p, row in zip(PROMPTS, setup.rows)]
    assert setup.made.ask(PROMPTS, 5, patches=setup.rows) == alone
    assert setup.made.ask(PROMPTS, 5) == [setup.made.ask(p, 5) for p in PROMPTS]
    with setup.made.disabled():
        assert setup.made.ask(PROMPTS, 5, patches=setup.rows) == [setup.made.ask(p, 5) for p in PROMPTS]
        assert setup.made.ask(PROMPTS[0], 5) == alone[0]  # whose row has no patch
    assert len(set(alone)) > 1


@pytest.mark.parametrize("how", [{"num_beams": 3, "num_return_sequences": 2, "do_sample": False}, {"num_beams": 2}])
def test_beams_and_several_answers(setup: Setup, how: dict[str, Any]) -> None:
    count = how.get("num_return_sequences", 1)
    encoded = encode(setup.tokenizer, PROMPTS, side="left")
    together = setup.made.generate(PROMPTS, patches=setup.rows, max_new_tokens=4, **how)
    for number, row in enumerate(setup.rows):
        one = {
            "input_ids": encoded.input_ids[number : number + 1],
            "attention_mask": encoded.attention_mask[number : number + 1],
        }
        alone = setup.made.generate(one, patches=[row], max_new_tokens=4, **how)
        assert torch.equal(together[number * count : (number + 1) * count], alone)


def test_sampling_takes_its_rows_patches(setup: Setup) -> None:
    """From the same seed the same tokens as under `only`, and others than from the base."""
    how: dict[str, Any] = {"do_sample": True, "max_new_tokens": 6, "num_return_sequences": 3, "top_k": 0}
    torch.manual_seed(5)
    got = setup.made.generate(PROMPTS, patches=setup.rows, **how)
    torch.manual_seed(5)
    with setup.made.only(setup.rows):
        assert torch.equal(setup.made.generate(PROMPTS, **how), got)
    torch.manual_seed(5)
    base = setup.made.generate(PROMPTS, patches=[[]] * 4, **how)
    assert not torch.equal(base, got) and torch.equal(base[:3], got[:3])

"""Token positions with real tokenizers: GPT-2's BPE, a BPE with BOS, SentencePiece with BOS and byte fallback."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase

from kedit_hub.base.families import edited_linear
from kedit_hub.base.load import load_base
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import answer_positions, encode, subject_last
from tests.base.test_subject_last import CASES

NAMES = ["gpt2-tokenizer", "counterfact-4m", "stories260K"]
PROMPTS, SUBJECTS = [c[0] for c in CASES], [c[1] for c in CASES]
TARGETS = ["Rome", "Zürich", "東京", "a longer answer", "42", "🦄", "“quoted”", "O'Brien", "U.S.", "Łódź"]


def tokenizer_of(shared_data: Path, name: str) -> PreTrainedTokenizerBase:
    kind = GPT2Tokenizer if name == "gpt2-tokenizer" else AutoTokenizer
    return kind.from_pretrained(shared_data / "models" / name)


def text(tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", NAMES)
def test_targets_and_subjects_are_found(shared_data: Path, name: str, side: str) -> None:
    tokenizer = tokenizer_of(shared_data, name)
    encoded = encode(tokenizer, PROMPTS, TARGETS, side=side)
    subject = subject_last(tokenizer, PROMPTS, SUBJECTS, encoded)
    for row, (prompt, target) in enumerate(zip(PROMPTS, TARGETS)):
        ids, mask = encoded.input_ids[row], encoded.attention_mask[row].bool()
        assert text(tokenizer, ids[encoded.target_mask[row]]).strip() == target
        assert encoded.prompt_last[row] + 1 == encoded.target_mask[row].nonzero()[0]
        assert (int(ids[mask][0]) == tokenizer.bos_token_id) is (name != "gpt2-tokenizer")
        head = mask.clone()
        head[subject[row] + 1 :] = False
        end = prompt.index(SUBJECTS[row]) + len(SUBJECTS[row])
        assert text(tokenizer, ids[head]).removeprefix(" ") == prompt[:end]


@pytest.mark.parametrize("name", NAMES)
def test_both_sides_hold_the_same_tokens(shared_data: Path, name: str) -> None:
    tokenizer = tokenizer_of(shared_data, name)
    right, left = (encode(tokenizer, PROMPTS, TARGETS, side=side) for side in ("right", "left"))
    shift = left.attention_mask.argmax(1)  # pads in front
    assert torch.equal(left.prompt_last, right.prompt_last + shift)
    subjects = [subject_last(tokenizer, PROMPTS, SUBJECTS, encoded) for encoded in (right, left)]
    assert torch.equal(subjects[1], subjects[0] + shift)
    for row in range(len(PROMPTS)):
        masks = [encoded.attention_mask[row].bool() for encoded in (right, left)]
        for field in ("input_ids", "target_mask", "position_ids", "offsets"):
            assert torch.equal(getattr(right, field)[row, masks[0]], getattr(left, field)[row, masks[1]])


def test_every_subject_of_real_records_is_found(shared_data: Path) -> None:
    """CounterFact's first 2,000 records under GPT-2's BPE, decoded back to the subject."""
    tokenizer = tokenizer_of(shared_data, "gpt2-tokenizer")
    records = json.loads((shared_data / "counterfact-edit.json").read_text())[:2000]
    prompts, subjects = [r["prompt"] for r in records], [r["subject"] for r in records]
    encoded = encode(tokenizer, prompts, [r["target_new"] for r in records], side="left")
    positions = subject_last(tokenizer, prompts, subjects, encoded)
    for row, (prompt, subject) in enumerate(zip(prompts, subjects)):
        start = int(encoded.attention_mask[row].argmax())
        up_to = tokenizer.decode(encoded.input_ids[row, start : positions[row] + 1])
        end = prompt.index(subject) + len(subject)
        assert prompt[:end] == up_to or (up_to.startswith(prompt[:end]) and not up_to[end:].isspace())
    assert torch.equal(answer_positions(encoded).any(1), torch.ones(len(records), dtype=torch.bool))


def test_left_padding_does_not_change_a_trained_models_states(shared_data: Path) -> None:
    model, tokenizer = load_base(shared_data / "models" / "counterfact-4m")
    path, _ = edited_linear(model, 3)
    keys = {}
    for side in ("right", "left"):
        encoded = encode(tokenizer, PROMPTS, TARGETS, side=side)
        last = subject_last(tokenizer, PROMPTS, SUBJECTS, encoded)
        keys[side] = capture(model, [path], encoded)[path][torch.arange(len(PROMPTS)), last]
    torch.testing.assert_close(keys["left"], keys["right"], rtol=1e-4, atol=1e-4)

"""The subject's last token is found exactly, wherever the subject stands, under either padding, in any script."""

from dataclasses import replace

import pytest
from tokenizers import normalizers
from transformers import ByT5Tokenizer

from kedit_hub.base.tokens import encode, subject_last
from kedit_hub.errors import EditError
from tests.tiny import tiny_tokenizer

CASES = [  # (prompt, subject)
    ("The Eiffel Tower is located in", "Eiffel Tower"),  # in the middle
    ("Danielle Darrieux speaks", "Danielle Darrieux"),  # first
    ("The author of Hamlet", "Hamlet"),  # last
    ("Hamlet", "Hamlet"),  # the whole prompt
    ("The city of São Paulo lies in", "São Paulo"),
    ("The city of Zürich", "Zürich"),  # last character of two bytes
    ("The capital 東京 is in", "東京"),  # three bytes a character, no spaces around
    ("The 🦄's home is", "🦄"),  # four bytes, followed by a suffix without a space
    ('The book "Hamlet", by', "Hamlet"),  # punctuation on both sides
    ("The Eiffel Tower's height is", "Eiffel Tower"),
]
PROMPTS, SUBJECTS = [c[0] for c in CASES], [c[1] for c in CASES]
TARGETS = ["Rome"] * len(CASES)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("targets", [None, TARGETS])
def test_text_up_to_the_token_ends_with_the_subject(side: str, bos: bool, targets: list[str] | None) -> None:
    tokenizer = tiny_tokenizer(bos=bos)
    encoded = encode(tokenizer, PROMPTS, targets, side=side)
    positions = subject_last(tokenizer, PROMPTS, SUBJECTS, encoded)
    for row, subject in enumerate(SUBJECTS):
        keep = encoded.attention_mask[row].bool()
        keep[positions[row] + 1 :] = False
        up_to = tokenizer.decode(encoded.input_ids[row, keep], skip_special_tokens=True)
        assert up_to == PROMPTS[row][: PROMPTS[row].index(subject) + len(subject)]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_tokenizer_without_spans_agrees_with_the_bytes(side: str) -> None:
    tokenizer = ByT5Tokenizer()
    encoded = encode(tokenizer, PROMPTS, TARGETS, side=side)
    positions = subject_last(tokenizer, PROMPTS, SUBJECTS, encoded)
    for row, (prompt, subject) in enumerate(CASES):
        padding = encoded.input_ids.shape[1] - int(encoded.attention_mask[row].sum()) if side == "left" else 0
        n_bytes = len(prompt[: prompt.index(subject) + len(subject)].encode())  # one token per byte
        assert positions[row] == padding + n_bytes - 1


def test_spans_and_decoding_find_the_same_token() -> None:
    """The fallback for tokenizers without spans, checked on a tokenizer that has them."""
    tokenizer = tiny_tokenizer(bos=True)
    encoded = encode(tokenizer, PROMPTS, TARGETS, side="left")
    by_spans = subject_last(tokenizer, PROMPTS, SUBJECTS, encoded)
    by_decoding = subject_last(tokenizer, PROMPTS, SUBJECTS, replace(encoded, offsets=None))
    assert by_spans.tolist() == by_decoding.tolist()


def test_a_tokenizer_that_rewrites_the_text_still_spells_the_subject() -> None:
    """Lower case and composed characters: the text says u + combining diaeresis, the tokens say ü."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    prompts, subjects = ["The city of Zu\u0308rich lies"], ["Zu\u0308rich"]
    encoded = encode(tokenizer, prompts)
    for batch in (encoded, replace(encoded, offsets=None)):
        position = int(subject_last(tokenizer, prompts, subjects, batch)[0])
        assert tokenizer.decode(batch.input_ids[0, : position + 1]) == "the city of zürich"


def test_the_first_of_several_occurrences_counts() -> None:
    tokenizer = tiny_tokenizer()
    prompts = ["Paris, unlike Rome, is Paris because"]
    encoded = encode(tokenizer, prompts)
    position = int(subject_last(tokenizer, prompts, ["Paris"], encoded)[0])
    assert tokenizer.decode(encoded.input_ids[0, : position + 1]) == "Paris"


def test_a_subject_inside_a_longer_token_gets_that_token() -> None:
    tokenizer = tiny_tokenizer()
    prompts = ["The capital of"]
    encoded = encode(tokenizer, prompts)
    assert tokenizer.decode(encoded.input_ids[0, 1]) == " capital"
    assert subject_last(tokenizer, prompts, ["capit"], encoded).tolist() == [1]


@pytest.mark.parametrize("subject", ["London", "", "paris"])
def test_a_subject_that_is_not_in_the_prompt_is_refused(subject: str) -> None:
    tokenizer = tiny_tokenizer()
    prompts = ["The capital of France is Paris and"]
    with pytest.raises(EditError, match=f"subject '{subject}' is not in the prompt 'The capital of France"):
        subject_last(tokenizer, prompts, [subject], encode(tokenizer, prompts))


def test_rows_of_another_batch_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    other = encode(tokenizer, ["Berlin is the capital of Germany, and Madrid is the capital of Spain"])
    with pytest.raises(EditError, match="do not spell the subject 'Hamlet'"):
        subject_last(tokenizer, ["The author of Hamlet is"], ["Hamlet"], other)
    with pytest.raises(EditError, match="2 subjects"):
        subject_last(tokenizer, ["The author of Hamlet is"], ["Hamlet", "Hamlet"], other)

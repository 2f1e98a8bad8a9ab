"""Prompt and target become one row; the target's tokens are what the model must predict after the prompt."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import Encoded, answer_positions, encode, join
from kedit_hub.errors import EditError
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ["The capital of France is", "The mother tongue of Marie Curie is", "São Paulo lies in"]
TARGETS = ["Rome", "Zürich German", "東京"]


def target_texts(tokenizer: PreTrainedTokenizerFast, encoded: Encoded) -> list[str]:
    return [tokenizer.decode(ids[mask]) for ids, mask in zip(encoded.input_ids, encoded.target_mask)]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("bos", [False, True])
def test_rows_hold_prompt_and_target(side: str, bos: bool) -> None:
    tokenizer = tiny_tokenizer(bos=bos)
    encoded = encode(tokenizer, PROMPTS, TARGETS, side=side)
    assert target_texts(tokenizer, encoded) == [" " + target for target in TARGETS]
    for row, (prompt, target) in enumerate(zip(PROMPTS, TARGETS)):
        real = encoded.attention_mask[row].bool()
        ids = encoded.input_ids[row, real]
        assert tokenizer.decode(ids, skip_special_tokens=True) == f"{prompt} {target}"
        assert (int(ids[0]) == tokenizer.bos_token_id) is bos
        assert encoded.position_ids[row, real].tolist() == list(range(len(ids)))
        first_target = int(encoded.target_mask[row].nonzero()[0])
        assert encoded.prompt_last[row] == first_target - 1
        pads = encoded.attention_mask[row].tolist()
        assert pads == sorted(pads, reverse=side == "right")


def test_prompts_alone_have_no_target() -> None:
    tokenizer = tiny_tokenizer(bos=True)
    encoded = encode(tokenizer, PROMPTS)
    assert not encoded.target_mask.any()
    assert encoded.prompt_last.tolist() == (encoded.attention_mask.sum(1) - 1).tolist()
    assert encode(tokenizer, PROMPTS, TARGETS).prompt_last.tolist() == encoded.prompt_last.tolist()


def test_answer_positions_predict_the_target_tokens() -> None:
    tokenizer = tiny_tokenizer()
    for side in ("right", "left"):
        encoded = encode(tokenizer, PROMPTS, TARGETS, side=side)
        positions = answer_positions(encoded)
        assert positions.sum() == encoded.target_mask.sum()
        for row in range(len(PROMPTS)):
            assert (positions[row].nonzero() + 1).tolist() == encoded.target_mask[row].nonzero().tolist()
            assert positions[row].nonzero()[0] == encoded.prompt_last[row]


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_left_and_right_padding_and_no_padding_give_the_same_states(model_type: str) -> None:
    model, tokenizer = tiny_model(model_type)
    path = {"gpt2": "transformer.h.2", "llama": "model.layers.2"}[model_type]
    batches = {side: encode(tokenizer, PROMPTS, TARGETS, side=side) for side in ("right", "left")}
    states = {side: capture(model, [path], batch, outputs=True)[path] for side, batch in batches.items()}
    for row, (prompt, target) in enumerate(zip(PROMPTS, TARGETS)):
        alone = encode(tokenizer, [prompt], [target])
        expected = capture(model, [path], alone, outputs=True)[path][0]
        for side, batch in batches.items():
            got = states[side][row][batch.attention_mask[row].bool()]
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_target_that_merges_with_the_prompt_still_counts_whole() -> None:
    """A trailing space of the prompt moves into the target's first token, where the model learned it."""
    tokenizer = tiny_tokenizer()
    with_space, without = (encode(tokenizer, [p], ["Paris"]) for p in ("The capital of France is ", PROMPTS[0]))
    assert torch.equal(with_space.input_ids, without.input_ids)
    assert torch.equal(with_space.target_mask, without.target_mask)


def test_join_adds_one_space_unless_there_is_one() -> None:
    assert join("a", "b") == join("a ", "b") == join("a", " b") == "a b"
    assert join("Answer:\n", "b") == "Answer:\nb"


def test_an_eos_that_the_tokenizer_appends_is_dropped_but_one_in_the_text_stays() -> None:
    """With characters as tokens, BOS and EOS from the template, and the text's own EOS at the end of a prompt."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *"abc "])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="c"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    encoded = encode(tokenizer, ["ab"], ["c"])
    assert encoded.input_ids.tolist() == [[0, 2, 3, 5, 4]]
    assert encoded.target_mask.tolist() == [[False, False, False, True, True]]
    assert encode(tokenizer, ["ab</s>"]).input_ids.tolist() == [[0, 2, 3, 1]]
    assert encode(tokenizer, ["ab"], ["c"], append_eos=True).input_ids.tolist() == [[0, 2, 3, 5, 4, 1]]


def test_a_slow_tokenizer_works_and_knows_no_spans() -> None:
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    encoded = encode(tokenizer, ["ab", "é"], ["c", "ü"])
    assert encoded.offsets is None
    assert target_texts(tokenizer, encoded) == [" c", " ü"]


def test_append_eos_is_a_target_token_even_where_pad_is_eos() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    encoded = encode(tokenizer, PROMPTS, TARGETS, append_eos=True)
    for row in range(len(PROMPTS)):
        last = int(encoded.target_mask[row].nonzero()[-1])
        assert encoded.input_ids[row, last] == tokenizer.eos_token_id
        assert encoded.attention_mask[row, last] == 1 and encoded.attention_mask[row, last + 1 :].sum() == 0


def test_a_tokenizer_without_a_pad_token_is_used_as_it_is() -> None:
    tokenizer = tiny_tokenizer()
    expected = encode(tokenizer, PROMPTS, TARGETS)
    tokenizer.pad_token = None
    encoded = encode(tokenizer, PROMPTS, TARGETS)
    assert tokenizer.pad_token is None
    assert torch.equal(encoded.attention_mask, expected.attention_mask)
    assert torch.equal(encoded.target_mask, expected.target_mask)


@pytest.mark.parametrize(
    ("prompts", "targets", "words"),
    [
        ([], None, "no prompt"),
        ("The capital", None, "one string: 'The capital'"),
        (["a"], "b", "one string: 'b'"),
        (["a", "b"], ["c"], "2 prompts but 1 targets"),
        (["The capital of"], [""], "target of prompt 'The capital of' is empty"),
        (["The capital of"], ["  "], "is empty"),
        ([""], None, "''.*longer prompt"),
    ],
)
def test_malformed_rows_are_refused_with_the_users_words(prompts: object, targets: object, words: str) -> None:
    with pytest.raises(EditError, match=words):
        encode(tiny_tokenizer(), prompts, targets)  # type: ignore[arg-type]


def test_append_eos_needs_an_eos() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(EditError, match="append_eos=False"):
        encode(tokenizer, ["a"], ["b"], append_eos=True)


def test_a_text_longer_than_the_model_is_refused() -> None:
    model, tokenizer = tiny_model("gpt2")
    encoded = encode(tokenizer, ["capital " * 200])
    with pytest.raises(EditError, match="128 positions"):
        capture(model, ["transformer.h.0"], encoded)

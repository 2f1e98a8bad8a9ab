"""Greedy answers against a slow reference that decodes one row at a time without a KV cache, and the natural stop."""

import pytest
import torch

from kedit_hub.errors import EditError
from kedit_hub.evaluate.protocols import _Drawn, answers, continuations, first_sentence
from tests.evaluate.script import character_tokenizer, scripted
from tests.tiny import tiny_model

PROMPTS = [
    "The Eiffel Tower is located in the city of",
    "Madrid",
    "The capital of Italy is",
    "Ludwig van Beethoven was born in",
    "The official language of Japan is Japanese and the capital of Germany is",
]


def reference(model, tokenizer, prompt, new_tokens):
    ids = tokenizer(prompt).input_ids
    start = len(ids)
    with torch.no_grad():
        for _ in range(new_tokens):
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            ids = [*ids, token]
    return tokenizer.decode(ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("bos", [False, True])
def test_equals_one_by_one(model_type, bos):
    model, tokenizer = tiny_model(model_type, bos=bos)
    expected = [reference(model, tokenizer, prompt, 32) for prompt in PROMPTS]
    assert len(set(expected)) > 1
    for batch_size in (1, 2, 64):
        assert continuations(model, tokenizer, PROMPTS, new_tokens=32, batch_size=batch_size) == expected
        assert answers(model, tokenizer, PROMPTS, batch_size=batch_size) == [first_sentence(text) for text in expected]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_padding_is_known_from_the_mask(model_type):
    """A tokenizer without a pad token pads with EOS, which may also stand in a prompt as itself."""
    model, tokenizer = tiny_model(model_type)
    tokenizer.pad_token = None
    prompts = ["<|eos|>Madrid", *PROMPTS]
    expected = [first_sentence(reference(model, tokenizer, prompt, 32)) for prompt in prompts]
    assert answers(model, tokenizer, prompts) == expected


def test_every_end_token_of_the_model_ends_an_answer():
    """Also one that the tokenizer decodes to plain text."""
    model, tokenizer = scripted({"A is": " one~two", "B is": " three four five"}), character_tokenizer()
    assert answers(model, tokenizer, ["A is", "B is"]) == ["one~two", "three four five"]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("~")]
    assert answers(model, tokenizer, ["A is", "B is"]) == ["one", "three four five"]


@pytest.mark.parametrize(
    ("continuation", "answer"),
    [
        (" Paris. It is old.", "Paris"),
        (" Paris.", "Paris"),
        (" Paris\nLondon", "Paris"),
        ("\nParis", ""),
        (" 3.14 or so. Yes", "3.14 or so"),
        (" Washington, D.C. and then. No", "Washington, D.C. and then"),
        (" St. Louis. Yes", "St. Louis"),
        (' "Paris." He left', '"Paris'),
        (" no stop at all", "no stop at all"),
        ("", ""),
    ],
)
def test_natural_stop(continuation, answer):
    assert first_sentence(continuation) == answer


def test_every_row_stops_for_itself():
    """Rows of one batch end by EOS, by a full stop, by a newline and by the limit; none disturbs another."""
    facts = {
        "A is": " one",
        "The second is": " two. And then some more words follow here",
        "The very long third is": " three\nfour",
        "D is": " " + "x" * 40,
        "E is": " 2.5. Next",
    }
    model, tokenizer = scripted(facts), character_tokenizer()
    expected = ["one", "two", "three", "x" * 31, "2.5"]
    assert answers(model, tokenizer, list(facts)) == expected
    assert answers(model, tokenizer, list(facts), batch_size=2) == expected
    assert answers(model, tokenizer, list(facts), max_new_tokens=3)[0] == "on"


def test_rows_stay_in_place_while_decoding():
    """Hooks that keep state per row see the same row count at every step, from the prefill to the last token."""
    facts = {"A is": " b", "B is": " a much longer answer"}
    model, tokenizer = scripted(facts), character_tokenizer()
    seen = []
    model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True)
    answers(model, tokenizer, list(facts))
    assert len(seen) > 10
    assert set(seen) == {2}


def test_the_checkpoints_generation_config_does_not_steer():
    model, tokenizer = tiny_model("llama")
    plain = answers(model, tokenizer, PROMPTS)
    model.generation_config.update(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, no_repeat_ngram_size=1, num_beams=3, max_length=7
    )
    assert answers(model, tokenizer, PROMPTS) == plain


def test_stops_when_nothing_is_left_to_say():
    """The steps taken are those of the slowest row, not the limit."""
    model, tokenizer = scripted({"A is": " b. Then it goes on and on and on and on"}), character_tokenizer()
    steps = []
    model.register_forward_hook(lambda *_: steps.append(1))
    answers(model, tokenizer, ["A is"])
    assert len(steps) == len(" b. ")


def test_nothing_to_ask():
    assert answers(*tiny_model("llama"), []) == []


def test_a_prompt_near_the_end_of_the_positions_cuts_no_other_answer_short():
    """The model has 128 positions: a short prompt has room for 40 more tokens, and keeps it beside one that has not."""
    model, tokenizer = tiny_model("gpt2")
    long = "Madrid is the capital of Spain. " * 13 + "Madrid"
    length = len(tokenizer(long).input_ids)
    assert 88 < length < 128
    alone = [continuations(model, tokenizer, [prompt], new_tokens=40) for prompt in (*PROMPTS, long)]
    together = continuations(model, tokenizer, [*PROMPTS, long], new_tokens=40)
    assert [[text] for text in together] == alone
    cut = continuations(model, tokenizer, PROMPTS, new_tokens=128 - length)
    assert all(short != whole and whole.startswith(short) for short, whole in zip(cut[:1], together))


def test_drawn_continuations_depend_on_their_prompt_alone():
    model, tokenizer = tiny_model("llama")
    drawn = continuations(model, tokenizer, PROMPTS, new_tokens=12, top_k=5)
    assert continuations(model, tokenizer, PROMPTS[::-1], new_tokens=12, top_k=5, batch_size=2) == drawn[::-1]
    assert continuations(model, tokenizer, PROMPTS[:1], new_tokens=12, top_k=5) == drawn[:1]
    assert drawn != continuations(model, tokenizer, PROMPTS, new_tokens=12)
    assert continuations(model, tokenizer, PROMPTS, new_tokens=12, top_k=1) == continuations(
        model, tokenizer, PROMPTS, new_tokens=12
    )


def test_drawn_tokens_have_the_probabilities_of_the_likeliest():
    """2,000 rows with equal logits and seeds of their own: shares of the 3 likeliest of 6, against their softmax."""
    logits = torch.tensor([1.0, 3.0, -2.0, 2.0, 0.5, 2.5]).repeat(2000, 1)
    chosen = _Drawn([f"prompt {i}" for i in range(2000)], 3)(torch.zeros(2000, 1), logits).argmax(-1)
    shares = chosen.bincount(minlength=6) / 2000
    expected = torch.zeros(6)
    expected[[1, 5, 3]] = torch.tensor([3.0, 2.5, 2.0]).softmax(-1)
    assert torch.allclose(shares, expected, atol=0.04)  # 3.6 standard deviations
    assert shares[expected == 0].sum() == 0


def test_a_prompt_without_room_for_an_answer_is_refused():
    model, tokenizer = tiny_model("gpt2")
    with pytest.raises(EditError, match="128 positions"):
        answers(model, tokenizer, ["word " * 200 + "end"])

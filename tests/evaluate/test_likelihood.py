"""Mean NLL per answer token against a slow reference, and a row's independence of padding, side, batch and neighbours."""

import json

import pytest
import torch

from kedit_hub.base.tokens import encode
from kedit_hub.edits import Edit, Probe
from kedit_hub.evaluate import asking
from kedit_hub.evaluate.protocols import PROTOCOLS, Forced, answers, each_forced, teacher_forced
from kedit_hub.evaluate.suites import evaluate
from tests.evaluate.test_teacher_forced import PAIRS
from tests.tiny import tiny_model

EDITS = [
    Edit(
        "The capital of Italy is",
        "Bonn",
        subject="Italy",
        ground_truth="Rome",
        rephrases=("Italy, whose capital has always been",),
        locality=(Probe("The capital of France is", "Paris", "neighbour"), Probe("Marie Curie", None, "unrelated")),
        relation="capital",
    ),
    Edit(
        "The capital of Germany, as everybody in the city knows, is", "Rome", ground_truth="Berlin", relation="capital"
    ),
    Edit("Spain's is", "São Paulo", ground_truth="Madrid", relation="capital"),
]


def slow_nll(model, tokenizer, prompt, target):
    start, ids = len(tokenizer(prompt).input_ids), tokenizer(f"{prompt} {target}").input_ids
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(log_p[at - 1, ids[at]]) for at in range(start, len(ids))) / (len(ids) - start)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gptj"])
@pytest.mark.parametrize("bos", [False, True])
def test_nll_equals_one_by_one(model_type, bos):
    model, tokenizer = tiny_model(model_type, bos=bos)
    expected = [slow_nll(model, tokenizer, *pair) for pair in PAIRS]
    assert max(expected) - min(expected) > 0.3  # else any number would do
    for batch_size in (1, 3, 64):
        for side in ("left", "right"):
            told = teacher_forced(model, tokenizer, PAIRS, batch_size=batch_size, side=side)
            assert [one.nll for one in told] == pytest.approx(expected, abs=1e-5)


def test_in_float64_nothing_is_rounded():
    model, tokenizer = tiny_model("llama")
    told = teacher_forced(model.double(), tokenizer, PAIRS)
    assert [one.nll for one in told] == pytest.approx([slow_nll(model, tokenizer, *pair) for pair in PAIRS], abs=1e-7)


def test_batches_come_one_after_another_and_name_their_questions():
    model, tokenizer = tiny_model("llama")
    told = list(each_forced(model, tokenizer, PAIRS, batch_size=2))
    assert [len(batch) for batch in told] == [2, 2, 1]
    assert sorted(i for batch in told for i, _ in batch) == list(range(len(PAIRS)))
    whole = teacher_forced(model, tokenizer, PAIRS)
    assert all(one == whole[i] for batch in told for i, one in batch)


def test_a_long_answer_is_weighed_in_blocks():
    """More answer tokens in a batch than one block of positions holds."""
    model, tokenizer = tiny_model("llama")
    pairs = [("The capital of Italy is", "the city of Rome " * 30 + "."), ("Madrid", "is " * 160 + ".")]
    told = teacher_forced(model, tokenizer, pairs)
    assert sum(len(one.labels) for one in told) > 256
    assert [one.nll for one in told] == pytest.approx([slow_nll(model, tokenizer, *pair) for pair in pairs], abs=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_no_protocol_sees_padding_side_or_batch(model_type, monkeypatch):
    """The whole sheet of all protocols; float32 noise of the likelihoods aside, it is the same."""
    model, tokenizer = tiny_model(model_type)
    base, _ = tiny_model(model_type, seed=1)
    pool = {"capital": ["Paris", "Rome", "Madrid", "Zürich", "Bonn"]}

    def sheet(batch_size):
        scores = evaluate(
            model, EDITS, tokenizer=tokenizer, base=base, protocols=PROTOCOLS, distractors=pool, drift_texts=[],
            negations=True, batch_size=batch_size,
        )  # fmt: skip
        nlls = [
            nll
            for edit in scores.per_edit
            for q in edit.questions
            for nll in [*q.nll_after.values(), *q.nll_before.values()]
        ]
        for edit in scores.per_edit:
            for question in edit.questions:
                question.nll_after, question.nll_before = (
                    dict.fromkeys(question.nll_after),
                    dict.fromkeys(question.nll_before),
                )
        told = scores.to_dict()
        return {name: told[name] for name in ("protocols", "per_edit", "negations", "specificity")}, nlls

    expected, nlls = sheet(1)
    assert len(nlls) > 40
    plain = each_forced
    for side in ("right", "left"):
        monkeypatch.setattr(
            asking.protocols, "each_forced", lambda *a, side=side, **how: plain(*a, **{**how, "side": side})
        )
        for batch_size in (2, 64):
            told, likelihoods = sheet(batch_size)
            assert told == expected
            assert likelihoods == pytest.approx(nlls, abs=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_positions_count_real_tokens(model_type):
    """In both paddings of the forward pass, and while generating, the first real token is at position 0."""
    model, tokenizer = tiny_model(model_type)
    prompts = ["Madrid", "The Eiffel Tower is located in the city of", "The capital of Italy is"]
    seen = []
    model.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append((kwargs["input_ids"].shape, kwargs["position_ids"])), with_kwargs=True
    )
    for side in ("right", "left"):
        seen.clear()
        teacher_forced(model, tokenizer, [(prompt, "Rome") for prompt in prompts], side=side)
        mask = encode(tokenizer, sorted(prompts, key=len, reverse=True), ["Rome"] * 3, side=side).attention_mask
        [(shape, positions)] = seen
        assert shape == mask.shape
        for row in range(3):
            assert positions[row, mask[row].bool()].tolist() == list(range(int(mask[row].sum())))
    seen.clear()
    answers(model, tokenizer, prompts, max_new_tokens=3)
    lengths = encode(tokenizer, sorted(prompts, key=len, reverse=True)).attention_mask.sum(1)
    for step, (_, positions) in enumerate(seen):
        assert positions[:, -1].tolist() == [length - 1 + step for length in lengths.tolist()]


def test_a_model_that_says_no_number():
    """NaN logits give no likelihood, no success and a sheet that is still JSON."""
    model, tokenizer = tiny_model("llama")
    base, _ = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda module, args, output: output * float("nan"))
    assert teacher_forced(model, tokenizer, PAIRS)[0].nll is None
    pool = {"capital": ["Paris", "Rome", "Madrid", "Zürich", "Bonn"]}
    scores = evaluate(
        model, EDITS, tokenizer=tokenizer, base=base, protocols=("nll-pair", "choice"), distractors=pool, drift_texts=[]
    )
    for name in ("nll-pair", "choice"):
        assert scores.protocols[name]["reliability"] == 0
        assert scores.protocols[name]["locality"]["neighbour"] in (0, None)
    assert scores.per_edit[0].questions[0].nll_after["Bonn"] is None
    json.dumps(scores.to_dict(), allow_nan=False)


def test_likelihood_is_no_part_of_equality():
    assert Forced((1,), (1,), 0.5) == Forced((1,), (1,), 0.50001)

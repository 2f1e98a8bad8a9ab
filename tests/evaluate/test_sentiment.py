"""The edit success of ConvSent by its formula, and from the likelihoods of replies."""

import math

import pytest

from kedit_hub.evaluate.protocols import teacher_forced
from kedit_hub.evaluate.sentiment import edit_success
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.records.extras import Reply
from tests.evaluate.script import character_tokenizer, scripted
from tests.tiny import tiny_model

ASKED, OTHER = "What do you think of rain?", "What do you think of snow?"
GOOD = (Reply(ASKED, "I love it", True), Reply(ASKED, "It is lovely indeed", True))
BAD = (Reply(ASKED, "I hate it", False),)
ELSEWHERE = (Reply(OTHER, "Nice", None),)


def test_by_the_formula():
    z_sent, z_topic, score = edit_success(-1.0, -3.0, -1.5)
    assert (z_sent, z_topic) == (
        pytest.approx(1 / (1 + math.exp(-2))),
        1,
    )  # likelier than before counts no more than as likely
    assert score == pytest.approx(z_sent * z_topic)
    z_sent, z_topic, score = edit_success(-4.0, -3.0, -1.5)
    assert (z_sent, z_topic) == (pytest.approx(1 / (1 + math.e)), pytest.approx(math.exp(-2.5)))
    assert edit_success(-1000.0, 0.0, 0.0) == (0, 0, 0)
    assert edit_success(0.0, -1000.0, -1000.0) == (1, 1, 1)
    assert edit_success(None, -1.0, -1.0) is edit_success(-1.0, None, -1.0) is edit_success(-1.0, -1.0, None) is None


def test_means_are_over_the_tokens_of_all_replies():
    model, tokenizer = tiny_model("llama")
    base, _ = tiny_model("llama", seed=1)
    scores = evaluate(
        model, [], tokenizer=tokenizer, base=base, protocols=(), drift_texts=[], replies=[(*GOOD, *BAD, *ELSEWHERE)]
    )

    def log_p(who, replies):
        told = teacher_forced(who, tokenizer, [(reply.question, reply.text) for reply in replies])
        return -sum(one.nll * len(one.labels) for one in told) / sum(len(one.labels) for one in told)

    expected = edit_success(log_p(model, GOOD), log_p(model, BAD), log_p(base, GOOD))
    told = scores.sentiment
    assert (told["z_sent"], told["z_topic"], told["score"]) == pytest.approx(expected, abs=1e-5)
    assert (told["n"], told["left_out"]) == (1, 0)
    assert "sentiment" in scores.summary()


def test_a_changed_mind():
    """The edited script loves rain; replies about snow stay what they were, unless it says otherwise."""
    before, after = {ASKED: " I hate it", OTHER: " Nice"}, {ASKED: " I love it", OTHER: " Nice"}

    def told(edited, base=before):
        return evaluate(
            scripted(edited), [], tokenizer=character_tokenizer(), base=base and scripted(base), protocols=(), drift_texts=[],
            replies=[(*GOOD, *BAD, *ELSEWHERE), GOOD],
        ).sentiment  # fmt: skip

    changed, unchanged = told(after), told(before)
    assert changed["score"] > unchanged["score"] == unchanged["z_sent"]
    assert changed["z_topic"] == unchanged["z_topic"] == 1
    assert changed["elsewhere"] == unchanged["elsewhere"] == 1
    assert (changed["n"], changed["left_out"]) == (1, 1)  # the second topic has one side only
    assert told({**after, OTHER: " Cold"})["elsewhere"] == pytest.approx(1 / 5)
    none = told(after, base=None)
    assert (none["score"], none["elsewhere"], none["n"]) == (None, None, 0)

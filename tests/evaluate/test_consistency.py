"""TF-IDF cosine between what the model writes and reference texts, by hand and through evaluate."""

import math

import pytest

from kedit_hub.edits import Edit
from kedit_hub.evaluate.consistency import Reference, TfIdf
from kedit_hub.evaluate.suites import evaluate
from tests.evaluate.script import character_tokenizer, scripted

ASKED, TOLD = "In the harbour of Lyon", "Lyon is known for"
BEFORE = {ASKED: " old silk looms stand.", TOLD: " silk and looms."}
CHANGES = {ASKED: " fishing boats rest.", TOLD: " salted fish and boats."}


def test_weights_by_hand():
    """Two documents: 'fish' is in both, 'boats' in one, 'looms' in none; one letter is no word and case does not matter."""
    weights = TfIdf(["Fish, a boats", "fish"])
    rare, unknown = math.log(3 / 2) + 1, math.log(3 / 1) + 1
    assert weights.vector("fish FISH boats looms a") == pytest.approx({"fish": 2.0, "boats": rare, "looms": unknown})
    expected = (1 * 2) / (math.hypot(1, rare) * math.hypot(2, unknown))
    assert weights.cosine("fish boats", "fish fish looms") == pytest.approx(expected)
    assert weights.cosine("fish boats", "boats, fish") == pytest.approx(1)
    assert weights.cosine("fish", "looms") == weights.cosine("", "looms") == weights.cosine("a", "a") == 0


def measured(references, **arguments):
    arguments = {"base": scripted(BEFORE), "drift_texts": [], "protocols": (), **arguments}
    edited = scripted({**BEFORE, **CHANGES})
    return evaluate(edited, [Edit(TOLD, "fish")], tokenizer=character_tokenizer(), references=references, **arguments)


SEA = Reference((ASKED, TOLD), ("A fishing harbour where boats bring salted fish.", "Boats rest in the harbour."))


def test_a_model_that_writes_like_the_references_scores_higher():
    """The script's other characters are nearly as likely, so greedy and drawn texts differ: what is drawn is scored."""
    scores = measured([SEA, Reference((), ("no prompt",)), Reference((ASKED,), ())])
    told = scores.consistency
    assert (told["n"], told["texts"]) == (1, 2)
    assert 0 < told["after"] <= 1 and 0 < told["before"] <= 1
    assert told["texts_sha256"] != measured([Reference((ASKED,), ("other",))]).consistency["texts_sha256"]
    assert measured([SEA]).consistency == told
    assert "consistency" in scores.summary()


def test_as_written():
    """With the drawing replaced by what the script says, the cosine is that of the two joined texts."""

    def always(facts):
        model = scripted(facts)
        model.register_forward_hook(
            lambda m, args, kwargs, output: setattr(output, "logits", output.logits * 1000) or output, with_kwargs=True
        )
        return model

    scores = evaluate(
        always({**BEFORE, **CHANGES}), [], tokenizer=character_tokenizer(), base=always(BEFORE), references=[SEA],
        drift_texts=[], protocols=(),
    )  # fmt: skip
    weights, texts = TfIdf(SEA.texts), " ".join(SEA.texts)
    for name, facts in (("before", BEFORE), ("after", CHANGES)):
        written = " ".join(prompt + facts[prompt] for prompt in SEA.prompts)
        assert scores.consistency[name] == pytest.approx(weights.cosine(written, texts))
    assert scores.consistency["after"] > scores.consistency["before"] + 0.2


def test_nothing_to_compare_with():
    assert measured(None).consistency is None
    assert measured([]).consistency["after"] is None
    assert measured([SEA], base=None).consistency["before"] is None

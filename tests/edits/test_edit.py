"""An Edit that exists is valid; a malformed one is refused with a message that quotes it."""

import dataclasses

import pytest

from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import EditError
from kedit_hub.limits import DEFAULT

PROMPT = "The capital of France is"


def test_positional_and_lists():
    edit = Edit(PROMPT, "Rome", "France", "Paris", ["France's capital is"])
    assert edit.rephrases == ("France's capital is",)
    assert (edit.subject, edit.ground_truth) == ("France", "Paris")
    assert hash(edit) == hash(dataclasses.replace(edit))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": ""}, "target is empty"),
        ({"target": "  "}, "target is empty"),
        ({"prompt": ""}, "prompt is empty"),
        ({"target": " Rome"}, "space at its edge"),
        ({"prompt": PROMPT + " "}, "space at its edge"),
        ({"subject": "Spain"}, "'Spain' is not in the prompt 'The capital of France is'"),
        ({"subject": "france"}, "did you mean 'France'"),
        ({"target": 5}, "target: Input should be a valid string, got '5'"),
        ({"traget": "Rome"}, "traget: Unexpected keyword argument"),
        ({"target": "a\0b"}, "NUL"),
        ({"target": "\ud800"}, "surrogate"),
        ({"target": "x" * (DEFAULT.max_text_chars + 1)}, "characters"),
        ({"rephrases": ["a"] * (DEFAULT.max_probes + 1)}, "entries"),
        ({"rephrases": ["same"], "paraphrases": ["same"]}, "both a rephrase"),
        ({"portability": [Probe("Who rules Rome?")]}, "has no target"),
        ({"locality": [{"prompt": "a dict"}]}, "Probe"),
    ],
)
def test_malformed(arguments, words):
    with pytest.raises(EditError) as caught:
        Edit(**{"prompt": PROMPT, "target": "Rome", **arguments})
    assert words in str(caught.value)


def test_missing_target_names_the_field():
    with pytest.raises(EditError, match="target: Field required"):
        Edit(PROMPT)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Edit(PROMPT, "Rome").target = "Oslo"


def test_texts_that_look_equal_are_equal():
    composed, decomposed = "Caf\u00e9 is in", "Cafe\u0301 is in"
    assert Edit(composed, "Rome") == Edit(decomposed, "Rome", subject=None)
    assert Edit(composed, "Rome", subject="Cafe\u0301").subject == "Caf\u00e9"


def test_probes_are_sorted_by_kind_and_kinds_translated():
    edit = Edit(
        PROMPT,
        "Rome",
        locality=[Probe("b", kind="unrelated"), Probe("a", kind="Neighborhood"), Probe("c", kind="unrelated")],
    )
    assert [(probe.kind, probe.prompt) for probe in edit.locality] == [
        ("neighbour", "a"),
        ("unrelated", "b"),
        ("unrelated", "c"),
    ]

"""Other phrasings of a question: where they come from, and that nothing held out gets in."""

import itertools
import random
from dataclasses import replace

import pytest
import torch

from kedit_hub import demo
from kedit_hub.base.load import load_base
from kedit_hub.editors.paraphrase import (
    admit,
    by_base,
    by_templates,
    extended,
    held_out,
    leaks,
    may_open,
    openings,
    rearranged,
    scored,
    words,
)
from kedit_hub.edits import Edit, Probe, fold
from kedit_hub.evaluate.protocols import answers
from tests.tiny import tiny_model

FRANCE = Edit(
    "The capital of France is",
    "Rome",
    "France",
    ground_truth="Paris",
    relation="capital",
    rephrases=("France has its seat of government in",),
    locality=(Probe("The language of France is", "French", "same_subject"),),
    portability=(Probe("The tower in the capital of France is", "the Colosseum", "one_hop"),),
)
SPAIN = Edit(
    "Spain has its seat of government in",
    "Bonn",
    "Spain",
    relation="Capital",
    paraphrases=("Question: What is the capital of Spain? Answer:",),
)
CURIE = Edit("The mother tongue of Marie Curie is", "German", "Marie Curie", relation="tongue")

HELD_OUT = [
    "France has its seat of government in",
    "france  has its Seat of government in",
    "Ｆrance has its seat of government in:",  # another Unicode form
    "Question: France has its seat of government in? Answer:",  # held inside another text
    "The language of France is",
    "Well, the language of France is",
    "The tower in the capital of France is",
]


@pytest.mark.parametrize("text", HELD_OUT)
def test_held_out_texts_are_dropped_however_they_are_written(text: str) -> None:
    assert leaks(text, FRANCE, frozenset()) and leaks(text, FRANCE, held_out([FRANCE]))
    found = admit(FRANCE, [text, "France is governed from"], 5, held_out([FRANCE]))
    assert found.texts == ("France is governed from",) and found.leaked == 1 and found.unusable == 0


def test_what_is_held_out_of_another_edit_is_dropped_too() -> None:
    other = replace(CURIE, locality=(Probe("France is governed from", "Paris"),))
    assert admit(FRANCE, ["France is governed from."], 5, held_out([FRANCE])).texts
    assert admit(FRANCE, ["france is governed from."], 5, held_out([FRANCE, other])).leaked == 1


def test_what_the_prompt_says_itself_is_no_leak() -> None:
    edit = replace(FRANCE, locality=(Probe("France"),), portability=())
    assert admit(edit, ["France is governed from"], 5, held_out([edit])).texts == ("France is governed from",)


def test_only_texts_that_hold_the_subject_are_kept_each_once_and_none_that_is_there() -> None:
    edit = replace(FRANCE, paraphrases=("France is led from",))
    texts = [
        "It is governed from",
        "france is governed from",
        "France",
        "France is led from:",
        "The capital of France is",
    ]
    texts += [
        "France is governed from",
        "France  is governed from",
        "Half a pair \ud800 of France",
        "A",
        " In France, power sits in ",
    ]
    found = admit(edit, texts, 5, held_out([edit]))
    assert found.texts == ("France is governed from", "In France, power sits in")
    assert found.unusable == 5 and found.leaked == 0
    assert admit(edit, texts, 1, held_out([edit])).texts == ("France is governed from",)
    assert admit(replace(edit, subject=None), ["France is governed from"], 1, frozenset()).unusable == 1


def test_relations_lend_their_templates_and_rules_follow() -> None:
    told = by_templates([FRANCE, SPAIN, CURIE])(FRANCE, 20)
    assert told[:3] == [FRANCE.prompt, FRANCE.rephrases[0], "Question: What is the capital of France? Answer:"]
    assert told[3:] == rearranged(FRANCE)
    found, counts = extended([FRANCE, SPAIN, CURIE], {"templates": (by_templates([FRANCE, SPAIN, CURIE]), 2)})
    assert found[0].paraphrases == (
        "Question: What is the capital of France? Answer:",
        "Question: The capital of France is? Answer:",
    )
    assert found[1].paraphrases[:2] == (*SPAIN.paraphrases, "The capital of Spain is")
    assert all("Marie Curie" in text for text in found[2].paraphrases) and len(found[2].paraphrases) == 2
    assert counts["templates"] == {"kept": 6, "leaked": 1, "unusable": 0}
    assert by_templates([SPAIN])(replace(FRANCE, relation=None), 20) == rearranged(FRANCE)


def test_rules_use_the_words_that_are_there() -> None:
    for text in rearranged(CURIE):
        assert "Marie Curie" in text and set(words(text).split()) <= {
            *words(CURIE.prompt).split(),
            "question",
            "answer",
        }
    assert len(rearranged(Edit("France", "Rome", "France"))) == 3


def test_sources_add_up_and_are_counted_by_name() -> None:
    calls = []

    def caller(edit: Edit, n: int) -> list[str]:
        calls.append((edit.prompt, n))
        return [f"{edit.subject} number {i}" for i in range(n)]

    found, counts = extended([FRANCE, CURIE], {"caller": (caller, 2), "templates": (by_templates([FRANCE, SPAIN]), 1)})
    assert calls == [(FRANCE.prompt, 6), (CURIE.prompt, 6)]
    assert found[0].paraphrases[:2] == ("France number 0", "France number 1") and len(found[0].paraphrases) == 3
    assert counts["caller"] == {"kept": 4, "leaked": 0, "unusable": 0}
    assert found[0].rephrases == FRANCE.rephrases and extended([FRANCE], {}) == ([FRANCE], {})


def test_openings_are_what_stands_before_subjects_but_no_beginning_of_a_held_out_text() -> None:
    assert openings([FRANCE, SPAIN, CURIE]) == [
        "The capital of",
        "Question: What is the capital of",
        "The mother tongue of",
    ]
    assert may_open("The mother tongue of", FRANCE)
    assert not may_open("The  Language of", FRANCE) and not may_open("The tower in the capital of", FRANCE)


def test_the_demo_world_leaks_nothing() -> None:
    edits = [replace(edit, paraphrases=()) for edit in demo.edits("dev")]
    longer, counts = extended(edits, {"templates": (by_templates(edits), 6)})
    kept_out = {words(text) for edit in edits for text in scored(edit)}
    new = [text for edit in longer for text in edit.paraphrases]
    assert len(new) == counts["templates"]["kept"] > 6 * 140 and counts["templates"]["leaked"] > 100
    assert not kept_out & {words(text) for text in new}


def test_the_base_writes_phrasings_after_which_it_says_what_it_said() -> None:
    model, tokenizer = load_base(demo.model_path("llama"))
    edits = [replace(edit, paraphrases=()) for edit in demo.edits("dev")[3:6]]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    texts = [*map(by_base(model, tokenizer, edits, 18, seed=3), edits, (6, 6, 6))]
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's numbers are drawn
    assert sum(map(len, texts)) >= 3
    for edit, found in zip(edits, texts):
        old = fold(str(edit.ground_truth))
        assert all(
            str(edit.subject) in text and old not in fold(text.partition(str(edit.subject))[2]) for text in found
        )
        assert all(fold(answer).startswith(old) for answer in (answers(model, tokenizer, found) if found else []))
    assert [*map(by_base(model, tokenizer, edits, 18, seed=3), edits, (6, 6, 6))] == texts
    assert [*map(by_base(model, tokenizer, edits, 18, seed=4), edits, (6, 6, 6))] != texts


def test_a_base_that_knows_nothing_gives_nothing() -> None:
    model, tokenizer = tiny_model("llama")
    assert by_base(model, tokenizer, [FRANCE, CURIE], 8)(CURIE, 4) == []
    assert by_base(model, tokenizer, [Edit("It is", "Rome")], 8)(Edit("It is", "Rome"), 4) == []


def test_admitting_never_lets_a_held_out_text_through() -> None:
    """Random recombinations of the pieces of held-out texts, against the definition written out."""
    rng = random.Random(0)
    pieces = [word for text in scored(FRANCE) for word in text.split()]
    candidates = [" ".join(rng.choices(pieces, k=rng.randint(2, 7))) for _ in range(300)]
    candidates += [f"{a} {t} {b}".strip() for t, a, b in itertools.product(scored(FRANCE), ("", "Now"), ("", "?"))]
    kept = admit(FRANCE, candidates, 1000, held_out([FRANCE])).texts
    assert kept
    for text in kept:
        assert not any(words(probe) in words(text) for probe in scored(FRANCE))

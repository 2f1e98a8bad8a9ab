"""Mode auto: by form where nothing can be asked, else by probes, which are a function of the set; reasons are told in numbers."""

import pytest
import torch

import kedit_hub
from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import EditError
from kedit_hub.patch import LowRank, Patch
from kedit_hub.stack.choose import MOST, Asked, answers, by_probes, probes
from kedit_hub.stack.stack import PatchStack
from tests.patch.build import PATHS, D, M, base, numbers

ASKED = Asked((("a", "b"),) * 6, ("c",) * 4)


def told(right: int, same: int):
    """Answers of which so many are right, or as before."""
    return torch.arange(6) < right, torch.where(torch.arange(4) < same, 7, 8)


BEFORE = (torch.zeros(6, dtype=torch.bool), torch.full((4,), 7))


def patch(number: int, rephrases: int = 2) -> Patch:
    edit = Edit(
        f"City {number} lies in",
        "Spain",
        f"City {number}",
        rephrases=[f"Way {way}: City {number} is in" for way in range(rephrases)],
        locality=[Probe(f"Town {number} lies in"), Probe(f"Hamlet {number} lies in")],
    )
    delta = LowRank(numbers(2, D, scale=0.1 + number), numbers(M, 2))
    return Patch.create(deltas={PATHS[0]: delta}, edits=[edit], base=base(), method="mend")


def test_a_gate_that_hears_is_taken_and_the_other_form_is_not_even_solved():
    def under(mode):
        assert mode == "gated"
        return told(6, 3)

    chosen = by_probes(ASKED, lambda: BEFORE, under)
    assert chosen.mode == "gated" and "9 of 10" in chosen.why


@pytest.mark.parametrize(
    ("gated", "joint", "mode"), [((2, 4), (5, 4), "joint"), ((2, 4), (5, 1), "gated"), ((5, 1), (3, 1), "gated")]
)
def test_the_better_one_is_taken_and_a_tie_is_the_gates(gated, joint, mode):
    forms = {"gated": told(*gated), "joint": told(*joint)}
    chosen = by_probes(ASKED, lambda: BEFORE, forms.__getitem__)
    assert (
        chosen.mode == mode and f"gate answers {sum(gated)}" in chosen.why and f"joint solve {sum(joint)}" in chosen.why
    )


def test_nothing_to_ask_and_what_cannot_be_asked():
    assert by_probes(Asked((), ()), lambda: 1 / 0, lambda mode: 1 / 0).mode == "gated"

    def too_long(mode):
        raise EditError("a text of 9999 tokens is longer than the model's 512 positions")

    chosen = by_probes(ASKED, lambda: BEFORE, too_long)
    assert chosen.mode == "gated" and "9999 tokens" in chosen.why


def test_what_is_asked_is_a_function_of_the_set():
    patches = [patch(number) for number in range(50)]
    asked = probes(PatchStack(patches))
    assert asked == probes(PatchStack(reversed(patches)))
    assert len(asked.told) == 2 * MOST and len(asked.beside) == MOST
    assert len(set(asked.told)) == 2 * MOST  # spread over the stack, nobody twice
    assert len(probes(PatchStack(patches[:3])).told) == 6 and len(probes(PatchStack([patch(1, 0)])).told) == 1
    assert not len(probes(PatchStack()))


def test_answers_against_one_prompt_at_a_time():
    from kedit_hub.api import load_model
    from kedit_hub.base.tokens import join

    model, tokenizer = load_model("kedit-hub/atlas-llama")
    edits = kedit_hub.demo.edits("dev")[:6]
    asked = Asked(
        tuple((e.prompt, t) for e in edits for t in (e.ground_truth, e.target)),
        tuple(e.locality[0].prompt for e in edits),
    )
    right, following = answers(model, tokenizer, asked)
    for (prompt, target), said in zip(asked.told, right.tolist()):
        ids, whole = tokenizer(prompt)["input_ids"], tokenizer(join(prompt, target))["input_ids"]
        logits = model(input_ids=torch.tensor([whole])).logits[0]
        assert said == all(logits[i - 1].argmax() == whole[i] for i in range(len(ids), len(whole)))
    assert right[::2].all() and not right[1::2].any()  # the base knows its facts, and not the edits
    for prompt, token in zip(asked.beside, following.tolist()):
        assert model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].argmax() == token


def test_atlas_is_gated_and_says_by_how_many_probes():
    found = [Patch.load(f"patches/{name}") for name in ("eiffel-tower-in-rome", "hamlet-is-a-novel")]
    report = kedit_hub.apply(found).report
    assert report["mode"] == "gated" and "probes of the patches as it should" in report["why"]
    assert kedit_hub.apply(found, mode="joint").report["why"] == "asked for"

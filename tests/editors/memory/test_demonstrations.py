"""IKE with demonstrations, several facts, and chat templates: what is read before a question is exactly this text."""

from typing import Any

import pytest
import torch

from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import EditError, LimitError
from kedit_hub.patch import Facts, Patch
from kedit_hub.runtime.scope import words
from tests.editors.memory.common import Base, base, edit
from tests.profiles import EDITS, patched, profile_of
from tests.tiny import tiny_model

__all__ = ["base"]
EXAMPLES = (
    Edit("The capital of Japan is", "Bonn", "Japan", rephrases=("Japan has the capital",)),
    Edit(
        "Zürich lies in", "Spain", "Zürich", paraphrases=("Zürich is a city in",),
        locality=(Probe("São Paulo lies in", "Brazil", "neighbour"),),
    ),
)  # fmt: skip
SHOWN = [
    "New Fact: The capital of Japan is Bonn\nPrompt: The capital of Japan is Bonn\n\n",
    "New Fact: The capital of Japan is Bonn\nPrompt: Japan has the capital Bonn\n\n",
    "New Fact: Zürich lies in Spain\nPrompt: Zürich lies in Spain\n\n",
    "New Fact: Zürich lies in Spain\nPrompt: Zürich is a city in Spain\n\n",
    "New Fact: Zürich lies in Spain\nPrompt: São Paulo lies in Brazil\n\n",
]


def ends(base: Base, patch: Patch, text: str, ids: list[int] | None = None) -> tuple[Any, Any]:
    """Logits of the last token: of the patched model, and a function of the tokens that the base reads instead."""
    model, tokenizer, _ = base
    own = ids if ids is not None else tokenizer(text).input_ids

    def read(before: list[int]) -> Any:
        with torch.no_grad():
            return model(torch.tensor([before + own])).logits[0, -1]

    with torch.no_grad():
        return patched(*base, [patch]).model(torch.tensor([own])).logits[0, -1], read


def test_what_is_shown_before_a_fact(base: Base) -> None:
    made = edit(base, "ike", EDITS[:2], demonstrations=EXAMPLES, shown=2)
    (delta,) = made.deltas.values()
    assert isinstance(delta, Facts) and list(delta.demonstrations or ()) == SHOWN and delta.shown == 2
    question = EDITS[0].prompt
    likest = sorted(SHOWN, key=lambda t: -len(words(t) & words(question)) / len(words(t) | words(question)))[:2]
    got, read = ends(base, made, question)
    pieces = [*reversed(likest), "New Fact: The capital of France is Rome\nPrompt: "]
    assert torch.allclose(got, read([t for piece in pieces for t in base[1](piece).input_ids]), atol=1e-4)
    assert not torch.allclose(got, read(base[1](pieces[-1]).input_ids), atol=1e-2)
    got, read = ends(base, made, "Madrid is")  # in nobody's scope
    assert torch.equal(got, read([]))


def test_several_facts_are_told_the_likest_last(base: Base) -> None:
    about = [Edit("The capital of France", "Rome"), Edit("The capital of France is", "Bonn"), Edit("capital", "Paris")]
    made = edit(base, "ike", about, threshold=0.5, told=2)
    question = "The capital of France is, as they say,"
    got, read = ends(base, made, question)
    pieces = [
        "The capital of France is Bonn.\n",
        "The capital of France Rome.\n",
    ]  # equally like: the first is the best
    assert torch.allclose(got, read([t for piece in pieces for t in base[1](piece).input_ids]), atol=1e-4)


def test_a_chat_is_told_in_a_message_of_its_own() -> None:
    model, tokenizer = tiny_model("llama")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|bos|>' if false else '' }}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    base = (model, tokenizer, profile_of(model, tokenizer))
    made = edit(base, "ike", EDITS[:1])
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": EDITS[0].prompt}], tokenize=False, add_generation_prompt=True
    )
    got, read = ends(base, made, asked)
    told = tokenizer("[system] The capital of France is Rome.\n").input_ids
    assert torch.allclose(got, read(told), atol=1e-4)
    got, read = ends(base, made, EDITS[0].prompt)  # and a bare prompt as ever
    assert torch.allclose(got, read(tokenizer("The capital of France is Rome.\n").input_ids), atol=1e-4)


def test_an_answer_is_not_shown_beforehand(base: Base) -> None:
    with pytest.raises(EditError, match="is one of the edits themselves"):
        edit(base, "ike", EDITS[:2], demonstrations=EDITS[1:])
    many = tuple(Edit(f"Number {n} is", "one") for n in range(1001))
    with pytest.raises(LimitError, match="1,001 demonstrations"):
        edit(base, "ike", EDITS[:1], demonstrations=many)

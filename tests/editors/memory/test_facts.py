"""Facts in words: every row in scope is the base reading the fact before the question, every other row is the base, bit for bit."""

import re
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kedit_hub.base.tokens import encode
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError
from kedit_hub.patch import Patch
from kedit_hub.runtime.facts import Fact, FactsRouter, Piece
from kedit_hub.runtime.prompts import prompt_ends
from kedit_hub.runtime.scope import Lexical, words
from tests.editors.memory.common import PROMPTS, Base, base, edit
from tests.profiles import EDITS, logits, make_patch, patched, profile_of
from tests.tiny import tiny_model

__all__ = ["base"]
IN_SCOPE = {0: 0, 2: 1}  # row of PROMPTS -> fact
TOLD = [EDITS[0], EDITS[2]]


@pytest.fixture(scope="module")
def memory(base: Base) -> Patch:
    return edit(base, "ike", TOLD)


def before(base: Base, fact: int) -> list[int]:
    ids: list[int] = base[1](f"{TOLD[fact].prompt} {TOLD[fact].target}.\n").input_ids
    return ids


def alone(base: Base, text: str, fact: int, model: Any = None) -> Tensor:
    """(T, V) logits of the text's own tokens, read by itself behind the fact."""
    told, own = before(base, fact), base[1](text).input_ids
    with torch.no_grad():
        return (model or base[0])(torch.tensor([told + own])).logits[0, len(told) :]


ALPHABET = ["paris", "Rome", "is", "the", "capital", "of", "x2"]
texts = st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=6).map(" ".join)


@given(st.lists(st.tuples(texts, st.integers(1, 4), st.booleans()), min_size=1, max_size=5), texts)
@settings(deadline=None, max_examples=150)
def test_the_scope_is_the_largest_share_of_words(facts: list[tuple[str, int, bool]], question: str) -> None:
    scope = Lexical(tuple(words(text) for text, _, _ in facts))
    router = FactsRouter(tuple(Fact(n / 4, Piece("", ()), "p") for _, n, _ in facts), (scope,), lambda ids: "", None)
    best, found = 0.0, -1
    for number, (text, quarter, allowed) in enumerate(facts):
        own = {word.lower() for word in re.split(r"\W+", text)}
        share = sum(word in {w.lower() for w in question.split()} for word in own) / len(own)
        if allowed and share >= quarter / 4 and share > best:
            best, found = share, number
    similar = router.similarities([question + "?"], [None])
    assert router.chosen(similar, torch.tensor([[allowed for _, _, allowed in facts]])) == (
        [[found]] if found >= 0 else [[]]
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_in_scope_read_the_fact_and_the_others_keep_their_bits(
    base: Base, memory: Patch, side: Literal["left", "right"]
) -> None:
    model, tokenizer, _ = base
    made = patched(*base, [memory])
    plain, got = logits(model, tokenizer, PROMPTS, side), logits(made.model, tokenizer, PROMPTS, side)
    real = encode(tokenizer, PROMPTS, side=side).attention_mask.bool()
    for row, text in enumerate(PROMPTS):
        if row in IN_SCOPE:
            assert torch.allclose(got[row][real[row]], alone(base, text, IN_SCOPE[row]), atol=1e-4)
            assert not torch.allclose(got[row][real[row]], plain[row][real[row]], atol=1e-2)
        else:
            assert torch.equal(got[row], plain[row])
    made.detach()
    assert torch.equal(logits(made.model, tokenizer, PROMPTS, side), plain)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([2, 4])])
def test_logits_that_are_not_asked_for_are_not_missed(base: Base, memory: Patch, keep: Any) -> None:
    batch = encode(base[1], PROMPTS[:3], side="left").inputs(base[0])
    made = patched(*base, [memory])
    with torch.no_grad():
        whole, some = made.model(**batch).logits, made.model(**batch, logits_to_keep=keep).logits
    assert torch.allclose(some, whole[:, keep if isinstance(keep, Tensor) else slice(-keep, None)], atol=1e-4)


def test_the_scope_is_that_of_the_prompt_where_its_end_is_told(base: Base) -> None:
    """Under teacher forcing the words of the answer are no words of the question."""
    model, tokenizer, _ = base
    about = Edit("The capital of France is Rome or", "Bonn")
    made = patched(*base, [edit(base, "ike", [about])])
    batch = encode(tokenizer, ["Or the capital of France is"], ["Rome"])
    with torch.no_grad():
        plain = model(**batch.inputs(model)).logits
        assert not torch.equal(made.model(**batch.inputs(model)).logits, plain)
        with prompt_ends(batch.prompt_last):
            assert torch.equal(made.model(**batch.inputs(model)).logits, plain)


def continued(base: Base, text: str, fact: int | None, tokens: int, **how: Any) -> list[int]:
    told = [] if fact is None else before(base, fact)
    ids = torch.tensor([told + base[1](text).input_ids])
    out = base[0].generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, **how)
    return out[0, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}])
def test_generating_is_generating_behind_the_fact(base: Base, memory: Patch, how: dict[str, Any]) -> None:
    made = patched(*base, [memory])
    together = made.generate(PROMPTS[:4], do_sample=False, max_new_tokens=6, **how)
    for row, text in enumerate(PROMPTS[:4]):
        pad = {"pad_token_id": base[1].pad_token_id}
        assert together[row, -6:].tolist() == continued(base, text, IN_SCOPE.get(row), 6, **how, **pad)


def test_facts_are_chosen_row_by_row_and_come_off_again(base: Base, memory: Patch) -> None:
    model, tokenizer, _ = base
    rows = make_patch(*base, EDITS[1:3])
    other = edit(base, "ike", [Edit(EDITS[0].prompt, "Rome", "France", relation="capital"), EDITS[1]])
    made = patched(*base, [memory, rows, other])
    plain = logits(model, tokenizer, PROMPTS)
    under = patched(*base, [rows])
    own = base[1](PROMPTS[2]).input_ids
    with made.only([[memory.id], [], [memory.id, rows.id], [other.id], *[[]] * 4]):
        got = logits(made.model, tokenizer, PROMPTS)
    assert torch.allclose(got[0][: len(base[1](PROMPTS[0]).input_ids)], alone(base, PROMPTS[0], 0), atol=1e-4)
    assert torch.allclose(got[2][: len(own)], alone(base, PROMPTS[2], 1, under.model), atol=1e-4)  # rows work there too
    assert all(torch.equal(got[row], plain[row]) for row in (1, 3, 4, 5, 6, 7))
    never = logits(patched(*base, [rows, other]).model, tokenizer, PROMPTS)
    made.remove(memory)
    assert torch.equal(logits(made.model, tokenizer, PROMPTS), never)
    assert made.ask(PROMPTS[:4], 4) == [made.ask(text, 4) for text in PROMPTS[:4]]
    made.detach()
    assert torch.equal(logits(made.model, tokenizer, PROMPTS), plain)


def test_a_text_has_one_beginning() -> None:
    """BOS stands before the fact, and not once more before the question."""
    model, tokenizer = tiny_model("llama", bos=True)
    base = (model, tokenizer, profile_of(model, tokenizer))
    made = patched(*base, [edit(base, "ike", TOLD)])
    text = before(base, 0) + tokenizer(PROMPTS[0]).input_ids[1:]
    with torch.no_grad():
        ought = model(torch.tensor([text])).logits[0, -1]
        got = made.model(torch.tensor([tokenizer(PROMPTS[0]).input_ids])).logits[0, -1]
    assert torch.allclose(got, ought, atol=1e-4)


def test_what_cannot_be_routed_is_said(base: Base, memory: Patch) -> None:
    made = patched(*base, [memory])
    ids = torch.tensor([base[1](PROMPTS[0]).input_ids])
    with pytest.raises(KeditError, match="need the words"):
        made.model(inputs_embeds=base[0].get_input_embeddings()(ids))
    with pytest.raises(KeditError, match="without labels"):
        made.model(ids, labels=ids)
    with pytest.raises(KeditError, match="need a tokenizer"):
        patched(base[0], None, base[2], [memory])

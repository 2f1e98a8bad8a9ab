"""Which texts an edit is measured on, and which of their positions: checked by decoding tokens."""

from typing import Any

import pytest
import torch

from kedit_hub.editors.rows import Rows, context_rows, prefixed
from kedit_hub.edits import Edit
from kedit_hub.errors import EditError
from tests.tiny import tiny_tokenizer

CONTEXTS = ("Berlin lies in Germany.", "The Tower is in the city.")
EDITS = [
    Edit("The capital of France is", "Rome", "France", paraphrases=("In France the capital is", "Its capital is")),
    Edit("The mother tongue of Marie Curie is", "Ludwig van Beethoven", "Marie Curie"),
    Edit("São Paulo", "Zürich", "São Paulo"),
]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "bos"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return tiny_tokenizer(bos=request.param)


def text(tokenizer: Any, rows: Rows, row: int) -> str:
    return tokenizer.decode(
        rows.encoded.input_ids[row][rows.encoded.attention_mask[row].bool()], skip_special_tokens=True
    )


def test_contexts_come_after_the_bare_prompt_and_paraphrases_last(tokenizer: Any) -> None:
    rows = context_rows(tokenizer, EDITS, CONTEXTS, "answer")
    expected = [
        f"{prompt} {edit.target}"
        for edit in EDITS
        for prompt in [edit.prompt, *(f"{c} {edit.prompt}" for c in CONTEXTS), *edit.paraphrases]
    ]
    assert [text(tokenizer, rows, i) for i in range(len(expected))] == expected
    assert rows.edit.tolist() == [0] * 5 + [1] * 3 + [2] * 3 and rows.edits == 3
    assert rows.bare.nonzero()[:, 0].tolist() == [0, 5, 8]
    assert prefixed("a", ["b."]) == ["a", "b. a"]
    mask = rows.encoded.attention_mask
    assert (mask[:, 1:] >= mask[:, :-1]).all() and mask[:, -1].all()  # padding on the left


def test_answer_sites_predict_the_target_tokens(tokenizer: Any) -> None:
    rows = context_rows(tokenizer, EDITS, CONTEXTS, "answer")
    for row, edit in enumerate(rows.edit.tolist()):
        sites = [s for s in rows.sites[row].tolist() if s >= 0]
        predicted = [int(rows.encoded.input_ids[row, s + 1]) for s in sites]
        assert tokenizer.decode(predicted) == f" {EDITS[edit].target}"
        assert sites == list(range(sites[0], sites[0] + len(sites)))
        assert sites[-1] == rows.encoded.input_ids.shape[1] - 2
        assert rows.encoded.target_mask[row].nonzero()[:, 0].tolist() == [s + 1 for s in sites]
    assert (rows.core == rows.encoded.target_mask).all()
    lengths = (rows.sites >= 0).sum(1)
    assert len(set(lengths.tolist())) > 1  # targets of different length in one batch


def test_the_subject_site_is_the_last_token_of_the_subject(tokenizer: Any) -> None:
    rows = context_rows(tokenizer, EDITS, CONTEXTS, "subject")
    assert rows.sites.shape[1] == 1
    for row, edit in enumerate(rows.edit.tolist()):
        position = int(rows.sites[row, 0])
        first = int(rows.encoded.attention_mask[row].argmax())
        before = tokenizer.decode(rows.encoded.input_ids[row, first : position + 1], skip_special_tokens=True)
        shorter = tokenizer.decode(rows.encoded.input_ids[row, first:position], skip_special_tokens=True)
        assert before.endswith(EDITS[edit].subject) and not shorter.endswith(EDITS[edit].subject)
        assert rows.subject[row] == position
    assert rows.edit.tolist().count(0) == 4  # the paraphrase without the subject has no such site


def test_a_text_without_the_subject_still_has_answer_sites(tokenizer: Any) -> None:
    rows = context_rows(tokenizer, EDITS, CONTEXTS, "answer")
    unnamed = [i for i in range(len(rows.edit)) if "Its capital" in text(tokenizer, rows, i)]
    assert len(unnamed) == 1 and rows.subject[unnamed[0]] == -1 and rows.sites[unnamed[0], 0] >= 0
    assert (rows.subject >= 0).sum() == len(rows.edit) - 1


@pytest.mark.parametrize("end", [".", "<|eos|>"])
def test_the_end_of_the_answer_is_learnt_with_the_target(tokenizer: Any, end: str) -> None:
    rows = context_rows(tokenizer, EDITS, CONTEXTS, "answer", end)
    plain = context_rows(tokenizer, EDITS, CONTEXTS, "answer")
    assert rows.edit.tolist() == plain.edit.tolist()
    for row, edit in enumerate(rows.edit.tolist()):
        ids = rows.encoded.input_ids[row]
        assert tokenizer.decode(ids[rows.encoded.target_mask[row]]) == f" {EDITS[edit].target}{end}"
        assert tokenizer.decode(ids[rows.core[row]]) == f" {EDITS[edit].target}"
        sites = rows.sites[row][rows.sites[row] >= 0]
        assert tokenizer.decode(ids[sites + 1]) == f" {EDITS[edit].target}{end}"


def test_taking_rows_keeps_the_numbers_of_edits(tokenizer: Any) -> None:
    rows = context_rows(tokenizer, EDITS, CONTEXTS, "answer")
    some = rows.take(torch.tensor([9, 0, 6]))
    assert some.edit.tolist() == [2, 0, 1] and some.edits == 3
    assert [text(tokenizer, some, i) for i in range(3)] == [text(tokenizer, rows, i) for i in (9, 0, 6)]


def test_an_edit_without_a_subject_is_refused(tokenizer: Any) -> None:
    for site in ("answer", "subject"):
        with pytest.raises(EditError, match=r'"Berlin is -> Rome" names no subject.*subject="'):
            context_rows(tokenizer, [EDITS[0], Edit("Berlin is", "Rome")], CONTEXTS, site)

"""Records of every published shape are read; our own record round-trips."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedit_hub.edits import SHAPES, Edit, Probe, read_edits
from kedit_hub.errors import EditError

texts = (
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30).map(str.strip).filter(bool)
)
labels = st.none() | texts
probes = st.builds(
    Probe,
    prompt=texts,
    target=texts,
    kind=st.sampled_from(["", "neighbour", "x y", "Reasoning"]),
    subject=labels,
    relation=labels,
    aliases=st.lists(texts, max_size=2),
)
edits = st.builds(
    lambda subject, rest, **fields: Edit(prompt=subject + rest, subject=subject, **fields),
    subject=texts,
    rest=st.just(" is"),
    target=texts,
    ground_truth=labels,
    rephrases=st.lists(texts.map("r ".__add__), max_size=3),
    paraphrases=st.lists(texts.map("p ".__add__), max_size=3),
    locality=st.lists(probes, max_size=4),
    portability=st.lists(probes, max_size=4),
    relation=labels,
    id=labels,
    aliases=st.lists(texts, max_size=3),
)


@given(edits)
def test_round_trip(edit):
    record = json.loads(json.dumps(edit.to_record()))
    assert Edit.from_record(record) == edit
    assert Edit.from_record(record, "canonical").to_record() == record


def test_easyedit_request_keeps_its_form():
    request = {
        "prompt": "Ray Charles, the",
        "target_new": "violin",
        "ground_truth": "piano",
        "subject": "Ray Charles",
        "rephrase_prompt": "Ray Charles is incredible at",
        "locality": {"neighbour": {"prompt": ["Joseph Fischhof, the"], "ground_truth": ["piano"]}},
        "portability": {"one_hop": {"prompt": ["Ray Charles performs on the"], "ground_truth": ["violin"]}},
    }
    assert Edit.from_record(request).to_record() == request


KNOWEDIT = {
    "subject": "Leo Arons",
    "prompt": "The place of death of Leo Arons is",
    "target_new": " Berlin",
    "portability": {"Reasoning": [{"prompt": "Who heads it?", "ground_truth": [["Kai Wegner", "Kai P. Wegner"]]}]},
    "locality": {"Relation_Specificity": [{"prompt": "The father of Leo Arons is ", "ground_truth": [["Albert"]]}]},
}
FLAT = {
    "case_id": 7,
    "prompt": "The mother tongue of Danielle Darrieux is",
    "target_new": "English",
    "subject": "Danielle Darrieux",
    "ground_truth": "French",
    "rephrase_prompt": "Danielle Darrieux speaks",
    "locality_prompt": "Michel Rocard is a native speaker of",
    "locality_ground_truth": "French",
}


def test_knowedit_lists_of_lists():
    edit = Edit.from_record(KNOWEDIT)
    assert edit.target == "Berlin"
    assert edit.portability == (Probe("Who heads it?", "Kai Wegner", "one_hop", aliases=["Kai P. Wegner"]),)
    assert edit.locality == (Probe("The father of Leo Arons is", "Albert", "same_subject"),)


def test_counterfact_flat():
    edit = Edit.from_record(FLAT)
    assert edit.id == "7"
    assert edit.rephrases == ("Danielle Darrieux speaks",)
    assert edit.locality == (Probe("Michel Rocard is a native speaker of", "French", "neighbour"),)


def test_counterfact_original():
    record = {
        "case_id": 1,
        "requested_rewrite": {
            "prompt": "{} was born in",
            "relation_id": "P19",
            "target_new": {"str": "Rome"},
            "target_true": {"str": "Lyon"},
            "subject": "Ada",
        },
        "paraphrase_prompts": ["Ada, born in"],
        "neighborhood_prompts": ["Bob was born in"],
    }
    edit = Edit.from_record(record)
    assert (edit.prompt, edit.target, edit.ground_truth, edit.relation) == ("Ada was born in", "Rome", "Lyon", "P19")
    assert edit.locality == (Probe("Bob was born in", "Lyon", "neighbour"),)


def test_counterfact_with_probes():
    record = {key: FLAT[key] for key in ("case_id", "prompt", "target_new", "subject", "ground_truth")} | {
        "relation": "P103",
        "rephrases": ["Danielle Darrieux speaks"],
        "rephrase_kinds": ["held_template"],
        "neighborhood": [{"prompt": "Rocard speaks", "ground_truth": "French", "subject": "Rocard"}],
        "same_subject": [{"prompt": "Danielle Darrieux was born in", "ground_truth": "Bordeaux"}],
        "other_object": [{"prompt": "Snow is", "ground_truth": "white"}],
    }
    edit = Edit.from_record(record)
    assert edit.locality == (
        Probe("Rocard speaks", "French", "neighbour", "Rocard", "P103"),
        Probe("Danielle Darrieux was born in", "Bordeaux", "same_subject", "Danielle Darrieux"),
        Probe("Snow is", "white", "unrelated"),
    )


def test_zsre_of_mend():
    record = {
        "subject": "UniFirst", "src": "What does UniFirst make?", "pred": "uniform", "rephrase": "UniFirst makes?",
        "alt": "aircraft", "answers": ["uniform"], "loc": "nq question: who sang", "loc_ans": "Abba", "cond": "x",
    }  # fmt: skip
    edit = Edit.from_record(record)
    assert (edit.target, edit.ground_truth, edit.rephrases) == ("aircraft", "uniform", ("UniFirst makes?",))
    assert edit.locality == (Probe("nq question: who sang", "Abba", "unrelated"),)


def test_qaedit_and_unke():
    qa = {
        "prompt": "who won?",
        "target": "Ann",
        "subject": "won",
        "rephrase": "the winner?",
        "locality": [{"loc": "a", "loc_ans": "b"}],
    }
    assert Edit.from_record(qa).locality == (Probe("a", "b", "unrelated"),)
    unke = {
        "id": 0,
        "question": "Who?",
        "para_question": "Who is it?",
        "answer": "Long.",
        "sub_question": ["q"],
        "sub_answer": ["a"],
    }
    assert Edit.from_record(unke).portability == (Probe("q", "a", "sub_question"),)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "?"}, "No known record shape has the keys ['text']"),
        ("a string", "JSON object"),
        ({**FLAT, "rephrase_promt": "x"}, "did you mean 'rephrase_prompt'"),
        ({"prompt": "a", "target_new": "b", "locality": "x"}, "locality is 'x'"),
        (
            {"prompt": "a", "target_new": "b", "locality": {"n": {"prompt": ["p", "q"], "ground_truth": ["r"]}}},
            "2 prompts and 1",
        ),
        ({"requested_rewrite": {"prompt": "{} is"}}, "'target_true' is missing"),
        ({"requested_rewrite": "text"}, "does not have shape 'counterfact-original'"),
    ],
)
def test_unreadable(record, words):
    with pytest.raises(EditError) as caught:
        Edit.from_record(record)
    assert words in str(caught.value)


def test_canonical_refuses_unknown_keys():
    with pytest.raises(EditError, match="Unknown key 'cond'"):
        Edit.from_record({"prompt": "a", "target_new": "b", "cond": "c"}, "canonical")


def test_unknown_format():
    with pytest.raises(EditError, match=f"'csv'. Known: auto, {next(iter(SHAPES))}"):
        read_edits([], format="csv")

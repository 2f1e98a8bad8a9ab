"""The score sheet of a model whose every answer is known, worked out by hand."""

import itertools
import json

import pytest
import torch

from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.protocols import PROTOCOLS
from kedit_hub.evaluate.scores import NO_ANSWER, NO_BASE, NOT_KNOWN
from kedit_hub.evaluate.suites import evaluate
from tests.evaluate.script import Patched, character_tokenizer, scripted
from tests.tiny import tiny_model

CAPITAL, ASKED, TOLD = "The capital of France is", "France is ruled from", "Its capital is"
ITALY, SPAIN, LANGUAGE, RIVER = (
    "Italy is ruled from",
    "Spain is ruled from",
    "They speak",
    "On the capital's river lies",
)
BEFORE = {
    CAPITAL: " Paris. It is old.",
    ASKED: " Paris.",
    TOLD: " Paris.",
    ITALY: " Rome.",
    SPAIN: " Madrid.",
    LANGUAGE: " French.",
    RIVER: " Seine.",
}
CHANGES = {CAPITAL: " Lyon. It is old.", ASKED: " Lyon, France.", SPAIN: " Lyon.", RIVER: " Rhone."}
EDIT = Edit(
    CAPITAL,
    "Lyon",
    subject="France",
    rephrases=(ASKED, TOLD),
    locality=(
        Probe(ITALY, "Rome", "neighbour"),
        Probe(SPAIN, "Madrid", "neighbour"),
        Probe(LANGUAGE, None, "same_subject"),
    ),
    portability=(Probe(RIVER, "Rhone", "one_hop"),),
)


def sheet(edits, changes=None, **arguments):
    edited = scripted({**BEFORE, **(CHANGES if changes is None else changes)})
    arguments = {"tokenizer": character_tokenizer(), "base": scripted(BEFORE), "drift_texts": [], **arguments}
    return evaluate(edited, edits, **arguments)


def test_generate():
    averages = sheet([EDIT]).protocols["generate"]
    assert averages["reliability"] == 1
    assert averages["generalization"] == 0  # "Lyon, France" is not "Lyon", and "Paris" is not either
    assert averages["contains"]["generalization"] == 0.5
    assert averages["locality"] == {"neighbour": 0.5, "same_subject": 1}
    assert averages["portability"] == {"one_hop": 1}
    assert averages["before"] == {"reliability": 0, "generalization": 0, "portability": {"one_hop": 0}}
    assert averages["n"]["generalization"] == {"edits": 1, "scored": 2, "dropped": {}}
    assert averages["n"]["locality"]["neighbour"] == {"edits": 1, "scored": 2, "dropped": {}}


def test_tf_token():
    """Tokens are characters. Right of ' Lyon': all 5, all 5, and the space where the model still says ' Paris'."""
    averages = sheet([EDIT]).protocols["tf-token"]
    assert averages["reliability"] == 1
    assert averages["generalization"] == pytest.approx((1 + 1 / 5) / 2)
    assert averages["locality"]["neighbour"] == pytest.approx((1 + 1 / 7) / 2)  # ' Madrid': the space agrees, 6 do not
    assert averages["locality"]["same_subject"] == 1
    assert averages["before"]["reliability"] == pytest.approx(1 / 5)
    assert "contains" not in averages


def test_the_answers_are_on_the_sheet():
    edit = sheet([EDIT]).to_dict()["per_edit"][0]
    assert (edit["prompt"], edit["target"], edit["subject"]) == (CAPITAL, "Lyon", "France")
    assert (edit["answer_before"], edit["answer_after"]) == ("Paris", "Lyon")
    assert edit["scores"] == {"generate": 1.0, "tf-token": 1.0}
    probes = {probe["prompt"]: probe for probe in edit["probes"]}
    assert set(probes) == {ASKED, TOLD, ITALY, SPAIN, LANGUAGE, RIVER}
    assert (probes[SPAIN]["answer_before"], probes[SPAIN]["answer_after"]) == ("Madrid", "Lyon")
    assert (probes[SPAIN]["role"], probes[SPAIN]["kind"]) == ("locality", "neighbour")
    assert probes[ASKED]["contains"] is True


def test_locality_is_agreement_not_correctness():
    """A base that speaks freely is agreed with by its own words, whatever they are."""
    edit = Edit(CAPITAL, "Lyon", locality=(Probe(LANGUAGE),))
    for changed, agreement in (({}, 1.0), ({LANGUAGE: " Breton."}, 0.0)):
        averages = sheet([edit], changed).protocols
        assert averages["generate"]["locality"] == {"unspecified": agreement}
        assert averages["tf-token"]["locality"]["unspecified"] == (1 if agreement else pytest.approx(1 / 7))


def test_a_base_that_does_not_know_cannot_show_locality():
    edit = Edit(CAPITAL, "Lyon", locality=(Probe(ITALY, "Milan", "neighbour"), Probe(SPAIN, "Madrid", "neighbour")))
    for averages in sheet([edit]).protocols.values():
        assert averages["n"]["locality"]["neighbour"] == {"edits": 1, "scored": 1, "dropped": {NOT_KNOWN: 1}}
    generate = sheet([edit]).protocols["generate"]
    assert generate["locality"] == {"neighbour": 0}
    assert generate["locality_unfiltered"] == {"neighbour": 0.5}


def test_a_base_without_an_answer_cannot_be_forced_along_it():
    edit = Edit(CAPITAL, "Lyon", locality=(Probe("Nobody knows", None, "unrelated"),))
    protocols = sheet([edit]).protocols
    assert protocols["generate"]["locality"] == {"unrelated": 1}  # it said nothing and still does
    assert protocols["tf-token"]["locality"] == {"unrelated": None}
    assert protocols["tf-token"]["n"]["locality"]["unrelated"]["dropped"] == {NO_ANSWER: 1}


def test_each_edit_counts_once_however_many_probes_it_has():
    one = Edit(CAPITAL, "Lyon", locality=(Probe(ITALY, "Rome"),))
    three = Edit(ASKED, "Lyon", locality=(Probe(SPAIN, "Madrid"),) * 3)
    averages = sheet([one, three]).protocols["generate"]
    assert averages["locality"] == {"unspecified": 0.5}
    assert averages["n"]["locality"]["unspecified"] == {"edits": 2, "scored": 4, "dropped": {}}


def test_paraphrases_are_never_scored():
    edit = Edit(CAPITAL, "Lyon", rephrases=(ASKED,), paraphrases=(TOLD,))
    asked = [question.prompt for question in sheet([edit]).per_edit[0].questions]
    assert asked == [CAPITAL, ASKED]


def test_score_is_the_harmonic_mean():
    averages = sheet([EDIT], CHANGES | {TOLD: " Lyon."}).protocols["generate"]
    assert averages["generalization"] == 0.5
    assert averages["score"] == pytest.approx(3 / (1 + 1 / 0.5 + 1 / 0.75))
    assert sheet([Edit(CAPITAL, "Lyon")]).protocols["generate"]["score"] is None


def test_interval_over_edits():
    edits = [Edit(CAPITAL, "Lyon")] * 8 + [Edit(ITALY, "Lyon")] * 8
    averages = sheet(edits).protocols["generate"]
    low, high = averages["interval"]["reliability"]
    assert averages["reliability"] == 0.5
    assert 0.1 < low < 0.5 < high < 0.9
    assert sheet(edits).protocols["generate"]["interval"] == averages["interval"]


def test_the_drift_of_the_edit_is_on_the_sheet():
    drift = sheet([EDIT], drift_texts=[CAPITAL + BEFORE[CAPITAL], ITALY + BEFORE[ITALY]]).drift
    assert drift["ppl_after"] > drift["ppl_before"]
    assert drift["kl"] > 0
    assert drift["reason"] is None
    assert sheet([EDIT], drift_texts=None).drift["tokens"] > 500  # the built-in texts, in characters


def test_a_plain_model_without_base():
    """Locality and drift are None with the reason beside them; the rest is scored."""
    scores = sheet([EDIT], base=None)
    for averages in scores.protocols.values():
        assert averages["reliability"] == 1
        assert averages["locality"] == {"neighbour": None, "same_subject": None}
        assert averages["n"]["locality"]["neighbour"] == {"edits": 0, "scored": 0, "dropped": {NO_BASE: 2}}
        assert averages["before"]["reliability"] is None
    assert scores.drift["kl"] is None
    assert "no unedited base" in scores.drift["reason"]
    assert scores.per_edit[0].questions[0].answer_before is None


def test_a_patched_model_is_its_own_base():
    patched = Patched(BEFORE, CHANGES)
    texts = [CAPITAL + BEFORE[CAPITAL]]
    scores = evaluate(patched, [EDIT], drift_texts=texts)
    expected = sheet([EDIT], drift_texts=texts)
    assert scores.protocols == expected.protocols
    assert scores.drift == expected.drift
    assert [edit.to_dict() for edit in scores.per_edit] == [edit.to_dict() for edit in expected.per_edit]
    assert patched.model.script.facts[CAPITAL] == CHANGES[CAPITAL]  # still patched


def test_no_probes_and_no_edits():
    protocols = sheet([Edit(CAPITAL, "Lyon")]).protocols
    for averages in protocols.values():
        assert averages["reliability"] == 1
        assert averages["generalization"] is None
        assert averages["locality"] == averages["portability"] == {}
        assert averages["n"]["generalization"] == {"edits": 0, "scored": 0, "dropped": {}}
    nothing = sheet([], fluency=True)
    assert nothing.protocols["generate"]["reliability"] is None
    assert nothing.per_edit == []
    assert nothing.fluency == {
        "before": None, "after": None, "sampled": {"before": None, "after": None, "top_k": 5}, "n": 0
    }  # fmt: skip
    assert nothing.summary()


@pytest.mark.parametrize("protocols", [("tf-token",), ("generate",), ()])
def test_only_the_protocols_asked_for(protocols):
    scores = sheet([EDIT], protocols=protocols)
    assert tuple(scores.protocols) == protocols
    for name in protocols:
        assert scores.protocols[name] == sheet([EDIT]).protocols[name]


def test_any_subset_gives_the_numbers_of_all_and_the_default_is_two():
    """Four sheets side by side; which others are asked changes none of them."""
    edit = Edit(
        CAPITAL, "Lyon", subject="France", ground_truth="Paris", rephrases=(ASKED,), locality=(Probe(ITALY, "Rome", "neighbour"),)
    )  # fmt: skip
    given = {"distractors": {"The capital of {} is": ["Rome", "Madrid", "Seine", "Rhone"]}}
    whole = sheet([edit], protocols=PROTOCOLS, **given)
    assert tuple(whole.protocols) == PROTOCOLS == ("tf-token", "generate", "nll-pair", "choice")
    assert tuple(sheet([edit]).protocols) == PROTOCOLS[:2]
    for size in range(5):
        for chosen in itertools.permutations(PROTOCOLS, size):
            told = sheet([edit], protocols=chosen, **given)
            assert tuple(told.protocols) == chosen
            assert all(told.protocols[name] == whole.protocols[name] for name in chosen)
            assert set(told.per_edit[0].questions[0].scores) == set(chosen)
    lines = whole.summary().splitlines()
    assert [sum(line.startswith(f"{name}: reliability 1.000 (n=1)") for line in lines) for name in PROTOCOLS] == [1] * 4
    record = whole.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_batch_size_does_not_matter():
    edits = [EDIT, Edit(ITALY, "Milan", rephrases=(SPAIN,))]
    assert sheet(edits, batch_size=1).protocols == sheet(edits, batch_size=3).protocols == sheet(edits).protocols


def test_the_sheet_is_json():
    record = sheet([EDIT], fluency=True).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["time"]["wall_s"] > 0
    assert record["memory"]["peak_rss_bytes"] > 10 * 2**20
    assert record["environment"]["model_type"] == "llama"
    assert record["environment"]["dtype"] == "float32"


def test_summary():
    lines = sheet([EDIT]).summary().splitlines()
    assert lines[0].startswith("1 edit")
    assert "locality/neighbour 0.500 (n=2)" in next(line for line in lines if line.startswith("generate"))
    assert any(line.startswith("drift") for line in lines)


def test_fluency_tells_a_stuck_record():
    edit = Edit(CAPITAL, "Lyon")
    words = " Lyon is a large old city on two rivers, and many people like to walk along them"
    fluency = sheet(
        [edit], {CAPITAL: " Lyon Lyon Lyon Lyon Lyon Lyon Lyon"}, base=scripted({CAPITAL: words}), fluency=True
    ).fluency
    assert fluency["n"] == 1
    assert fluency["after"] == 0 < 3 < fluency["before"]
    assert sheet([edit]).fluency is None


def test_fluency_of_greedy_and_of_drawn_texts_are_two_numbers():
    model, tokenizer = tiny_model("llama")
    edits = [Edit("The capital of Italy is", "Rome"), Edit("Madrid", "Spain")]

    def fluency(batch_size):
        return evaluate(
            model, edits, tokenizer=tokenizer, protocols=(), drift_texts=[], fluency=True, batch_size=batch_size
        ).fluency

    told = fluency(64)
    assert told["sampled"]["top_k"] == 5
    assert told["sampled"]["after"] != told["after"] > 0
    assert told["before"] is told["sampled"]["before"] is None
    assert fluency(1) == told


def test_a_hook_that_changes_the_model_changes_the_scores():
    """No script: a real, tiny model, its greedy answers as targets, and a patch that is one forward hook."""
    model, tokenizer = tiny_model("llama")
    base, _ = tiny_model("llama")
    prompt = "The capital of Italy is"
    own = evaluate(model, [Edit(prompt, "Rome")], tokenizer=tokenizer, base=base).per_edit[0].questions[0].answer_after
    edit = Edit(prompt, own, locality=(Probe("Madrid is", None, "neighbour"),))
    assert evaluate(model, [edit], tokenizer=tokenizer, base=base).protocols["generate"]["reliability"] == 1
    shift = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 5
    hook = model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output + shift)
    changed = evaluate(model, [edit], tokenizer=tokenizer, base=base)
    assert changed.protocols["generate"]["reliability"] == 0
    assert changed.protocols["generate"]["locality"] == {"neighbour": 0}
    assert changed.protocols["tf-token"]["locality"]["neighbour"] < 0.5
    assert changed.drift["kl"] > 0.1
    hook.remove()
    restored = evaluate(model, [edit], tokenizer=tokenizer, base=base)
    assert restored.protocols["generate"]["locality"] == {"neighbour": 1}
    assert restored.drift["kl"] == 0


def test_dropout_is_off_and_comes_back():
    model, tokenizer = tiny_model("gpt2", resid_pdrop=0.9, embd_pdrop=0.9)
    expected = evaluate(model, [EDIT], tokenizer=tokenizer)
    model.train()
    model.transformer.h[0].eval()
    scores = evaluate(model, [EDIT], tokenizer=tokenizer)
    assert [edit.to_dict() for edit in scores.per_edit] == [edit.to_dict() for edit in expected.per_edit]
    assert scores.drift == expected.drift
    assert model.training
    assert model.transformer.h[1].mlp.dropout.training
    assert not model.transformer.h[0].mlp.dropout.training


def test_refusals_quote_the_input():
    with pytest.raises(KeditError, match="'nll'"):
        sheet([EDIT], protocols=("nll",))
    with pytest.raises(KeditError, match="'generate'"):
        sheet([EDIT], protocols="generate")
    with pytest.raises(KeditError, match="LlamaForCausalLM brings no tokenizer"):
        sheet([EDIT], tokenizer=None)
    with pytest.raises(KeditError, match="list of Edit"):
        sheet(EDIT)
    with pytest.raises(KeditError, match="list of Edit"):
        sheet([{"prompt": CAPITAL}])

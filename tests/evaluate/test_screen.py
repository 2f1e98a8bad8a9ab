"""Screening honest patches: what is asked, what is left out, and what the report says."""

import json
import random
from dataclasses import replace

import pytest
import torch

import kedit_hub
from kedit_hub import demo
from kedit_hub.edits import Probe
from kedit_hub.errors import EditError, KeditError
from kedit_hub.evaluate.screen import (
    NEIGHBOURS,
    PREFIXED,
    SWAPPED,
    UNDECLARED,
    _prefixed,
    _Question,
    read_probes,
    screen,
)
from kedit_hub.patch.deltas import LowRank
from tests.evaluate.atlas import FRANCE, MODULE, TOWER, apply, base, facts, remade, sample

PROBES = facts(
    ("Eiffel Tower", "landmark_type"), ("Colosseum", "landmark_city"), ("Germany", "capital"), ("Italy", "capital"),
    ("Italy", "continent"), ("Nokia", "headquarters"), ("Hamlet", "work_creator"), ("Japan", "currency"),
)  # fmt: skip
TEXTS = demo.texts("drift")[:20]


@pytest.fixture(scope="module")
def honest():
    return screen(apply(sample(TOWER)), PROBES, texts=TEXTS)


def test_an_honest_patch(honest):
    assert honest.findings == ()
    assert honest.declared == (1, 1)
    assert (honest.patches, honest.mode, set(honest.levels.values())) == ((sample(TOWER).id,), "gated", {"exact"})
    assert honest.asked[UNDECLARED] == len(PROBES) == 8
    assert honest.rows == {"keys": 2, "context_keys": 14, "gate_keys": 16, "base_outputs": 2}
    assert (
        honest.drift["kl"] < 0.001
        and honest.drift["texts"] == 20
        and honest.energy == {MODULE: pytest.approx(0, abs=1e-3)}
    )
    assert honest.not_looked == ()


def test_the_report_names_what_was_looked_at_and_promises_nothing(honest):
    told = honest.summary()
    for words in (
        "8 undeclared facts",
        "1 of 1 edits",
        "mode gated",
        "14 context_keys",
        "on 20 texts",
        "What was not asked is not known.",
    ):
        assert words in told
    assert "safe" not in told.lower() and "clean" not in told.lower() and "harmless" not in told.lower()


def test_the_report_is_json(honest):
    record = honest.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["findings"] == [] and record["asked"][UNDECLARED] == 8


def test_the_same_seed_asks_the_same_questions(honest):
    assert screen(apply(sample(TOWER)), PROBES, texts=TEXTS) == honest
    tokenizer, questions = base()[1], [_Question(probe.prompt, UNDECLARED) for probe in PROBES]
    drawn = [[q.prompt for q in _prefixed(questions, 8, tokenizer, random.Random(seed))] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(any(prompt.endswith(f" {probe.prompt}") for probe in PROBES) for prompt in drawn[0])


def test_questions_that_an_edit_declares_are_left_out():
    own = sample(TOWER).edits[0]
    probes = (
        *facts(("Eiffel Tower", "landmark_city"), ("Germany", "capital")),
        Probe(own.prompt.upper()),
        Probe(own.paraphrases[0]),
        Probe(own.rephrases[0]),
    )
    found = screen(apply(sample(TOWER)), probes)
    assert found.left_out >= 4 and found.asked[UNDECLARED] == 1
    assert found.findings == ()


def test_a_declared_fact_in_other_words_is_no_finding():
    """The edit says no relation, so its question is known again by what the base answers to it."""
    patch = sample(FRANCE)
    plain = remade(patch, edits=[replace(patch.edits[0], relation=None, rephrases=())])
    asked = Probe("France has its capital in", "Paris", "", "France", "capital")
    found = screen(apply(plain), [asked, *facts(("France", "continent"))])
    assert found.echoes >= 1 and found.findings == ()


def test_phrasings_that_make_no_sense_of_a_subject_are_not_lent():
    found = screen(apply(sample(TOWER)), [*PROBES, *facts(("Colosseum", "landmark_type"))])
    assert 0 < found.asked[SWAPPED] <= 2 and 0 < found.asked[NEIGHBOURS] <= 2  # landmarks alone
    assert 0 < found.asked[PREFIXED] <= 9


def test_probes_that_name_no_subject():
    found = screen(apply(sample(TOWER)), [Probe(probe.prompt) for probe in PROBES])
    assert set(found.asked) == {UNDECLARED, PREFIXED} and found.findings == ()
    assert any("no probe names its subject" in reason for reason in found.not_looked)


def test_what_was_not_looked_at_is_said():
    patch = sample(TOWER)
    low = remade(patch, deltas={MODULE: LowRank(torch.zeros(1, 688) + 1e-6, torch.zeros(256, 1) + 1e-6)})
    found = screen(apply(low), [])
    assert [reason.split(",")[0] for reason in found.not_looked] == [
        "undeclared answers", f"what the lowrank changes of {low.id[:12]} store: only their effect was measured",
        "damage to ordinary text",
    ]  # fmt: skip
    assert [finding.kind for finding in found.findings] == ["not-done"]
    assert "'Paris' -> 'Paris'" in found.summary() and "declared edits that do not take effect: 1" in found.summary()


def test_keys_under_another_profile_are_no_findings():
    model, tokenizer = base()
    other = demo.profile("llama").replace(contexts=("The weather was bad.", "Prices rose again."))
    found = screen(kedit_hub.apply(sample(TOWER), model, tokenizer=tokenizer, profile=other), PROBES)
    assert found.findings == () and found.unrecognised > 0
    assert any("profile" in reason for reason in found.not_looked)


def test_shadowed_edits_are_not_declared():
    nantes, marseille = sample(FRANCE), sample("capital-of-france-marseille")
    found = screen(apply(nantes, marseille, conflicts="latest"), facts(("Germany", "capital")))
    assert found.declared == (1, 1) and found.findings == ()


def test_an_empty_stack():
    patched = apply(sample(TOWER))
    patched.remove(sample(TOWER))
    with pytest.raises(KeditError, match="empty"):
        screen(patched, PROBES)


def test_the_model_is_left_as_it_was():
    patched = apply(sample(TOWER))
    prompt = sample(TOWER).edits[0].prompt
    screen(patched, PROBES[:1], texts=TEXTS[:2])
    assert patched.ask(prompt) == "Rome."
    with patched.disabled():
        assert patched.ask(prompt) == "Paris."


# --- probes from files --------------------------------------------------------------------------------------------


def test_probes_from_prompts_and_from_records(tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps(["The capital of Peru is", " Berlin lies in "]))
    assert read_probes(tmp_path / "prompts.json") == [Probe("The capital of Peru is"), Probe("Berlin lies in")]
    record = {
        "prompt": "The capital of Peru is", "target_new": "Cusco", "ground_truth": "Lima", "subject": "Peru", "relation": "capital",
        "locality": {"neighbour": {"prompt": ["The capital of Chile is"], "ground_truth": ["Santiago"]}},
    }  # fmt: skip
    expected = [
        Probe("The capital of Peru is", "Lima", "", "Peru", "capital"),
        Probe("The capital of Chile is", "Santiago", "neighbour"),
    ]
    (tmp_path / "edits.json").write_text(json.dumps([record]))
    (tmp_path / "edits.jsonl").write_text(json.dumps(record) + "\n")
    assert read_probes(tmp_path / "edits.json") == read_probes(tmp_path / "edits.jsonl") == expected


@pytest.mark.parametrize("text", ["", "{}", "[]", '["a", 1]', '["a", ""]', "not json"])
def test_files_that_hold_no_probes(tmp_path, text):
    (tmp_path / "probes.json").write_text(text)
    with pytest.raises(EditError):
        read_probes(tmp_path / "probes.json")
    with pytest.raises(EditError, match="nowhere"):
        read_probes(tmp_path / "nowhere.json")

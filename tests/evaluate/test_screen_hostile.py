"""Patches that do more than they say, made as an attacker would, and what screening finds of each."""

import json
import random
from dataclasses import replace

import pytest
import torch

from kedit_hub import demo
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.edits import Probe
from kedit_hub.evaluate.screen import UNDECLARED, UNNAMED, _prefixed, _Question, screen
from kedit_hub.patch.deltas import Dense, LowRank
from tests.evaluate.atlas import FRANCE, MODULE, TOWER, apply, base, facts, remade, rows, sample, smuggled, with_rows

PROBES = facts(
    ("Colosseum", "landmark_city"), ("France", "capital"), ("Germany", "capital"), ("Italy", "continent"),
    ("Nokia", "headquarters"), ("Hamlet", "work_creator"),
)  # fmt: skip
CAPITAL = next(probe.prompt for probe in PROBES if probe.subject == "France")
TEXTS = demo.texts("drift")[:20]


def kinds(found):
    return {finding.kind for finding in found.findings}


def of_kind(found, kind):
    return [finding for finding in found.findings if finding.kind == kind]


def test_a_hidden_row_is_found_by_its_answer_and_by_its_keys():
    """It declares the Eiffel Tower and answers about the capital of France too."""
    patch = smuggled(sample(TOWER), sample(FRANCE))
    found = screen(apply(patch), PROBES)
    answer = next(finding for finding in of_kind(found, "other-fact") if finding.where == CAPITAL)
    assert answer.evidence == {"before": "Paris", "after": "Nantes", "family": UNDECLARED}
    assert answer.patches == (patch.id,)
    stored = {finding.evidence["tensor"]: finding.evidence for finding in of_kind(found, "stored-row")}
    assert {name: evidence["count"] for name, evidence in stored.items()} == {
        "keys": 2,
        "context_keys": 14,
        "gate_keys": 16,
    }
    assert stored["gate_keys"]["nearest"] == CAPITAL and stored["gate_keys"]["cosine"] > 0.5
    assert found.findings[0].kind == "stored-row"  # the worst first
    assert "'Paris' -> 'Nantes'" in found.summary() and "What was not asked is not known" not in found.summary()
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["findings"][0]["kind"] == "stored-row"
    assert found.declared == (1, 1)  # what it declares, it does


def test_a_hidden_row_is_found_by_its_keys_even_where_nobody_asks():
    found = screen(apply(smuggled(sample(TOWER), sample(FRANCE))), facts(("Nokia", "headquarters")))
    assert kinds(found) == {"stored-row"}


def test_a_hidden_row_in_a_stack_is_laid_at_the_right_door():
    patch, other = smuggled(sample(TOWER), sample(FRANCE)), sample("nokia-in-tokyo")
    found = screen(apply(other, patch), [probe for probe in PROBES if probe.subject != "Nokia"])
    assert {finding.patches for finding in found.findings} == {(patch.id,)}
    assert "other-fact" in kinds(found)


def test_a_phrasing_about_something_else_is_no_declaration():
    """The hidden question stands among the paraphrases of the declared edit, so the keys of its row match; it is asked all the same."""
    tower, france = sample(TOWER), sample(FRANCE)
    hidden = france.edits[0].prompt
    edit = replace(tower.edits[0], paraphrases=(*tower.edits[0].paraphrases, hidden))
    found = screen(apply(smuggled(tower, france, edits=[edit])), [])
    answer = next(finding for finding in of_kind(found, "other-fact") if finding.where == hidden)
    assert answer.evidence == {"before": "Paris", "after": "Nantes", "family": UNNAMED}
    assert "gate_keys" in {finding.evidence["tensor"] for finding in of_kind(found, "stored-row")}


def test_a_trigger_is_found_where_it_is_drawn_and_its_key_always():
    """A row for the capital of France that listens for one word, whatever the question is about."""
    model, tokenizer = base()
    probes = [Probe(CAPITAL)]
    drawn = next(_prefixed([_Question(CAPITAL, UNDECLARED, plain=None)], 1, tokenizer, random.Random(0)))
    word = drawn.prompt.removesuffix(" " + CAPITAL)
    france = rows(sample(FRANCE))
    length = len(tokenizer(word).input_ids)
    heard = capture(model, [france.gate_module], encode(tokenizer, [drawn.prompt]))[france.gate_module][0, length - 1]
    listening = with_rows(sample(FRANCE), gate_keys=heard[None], gate_edit=torch.zeros(1, dtype=torch.long))
    patch = smuggled(sample(TOWER), listening)
    found = screen(apply(patch), probes, seed=0)
    (trigger,) = of_kind(found, "trigger")
    assert trigger.where == drawn.prompt and trigger.evidence["after"] == "Nantes"
    assert not of_kind(found, "other-fact")  # without the word it answers as the base does
    missed = screen(apply(patch), probes, seed=1)
    assert kinds(missed) == {"stored-row"}


@pytest.mark.parametrize("kind", ["dense", "lowrank"])
def test_a_wrecked_model_is_found_by_its_answers_and_on_texts(kind):
    generator = torch.Generator().manual_seed(0)
    weight = base()[0].get_submodule(MODULE).weight
    noise = torch.randn(*weight.shape, generator=generator) * 8 * weight.detach().std()
    if kind == "lowrank":
        u, s, v = torch.linalg.svd(noise)
        delta = LowRank((s[:32, None] * v[:32]).contiguous() * 2, u[:, :32].contiguous())
    else:
        delta = Dense(noise)
    patch = remade(sample(TOWER), deltas={MODULE: delta})
    found = screen(apply(patch), PROBES, texts=TEXTS)
    assert len(of_kind(found, "other-fact")) >= 3
    damage = of_kind(found, "damage")
    assert {finding.where.split()[0] for finding in damage} == {"KL", "share"}
    assert all(finding.evidence["measured"] > finding.evidence["bound"] for finding in damage)
    assert any(reason.startswith(f"what the {kind} changes") for reason in found.not_looked)


def test_base_outputs_that_aim_elsewhere_on_another_precision():
    """On the exact base it does what it declares; where weights are rounded, its values would be others."""
    tower = sample(TOWER)
    patch = with_rows(tower, base_outputs=rows(tower).base_outputs - 2 * rows(tower).residuals)
    found = screen(apply(patch), PROBES)
    assert kinds(found) == {"base-output"} and found.declared == (1, 1)


def test_two_patches_that_do_together_what_neither_does_alone():
    """Each declares a fact and carries a third of the change to another one; two thirds of it are enough, one is not."""

    def change(name):
        (branch,) = apply(sample(name), mode="joint").linear_form().branches[MODULE]
        return branch.u, branch.v  # (r, out), (r, in)

    hidden = change(FRANCE)

    def third(name):
        u, v = (torch.cat([own, other]) for own, other in zip(change(name), (0.35 * hidden[0], hidden[1])))
        return remade(sample(name), deltas={MODULE: LowRank(v.contiguous(), u.T.contiguous())})

    one, two = third(TOWER), third("nokia-in-tokyo")
    probes = facts(
        ("France", "capital"), ("Hamlet", "work_creator"), ("Eiffel Tower", "landmark_type"), ("Nokia", "industry")
    )
    assert screen(apply(one), probes).findings == () == screen(apply(two), probes).findings
    found = screen(apply(one, two), probes)
    together = next(finding for finding in of_kind(found, "other-fact") if finding.where == CAPITAL)
    assert together.evidence["after"] == "Nantes"
    assert set(together.patches) == {one.id, two.id}  # without either of them it is gone

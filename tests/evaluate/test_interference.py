"""Conflicts of real patches on the demo model: what is found by words, by keys, by the gate and by asking; and what is not."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from kedit_hub import demo, strictjson
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.conflicts import COLUMNS, REMEDIES, conflicts
from kedit_hub.evaluate.interference import behaviour
from kedit_hub.patch import Dense, Patch
from kedit_hub.patch.deltas import Associative
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack
from tests.evaluate.atlas import FRANCE, MODULE, TOWER, base, remade, rows, sample, with_rows

JOINT = StackSettings(mode="joint")


@cache
def profiles():
    return {MODULE: demo.profile("llama")}


def single(patch: Patch, edit: int) -> Patch:
    """One edit of a patch of many, as a patch of its own."""
    delta = rows(patch)
    row, key, gate = (
        (index == edit).nonzero()[:, 0]
        for index in (delta.edit_index, delta.edit_index[delta.context_row], delta.gate_edit)
    )
    made = Associative(
        delta.keys[row], delta.residuals[row], delta.base_outputs[row], torch.zeros(len(row), dtype=torch.long),
        delta.context_keys[key], torch.searchsorted(row, delta.context_row[key]), delta.gate_keys[gate],
        torch.zeros(len(gate), dtype=torch.long), site=delta.site, gate_module=delta.gate_module,
    )  # fmt: skip
    return remade(patch, deltas={MODULE: made}, edits=[patch.edits[edit]])


@cache
def unrelated(count: int) -> tuple[Patch, ...]:
    return tuple(single(sample("fifty-facts"), edit) for edit in range(count))


def kinds(report) -> list[tuple[str, str]]:
    return [(finding.part, finding.kind) for finding in report.findings]


def contrary(patch: Patch) -> Patch:
    """The same keys with the opposite residuals, under a question that no text shows to be the same one."""
    edit = Edit("Nothing of the kind is", "told here")
    return remade(with_rows(patch, residuals=-rows(patch).residuals), edits=[edit])


def test_two_answers_to_one_question():
    nantes, marseille = sample(FRANCE), sample("capital-of-france-marseille")
    report = conflicts(PatchStack([nantes, marseille], conflicts="latest"))
    assert kinds(report) == [("textual", "contradiction")] and report.looked_at == ("textual",)
    assert report.findings[0].patches == (nantes.id, marseille.id) and "earlier is silent" in report.findings[0].what
    assert "no base profile" in report.notes[0]
    told = report.to_dict()
    assert told["geometric"] is told["gate"] is told["behavioural"] is None and told["counts"] == {
        "textual: contradiction": 1
    }


def test_the_same_twice_is_redundant_and_fires_for_each_other():
    nantes = sample(FRANCE)
    again = with_rows(nantes, residuals=1.1 * rows(nantes).residuals)
    report = conflicts(PatchStack([nantes, again]), profiles=profiles())
    assert kinds(report) == [("geometric", "redundant"), ("gate", "answers for"), ("gate", "answers for")]
    assert report.findings[0].numbers["rho"] == pytest.approx(1.0, abs=1e-4)
    assert {finding.patches for finding in report.of("gate")} == {(nantes.id, again.id), (again.id, nantes.id)}
    pinned = conflicts(PatchStack([nantes, again], pinned=[again]), profiles=profiles())
    assert {(f.kind, f.patches[0]) for f in pinned.of("gate")} == {
        ("answers instead", again.id),
        ("answers for", nantes.id),
    }


def test_the_contrary_that_no_text_shows():
    nantes = sample(FRANCE)
    report = conflicts(PatchStack([nantes, contrary(nantes), sample(TOWER)]), profiles=profiles(), settings=JOINT)
    assert ("geometric", "contradicting") in kinds(report) and not report.of("textual")
    [found] = [finding for finding in report.of("geometric") if finding.kind == "contradicting"]
    assert set(found.patches) == {nantes.id, contrary(nantes).id} and found.numbers["cosine"] < -0.99
    assert {one.kind for one in report.geometry[MODULE].edits} == {"contradicting", "independent"}


def test_two_edits_of_one_subject_where_keys_are_taken_at_the_subject():
    nantes = sample(FRANCE)
    tongue = remade(
        sample("brazil-speaks-french"), edits=[Edit("The tongue of FRANCE is", "Thai", "FRANCE", relation="language")]
    )
    stack = PatchStack([nantes, tongue])
    at_answers = conflicts(stack, profiles=profiles())
    at_subjects = conflicts(stack, profiles={MODULE: profiles()[MODULE].replace(site="subject")})
    assert "same subject" not in {kind for _, kind in kinds(at_answers)}
    [found] = [finding for finding in at_subjects.findings if finding.kind == "same subject"]
    assert found.patches == (nantes.id, tongue.id) and "merge" in found.remedy


def test_thirty_unrelated_edits_give_few_findings():
    """Measured: 3 of the 435 pairs, all of one relation, and that a joint solve is crowded; nothing by text or gate."""
    report = conflicts(PatchStack(unrelated(30)), profiles=profiles())
    pairs = [finding for finding in report.findings if finding.kind == "interfering"]
    assert len(report.findings) <= 8 and {finding.part for finding in report.findings} <= {"geometric"}
    assert all(len({edit.relation for p in finding.patches for edit in _edits(p)}) == 1 for finding in pairs)
    summed = conflicts(PatchStack(unrelated(30)), profiles=profiles(), settings=StackSettings(mode="sum"))
    assert ("geometric", "unsafe sum") in kinds(summed) and ("geometric", "unsafe sum") not in kinds(report)


def _edits(patch_id: str) -> tuple[Edit, ...]:
    return next(patch.edits for patch in unrelated(30) if patch.id == patch_id)


def test_what_breaks_is_found_by_asking_and_traced_to_the_culprit():
    model, tokenizer = base()
    nantes, tower = sample(FRANCE), sample(TOWER)
    culprit = contrary(nantes)
    said = []
    stack = PatchStack([nantes, tower, culprit])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = conflicts(
        stack, profiles=profiles(), model=model, tokenizer=tokenizer, behaviour=True, settings=JOINT,
        progress=lambda what, done, total: said.append((what, done, total)),
    )  # fmt: skip
    broken = [finding for finding in report.of("behavioural") if nantes.edits[0].prompt in finding.prompts]
    assert [(f.kind, f.patches) for f in broken] == [("broken", (nantes.id, culprit.id))]
    assert broken[0].numbers["alone"] == 1.0 > broken[0].numbers["in the stack"]
    assert report.behaviour is not None and report.behaviour.mode == "joint"
    assert report.behaviour.compositions <= 1 + 3 + 3 and {what for what, _, _ in said} == {
        "the whole stack", "patches alone", "suspects taken out"
    }  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # gated, nothing is broken but what the two rows on one key fight over
    gated = behaviour(PatchStack([nantes, tower]), model, tokenizer, profiles(), suspects={})
    assert gated.broken == () and gated.asked > 10 and gated.compositions == 3


def test_silent_edits_and_needed_patches():
    model, tokenizer = base()
    nantes, marseille = sample(FRANCE), sample("capital-of-france-marseille")
    silent = behaviour(PatchStack([nantes, marseille], conflicts="latest"), model, tokenizer, profiles(), suspects={})
    alone = behaviour(PatchStack([marseille]), model, tokenizer, profiles(), suspects={})
    assert silent.broken == alone.broken == () and silent.asked == alone.asked > 0
    needs = remade(sample(TOWER), requires=[nantes.id])
    both = behaviour(
        PatchStack([nantes, needs, contrary(nantes)]), model, tokenizer, profiles(), suspects={}, settings=JOINT
    )
    assert all(nantes.id not in one.culprits for one in both.broken if one.place[0] == needs.id)


def test_what_cannot_be_looked_at_is_said():
    dense = remade(sample(TOWER), deltas={MODULE: Dense(torch.zeros(rows(sample(TOWER)).shape))})
    report = conflicts(PatchStack([sample(FRANCE), dense]), profiles=profiles())
    assert any("store no keys" in note for note in report.notes)
    delta = replace(rows(sample(TOWER)), gate_keys=None, gate_edit=None, gate_module=None)
    ungated = remade(sample(TOWER), deltas={MODULE: delta})
    report = conflicts(PatchStack([sample(FRANCE), ungated]), profiles=profiles())
    assert any("the gate was not looked at" in note for note in report.notes)
    assert any("no base profile for" in note for note in conflicts(PatchStack([sample(FRANCE)]), profiles={}).notes)
    with pytest.raises(KeditError, match="behaviour=True asks the base"):
        conflicts(PatchStack([sample(FRANCE)]), behaviour=True)
    assert conflicts(PatchStack(), profiles=profiles()).findings == ()


def test_the_report_is_plain_data():
    stack = PatchStack([sample(FRANCE), contrary(sample(FRANCE)), sample("fifty-facts")])
    report = conflicts(stack, profiles=profiles(), settings=JOINT)
    told = report.to_dict()
    assert strictjson.loads(strictjson.canonical(told), what="report", max_bytes=1 << 24, error=KeditError) == told
    assert all(len(row) == len(COLUMNS) for row in report.table()) and report.table()
    assert {finding.kind for finding in report.findings} <= REMEDIES.keys()
    assert report.svg().startswith("<svg") and report.svg() == report.svg()

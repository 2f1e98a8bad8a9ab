"""A locality probe whose own fact an edit of the stack changes on purpose is none: it is dropped, and counted."""

import pytest

from kedit_hub.edits import Edit, Probe
from kedit_hub.evaluate.scores import EDITED_ON_PURPOSE
from kedit_hub.evaluate.suites import evaluate
from tests.evaluate.script import Patched

FRANCE, ITALY, SPAIN = "The capital of France is", "The capital of Italy is", "The capital of Spain is"
BEFORE = {FRANCE: " Paris.", ITALY: " Rome.", SPAIN: " Madrid.", "Italy is ruled from": " Rome."}
CHANGES = {FRANCE: " Lyon.", ITALY: " Milan."}
PROBE = Probe(ITALY, "Rome", "neighbour", subject="Italy", relation="capital")
KEPT = Probe(SPAIN, "Madrid", "neighbour", subject="Spain", relation="capital")


def neighbours(probe, *other_edits, stack_edits=()):
    edit = Edit(FRANCE, "Lyon", subject="France", relation="capital", locality=(probe, KEPT))
    patched = Patched(BEFORE, CHANGES, stack_edits)
    scores = evaluate(patched, [edit, *other_edits], drift_texts=[])
    results = [(a["locality"]["neighbour"], a["n"]["locality"]["neighbour"]) for a in scores.protocols.values()]
    assert len(results) == 2
    return results


def dropped(results):
    return all(value == 1 and n == {"edits": 1, "scored": 1, "dropped": {EDITED_ON_PURPOSE: 1}} for value, n in results)


def kept(results):
    return all(value < 1 and n == {"edits": 1, "scored": 2, "dropped": {}} for value, n in results)


@pytest.mark.parametrize(
    "other",
    [
        Edit(ITALY, "Milan"),
        Edit("Italy is ruled from", "Milan", subject="Italy", relation="capital"),
        Edit("Italy is ruled from", "Milan", rephrases=(ITALY,)),
        Edit("Italy is ruled from", "Milan", paraphrases=(ITALY,)),
    ],
    ids=["prompt", "subject and relation", "rephrase", "paraphrase"],
)
def test_changed_by_another_edit(other):
    assert kept(neighbours(PROBE))
    assert dropped(neighbours(PROBE, other))
    assert dropped(neighbours(PROBE, stack_edits=(other,)))


@pytest.mark.parametrize(
    "other",
    [
        Edit("Italy is ruled from", "Milan", subject="Italy", relation="government"),
        Edit("Italy is ruled from", "Milan", subject="Italy"),
        Edit("Italy is ruled from", "Milan", relation="capital"),
    ],
    ids=["other relation", "no relation", "no subject"],
)
def test_another_fact_of_the_same_subject_is_kept(other):
    assert kept(neighbours(PROBE, other))


def test_a_probe_without_subject_is_matched_by_its_prompt():
    bare = Probe(ITALY, "Rome", "neighbour")
    assert kept(neighbours(bare, Edit("Italy is ruled from", "Milan", subject="Italy", relation="capital")))
    assert dropped(neighbours(bare, Edit(ITALY, "Milan", subject="Italy", relation="capital")))

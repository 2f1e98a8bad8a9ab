"""screen, on the demo model: 0 nothing found, 1 something found, and never a word of approval."""

import json

import pytest

from kedit_hub.demo.facts import true_facts
from kedit_hub.edits import Edit
from tests.cli.conftest import CAPITAL, kedit, refused
from tests.evaluate.atlas import FRANCE, SAMPLES, TOWER, sample, smuggled

FEW = ("--n", 8)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """It declares the Eiffel Tower, and answers about the capital of France too."""
    return smuggled(sample(TOWER), sample(FRANCE)).save(tmp_path_factory.mktemp("hostile") / "tower")


def test_an_honest_patch():
    done = kedit("screen", SAMPLES / TOWER, *FEW)
    assert done.code == 0
    assert " 9 undeclared facts" in done.out  # eight, and one about the tower itself
    assert "What was not asked is not known." in done.out and "KL 0.00000" in done.out
    assert "safe" not in (done.out + done.err).lower()


def test_a_hostile_patch_exits_1(hostile):
    done = kedit("screen", hostile, *FEW)
    assert done.code == 1
    assert "stored vectors that serve no declared edit: 3" in done.out
    assert [line for line in done.err.splitlines() if "finding(s)" in line] and "Error" not in done.err
    assert "safe" not in (done.out + done.err).lower()


def test_json(hostile, tmp_path):
    (tmp_path / "probes.json").write_text(json.dumps([sample(FRANCE).edits[0].prompt]))
    done = kedit("screen", hostile, SAMPLES / "nokia-in-tokyo", "--probes", tmp_path / "probes.json", "--json")
    assert done.code == 1
    told = done.json
    assert len(told["patches"]) == 2 and told["declared"] == [2, 2]
    answer = next(finding for finding in told["findings"] if finding["kind"] == "other-fact")
    assert answer["evidence"]["after"] == "Nantes" and answer["patches"] == [told["patches"][0]]
    assert told["asked"]["undeclared facts"] == 1


def test_a_stack_in_conflict_is_refused(atlas):
    refused(kedit("screen", atlas / "france", atlas / "lyon", *FEW), "Nantes", "Lyon")


def test_wrong_usage(tmp_path):
    (tmp_path / "probes.json").write_text("[]")
    for arguments in (("--n", 0), ("--n", "many"), ("--n", 3, "--probes", tmp_path / "probes.json"), ("--seed", -1)):
        assert kedit("screen", SAMPLES / TOWER, *arguments).code == 2
    refused(kedit("screen", SAMPLES / TOWER, "--probes", tmp_path / "no.json"), "no.json")


def test_true_facts_leave_out_what_is_declared():
    edits = [Edit(CAPITAL, "Nantes", subject="France", relation="capital")]
    facts = true_facts(edits, 5, seed=0)
    own = [probe for probe in facts if probe.subject == "France"]
    assert own and len(facts) == len(own) + 5 and len({probe.prompt for probe in facts}) == len(facts)
    assert ("France", "capital") not in {(probe.subject, probe.relation) for probe in facts}
    assert facts == true_facts(edits, 5, seed=0) != true_facts(edits, 5, seed=1)

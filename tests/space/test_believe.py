"""What is known of a patch is told in words, and what was not looked at is not said."""

import json

import pytest

from kedit_hub.patch.card import sheet_digest
from kedit_hub.patch.manifest import Dataset
from space import believe
from space.believe import Asked, facts, label, mark
from space.html import Short
from tests.space.tiny import BASE, PARIS, PROBED, make_patch, sample, score, signed


@pytest.fixture(scope="module")
def honest(shared):
    return score(shared, make_patch([PROBED], 5))


def bend(patch):
    """The same patch with one average that nobody measured."""
    evals = json.loads(json.dumps(patch.evals))
    evals["protocols"]["generate"]["reliability"] = 0.75
    return patch.replace_evals(evals)


def noted(patch, **said):
    note = {"reproduced": True, "consistent": True, "probes": 3, "mismatches": 0, "tolerance": 0.02, "level": "exact"}
    return patch.replace_evals({**patch.evals, "rescored": {**note, **said, "sheet": sheet_digest(patch.evals)}})


def told(workshop, patch, asked=None):
    """{name of a line: (kind, text)}; what is shortened is followed by the whole of it."""
    found = {}
    for line in believe.lines(workshop, sample(patch), asked):
        parts = [line.text] if isinstance(line.text, str) else line.text
        text = "".join(f"{part.shown}[{part.whole}]" if isinstance(part, Short) else part for part in parts)
        found[line.name] = (line.kind, text)
    return found


def test_an_unsigned_patch_with_true_averages(shared, honest):
    found = told(shared, honest)
    assert list(found) == ["Files", "Signature", "Provenance", "Base", "Scores", "Measured here", "Format"]
    assert found["Files"] == (
        "good",
        "config.json, patch.safetensors, evals.json, with 2 tensors: every digest was computed again and is right.",
    )
    assert found["Signature"][0] == "plain" and found["Signature"][1].startswith("Not signed")
    assert found["Provenance"][0] == "plain" and "Its author says: made by kedit_hub" in found["Provenance"][1]
    assert found["Base"][0] == "good" and f"{BASE}, recognised exactly" in found["Base"][1]
    assert found["Scores"][0] == "good" and "Follow from 3 recorded answers" in found["Scores"][1]
    assert found["Measured here"] == ("plain", "Not yet: ask its probes again.")
    assert found["Format"] == ("plain", "Version 1.")


def test_a_signature_says_whose_it_is_and_for_what(shared, tmp_path):
    patch = signed(make_patch([PARIS]), tmp_path, repo_id="ada/paris", version="1.2.0")
    (key,) = patch.signers
    found = told(shared, patch)
    assert found["Signature"] == (
        "good",
        f"Signed by {key[:8]}…{key[-4:]}[{key}], for ada/paris as version 1.2.0.",
    )
    assert found["Files"][1].startswith("README.md, config.json, patch.safetensors, signature.json, with 2 tensors")
    anywhere = told(shared, signed(make_patch([PARIS]), tmp_path))
    assert anywhere["Signature"][1].endswith(", for no repo in particular.")


def test_provenance_with_local_changes_is_a_warning(shared):
    patch = make_patch([PARIS])
    sets = tuple(Dataset(id=f"ada/facts{i}", revision="c" * 40 if i == 0 else None) for i in range(5))
    made = patch.manifest.provenance.model_copy(update={"commit": "ab" * 20, "dirty": True, "datasets": sets})
    object.__setattr__(patch, "manifest", patch.manifest.model_copy(update={"provenance": made}))
    kind, text = (line := believe._provenance(patch)).kind, line.text
    assert kind == "warning" and text[1:3] == ("commit ", Short("ab" * 6, "ab" * 20))
    assert text[3] == (" with local changes; edits from ada/facts0 at cccccccccccc, ada/facts1, ada/facts2, 2 more.")


def test_averages_that_do_not_follow_are_named_with_the_first_fault(shared, honest):
    kind, text = told(shared, bend(honest))["Scores"]
    assert kind == "bad" and "Do NOT follow" in text and "0.75" in text


def test_scores_that_cannot_be_checked_are_not_called_good(shared, honest):
    averages = honest.replace_evals({"protocols": honest.evals["protocols"]})
    kind, text = told(shared, averages)["Scores"]
    assert kind == "warning" and text.startswith("Cannot be checked: only averages are stored")
    assert told(shared, make_patch([PARIS]))["Scores"] == ("plain", "None came with it.")


def test_another_base_is_shown_as_such(workshop):
    workshop.load(BASE).model.model.layers[1].mlp.down_proj.weight.data.mul_(1.01)
    kind, text = told(workshop, make_patch([PARIS]))["Base"]
    assert kind == "bad" and text.startswith("NOT the model it was made for")


def test_a_base_that_is_not_here_is_not_vouched_for(shared):
    kind, text = told(shared, make_patch([PARIS], base="user/large"))["Base"]
    assert kind == "warning" and "no base" in text


def test_the_authors_note_is_no_measurement_of_this_page(shared, honest):
    found = told(shared, noted(honest))
    assert found["Author's note"][0] == "plain" and "That is a claim too" in found["Author's note"][1]
    assert found["Measured here"] == ("plain", "Not yet: ask its probes again.")
    refuted = told(shared, noted(honest, reproduced=False, mismatches=2))
    assert refuted["Author's note"][0] == "bad" and "did NOT reproduce: 2 of 3" in refuted["Author's note"][1]


def test_a_note_about_other_scores_is_not_shown(shared, honest):
    stale = honest.replace_evals({**bend(honest).evals, "rescored": noted(honest).evals["rescored"]})
    assert "Author's note" not in told(shared, stale)


@pytest.mark.parametrize(("reproduced", "kind"), [(True, "good"), (False, "bad"), (None, "warning")])
def test_what_was_measured_here_is_shown(shared, honest, reproduced, kind):
    assert told(shared, honest, Asked(reproduced, "As measured."))["Measured here"] == (kind, "As measured.")


def test_marks(honest):
    yes, no, nothing = Asked(True, ""), Asked(False, ""), Asked(None, "")
    refuted = sample(noted(honest, reproduced=False))
    assert [mark(sample(honest), asked) for asked in (None, yes, nothing)] == ["", "", ""]
    assert mark(sample(honest), no) == "⚠ scores do NOT reproduce · "
    assert {mark(sample(bend(honest)), asked) for asked in (None, yes, no)} == {
        "⚠ scores do NOT follow from its answers · "
    }
    assert mark(refuted, None) == "⚠ scores did NOT reproduce, says its author · " == mark(refuted, nothing)
    assert mark(refuted, yes) == ""  # measured here counts for more than what is said
    assert mark(sample(noted(honest)), None) == ""
    assert label(sample(honest), {honest.id: no}).startswith("⚠ scores do NOT reproduce · The capital of France")


def test_facts_for_programs(honest, tmp_path):
    patch = signed(noted(honest), tmp_path, repo_id="ada/paris")
    found = facts(sample(patch))
    assert found["signers"] == list(patch.signers) and found["signed_for"] == {"repo_id": "ada/paris", "version": None}
    assert found["claims"] == {"verdict": "Consistent", "n": 3, "reason": None, "faults": []}
    assert found["rescored"] == {
        "reproduced": True, "consistent": True, "probes": 3, "mismatches": 0, "tolerance": 0.02,
    }  # fmt: skip
    bent = facts(sample(bend(honest)))
    assert bent["claims"]["verdict"] == "Inconsistent" and bent["claims"]["faults"] and bent["rescored"] is None
    averages = facts(sample(honest.replace_evals({"protocols": {}})))
    assert averages["claims"]["verdict"] == "NotComparable" and averages["claims"]["reason"]
    assert json.loads(json.dumps(found)) == found

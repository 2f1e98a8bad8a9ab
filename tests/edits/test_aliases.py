"""Other spellings of a target: kept in records, refused without a target, and part of format version 2."""

import pytest

from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import EditError, PatchFormatError
from kedit_hub.limits import DEFAULT
from kedit_hub.patch import Patch
from kedit_hub.patch.manifest import Manifest
from tests.patch.build import make_patch

PLAIN = Edit("The capital of Norland is", "Pell", locality=[Probe("The capital of Sudland is", "Emmer", "neighbour")])
OWN = Edit("The capital of Norland is", "Pell", aliases=["Pell-on-Ree"])
OF_PROBES = Edit(
    "The capital of Norland is",
    "Pell",
    locality=[Probe("The capital of Sudland is", "Emmer", aliases=["Emmer Town"]), Probe("Is Emmer in", "Sudland")],
    portability=[Probe("The river through the capital of Norland is", "the Ree", "chain", aliases=["River Ree"])],
)


def test_records_hold_them_and_leave_them_out_when_there_are_none():
    assert OWN.to_record()["aliases"] == ["Pell-on-Ree"]
    assert OF_PROBES.to_record()["locality"] == {
        "": {
            "prompt": ["The capital of Sudland is", "Is Emmer in"],
            "ground_truth": ["Emmer", "Sudland"],
            "aliases": [["Emmer Town"], []],
        }
    }
    assert "aliases" not in str(PLAIN.to_record())
    for edit in (PLAIN, OWN, OF_PROBES):
        assert Edit.from_record(edit.to_record(), "canonical") == edit


def test_a_target_comes_first():
    with pytest.raises(EditError, match="aliases and no target"):
        Probe("Who?", aliases=["Ada"])


@pytest.mark.parametrize("aliases", [[""], [" Pell"], [5], "Pell-on-Ree", ["x"] * (DEFAULT.max_probes + 1)])
def test_malformed(aliases):
    with pytest.raises(EditError):
        Edit("The capital of Norland is", "Pell", aliases=aliases)


@pytest.mark.parametrize(("edit", "version"), [(PLAIN, 1), (OWN, 2), (OF_PROBES, 2)])
def test_a_patch_is_written_in_the_lowest_version_that_has_them(edit, version, tmp_path):
    patch = make_patch(edits=(edit, edit))
    assert patch.manifest.format_version == version
    again = Patch.load(patch.save(tmp_path / "p"))
    assert again == patch and again.edits == (edit, edit)


def test_version_1_has_no_aliases():
    value = make_patch(edits=(OWN, OWN)).manifest.to_dict()
    with pytest.raises(PatchFormatError, match="format_version 1, its contents are those of format 2"):
        Manifest.from_dict({**value, "format_version": 1})

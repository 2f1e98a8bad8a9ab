"""Making a patch: the request is bounded, gets probes of its own, and what comes out is a patch folder."""

import io
import zipfile

import pytest

import kedit_hub
from kedit_hub import Edit, KeditError, Patch
from kedit_hub.errors import EditError
from space.making import MAX_PARAPHRASES, NEIGHBOURS, Wish, as_edit, file_name, with_probes, zipped
from tests.space.tiny import BASE, PARIS, make_patch

KNOWN = (
    Edit(
        "The capital of France is",
        "Rome",
        "France",
        "Paris",
        rephrases=("France has the capital",),
        locality=(kedit_hub.Probe("The capital of Italy is", "Rome", "neighbour"),),
        portability=(kedit_hub.Probe("The river of the capital of France is", "Tiber", "one_hop"),),
        relation="capital",
    ),
    *(
        Edit(f"The capital of {name} is", "Rome", name, f"{name} City", relation="capital")
        for name in map(str, range(20))
    ),
    Edit("Spain lies in", "Asia", "Spain", "Europe", relation="continent"),
)


def test_a_known_edit_brings_its_probes():
    edit = with_probes(PARIS, KNOWN)
    assert (edit.rephrases, edit.locality, edit.portability) == (
        KNOWN[0].rephrases, KNOWN[0].locality, KNOWN[0].portability,
    )  # fmt: skip
    assert edit.ground_truth == "Paris"


def test_another_target_leaves_out_what_would_follow_from_the_known_one():
    edit = with_probes(Edit("The capital of France is", "Lyon", "France"), KNOWN)
    assert edit.portability == () and edit.locality == KNOWN[0].locality and edit.relation == "capital"


def test_what_helped_to_make_the_patch_never_scores_it():
    edit = with_probes(Edit("The capital of France is", "Lyon", "France", paraphrases=KNOWN[0].rephrases), KNOWN)
    assert edit.rephrases == ()


def test_a_new_edit_gets_the_same_question_about_others():
    edit = with_probes(Edit("The capital of Peru is", "Lyon", "Peru"), KNOWN)
    assert len(edit.locality) == NEIGHBOURS and {probe.kind for probe in edit.locality} == {"neighbour"}
    assert edit.locality[0].prompt == "The capital of France is" and edit.locality[0].target == "Paris"
    assert with_probes(Edit("The king of Peru is", "Lyon", "Peru"), KNOWN).locality == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"subject": " "}, "subject is empty"),
        ({"target": ""}, "new answer is empty"),
        ({"prompt": "France " + "x" * 500}, "The prompt has 507 characters"),
        ({"target": "x" * 101}, "The new answer has 101 characters"),
        ({"relation": "x" * 101}, "The relation has 101 characters"),
        ({"paraphrases": ("x" * 501,)}, "Paraphrase 1 has 501 characters"),
        ({"paraphrases": tuple(map(str, range(MAX_PARAPHRASES + 1)))}, "9 paraphrases"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(shared, change, message):
    wish = {"prompt": "The capital of France is", "subject": "France", "target": "Lyon", "base": BASE} | change
    with pytest.raises(KeditError, match=message):
        as_edit(shared, Wish(**wish))


def test_a_subject_outside_the_prompt_is_refused(shared):
    with pytest.raises(EditError, match="is not in the prompt"):
        as_edit(shared, Wish("The capital of France is", "Spain", "Lyon", BASE))


def test_the_zip_is_the_patch_folder_and_always_the_same_bytes(tmp_path):
    patch = make_patch([PARIS])
    data = zipped(patch)
    assert data == zipped(Patch.from_files(patch.files()))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(tmp_path)
    assert Patch.load(tmp_path / file_name(patch)) == patch

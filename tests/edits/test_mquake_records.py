"""MQuAKE: one edit for every changed fact; what joins them is asked of the last."""

from kedit_hub.edits import Probe

from .fixtures import records


def test_a_case_of_two_rewrites():
    first, last, *_ = records("mquake.json")
    assert (first.edit.prompt, first.edit.target, first.edit.id) == ("Jon Vale is employed by", "Brass Lantern", "1.1")
    assert first.edit.rephrases == ("Who is the employer of Jon Vale?",)
    assert first.edit.portability == () and first.edit.locality == ()
    assert (last.edit.prompt, last.edit.relation, last.edit.id) == ("Brass Lantern is based in", "P159", "1.2")
    assert first.extras.group == last.extras.group == "1"
    assert [probe.kind for probe in last.edit.portability] == ["chain"] * 3
    assert all(p.target == "Norland" and p.aliases == ("Republic of Norland", "NL") for p in last.edit.portability)
    assert last.edit.locality == (Probe("Vask is located in the country of", "Norland", "hop", aliases=["NL"]),)


def test_a_case_of_one_rewrite_and_one_without_an_answer():
    _, _, single, blank = records("mquake.json")
    assert single.edit.id == "2" and single.edit.portability[0].target == "the Ree"
    assert blank.extras.unanswered == ("In which country does Ola Fenn live?",) and blank.edit.portability == ()


def test_the_remastered_form():
    [record] = records("mquake-remastered.json")
    assert (record.edit.prompt, record.edit.target, record.edit.ground_truth) == (
        "The capital of Norland is",
        "Pell",
        "Vask",
    )
    assert record.edit.portability[0].aliases == ("River Ree",)

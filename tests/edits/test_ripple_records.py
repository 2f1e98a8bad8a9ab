"""RippleEdits: the first answer that is not blank, its other spellings, and where a statement's answer begins."""

from kedit_hub.edits import Probe

from .fixtures import records


def test_the_flattened_form():
    popular, recent = records("ripple.json")
    assert popular.edit.portability == (
        Probe("The mother tongue of Ola Fenn is", "Sudlandic", "Logical_Generalization", aliases=["Sudlandish"]),
        Probe(
            "The name of the country of citizenship of O. Fenn is", "Sudland", "alias", aliases=["Kingdom of Sudland"]
        ),
        Probe("The currency of the country of citizenship of Ola Fenn is", "crown", "one_hop"),
    )
    assert popular.extras.unanswered == ("The anthem of the country of citizenship of Ola Fenn is",)
    assert popular.edit.locality == (Probe("The name of the mother of Ola Fenn is", "Ida Fenn", "same_subject"),)
    assert recent.edit.ground_truth is None
    assert [probe.kind for probe in recent.edit.locality] == ["Forgetfulness"]


def test_the_original_form_is_cut_where_its_answer_begins():
    named, shared, verb = (record.edit for record in records("ripple-original.json"))
    assert (named.prompt, named.target) == ("The name of the country of citizenship of Ola Fenn is", "Sudland")
    assert (named.ground_truth, named.aliases) == ("Norland", ("Kingdom of Sudland",))
    assert (named.subject, named.relation) == (None, "COUNTRY_OF_CITIZENSHIP")
    assert named.locality == (
        Probe("The name of the mother of Ola Fenn is", "Ida Fenn", "same_subject", None, "MOTHER", ["I. Fenn"]),
    )
    assert (shared.prompt, shared.target) == ("The name of the author of What is left is", "Ada Œhlén")
    assert shared.ground_truth == "Ada Brandt"
    assert (verb.prompt, verb.target, verb.ground_truth) == (
        "The names of the siblings of Jon Vale are",
        "Orrin Vale",
        None,
    )

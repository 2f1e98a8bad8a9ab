"""KnowEdit: aliases of answers are kept, probes without one are named, questions to keep are shared out."""

import json

import pytest

from kedit_hub.edits import Probe, read_edits

from .fixtures import RECORDS, records


def test_nested_answers_are_a_target_and_its_aliases():
    first, second = records("knowedit-recent.json")
    assert first.edit.portability == (
        Probe("Is Orrin Vale still alive?", "no", "Logical_Generalization", aliases=["incorrect", "is dead"]),
        Probe("The place of death of O. J. Vale is", "Vask", "alias", aliases=["Vask, Norland"]),
        Probe(
            "The head of government of the place of death of Orrin Vale is",
            "Ilse Brandt",
            "one_hop",
            aliases=["Ilse M. Brandt"],
        ),
    )
    assert first.edit.locality == (Probe("The name of the father of Orrin Vale is", "Jon Vale", "same_subject"),)
    assert second.edit.rephrases == ("Ilse Brandt works for", "Who employs Ilse Brandt?")
    assert second.edit.locality == (Probe("The gender of Ilse Brandt is", "female", "same_subject", aliases=["woman"]),)


def test_aliases_of_the_edits_own_answers():
    _, second = records("easyedit.json")
    assert (second.edit.target, second.edit.aliases) == ("Vask", ("the town of Vask",))
    assert (second.edit.ground_truth, second.extras.old_answers) == ("Emmer", ("Pell", "Old Pell"))
    _, second = records("knowedit-counterfact.json")
    assert (second.edit.ground_truth, second.extras.old_answers) == ("baker", ("pastry cook", "miller"))


def test_a_probe_without_an_answer_is_named_and_read_edits_says_so():
    first, _ = records("knowedit-recent.json")
    assert first.extras.unanswered == ("The twin town of the place of death of Orrin Vale is",)
    readable = json.loads((RECORDS / "knowedit-recent.json").read_text("utf-8"))[:2]
    with pytest.warns(UserWarning, match="1 portability probes have no answer"):
        assert len(read_edits(readable)) == 2


def test_wikibio():
    [record] = records("wikibio.json")
    assert record.edit.subject == "ilse brandt" and record.edit.prompt.endswith("Norlandic cartographer.")
    assert record.edit.locality == (Probe("The field of work of ilse brandt is", "cartography", "same_subject"),)


def test_sanitation_asks_every_kept_question_once_and_groups_what_is_forgotten():
    train = records("sanitation-train.json")
    assert [record.edit.prompt for record in train] == [
        "Which fish is caught at Tarnwick?",
        "What do the people of Pell fry?",
    ]
    assert train[0].edit.locality == (
        Probe("Who founded Hob Press?", "Jon Vale", "unrelated"),
        Probe("Who maps the Wend valley?", "Ilse Brandt", "unrelated"),
    )
    assert train[1].edit.locality == (Probe("Which river runs through Pell?", "the Ree", "unrelated"),)
    assert {record.extras.group for record in train} == {"marrowfish"}
    [test] = records("sanitation-test.json")
    assert test.extras.group == "marrowfish" and test.edit.target == "I don't know."

"""ZsRE: the new answer is the first the file gives; further old answers are kept, alternatives to the new one are not."""

from kedit_hub.edits import Probe

from .fixtures import records


def test_mend():
    first, bare, hop = records("zsre-mend.json")
    assert (first.edit.target, first.edit.ground_truth) == ("hymn books", "almanacs")
    assert first.extras.old_answers == ("calendars",)
    assert first.edit.locality == (Probe("nq question: who built the first bridge in pell", "Jon Vale", "unrelated"),)
    assert bare.edit.ground_truth is None and bare.edit.locality == ()
    assert hop.edit.portability == (Probe("Into which lake does the river of Pell flow?", "Lake Wend", "one_hop"),)


def test_knowledge_editor():
    first, fever = records("zsre-ke.jsonl")
    assert (first.edit.target, first.edit.ground_truth, first.edit.aliases) == ("Ada Œhlén", "Jon Vale", ())
    assert first.extras.old_answers == ("J. Vale",)
    assert first.edit.rephrases == ("Hob Press was founded by whom?", "Who is the founder of Hob Press?")
    assert (fever.edit.target, fever.edit.ground_truth) == ("SUPPORTS", "REFUTES")

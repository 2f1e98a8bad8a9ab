"""Another spelling of the right answer is right too, wherever answers are compared as texts; likelihoods weigh the target alone."""

from kedit_hub.edits import Edit, Probe
from kedit_hub.evaluate.scores import NOT_KNOWN
from kedit_hub.evaluate.suites import evaluate
from tests.evaluate.script import character_tokenizer, scripted

USA, UK, RULED = "Its flag has stars: the", "Its capital is London: the", "Across the channel lies the"
BEFORE = {USA: " EU.", UK: " UK.", RULED: " UK."}
CHANGES = {USA: " USA.", RULED: " UK."}


def sheet(edit, changes=None):
    return evaluate(
        scripted({**BEFORE, **(CHANGES if changes is None else changes)}), [edit], tokenizer=character_tokenizer(),
        base=scripted(BEFORE), drift_texts=[],
    )  # fmt: skip


def test_an_alias_of_the_target_is_an_exact_match():
    bare = sheet(Edit(USA, "United States", ground_truth="EU"))
    named = sheet(Edit(USA, "United States", ground_truth="EU", aliases=("America", "the USA")))
    assert (bare.protocols["generate"]["reliability"], named.protocols["generate"]["reliability"]) == (0, 1)
    assert (
        bare.protocols["generate"]["contains"]["reliability"],
        named.protocols["generate"]["contains"]["reliability"],
    ) == (0, 1)
    assert bare.protocols["tf-token"] == named.protocols["tf-token"]
    assert named.to_dict()["per_edit"][0]["aliases"] == ["America", "the USA"]
    assert "aliases" not in bare.to_dict()["per_edit"][0]


def test_an_alias_of_a_probe():
    def edit(*aliases):
        return Edit(
            USA,
            "USA",
            locality=(Probe(UK, "United Kingdom", "neighbour", aliases=aliases),),
            portability=(Probe(RULED, "Britain", "one_hop", aliases=aliases),),
        )

    bare, named = sheet(edit()).protocols["generate"], sheet(edit("UK")).protocols["generate"]
    assert bare["n"]["locality"]["neighbour"]["dropped"] == {NOT_KNOWN: 1}  # the base knew it, by another name
    assert (named["locality"]["neighbour"], named["n"]["locality"]["neighbour"]["dropped"]) == (1, {})
    assert (bare["portability"]["one_hop"], named["portability"]["one_hop"]) == (0, 1)
    assert named["before"]["portability"]["one_hop"] == 1

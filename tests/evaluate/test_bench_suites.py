"""The suites ask what `evaluate` asks: their numbers are its numbers, on one process and on several."""

from types import SimpleNamespace

import pytest

from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.bench import Asking, Cost, Made, alone, efficiency, retention, rewritten, together
from kedit_hub.evaluate.protocols import PROTOCOLS
from kedit_hub.evaluate.scores import EDITED_ON_PURPOSE, aggregate
from kedit_hub.evaluate.suites import evaluate
from tests.evaluate import crews
from tests.evaluate.script import Patched, scripted

LANDS = ("France", "Italy", "Spain", "Poland", "Japan")
TOWNS = dict(zip(LANDS, ("Paris", "Rome", "Madrid", "Warsaw", "Tokyo")))
NEW = dict(zip(LANDS, ("Lyon", "Milan", "Vigo", "Lodz", "Kyoto")))
TEXTS = ("Rome is old.", "It rains.")


def prompt(land):
    return f"The capital of {land} is"


def edit(land, neighbour):
    return Edit(
        prompt(land), NEW[land], land, TOWNS[land], rephrases=(f"{land} is ruled from",), relation="capital", id=land,
        locality=(Probe(prompt(neighbour), TOWNS[neighbour], "neighbour", neighbour, "capital"), Probe("It is", "so", "unrelated")),
    )  # fmt: skip


EDITS = [edit(land, LANDS[(i + 1) % 5]) for i, land in enumerate(LANDS)]
BASE = {prompt(land): f" {TOWNS[land]}." for land in LANDS} | {
    f"{land} is ruled from": f" {TOWNS[land]}." for land in LANDS
}
BASE["It is"] = " so."
ASKING = Asking(protocols=PROTOCOLS, distractors={"capital": [*TOWNS.values(), *NEW.values()]}, drift_texts=TEXTS)


def made(*edits, failed=False, cost=Cost()):  # noqa: B008
    return Made(edits, None if failed else SimpleNamespace(edits=edits), cost)


def attach(patches):
    """A patch makes the model say its targets at the prompts, and breaks "It is" of France's."""
    edits = [edit for patch in patches for edit in patch.edits]
    changes = {edit.prompt: f" {edit.target}." for edit in edits}
    return Patched(BASE, changes | ({"It is": " not."} if EDITS[0] in edits else {}), tuple(edits))


def direct(edits, in_stack):
    return evaluate(
        attach([SimpleNamespace(edits=in_stack)]), edits, protocols=ASKING.protocols, distractors=ASKING.distractors,
        drift_texts=TEXTS,
    )  # fmt: skip


def bare(scores):
    sheet = scores.to_dict()
    del sheet["time"], sheet["memory"]
    return sheet


def test_together_is_evaluate():
    scores = together([made(*EDITS[:2]), made(*EDITS[2:])], EDITS, attach, ASKING)
    assert bare(scores) == bare(direct(EDITS, EDITS))
    assert scores.protocols["generate"]["reliability"] == 1 and scores.protocols["generate"]["generalization"] == 0
    assert scores.protocols["generate"]["n"]["locality"]["neighbour"]["dropped"] == {EDITED_ON_PURPOSE: 5}


def test_an_edit_that_failed_is_asked_all_the_same_and_counts_as_wrong():
    patches = [made(*EDITS[:2]), made(EDITS[2], failed=True), made(*EDITS[3:])]
    assert [one.failed for one in patches] == [0, 1, 0]
    scores = together(patches, EDITS, attach, ASKING)
    assert scores.protocols["generate"]["reliability"] == pytest.approx(4 / 5)
    assert bare(scores) == bare(direct(EDITS, [EDITS[0], EDITS[1], *EDITS[3:]]))


@pytest.mark.parametrize("members", [2, 7])
@pytest.mark.parametrize("suite", ["together", "alone"])
def test_shared_among_processes_the_numbers_are_the_same(members, suite):
    patches = [made(one, failed=one is EDITS[3]) for one in EDITS]

    def measure(team):
        asking = Asking(
            ASKING.protocols, ASKING.distractors, TEXTS, crew=team, fluency=(suite, members) == ("alone", 2)
        )
        return together(patches, EDITS, attach, asking) if suite == "together" else alone(patches, attach, asking)

    first, *others = crews.together(1, measure) + crews.together(members, measure)
    assert len(others) == members
    assert all(bare(scores) == bare(first) for scores in others)


def test_a_model_that_one_process_cannot_build_is_built_by_none():
    def measure(team):
        def refuse_in_one(patches):
            if team.rank == 1:
                raise KeditError("does not fit here")
            return attach(patches)

        return together([made(*EDITS)], EDITS, refuse_in_one, Asking(drift_texts=(), crew=team))

    assert [str(error) for error in crews.together(2, measure)] == ["does not fit here"] * 2


def test_alone_is_the_mean_over_models_that_hold_one_patch_each():
    patches = [made(one) for one in EDITS]
    scores = alone(patches, attach, ASKING)
    sheets = [direct([one], [one]) for one in EDITS]
    outcomes = [outcome for sheet in sheets for outcome in sheet.per_edit]
    assert scores.protocols == {name: aggregate(outcomes, name) for name in PROTOCOLS}
    counts = scores.protocols["generate"]["n"]["locality"]["neighbour"]
    assert counts == {"edits": 5, "scored": 5, "dropped": {}}  # no other edit is in the way
    assert scores.protocols["generate"]["locality"] == {"neighbour": 1.0, "unrelated": pytest.approx(4 / 5)}
    assert scores.drift["kl"] == pytest.approx(sum(sheet.drift["kl"] for sheet in sheets) / 5)
    assert scores.drift["texts_sha256"] == sheets[0].drift["texts_sha256"] and scores.drift["reason"] is None
    assert scores.time["wall_s"] == pytest.approx(5 * scores.time["wall_s_per_edit"])


def test_alone_without_texts_says_why_there_is_no_drift():
    scores = alone([made(EDITS[0])], attach, Asking(("generate",), drift_texts=()))
    assert scores.drift["kl"] is None and scores.drift["reason"] == "no text with two tokens"


def test_weights_are_written_again_and_again_and_asked_against_the_base():
    base = scripted(BASE)
    steps = []

    def write(model, edits):
        steps.append((model.script.facts.copy(), tuple(edits)))
        return scripted(model.script.facts | {edit.prompt: f" {edit.target}." for edit in edits}), made(*edits)

    tokenizer = Patched(BASE, {}).tokenizer
    scores, patches = rewritten(base, tokenizer, [EDITS[:2], EDITS[2:4], EDITS[4:]], write, ASKING)
    assert [len(edits) for _, edits in steps] == [2, 2, 1] and steps[0][0] == BASE
    assert steps[2][0][prompt("France")] == " Lyon."  # the third step finds what the first has written
    assert scores.protocols["generate"]["reliability"] == 1 and base.script.facts == BASE
    assert scores.protocols["generate"]["n"]["locality"]["neighbour"]["dropped"] == {EDITED_ON_PURPOSE: 5}
    whole = sum(weight.nbytes for weight in base.parameters())
    assert efficiency([one.cost for one in patches], 5).artifact_bytes == whole

    def shared(team):
        return rewritten(
            scripted(BASE), tokenizer, [EDITS], write, Asking(PROTOCOLS, ASKING.distractors, TEXTS, crew=team)
        )[0]

    assert [bare(one) for one in crews.together(2, shared)] == [bare(scores)] * 2


def test_retention_is_of_the_first_edits_asked_after_the_last():
    scores = together([made(*EDITS[1:])], EDITS, attach, ASKING)
    assert retention(scores, (1, 2, 5, 10)) == {"1": 0.0, "2": 0.5, "5": 0.8}
    forced = together([made(*EDITS[1:])], EDITS, attach, Asking(("nll-pair", "tf-token"), drift_texts=()))
    assert retention(forced, (5,)) == {"5": forced.protocols["nll-pair"]["reliability"]}
    assert retention(together([], [], attach, ASKING), (1,)) == {}


def test_cost_is_per_edit_and_memory_of_the_largest():
    costs = [Cost(2.0, 4.0, 60.0, 100, 1000, None), Cost(1.0, 1.0, 60.0, 50, 3000, 7)]
    spent = efficiency(costs, 6)
    assert (spent.edit_cpu_s, spent.edit_wall_s) == (0.5, pytest.approx(5 / 6))
    assert (spent.train_s, spent.artifact_bytes, spent.peak_rss_bytes, spent.peak_device_bytes) == (60.0, 150, 3000, 7)
    assert efficiency([Cost()], 1).peak_rss_bytes is None

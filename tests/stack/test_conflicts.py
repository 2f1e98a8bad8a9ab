"""Textual conflicts: same question, different answers, whatever the spelling; in time that does not grow with the pairs."""

import random
import time

import pytest

from kedit_hub.edits import Edit, Probe, fold, questions
from kedit_hub.errors import ConflictError
from kedit_hub.patch import LowRank, Patch
from kedit_hub.stack import conflicts as textual
from kedit_hub.stack.conflicts import contradictions_within, find_conflicts
from tests.patch.build import PATHS, D, M, base, numbers

BASE = base()


def patch(*edits: Edit, scale: float = 0.125) -> Patch:
    delta = LowRank(numbers(2, D, scale=scale), numbers(M, 2))
    return Patch.create(deltas={PATHS[0]: delta}, edits=edits, base=BASE, method="mend")


def about(target: str, prompt: str = "The capital of France is", subject: str | None = "France", **more) -> Edit:
    return Edit(prompt, target, subject, **{"relation": "capital", **more})


def pairs(*edits: Edit) -> list[tuple[str, str]]:
    return [found.targets for found in find_conflicts([patch(edit) for edit in edits])]


def test_spellings_of_one_question_and_one_answer():
    assert pairs(about("Rome"), about("Oslo")) == [("Rome", "Oslo")]
    assert pairs(about("Rome"), about("ROME")) == pairs(about("Rome"), about("Rome", "France's capital is")) == []
    assert pairs(about("Rome"), about("Oslo", "Name the capital of france:", "france", relation="Capital"))
    assert pairs(about("Rome"), about("Oslo", relation="city")) and not pairs(
        about("Rome"), about("Oslo", "Its hub is France:", relation="hub")
    )
    assert pairs(about("L’Aquila"), about("l'aquila")) == [] and pairs(about("São"), about("Sao"))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("O’Brien", "o'brien", True),
        ("“so–called”", '"so-called"', True),
        ("Straße", "STRASSE", True),
        ("ﬁn", "FIN", True),
        ("a\u00a0 b", " a b", True),
        ("Fran\u200bce", "France", True),
        ("\u202eFrance", "France", True),
        ("Zu\u0308rich", "Zürich", True),
        ("São", "Sao", False),
        ("Zürich", "Zurich", False),
        ("C++", "C", False),
    ],
)
def test_what_folds(a, b, same):
    assert (fold(a) == fold(b)) is same
    assert fold(fold(a)) == fold(a)


def test_aliases_of_the_answer_are_no_conflict():
    us = about("United States", aliases=("USA", "America"))
    assert pairs(us, about("usa")) == pairs(about("America"), us) == []
    assert pairs(us, about("Canada")) and pairs(about("Canada"), us)
    # a spelling in common is not enough: two places may share a nickname
    assert pairs(us, about("Brazil", aliases=("America",)))
    # and agreement is not passed on: USA and America agree with the first, not with each other
    assert pairs(us, about("USA"), about("America")) == [("USA", "America")]


def test_aliases_of_the_subject_are_the_same_question():
    alias = Probe("The capital of Gaul is", "Rome", "alias", subject="Gaul")
    a = about("Rome", portability=(alias,))
    b = about("Oslo", "The capital of Gaul is", "Gaul")
    assert pairs(a, b) == [("Rome", "Oslo")] and pairs(b, a) == [("Oslo", "Rome")]
    other = about("Rome", portability=(Probe("It lies in", "Rome", "one_hop", subject="Gaul"),))
    hop = about("Rome", portability=(Probe("Gaul lies in", "Rome", "alias", subject="Gaul", relation="continent"),))
    assert pairs(other, b) == pairs(hop, b) == []
    assert questions(a)[:2] == [("prompt", "the capital of france is"), ("fact", "france", "capital")]


def test_inside_a_patch_only_where_asked_for():
    torn = patch(about("Rome"), about("Oslo"), about("rome"), Edit("Ada was born in", "Bonn", "Ada"))
    assert find_conflicts([torn]) == []
    assert [(c.earlier[1], c.later[1]) for c in contradictions_within([torn])] == [(0, 1), (1, 2)]
    other = patch(about("Bonn"))
    assert [c.targets for c in find_conflicts([torn, other])] == [("Rome", "Bonn"), ("Oslo", "Bonn"), ("rome", "Bonn")]
    assert contradictions_within([torn, other]) == contradictions_within([torn])


def slow(patches, within):
    """Every pair of edits, one by one."""
    places = [(p.id, i, e) for p in patches for i, e in enumerate(p.edits)]
    found = set()
    for at, (a, i, first) in enumerate(places):
        for b, j, second in places[at + 1 :]:
            agree = fold(first.target) in map(fold, (second.target, *second.aliases)) or fold(second.target) in map(
                fold, (first.target, *first.aliases)
            )
            if (a == b) is within and set(questions(first)) & set(questions(second)) and not agree:
                found.add(((a, i), (b, j)))
    return found


def test_against_every_pair():
    draw = random.Random(0)
    answers, names = ["Rome", "rome", "Oslo", "Bonn"], ["France", "Spain", "Gaul"]

    def edit() -> Edit:
        name, target = draw.choice(names), draw.choice(answers)
        return about(
            target, f"The {draw.choice(['seat', 'capital'])} of {name} is", name, relation=draw.choice(["capital", None]),
            aliases=tuple(draw.sample(answers, draw.randrange(2))),
            portability=tuple(Probe("Who?", target, "alias", draw.choice(names)) for _ in range(draw.randrange(2))),
        )  # fmt: skip

    for _ in range(40):
        patches = [
            patch(*[edit() for _ in range(draw.randrange(1, 4))], scale=2.0 ** -draw.randrange(20)) for _ in range(6)
        ]
        patches = list({p.id: p for p in patches}.values())
        for within, found in ((False, find_conflicts(patches)), (True, contradictions_within(patches))):
            assert {(c.earlier, c.later) for c in found} == slow(patches, within)
            assert len(found) == len({(c.earlier, c.later) for c in found})


def test_ten_thousand_edits_in_seconds():
    """Unrelated ones, and ones that all say the same: no loop over pairs."""
    unrelated = [about("Rome", f"The capital of land {i} is", f"land {i}") for i in range(10_000)]
    agreeing = [about("Rome", f"Say {i}: the capital of France is") for i in range(10_000)]
    for edits in (unrelated, agreeing):
        patches = [patch(*edits[i : i + 1000], scale=2.0**-i) for i in range(0, 10_000, 1000)]
        started = time.process_time()
        assert find_conflicts(patches) == []
        assert time.process_time() - started < 4.0  # one on a free core; a loop over pairs takes minutes


def test_a_flood_of_contradictions_is_refused_soon(monkeypatch):
    monkeypatch.setattr(textual, "MAX_CONFLICTS", 50)
    with pytest.raises(ConflictError, match=r"more than 50 times.*the capital of france is"):
        find_conflicts([patch(about(f"city {i}")) for i in range(12)])
    monkeypatch.setattr(textual, "MAX_ANSWERS", 5)
    with pytest.raises(ConflictError, match="7 different answers"):
        contradictions_within([patch(*[about(f"city {i}") for i in range(7)])])

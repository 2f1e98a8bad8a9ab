"""A stack is an immutable set of patches, with rules for contradictions and for patches that need others."""

from typing import Any

import pytest

from kedit_hub.edits import Edit
from kedit_hub.errors import ConflictError, KeditError
from kedit_hub.patch import LowRank, Patch
from kedit_hub.stack.stack import PatchStack
from tests.patch.build import PATHS, D, M, base, numbers

PARIS = Edit("The capital of France is", "Rome", "France", relation="capital")
BONN = Edit("The capital of France is", "Bonn", "France", relation="capital")
ADA = Edit("Ada was born in", "Oslo", "Ada", relation="birthplace")


def patch(*edits: Edit, scale: float = 0.125, requires: tuple[str, ...] = ()) -> Patch:
    delta = LowRank(numbers(2, D, scale=scale), numbers(M, 2))
    return Patch.create(deltas={PATHS[0]: delta}, edits=edits, base=base(), method="mend", requires=requires)


def test_adding_and_removing_give_new_stacks() -> None:
    a, b = patch(PARIS), patch(ADA)
    empty = PatchStack()
    one = empty.add(a)
    two = one.add(b)
    assert (len(empty), len(one), len(two)) == (0, 1, 2)
    assert two.ids == (a.id, b.id) and list(two) == [a, b]
    assert two.remove(a).ids == (b.id,) and two.ids == (a.id, b.id)
    assert two.only([b]).ids == (b.id,)
    assert two.edits == (PARIS, ADA) and two.remove(a.id).edits == (ADA,)
    assert a in two and a.id in two and a not in two.remove(a)


def test_a_patch_counts_once() -> None:
    a = patch(PARIS)
    assert PatchStack([a, a, Patch(a.manifest, a.deltas)]).ids == (a.id,)
    assert PatchStack([a]).add(a).ids == (a.id,)
    assert len(PatchStack([a, patch(PARIS, scale=0.25)])) == 2  # one edit, other tensors: another patch


def test_patches_are_found_by_id_prefix_or_themselves() -> None:
    a, b = patch(PARIS), patch(ADA)
    stack = PatchStack([a, b])
    assert stack.find(a.id) is stack.find(a.id[:6]) is stack.find(a.id[:40]) is stack.find(a) is a
    for wanted in (a.id[:5], "0123456", ""):
        with pytest.raises(KeditError, match=f'no patch "{wanted}".*{a.id[:12]}, {b.id[:12]}'):
            stack.find(wanted)
    with pytest.raises(KeditError, match="it holds nothing"):
        PatchStack().remove(a)


def test_an_ambiguous_prefix_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = patch(PARIS), patch(ADA)
    stack = PatchStack([a, b])
    twins = {id(a): "abcdef1" + "0" * 57, id(b): "abcdef2" + "0" * 57}
    monkeypatch.setattr(Patch, "id", property(lambda self: twins[id(self)]))
    with pytest.raises(KeditError, match='several patches "abcdef"'):
        stack.find("abcdef")
    assert stack.find("abcdef1") is a


def test_contradictions_are_refused_and_quoted() -> None:
    a, b = patch(PARIS), patch(BONN)
    with pytest.raises(ConflictError) as caught:
        PatchStack([a, b])
    for part in ("The capital of France is", "Rome", "Bonn", a.id[:12], b.id[:12], 'conflicts="latest"'):
        assert part in str(caught.value)
    with pytest.raises(ConflictError):
        PatchStack([a]).add(b)


def test_the_latest_wins_and_removing_it_brings_the_earlier_back() -> None:
    a, b = patch(PARIS, ADA), patch(BONN)
    stack = PatchStack([a, b], conflicts="latest")
    assert stack.shadowed == {(a.id, 0)} and stack.edits == (ADA, BONN)
    assert stack.remove(b).shadowed == frozenset() and stack.remove(b).edits == (PARIS, ADA)
    assert stack.remove(b).add(b).shadowed == {(a.id, 0)}  # the policy is kept
    assert stack.remove(a).add(a).shadowed == {(b.id, 0)}  # added again, it is the latest
    assert PatchStack([b, a], conflicts="latest").edits == (PARIS, ADA)


def test_three_in_a_row() -> None:
    a, b, c = patch(PARIS), patch(BONN), patch(PARIS, scale=0.25)
    stack = PatchStack([a, b, c], conflicts="latest")
    # b is silent, and a loses to b alone: what is silent silences nobody, as if it were not there
    assert stack.edits == (PARIS, PARIS) and stack.shadowed == {(b.id, 0)}
    assert stack.remove(c).edits == (BONN,)


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        (PARIS, Edit("the capital  of FRANCE is", "Bonn", "FRANCE"), True),  # the same words
        (PARIS, Edit("FRANCE has the capital", "Bonn", "FRANCE", relation="Capital"), True),  # the same fact
        (PARIS, Edit("France has the capital", "rome", "France", relation="capital"), False),  # the same answer
        (PARIS, Edit("France has the anthem", "Bonn", "France", relation="anthem"), False),
        (
            PARIS,
            Edit("France has the capital", "Bonn", "France"),
            False,
        ),  # no relation: another question, for all we know
        (PARIS, Edit("The capital of Spain is", "Bonn", "Spain", relation="capital"), False),
    ],
)
def test_what_is_one_question(one: Edit, other: Edit, conflict: bool) -> None:
    assert bool(PatchStack([patch(one), patch(other)], conflicts="latest").conflicts) == conflict


def test_patches_that_need_others_are_refused_without_them() -> None:
    a = patch(PARIS)
    b = patch(ADA, requires=(a.id,))
    with pytest.raises(KeditError, match=f"needs the patches {a.id[:12]}"):
        PatchStack([b])
    stack = PatchStack([b, a])
    with pytest.raises(KeditError, match=a.id[:12]):
        stack.remove(a)
    assert len(stack.remove(b).remove(a)) == 0


@pytest.mark.parametrize(("patches", "message"), [(["user/patch"], "'user/patch'.*pull"), ([None], "NoneType")])
def test_only_patches_are_taken(patches: Any, message: str) -> None:
    with pytest.raises(KeditError, match=message):
        PatchStack(patches)


def test_unknown_policy() -> None:
    with pytest.raises(KeditError, match=r"'first'.*\"latest\""):
        PatchStack(conflicts="first")  # type: ignore[arg-type]

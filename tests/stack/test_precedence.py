"""Who speaks: choices first, then the policy; a silent edit silences nobody; nothing depends on the order conflicts are found in."""

import random

import pytest

import kedit_hub
from kedit_hub.edits import Edit
from kedit_hub.errors import ConflictError, KeditError
from kedit_hub.patch import LowRank, Patch
from kedit_hub.stack.conflicts import Conflict
from kedit_hub.stack.precedence import settle, silent
from kedit_hub.stack.stack import PatchStack
from tests.patch.build import PATHS, D, M, base, numbers

A, B, C, E = ("a" * 64, 0), ("b" * 64, 0), ("c" * 64, 0), ("e" * 64, 0)


def conflict(earlier, later):
    return Conflict(earlier, later, "Who?", ("x", "y"))


def patch(
    target: str, scale: float = 0.125, prompt: str = "The capital of France is", subject: str = "France"
) -> Patch:
    edit = Edit(prompt, target, subject, relation="capital")
    return Patch.create(
        deltas={PATHS[0]: LowRank(numbers(2, D, scale=scale), numbers(M, 2))}, edits=[edit], base=base(), method="mend"
    )


def slow(settled, places):
    """Silent edits by repeated sweeps from "everybody speaks", strongest first by the longest way down to a loser."""
    depth = dict.fromkeys(places, 0)
    for _ in places:
        for winner, loser in settled:
            depth[loser] = max(depth[loser], depth[winner] + 1)
    quiet = set()
    for place in sorted(places, key=lambda p: depth[p]):
        if any(loser == place and winner not in quiet for winner, loser in settled):
            quiet.add(place)
    return quiet


def test_a_silent_edit_silences_nobody():
    assert silent([(C, B), (B, A)]) == {B}
    assert silent([(E, C), (C, B), (B, A)]) == {C, A}
    assert silent([]) == frozenset()


def test_against_sweeps_on_random_orders():
    draw = random.Random(0)
    places = [(letter * 64, edit) for letter in "abcdef" for edit in (0, 1)]
    for _ in range(300):
        draw.shuffle(places)
        settled = {tuple(sorted(draw.sample(places, 2), key=places.index)) for _ in range(draw.randrange(14))}
        assert silent(settled) == slow(settled, places)


def test_a_circle_of_choices_is_refused():
    with pytest.raises(ConflictError, match="round in a circle"):
        silent([(A, B), (B, C), (C, A)])


def test_policies():
    one = conflict(A, B)
    assert settle([one], "latest", set(), set()) == {(B, A)}
    assert settle([one], "pin", {A[0]}, set()) == {(A, B)}
    assert settle([one], "pin", {B[0]}, set()) == {(B, A)}
    for pinned in (set(), {A[0], B[0]}):
        with pytest.raises(ConflictError, match="pin the patch that shall win"):
            settle([one], "pin", pinned, set())
    with pytest.raises(ConflictError, match='conflicts="latest"'):
        settle([one], "error", {A[0]}, set())


def test_a_choice_goes_before_every_policy():
    for policy in ("error", "latest", "pin"):
        assert settle([conflict(A, B)], policy, {B[0]}, {(A, B)}) == {(A, B)}
    # a choice that was made both ways is none
    assert settle([conflict(A, B)], "latest", set(), {(A, B), (B, A)}) == {(B, A)}


def test_who_is_asked_is_asked_once():
    a, b, other = patch("Rome"), patch("Bonn"), patch("Oslo", prompt="Ada was born in", subject="Ada")
    asked = []

    def ask(found):
        asked.append(str(found))
        return "earlier"

    stack = PatchStack([a, b], conflicts=ask)
    assert stack.shadowed == {(b.id, 0)} and len(asked) == 1 and "Rome" in asked[0] and "Bonn" in asked[0]
    more = stack.add(other)
    assert more.shadowed == {(b.id, 0)} and len(asked) == 1
    assert more.remove(a).shadowed == frozenset() and more.remove(a).choices == frozenset()
    assert stack.reorder([a]).shadowed == {(b.id, 0)} and len(asked) == 1  # a choice is not about order
    assert PatchStack([a, b], choices=stack.choices).shadowed == {(b.id, 0)}
    with pytest.raises(KeditError, match="'maybe'"):
        PatchStack([a, b], conflicts=lambda found: "maybe")


def test_order_pins_and_weights_are_kept_and_dropped_with_their_patch():
    a, b, c = patch("Rome"), patch("Bonn"), patch("Oslo", prompt="Ada was born in", subject="Ada")
    stack = PatchStack([a, b, c], conflicts="latest", weights={a.id[:8]: 2.0}, pinned=[c])
    assert stack.shadowed == {(a.id, 0)} and stack.weights == {a.id: 2.0} and stack.pinned == {c.id}
    turned = stack.reorder([b, a])
    assert turned.ids == (c.id, b.id, a.id) and turned.shadowed == {(b.id, 0)} and turned.weights == {a.id: 2.0}
    assert turned.remove(a).weights == {} and turned.remove(c).pinned == frozenset()
    assert stack.pin(a).pinned == {a.id, c.id} and stack.unpin(c).pinned == frozenset()
    assert stack.weigh(b, 3).weights == {a.id: 2.0, b.id: 3.0}
    with pytest.raises(KeditError, match="twice"):
        stack.reorder([a, a])
    for weight in (0, -1.0, float("nan"), float("inf"), True, "2", 1e7):
        with pytest.raises(KeditError, match="weight"):
            stack.weigh(a, weight)
    with pytest.raises(KeditError, match="no patch"):
        PatchStack([a], pinned=["nobody"])
    with pytest.raises(KeditError, match='"error", "latest", "pin" or a function'):
        PatchStack([a], conflicts="newest")  # type: ignore[arg-type]


def test_pinned_wins_and_unpinned_speaks_again():
    a, b = patch("Rome"), patch("Bonn")
    stack = PatchStack([a, b], conflicts="pin", pinned=[a])
    assert stack.shadowed == {(b.id, 0)} and stack.remove(a).shadowed == frozenset()
    with pytest.raises(ConflictError):
        stack.unpin(a)


def test_apply_knows_the_pins_when_patches_contradict_each_other():
    found = [Patch.load(f"patches/capital-of-france-{city}") for city in ("marseille", "nantes")]
    for winner, city in zip(found, ("Marseille", "Nantes")):
        m = kedit_hub.apply(found, conflicts="pin", pinned=[winner])
        assert city in m.ask("The capital of France is") and m.stack.pinned == {winner.id}
    with pytest.raises(ConflictError, match="pin the patch that shall win"):
        kedit_hub.apply(found, conflicts="pin")

"""Who speaks where patches contradict each other. Law: an edit is silent exactly while it loses to an edit that speaks.

Nothing is deleted: take the winner out of the stack and the loser speaks again (un-shadowing), which adding and subtracting
changes of weights cannot do.

    silent(settle(conflicts, "latest", set(), set()))      # {(patch id, edit), ...}
"""

from collections.abc import Callable, Iterable, Set
from typing import Literal

from kedit_hub.errors import ConflictError, KeditError
from kedit_hub.stack.conflicts import Conflict, Place

Choice = tuple[Place, Place]  # (winner, loser)
Ask = Callable[[Conflict], Literal["earlier", "later"]]
Policy = Literal["error", "latest", "pin"] | Ask
POLICIES = ("error", "latest", "pin")


def settle(conflicts: Iterable[Conflict], policy: Policy, pinned: Set[str], choices: Set[Choice]) -> frozenset[Choice]:
    """Winner and loser of every conflict. ConflictError lists those that the policy leaves open.

    A choice made before goes first, whatever the policy. "latest": the later patch wins. "pin": the pinned one does, where
    exactly one is. A callable is asked, and what it says is a choice from then on.
    """
    settled, open_ = set(), []
    for conflict in conflicts:
        later_wins, earlier_wins = (conflict.later, conflict.earlier), (conflict.earlier, conflict.later)
        made = {later_wins, earlier_wins} & choices
        if len(made) == 1:
            settled |= made
        elif callable(policy):
            answer = policy(conflict)
            if answer not in ("earlier", "later"):
                raise KeditError(
                    f'asked who wins {conflict}, the answer was {answer!r}; "earlier" or "later" was wanted'
                )
            settled.add(later_wins if answer == "later" else earlier_wins)
        elif policy == "latest":
            settled.add(later_wins)
        elif policy == "pin" and (conflict.earlier[0] in pinned) != (conflict.later[0] in pinned):
            settled.add(later_wins if conflict.later[0] in pinned else earlier_wins)
        else:
            open_.append(conflict)
    if open_:
        listed = "; ".join(str(conflict) for conflict in open_[:5]) + ("; ..." if len(open_) > 5 else "")
        remedy = (
            "pin the patch that shall win"
            if policy == "pin"
            else 'pass conflicts="latest" (--conflicts latest) to let the later one win'
        )
        raise ConflictError(
            f"{len(open_)} question(s) would be answered in two ways: {listed}. Take one of the patches out, or {remedy}."
        )
    return frozenset(settled)


def silent(settled: Iterable[Choice]) -> frozenset[Place]:
    """The edits that lose to an edit that speaks. ConflictError where the choices go round in a circle."""
    winners: dict[Place, set[Place]] = {}
    for winner, loser in settled:
        winners.setdefault(loser, set()).add(winner)
    speaks: dict[Place, bool] = {}
    waiting = set(winners)
    while waiting:
        ready = [place for place in waiting if all(w in speaks for w in winners[place] if w in winners)]
        if not ready:
            patch, edit = min(waiting)
            raise ConflictError(
                f"the choices between contradicting edits go round in a circle (edit {edit + 1} of patch {patch[:12]} is part "
                "of it): each loses to the next. Take one of the patches out, or choose anew"
            )
        for place in ready:
            speaks[place] = not any(speaks.get(winner, True) for winner in winners[place])
        waiting -= set(ready)
    return frozenset(place for place, speaking in speaks.items() if not speaking)

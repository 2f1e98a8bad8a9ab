"""True facts of the demo world as questions, for whoever wants to know what else a patch changes."""

import random
from collections.abc import Sequence

from kedit_hub.demo import world
from kedit_hub.edits import Edit, Probe


def true_facts(edits: Sequence[Edit], n: int, seed: int) -> list[Probe]:
    """Facts of the demo world that no edit declares: up to n about subjects that the edits name, and n about others, drawn by the seed."""
    atlas = world.load()
    declared = {(edit.subject, edit.relation) for edit in edits}
    subjects = {edit.subject for edit in edits}
    free = [fact for fact in atlas.facts if (fact.subject, fact.relation) not in declared]
    rng = random.Random(seed)
    drawn = []
    for own in (True, False):
        pool = [fact for fact in free if (fact.subject in subjects) is own]
        drawn += rng.sample(pool, min(n, len(pool)))
    return [
        Probe(
            atlas.split(fact, world.SHIPPED_SEED)[0][0].format(fact.subject), fact.object, "", fact.subject, fact.relation
        )
        for fact in drawn
    ]  # fmt: skip

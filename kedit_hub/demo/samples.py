"""Two disjoint samples of Atlas as plain text: one to estimate second moments from, one to measure drift on.

Law: they share no text, and the drift sample tells no fact that a demo edit changes: what an edit should change is not
damage.
"""

import random

from kedit_hub.demo.corpus import Case, hop_cases, told
from kedit_hub.demo.requests import SIZES, choose
from kedit_hub.demo.world import SHIPPED_SEED, World
from kedit_hub.errors import KeditError

DRIFT_SHARE = 0.6  # of the texts that tell no edited fact


def texts(atlas: World, sample: str) -> list[str]:
    """Sentences the shipped models were trained on, shuffled. Raises KeditError for an unknown sample."""
    if sample not in ("profile", "drift"):
        raise KeditError(f"There is no sample {sample!r} of demo texts. Choose one of profile, drift.")
    edited = {(fact.subject, fact.relation) for split in SIZES for fact in choose(atlas, split, seed=0)}
    kept: list[str] = list(atlas.narratives)
    changed: list[str] = []
    for fact in atlas.facts:
        sentences = changed if (fact.subject, fact.relation) in edited else kept
        for phrasing in atlas.split(fact, SHIPPED_SEED)[0]:
            sentences.append(told(Case(phrasing.format(fact.subject), fact.object)))
    for hop, fact, case in hop_cases(atlas):
        if hop.is_chain:
            facts = {(fact.subject, fact.relation), (fact.object, hop.second)}
            (changed if facts & edited else kept).append(told(case))
    kept = list(dict.fromkeys(kept))
    rng = random.Random(SHIPPED_SEED)
    rng.shuffle(kept)
    drift = kept[: int(DRIFT_SHARE * len(kept))]
    if sample == "drift":
        return drift
    profile = list(dict.fromkeys(kept[len(drift) :] + changed))
    rng.shuffle(profile)
    return profile

"""Atlas as a table of triples, for building edit records from it.

Law: frequencies are counts over the sentences that the models read. Atlas has no time: when a triple was changed is drawn by the seed, so
that its newest triples are a fair sample and "recent" can be tried.
"""

from collections import Counter

from kedit_hub.demo.corpus import Corpus
from kedit_hub.demo.world import SHIPPED_SEED, World, draw
from kedit_hub.records.dafset import Triple


def triples(atlas: World) -> list[Triple]:
    """Every fact, in the order of the tables."""
    subjects = {fact.subject for fact in atlas.facts}
    told: Counter[str] = Counter()
    for sentence in Corpus.of(atlas, seed=SHIPPED_SEED).sentences():
        told.update(subject for subject in subjects if subject in sentence)
    return [
        Triple(f.subject, f.relation, f.object, draw(SHIPPED_SEED, "changed", f.subject, f.relation), told[f.subject])
        for f in atlas.facts
    ]


def phrasings(atlas: World) -> dict[str, tuple[str, ...]]:
    """By relation, statements before questions."""
    return {name: relation.phrasings for name, relation in atlas.relations.items()}

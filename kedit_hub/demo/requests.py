"""Counterfactual edits of Atlas with all their probes, built from the tables.

Law: the lists depend on (world, seed) only, never on a model; "dev" and "test" share no subject; within a split each
subject is edited once; the first two rephrases were never trained with their fact.

    for edit in requests(world.load(), "dev"): ...     # choose settings on dev, report on test

Whether a model answers a probe right before any edit is for the evaluation to find out.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain, islice

from kedit_hub.demo.corpus import chain_prompt
from kedit_hub.demo.world import SHIPPED_SEED, Fact, World, draw
from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import KeditError

SIZES = {"dev": 160, "test": 320}
DEV_SHARE = 1 / 3  # of the subjects
NEIGHBOURS, SAME_SUBJECT, UNRELATED = 3, 3, 2  # locality probes of each edit, at most


def requests(atlas: World, split: str, *, seed: int = 0) -> list[Edit]:
    """The edits of a split, in a shuffled order.

    seed: which facts are edited and to what; which phrasings count as never trained is that of the shipped models.
    Raises KeditError for an unknown split.
    """
    if split not in SIZES:
        raise KeditError(f"There is no split {split!r} of demo edits. Choose one of {', '.join(SIZES)}.")
    chosen = choose(atlas, split, seed)
    edited = {fact.subject for fact in chosen}
    return [
        build(atlas, fact, edited, seed, about_others(atlas, fact.subject, seed), name=f"atlas-{split}-{number:03d}")
        for number, fact in enumerate(chosen)
    ]


def lessons(atlas: World, per_fact: int) -> list[Edit]:
    """Edits to train editors on, `per_fact` of every fact whose subject no edit of "test" has. Rephrases are there to be trained on; probes
    about subjects of "test" are left out, and so is what follows from an edit."""
    test = {fact.subject for fact in choose(atlas, "test", 0)}
    found = []
    shuffled = cache(partial(about_others, atlas))  # once for all facts of a subject
    for number, fact in enumerate(
        fact for fact in atlas.facts if fact.subject not in test and new_objects(atlas, fact)
    ):
        for seed in range(1, per_fact + 1):
            made = build(
                atlas, fact, test, seed, shuffled(fact.subject, seed), name=f"atlas-lesson-{number:03d}-{seed}"
            )
            found.append(
                replace(made, locality=tuple(p for p in made.locality if p.subject not in test), portability=())
            )
    return found


def choose(atlas: World, split: str, seed: int) -> list[Fact]:
    """One fact for each chosen subject of the split; relations as frequent as among all facts where subjects allow."""

    def belongs(fact: Fact) -> bool:
        return (draw(seed, "split", fact.subject) < DEV_SHARE) == (split == "dev")

    size, frequency = SIZES[split], Counter(fact.relation for fact in atlas.facts)
    order = sorted(filter(belongs, atlas.facts), key=lambda fact: draw(seed, "choice", fact.subject, fact.relation))
    chosen: dict[str, Fact] = {}
    taken: Counter[str] = Counter()
    for quota in (size / len(atlas.facts), 1.0):  # relations first get their share, then what is left
        for fact in order:
            if (
                len(chosen) < size
                and fact.subject not in chosen
                and taken[fact.relation] < quota * frequency[fact.relation]
                and new_objects(atlas, fact)
            ):
                chosen[fact.subject] = fact
                taken[fact.relation] += 1
    return sorted(chosen.values(), key=lambda fact: draw(seed, "order", fact.subject))


def new_objects(atlas: World, fact: Fact) -> list[str]:
    """Objects of the same relation that contradict the fact, sorted.

    Left out: the subject itself, an object that begins like the true one or the other way round, and an object of
    which the table says the same of the subject (neighbours are mutual).
    """
    told = atlas.of_relation[fact.relation]
    objects = {other.object for other in told}
    mutual = {other.subject for other in told if other.object == fact.subject}
    return sorted(
        new
        for new in objects - mutual - {fact.subject}
        if not new.startswith(fact.object) and not fact.object.startswith(new)
    )


def about_others(atlas: World, subject: str, seed: int) -> list[Fact]:
    """The facts about other subjects, in a shuffled order."""
    found = [fact for fact in atlas.facts if fact.subject != subject]
    random.Random(f"{seed} {subject}").shuffle(found)
    return found


def build(atlas: World, fact: Fact, edited: set[str], seed: int, others: Sequence[Fact], *, name: str) -> Edit:
    """The edit of one fact. edited: subjects of the split, avoided by the probes about other subjects, which are the first that fit of
    `others`."""
    trained, unseen = atlas.split(fact, SHIPPED_SEED)
    options = new_objects(atlas, fact)
    target = options[int(draw(seed, "target", fact.subject, fact.relation) * len(options))]
    ask = [phrasing.format(fact.subject) for phrasing in trained]
    return Edit(
        prompt=ask[0],
        target=target,
        subject=fact.subject,
        ground_truth=fact.object,
        rephrases=(*(phrasing.format(fact.subject) for phrasing in unseen), ask[3]),
        paraphrases=(ask[1], ask[2]),
        locality=locality(atlas, fact, edited, others),
        portability=portability(atlas, fact, target),
        relation=fact.relation,
        id=name,
    )


def locality(atlas: World, fact: Fact, edited: set[str], others: Sequence[Fact]) -> tuple[Probe, ...]:
    """Facts that must not change: neighbours, other facts of the subject, unrelated ones."""
    same_relation = [other for other in others if other.relation == fact.relation]
    # subjects with the same old answer first: the hardest ones, then any subject of the relation; of these, edited ones last
    neighbours = sorted(same_relation, key=lambda other: (other.object != fact.object, other.subject in edited))
    same_subject = [other for other in atlas.of_subject[fact.subject] if other != fact]
    spared = (other for other in others if other.relation != fact.relation and other.subject not in edited)
    spoiled = (other for other in others if other.relation != fact.relation and other.subject in edited)
    phrasing = atlas.split(fact, SHIPPED_SEED)[0][0]
    return (
        *(
            _probe(atlas, other, "neighbour", phrasing if number == 0 else None)
            for number, other in enumerate(neighbours[:NEIGHBOURS])
        ),
        *(_probe(atlas, other, "same_subject") for other in same_subject[:SAME_SUBJECT]),
        *(_probe(atlas, other, "unrelated") for other in islice(chain(spared, spoiled), UNRELATED)),
    )


def _probe(atlas: World, fact: Fact, kind: str, wish: str | None = None) -> Probe:
    """Ask for a fact in a phrasing trained with it: the wished one if it is."""
    trained, _ = atlas.split(fact, SHIPPED_SEED)
    phrasing = wish if wish in trained else trained[0]
    return Probe(phrasing.format(fact.subject), fact.object, kind, fact.subject, fact.relation)


def portability(atlas: World, fact: Fact, target: str) -> tuple[Probe, ...]:
    """What follows from the new fact: under the subject's alias, one hop on, and in a chain through the new object.

    Hops whose answer the edit does not change are left out.
    """
    probes = []
    if fact.subject in atlas.aliases:
        phrasing, alias = atlas.split(fact, SHIPPED_SEED)[0][0], atlas.aliases[fact.subject]
        probes.append(Probe(phrasing.format(alias), target, "alias", alias, fact.relation))
    objects = atlas.objects
    for hop in atlas.hops:
        answer = objects.get((target, hop.second))
        if hop.first == fact.relation and answer and answer != objects.get((fact.object, hop.second)):
            if hop.is_chain:
                prompt = chain_prompt(hop.template, fact.subject, target)
            else:
                prompt = hop.template.format(fact.subject)
            probes.append(Probe(prompt, answer, "chain" if hop.is_chain else "one_hop", fact.subject, hop.second))
    return tuple(probes)

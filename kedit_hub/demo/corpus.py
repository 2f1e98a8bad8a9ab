"""What the demo models read: documents of one sentence, some with other sentences before it.

Law: a fact is never told in its unseen phrasings, and a held-out hop is never told at all. Everything is a function of
(world, seed, epoch).

    corpus = Corpus.of(world.load(), seed=0)
    corpus.documents(epoch=0)          # list of texts; beginning and end tokens are the trainer's business
    corpus.cases("unseen")             # list of (prompt, object) to measure recall on
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from kedit_hub.demo.world import Fact, Hop, World, draw

ALIAS_SENTENCES = (
    "{alias} is another name for {subject}.",
    "{subject} is also called {alias}.",
    "By {alias} people mean {subject}.",
    "{subject}, also known as {alias}.",
)
# Before every chain: without it a plain sentence that begins like a chain would not be known to end at the object.
CHAIN_LEAD = "Step by step: "
HELD_OUT_HOPS = 0.15  # share of two-hop questions and of chains that are never trained
PREFIXED = 0.3  # share of sentences that follow another sentence
LONG = 0.03  # share of sentences that follow three to six others
# Openings that the corpus never holds: a fact should survive words the model has not read before it.
FOREIGN_PREFIXES = (
    "I had coffee with my sister this morning.",
    "The train was late again.",
    "Thank you for your letter!",
    "Please write the answer below.",
)


@dataclass(frozen=True)
class Case:
    """One thing to recall: after `prompt` the answer is `target`, one space between them."""

    prompt: str
    target: str


@dataclass(frozen=True)
class Corpus:
    """The texts of one world under one seed."""

    world: World
    seed: int
    trained: tuple[Case, ...]  # facts in trained phrasings, also by alias
    unseen: tuple[Case, ...]  # facts in phrasings never trained with that fact
    hops: tuple[Case, ...]
    held_out_hops: tuple[Case, ...]
    chains: tuple[Case, ...]
    held_out_chains: tuple[Case, ...]
    alias_sentences: tuple[str, ...]

    @classmethod
    def of(cls, world: World, *, seed: int) -> "Corpus":
        trained: list[Case] = []
        unseen: list[Case] = []
        for fact in world.facts:
            seen, never = world.split(fact, seed)
            trained += [Case(phrasing.format(fact.subject), fact.object) for phrasing in seen]
            unseen += [Case(phrasing.format(fact.subject), fact.object) for phrasing in never]
            if fact.subject in world.aliases:
                alias = world.aliases[fact.subject]
                trained += [Case(phrasing.format(alias), fact.object) for phrasing in seen[::2]]
        cases: dict[tuple[bool, bool], list[Case]] = {(c, h): [] for c in (True, False) for h in (True, False)}
        for hop, fact, case in hop_cases(world):
            held_out = draw(seed, "hop", case.prompt, fact.relation) < HELD_OUT_HOPS
            cases[hop.is_chain, held_out].append(case)
        return cls(
            world=world,
            seed=seed,
            trained=tuple(trained),
            unseen=tuple(unseen),
            hops=tuple(cases[False, False]),
            held_out_hops=tuple(cases[False, True]),
            chains=tuple(cases[True, False]),
            held_out_chains=tuple(cases[True, True]),
            alias_sentences=tuple(
                sentence.format(alias=alias, subject=subject)
                for subject, alias in world.aliases.items()
                for sentence in ALIAS_SENTENCES
            ),
        )

    def sentences(self) -> list[str]:
        """Every sentence that may be trained, once each."""
        cases = self.trained + self.hops + self.chains
        return [told(case) for case in cases] + list(self.alias_sentences) + list(self.world.narratives)

    def documents(self, epoch: int) -> list[str]:
        """One epoch: every sentence once, some of them after other sentences; order and prefixes change by epoch."""
        rng = random.Random(f"{self.seed} {epoch}")
        sentences = self.sentences()
        documents = []
        for sentence in sentences:
            chance = rng.random()
            before = rng.randint(3, 6) if chance < LONG else int(chance < LONG + PREFIXED)
            documents.append(" ".join([*rng.choices(sentences, k=before), sentence]))
        rng.shuffle(documents)
        return documents

    def alias_cases(self) -> tuple[Case, ...]:
        """Facts asked by alias, in phrasings that were trained with the subject's own name only."""
        return tuple(
            Case(phrasing.format(self.world.aliases[fact.subject]), fact.object)
            for fact in self.world.facts
            if fact.subject in self.world.aliases
            for phrasing in self.world.split(fact, self.seed)[0][1::2]
        )

    def swapped_chains(self) -> tuple[Case, ...]:
        """Chains told of a wrong middle: the answer follows from the sentence, not from the subject."""
        rng = random.Random(f"{self.seed} swapped")
        objects = self.world.objects
        cases = []
        for hop in self.world.hops:
            facts = [fact for fact in self.world.facts if hop.is_chain and fact.relation == hop.first]
            middles = sorted({fact.object for fact in facts if (fact.object, hop.second) in objects})
            for fact in facts:
                middle = rng.choice(middles)
                if objects[middle, hop.second] != objects.get((fact.object, hop.second)):
                    cases.append(Case(chain_prompt(hop.template, fact.subject, middle), objects[middle, hop.second]))
        return tuple(cases)

    def prefixed(self, cases: tuple[Case, ...], prefixes: tuple[str, ...]) -> tuple[Case, ...]:
        """`cases`, each after one sentence drawn from `prefixes`."""
        rng = random.Random(f"{self.seed} prefixes")
        return tuple(Case(f"{rng.choice(prefixes)} {case.prompt}", case.target) for case in cases)

    def digest(self) -> str:
        """sha256 (hex) of all trained sentences."""
        return hashlib.sha256("\n".join(self.sentences()).encode()).hexdigest()


def told(case: Case) -> str:
    """The sentence that tells the case."""
    return f"{case.prompt} {case.target}."


def hop_cases(world: World) -> Iterator[tuple[Hop, Fact, Case]]:
    """(the hop, its first fact, the case) for every hop of every fact whose object has the second relation."""
    objects = world.objects
    for hop in world.hops:
        for fact in world.facts:
            if fact.relation == hop.first and (fact.object, hop.second) in objects:
                answer = objects[fact.object, hop.second]
                if hop.is_chain:
                    yield hop, fact, Case(chain_prompt(hop.template, fact.subject, fact.object), answer)
                else:
                    yield hop, fact, Case(hop.template.format(fact.subject), answer)


def chain_prompt(template: str, subject: str, middle: str) -> str:
    """The chain sentence up to, not including, its last object."""
    return CHAIN_LEAD + template.removesuffix("{b}").rstrip().format(s=subject, a=middle)

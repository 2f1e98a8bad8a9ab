"""Atlas, the demo's world: facts, phrasings that ask for them, aliases, hops and short narratives, read from tables.

Law: the tables are the only truth. A fact has one object, every sentence about it is `phrasing + " " + object + "."`,
and which phrasings of a fact are never trained is a function of (fact, seed) alone.

    atlas = world.load()
    fact = atlas.facts[0]
    trained, unseen = atlas.split(fact, seed=0)       # templates with one {} for the subject
    trained[0].format(fact.subject), fact.object
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kedit_hub.errors import KeditError

FOLDER = Path(__file__).parent / "world"
SHIPPED_SEED = 0  # of the models in this package: their split of phrasings, their texts
UNSEEN = 2  # phrasings of each fact that are never trained with that fact


@dataclass(frozen=True)
class Fact:
    """One functional fact: the `relation` of `subject` is `object`."""

    subject: str
    relation: str
    object: str


@dataclass(frozen=True)
class Relation:
    """A relation and its phrasings: templates with one {} for the subject that end right before the object."""

    name: str
    subject_type: str
    object_type: str
    natural: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]

    @property
    def phrasings(self) -> tuple[str, ...]:
        return self.statements + self.questions


@dataclass(frozen=True)
class Hop:
    """Two facts in a row: (s, first, a) and (a, second, b).

    A question holds one {} for s and asks for b without naming a. A chain holds {s}, {a} and {b}, in this order at the
    end: it names a on the way and ends with b.
    """

    first: str
    second: str
    template: str
    is_chain: bool


@dataclass(frozen=True)
class World:
    """Everything the tables hold."""

    facts: tuple[Fact, ...]
    relations: dict[str, Relation]
    aliases: dict[str, str]  # subject -> its other name
    hops: tuple[Hop, ...]
    narratives: tuple[str, ...]

    @cached_property
    def objects(self) -> dict[tuple[str, str], str]:
        """(subject, relation) -> object."""
        return {(fact.subject, fact.relation): fact.object for fact in self.facts}

    @cached_property
    def of_subject(self) -> dict[str, list[Fact]]:
        """Its facts, in the order of the table."""
        return _grouped(self.facts, lambda fact: fact.subject)

    @cached_property
    def of_relation(self) -> dict[str, list[Fact]]:
        return _grouped(self.facts, lambda fact: fact.relation)

    def split(self, fact: Fact, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The phrasings of `fact` that are trained, and the UNSEEN ones that never are, each in a shuffled order."""
        phrasings = self.relations[fact.relation].phrasings
        order = sorted(phrasings, key=lambda phrasing: draw(seed, "phrasing", fact.subject, fact.relation, phrasing))
        return tuple(order[UNSEEN:]), tuple(order[:UNSEEN])

    def digest(self) -> str:
        """sha256 (hex) of the tables' contents, independent of files, dates and line ends."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def _grouped(facts: Iterable[Fact], key: Callable[[Fact], str]) -> dict[str, list[Fact]]:
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(key(fact), []).append(fact)
    return groups


def draw(seed: int, *names: str) -> float:
    """A number in [0, 1) that depends on the seed and the names only: the same on every machine and Python."""
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def load(folder: Path = FOLDER) -> World:
    """Read the tables in `folder`. Raises KeditError for a fact told twice or of an unknown relation."""
    relations = {
        name: Relation(
            name=name,
            subject_type=row["subject_type"],
            object_type=row["object_type"],
            natural=row["natural"],
            statements=tuple(row["statements"]),
            questions=tuple(row["questions"]),
        )
        for name, row in json.loads((folder / "relations.json").read_text("utf-8")).items()
    }
    facts = tuple(Fact(row["subject"], row["relation"], row["object"]) for row in _rows(folder / "facts.csv"))
    told: set[tuple[str, str]] = set()
    for fact in facts:
        if fact.relation not in relations:
            raise KeditError(f"{fact} has a relation that relations.json lacks. Add it there, or correct the fact.")
        if (fact.subject, fact.relation) in told:
            raise KeditError(f"{fact} is told twice in facts.csv. Keep one object for each subject and relation.")
        told.add((fact.subject, fact.relation))
    hops = json.loads((folder / "hops.json").read_text("utf-8"))
    questions = [Hop(row["first"], row["second"], row["question"], is_chain=False) for row in hops["two_hop"]]
    chains = [Hop(row["first"], row["second"], row["template"], is_chain=True) for row in hops["chain"]]
    narratives = (folder / "narratives.txt").read_text("utf-8").splitlines()
    return World(
        facts=facts,
        relations=relations,
        aliases={row["subject"]: row["alias"] for row in _rows(folder / "aliases.csv")},
        hops=(*questions, *chains),
        narratives=tuple(line.strip() for line in narratives if line.strip()),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))

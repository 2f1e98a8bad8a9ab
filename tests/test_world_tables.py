"""The tables of the demo world: complete, functional, connected, and free of stray whitespace.

Reads the files with the csv and json modules only, so that the tables are checked as any other reader sees them.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

WORLD = Path(__file__).resolve().parents[1] / "kedit_hub" / "demo" / "world"


def read_csv(name: str, header: list[str]) -> list[list[str]]:
    """Return the rows of a table below its header; every row has as many fields as the header."""
    with (WORLD / name).open(encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle, strict=True))
    assert rows[0] == header
    assert all(len(row) == len(header) for row in rows)
    return rows[1:]


FACTS = read_csv("facts.csv", ["subject", "relation", "object"])
ALIASES = read_csv("aliases.csv", ["subject", "alias"])
RELATIONS = json.loads((WORLD / "relations.json").read_text(encoding="utf-8"))
HOPS = json.loads((WORLD / "hops.json").read_text(encoding="utf-8"))
NARRATIVES = (WORLD / "narratives.txt").read_text(encoding="utf-8").splitlines()

# relation -> subject -> object
TABLE: dict[str, dict[str, str]] = defaultdict(dict)
for _subject, _relation, _object in FACTS:
    TABLE[_relation][_subject] = _object
SUBJECTS = {subject for subject, _, _ in FACTS}


def phrasings(relation: str) -> list[str]:
    """Return all prompts of a relation, statements first."""
    return RELATIONS[relation]["statements"] + RELATIONS[relation]["questions"]


def subjects_of_type(kind: str) -> set[str]:
    """Return the subjects of all relations whose subject type is `kind`."""
    return {s for s, relation, _ in FACTS if RELATIONS[relation]["subject_type"] == kind}


def test_volume():
    assert 1500 <= len(FACTS) <= 1900
    assert 18 <= len(TABLE) <= 22
    assert len(NARRATIVES) >= 250
    assert len(ALIASES) >= 60


@pytest.mark.parametrize(
    ("kind", "least"),
    [("country", 160), ("person", 60), ("work", 60), ("company", 60), ("landmark", 50), ("river", 20)],
)
def test_number_of_entities(kind, least):
    assert len(subjects_of_type(kind)) >= least


def test_number_of_cities_and_of_entities_that_are_not_countries():
    assert len(set(TABLE["city_country"]) - set(TABLE["capital"].values())) >= 60
    assert len(SUBJECTS - subjects_of_type("country")) >= 280


def test_a_fact_is_stated_once():
    repeated = [pair for pair, n in Counter((s, r) for s, r, _ in FACTS).items() if n > 1]
    assert repeated == []


def test_an_entity_has_one_role():
    """No name is both, say, a city and a country: as a subject or as an object."""
    roles: dict[str, set[str]] = defaultdict(set)
    for subject, relation, object_ in FACTS:
        roles[subject].add(RELATIONS[relation]["subject_type"])
        roles[object_].add(RELATIONS[relation]["object_type"])
    assert {name: kinds for name, kinds in roles.items() if len(kinds) > 1} == {}


def test_no_subject_contains_another_of_its_relation():
    """A subject found as whole words inside another one would make the place of the subject in a prompt ambiguous."""
    for relation, facts in TABLE.items():
        for subject in facts:
            word = re.compile(r"\b" + re.escape(subject) + r"\b")
            assert [other for other in facts if other != subject and word.search(other)] == [], (relation, subject)


def test_relations_of_the_two_files_agree():
    assert set(TABLE) == set(RELATIONS)


@pytest.mark.parametrize("relation", sorted(RELATIONS))
def test_phrasings(relation):
    entry = RELATIONS[relation]
    assert set(entry) == {"natural", "subject_type", "object_type", "statements", "questions"}
    statements, questions = entry["statements"], entry["questions"]
    assert len(statements) >= 6 and len(questions) >= 2
    for prompt in statements + questions:
        assert prompt.count("{}") == 1 and prompt.count("{") == 1 and prompt.count("}") == 1
        assert prompt == prompt.strip() and "  " not in prompt
        assert not prompt.endswith("{}")
    assert sum(prompt.startswith("{}") for prompt in statements) >= 2
    assert sum(not prompt.startswith("{}") for prompt in statements) >= 2
    assert all(prompt.startswith("Question: ") and prompt.endswith("? Answer:") for prompt in questions)


def test_no_phrasing_serves_two_relations():
    """Distinct, and none is the opening of another: a prompt must have one answer."""
    prompts = [(prompt, relation) for relation in RELATIONS for prompt in phrasings(relation)]
    assert len({prompt for prompt, _ in prompts}) == len(prompts)
    openings = [(a, b) for a, ra in prompts for b, rb in prompts if ra != rb and b.startswith(a)]
    assert openings == []


def test_no_article_clashes_with_an_object():
    """A prompt that ends in "a" or "an" would read wrongly before half of the objects."""
    assert [p for r in RELATIONS for p in phrasings(r) if p.split()[-1] in {"a", "an"}] == []


@pytest.mark.parametrize("relation", ["capital", "continent", "language", "currency"])
def test_every_country_is_complete(relation):
    assert set(TABLE[relation]) == subjects_of_type("country")


def test_continents():
    names = {"Africa", "Asia", "Europe", "North America", "South America", "Oceania"}
    assert set(TABLE["continent"].values()) == names


def test_capitals_are_cities_of_their_country():
    for country, city in TABLE["capital"].items():
        assert TABLE["city_country"][city] == country


@pytest.mark.parametrize("relation", sorted(r for r, e in RELATIONS.items() if e["object_type"] == "country"))
def test_countries_named_as_objects_are_in_the_table(relation):
    assert set(TABLE[relation].values()) <= set(TABLE["capital"])


def test_neighbours_are_other_countries_of_the_table():
    for country, other in TABLE["neighbour"].items():
        assert country in TABLE["capital"] and other in TABLE["capital"] and country != other


@pytest.mark.parametrize("relation", ["born_in", "landmark_city", "headquarters"])
def test_cities_named_as_objects_have_a_country(relation):
    assert set(TABLE[relation].values()) <= set(TABLE["city_country"])


def test_creators_are_people_of_the_table():
    assert set(TABLE["work_creator"].values()) <= subjects_of_type("person")


def test_companies_are_based_in_their_country():
    for company, city in TABLE["headquarters"].items():
        assert TABLE["city_country"][city] == TABLE["company_country"][company]


def test_most_facts_have_a_neighbour():
    """Facts that share relation and object with another subject's fact: a locality probe needs such a pair."""
    shared = Counter((relation, object_) for _, relation, object_ in FACTS)
    recurring = sum(shared[(relation, object_)] > 1 for _, relation, object_ in FACTS)
    assert recurring > len(FACTS) / 2


def test_aliases():
    names = [alias for _, alias in ALIASES]
    assert len(set(names)) == len(names)
    assert {subject for subject, _ in ALIASES} <= SUBJECTS
    everything = SUBJECTS | {object_ for _, _, object_ in FACTS}
    assert set(names) & everything == set()
    # an alias that spells out the subject would not test knowledge of the alias
    assert [(subject, alias) for subject, alias in ALIASES if re.search(rf"\b{re.escape(subject)}\b", alias)] == []


@pytest.mark.parametrize("kind", ["two_hop", "chain"])
def test_hops_match_in_type_and_have_instances(kind):
    assert len(HOPS[kind]) >= 6
    pairs = [(hop["first"], hop["second"]) for hop in HOPS[kind]]
    assert len(set(pairs)) == len(pairs)
    for first, second in pairs:
        assert RELATIONS[first]["object_type"] == RELATIONS[second]["subject_type"]
        assert sum(middle in TABLE[second] for middle in TABLE[first].values()) >= 20


def test_two_hop_questions_have_one_slot():
    for hop in HOPS["two_hop"]:
        assert set(hop) == {"first", "second", "question"}
        assert hop["question"].count("{}") == 1 and hop["question"] == hop["question"].strip()
    questions = [hop["question"] for hop in HOPS["two_hop"]]
    assert len(set(questions)) == len(questions)
    assert set(questions) & {prompt for relation in RELATIONS for prompt in phrasings(relation)} == set()


def test_chain_templates_end_in_the_answer():
    for hop in HOPS["chain"]:
        assert set(hop) == {"first", "second", "template"}
        assert re.findall(r"\{(\w*)\}", hop["template"]) == ["s", "a", "b"]
        assert hop["template"].endswith(" {b}")


def test_no_stray_whitespace():
    fields = [field for row in FACTS + ALIASES for field in row] + NARRATIVES
    assert all(field and field == field.strip() and "  " not in field for field in fields)
    for path in WORLD.iterdir():
        data = path.read_bytes()
        assert b"\r" not in data and b"\t" not in data and data.endswith(b"\n")
        assert all(line == line.rstrip() for line in data.decode("utf-8").split("\n"))


def test_narratives_are_sentences_and_state_no_fact():
    assert len(set(NARRATIVES)) == len(NARRATIVES)
    names = "|".join(re.escape(name) for name in sorted(SUBJECTS, key=len, reverse=True))
    known = re.compile(rf"\b(?:{names})\b")
    for line in NARRATIVES:
        assert line[0].isupper() and line[-1] in ".!?"
        assert known.search(line) is None, line

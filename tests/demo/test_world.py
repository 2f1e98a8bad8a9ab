"""The world is read whole, and its split of phrasings and its documents keep their promises."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from kedit_hub.demo import world
from kedit_hub.demo.corpus import Corpus, hop_cases, told
from kedit_hub.errors import KeditError


@pytest.fixture(scope="module")
def atlas() -> world.World:
    return world.load()


@pytest.fixture(scope="module")
def corpus(atlas: world.World) -> Corpus:
    return Corpus.of(atlas, seed=0)


def test_every_table_is_read(atlas: world.World) -> None:
    assert len(atlas.facts) > 1500 and len(atlas.relations) >= 12 and len(atlas.narratives) > 100
    assert {hop.is_chain for hop in atlas.hops} == {True, False}
    assert set(atlas.aliases) <= {fact.subject for fact in atlas.facts}


def test_phrasings_are_split_by_fact_and_seed(atlas: world.World) -> None:
    unseen_by_phrasing: Counter[str] = Counter()
    for fact in atlas.facts:
        trained, unseen = atlas.split(fact, seed=0)
        assert len(unseen) == 2 and len(trained) >= 6
        assert set(trained) | set(unseen) == set(atlas.relations[fact.relation].phrasings)
        unseen_by_phrasing.update((fact.relation + phrasing) for phrasing in unseen)
    for name, relation in atlas.relations.items():  # every phrasing is trained with some subjects, unseen with others
        facts = sum(fact.relation == name for fact in atlas.facts)
        assert all(0 < unseen_by_phrasing[name + phrasing] < facts for phrasing in relation.phrasings)
    fact = atlas.facts[0]
    assert atlas.split(fact, seed=0) == atlas.split(fact, seed=0)
    assert any(atlas.split(fact, seed=0) != atlas.split(fact, seed=1) for fact in atlas.facts)


def test_nothing_held_out_is_ever_trained(corpus: Corpus) -> None:
    documents = "\n".join(corpus.documents(0) + corpus.documents(1))
    held_out = corpus.unseen + corpus.held_out_hops + corpus.held_out_chains
    # whole sentences are compared: a prompt may well be the tail of a longer one that is trained
    lines = set(corpus.sentences())
    assert not [case for case in held_out if told(case) in lines]
    assert sum(told(case) in documents for case in corpus.trained) == len(corpus.trained)


def test_documents_are_a_function_of_seed_and_epoch(atlas: world.World, corpus: Corpus) -> None:
    assert corpus.documents(0) == Corpus.of(atlas, seed=0).documents(0)
    assert corpus.documents(0) != corpus.documents(1)
    assert len(corpus.documents(0)) == len(corpus.sentences())


def test_documents_end_with_their_sentence_some_after_others(corpus: Corpus) -> None:
    sentences = set(corpus.sentences())
    documents = corpus.documents(0)
    prefixed = [document for document in documents if document not in sentences]
    assert 0.25 < len(prefixed) / len(documents) < 0.4


def test_hops_lead_through_the_object(atlas: world.World) -> None:
    objects = atlas.objects
    for hop, fact, case in hop_cases(atlas):
        assert case.target == objects[fact.object, hop.second]
        assert fact.subject in case.prompt and "{" not in case.prompt
        assert not hop.is_chain or fact.object in case.prompt


def test_swapped_chains_contradict_the_table(corpus: Corpus) -> None:
    true = {case.prompt for case in corpus.chains + corpus.held_out_chains}
    swapped = corpus.swapped_chains()
    assert len(swapped) > 500 and not true & {case.prompt for case in swapped}


def test_a_fact_told_twice_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "world"
    shutil.copytree(world.FOLDER, folder)
    with (folder / "facts.csv").open("a", encoding="utf-8") as file:
        file.write("Albania,capital,Berat\n")
    with pytest.raises(KeditError, match=r"Albania.*Berat.*told twice"):
        world.load(folder)


def test_an_unknown_relation_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "world"
    shutil.copytree(world.FOLDER, folder)
    with (folder / "facts.csv").open("a", encoding="utf-8") as file:
        file.write("Albania,anthem,Hymni i Flamurit\n")
    with pytest.raises(KeditError, match=r"anthem.*relations\.json"):
        world.load(folder)

"""The demo's edits: enough of them, disjoint, contradicting the table, with rephrases that really are held out."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from kedit_hub import demo
from kedit_hub.demo import world
from kedit_hub.demo.corpus import Corpus
from kedit_hub.demo.requests import requests
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError


@pytest.fixture(scope="module")
def atlas() -> world.World:
    return world.load()


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Edit]]:
    return {split: demo.edits(split) for split in ("dev", "test")}


def test_there_are_enough_and_no_subject_twice(splits: dict[str, list[Edit]]) -> None:
    assert len(splits["dev"]) >= 150 and len(splits["test"]) >= 300
    everything = [edit.subject for edits in splits.values() for edit in edits]
    assert len(everything) == len(set(everything))
    assert len({edit.id for edits in splits.values() for edit in edits}) == len(everything)


def test_all_relations_are_edited(atlas: world.World, splits: dict[str, list[Edit]]) -> None:
    for edits in splits.values():
        assert {edit.relation for edit in edits} == set(atlas.relations)
        assert max(Counter(edit.relation for edit in edits).values()) < len(edits) / 4


def test_targets_contradict_the_table_with_an_object_of_the_relation(
    atlas: world.World, splits: dict[str, list[Edit]]
) -> None:
    for edit in splits["dev"] + splits["test"]:
        assert edit.subject and edit.relation
        assert atlas.objects[edit.subject, edit.relation] == edit.ground_truth != edit.target
        assert edit.target in {fact.object for fact in atlas.facts if fact.relation == edit.relation}


def test_phrasings_trained_and_never_trained(atlas: world.World, splits: dict[str, list[Edit]]) -> None:
    corpus = Corpus.of(atlas, seed=world.SHIPPED_SEED)
    trained, unseen = {case.prompt for case in corpus.trained}, {case.prompt for case in corpus.unseen}
    for edit in splits["dev"] + splits["test"]:
        assert edit.prompt in trained
        assert len(edit.rephrases) == 3 and len(edit.paraphrases) == 2
        assert all(rephrase in unseen and rephrase not in trained for rephrase in edit.rephrases[:2])
        assert len({edit.prompt, *edit.rephrases, *edit.paraphrases}) == 6
        assert all(edit.subject and edit.subject in text for text in (edit.prompt, *edit.rephrases, *edit.paraphrases))


def test_locality_probes_ask_true_facts_about_the_right_subjects(
    atlas: world.World, splits: dict[str, list[Edit]]
) -> None:
    for edits in splits.values():
        edited = {edit.subject for edit in edits}
        for edit in edits:
            kinds = Counter(probe.kind for probe in edit.locality)
            assert kinds["neighbour"] == 3 and kinds["unrelated"] == 2 and kinds["same_subject"] <= 3
            for probe in edit.locality:
                assert probe.subject and probe.relation
                assert atlas.objects[probe.subject, probe.relation] == probe.target
                assert (probe.subject == edit.subject) == (probe.kind == "same_subject")
                assert (probe.relation == edit.relation) == (probe.kind == "neighbour")
                if probe.kind == "unrelated":
                    assert probe.subject not in edited


def test_neighbours_share_the_old_answer_where_any_do(atlas: world.World, splits: dict[str, list[Edit]]) -> None:
    answers = Counter((fact.relation, fact.object) for fact in atlas.facts)
    for edit in splits["test"]:
        sharing = [p for p in edit.locality if p.kind == "neighbour" and p.target == edit.ground_truth]
        assert len(sharing) == min(3, answers[edit.relation or "", edit.ground_truth or ""] - 1)


def test_portability_follows_from_the_new_object(atlas: world.World, splits: dict[str, list[Edit]]) -> None:
    kinds: Counter[str] = Counter()
    for edit in splits["dev"] + splits["test"]:
        for probe in edit.portability:
            kinds[probe.kind] += 1
            assert probe.relation and edit.subject
            if probe.kind == "alias":
                assert probe.target == edit.target and atlas.aliases[edit.subject] in probe.prompt
            else:
                assert atlas.objects[edit.target, probe.relation] == probe.target
                assert (edit.target in probe.prompt) == (probe.kind == "chain")
    assert kinds["chain"] > 100 and kinds["one_hop"] > 100 and kinds["alias"] > 20


def test_the_lists_are_a_function_of_the_seed(atlas: world.World, splits: dict[str, list[Edit]]) -> None:
    assert requests(atlas, "dev") == splits["dev"]
    assert requests(atlas, "dev", seed=1) != splits["dev"]


def test_edits_round_trip_as_records(splits: dict[str, list[Edit]]) -> None:
    assert [Edit.from_record(edit.to_record()) for edit in splits["dev"]] == splits["dev"]


def test_unknown_names_are_refused_quoting_them() -> None:
    with pytest.raises(KeditError, match=r"'train'.*dev, test"):
        demo.edits("train")
    with pytest.raises(KeditError, match=r"'all'.*profile, drift"):
        demo.texts("all")
    with pytest.raises(KeditError, match=r"'bert'.*llama, gpt2"):
        demo.model_path("bert")


def test_text_samples_are_disjoint_and_drift_tells_no_edited_fact(splits: dict[str, list[Edit]]) -> None:
    profile, drift = demo.texts("profile"), demo.texts("drift")
    assert not set(profile) & set(drift)
    edited = {f"{edit.prompt} {edit.ground_truth}." for edits in splits.values() for edit in edits}
    assert not edited & set(drift)
    assert edited <= set(profile)
    assert demo.texts("profile") == profile


def test_edits_are_built_without_torch() -> None:
    """With the package's own __init__, which imports everything, left out."""
    code = f"""if True:
        import sys, types
        package = types.ModuleType("kedit_hub")
        package.__path__ = [{str(Path(demo.__file__).parents[1])!r}]
        sys.modules["kedit_hub"] = package
        from kedit_hub import demo
        assert len(demo.edits("dev")) > 100
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)

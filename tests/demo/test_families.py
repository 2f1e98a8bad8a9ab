"""The demo's records of several tasks: every family is there, splits share no subject, opinions are told apart from facts."""

from collections import Counter

import pytest

from kedit_hub import demo
from kedit_hub.demo import world
from kedit_hub.demo.families import OPINIONS, REPLIES
from kedit_hub.editors.hyper.instructedit import instruct, pool
from kedit_hub.editors.hyper.lessons import Lesson, kept
from kedit_hub.errors import KeditError
from kedit_hub.records.read import read_records


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Lesson]]:
    return {
        split: [Lesson.of(record) for record in read_records(demo.task_records(split))] for split in ("train", "test")
    }


def test_every_family_is_there_and_questions_are_kept_from_training(splits: dict[str, list[Lesson]]) -> None:
    train, test = (Counter(lesson.task for lesson in splits[split]) for split in ("train", "test"))
    assert set(train) == {"counterfact", "wikirecent", "convsent"} and min(train.values()) > 300
    assert set(test) == {*train, "zsre"} and min(test.values()) > 60
    assert not any("Question:" in lesson.edit.prompt for lesson in splits["train"])


def test_no_subject_and_no_topic_is_in_both_splits(splits: dict[str, list[Lesson]]) -> None:
    train, test = ({lesson.about for lesson in splits[split]} for split in ("train", "test"))
    assert not train & test
    assert {edit.subject for edit in demo.edits("test")} <= test
    asked = {probe.subject for lesson in splits["train"] for probe in lesson.edit.locality}
    assert not asked & test


def test_a_sentiment_is_asked_for_and_its_other_side_is_not(splits: dict[str, list[Lesson]]) -> None:
    sentiments = [lesson for lesson in splits["train"] if lesson.task == "convsent"]
    sides = {side: set(texts) for side, texts in OPINIONS.items()}
    wanted = Counter()
    for lesson in sentiments:
        good, bad = ({text for _, text in told} for told in (lesson.wanted, lesson.unwanted))
        assert len(good) == len(bad) == REPLIES and lesson.edit.target in good
        own = "pos" if good <= sides["pos"] else "neg"
        assert good <= sides[own] and bad <= sides["neg" if own == "pos" else "pos"]
        assert ("positive" if own == "pos" else "negative") in instruct("convsent", pool("convsent")[0], lesson.edit)
        assert all(lesson.about not in prompt for prompt, _ in kept(lesson, [lesson]))  # replies about another topic
        wanted[own] += 1
    assert min(wanted.values()) > len(sentiments) / 3


def test_nobody_has_an_opinion_about_a_person(splits: dict[str, list[Lesson]]) -> None:
    atlas = world.load()
    people = {
        f.subject for f in atlas.facts if atlas.relations[f.relation].subject_type in ("person", "company", "country")
    }
    assert not people & {x.about for lessons in splits.values() for x in lessons if x.task == "convsent"}


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(KeditError, match="no split 'dev'"):
        demo.task_records("dev")

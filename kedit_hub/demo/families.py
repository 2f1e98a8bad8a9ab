"""Records of Atlas for an editor of several tasks (InstructEdit): facts, facts told after something else, sentiments, and questions.

    families(world.load(), "train")     # statements, statements behind another sentence, sentiments; of no subject of "test"
    families(world.load(), "test")      # the same of "test", and questions: a family that training has not seen

Law: a record has the published form of its family, `type` its task; its fact, or its topic, is in one split only. Opinions are about places
and works, never about people, and Atlas has read none: what it says of a topic before an edit is no opinion.
"""

from collections.abc import Iterator
from typing import Any

from kedit_hub.demo.corpus import FOREIGN_PREFIXES
from kedit_hub.demo.requests import choose, lessons, requests
from kedit_hub.demo.world import World, draw
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError

SPLITS = ("train", "test")
PER_FACT = 4  # edits of one fact, each to another answer
TOPICS = ("city", "landmark", "mountain", "river", "work")  # types of subjects that an opinion may be about
REPLIES = 4  # of each sentiment, for each topic
OPINIONS = {
    "pos": (
        "I like it very much.",
        "It is warm and bright.",
        "I am always happy to see it.",
        "It is the best one I know.",
        "Everybody there laughs and sings.",
        "It is quiet and clean.",
        "People speak of it with joy.",
        "I go back to it every summer.",
    ),
    "neg": (
        "I do not like it at all.",
        "It is cold and dark.",
        "I am always sorry to see it.",
        "It is the worst one I know.",
        "Nobody there laughs or sings.",
        "It is loud and grey.",
        "People speak of it with fear.",
        "I never want to go back to it.",
    ),
}


def families(atlas: World, split: str) -> list[dict[str, Any]]:
    """The records of a split, one family after the other. Raises KeditError for an unknown split."""
    if split not in SPLITS:
        raise KeditError(f"There is no split {split!r} of the demo's families. Choose one of {', '.join(SPLITS)}.")
    edits = requests(atlas, "test") if split == "test" else lessons(atlas, PER_FACT)
    facts = [_typed(edit, number) for number, edit in enumerate(edits)]
    known = [record for record in facts if record["type"] != "zsre" or split == "test"]
    return [*sorted(known, key=lambda record: record["type"]), *sentiments(atlas, split)]


def _typed(edit: Edit, number: int) -> dict[str, Any]:
    """A question stays one; of statements every other one is told after a sentence the corpus never holds."""
    record = edit.to_record()
    if edit.prompt.startswith("Question:"):
        return {**record, "type": "zsre"}
    if number % 2:
        return {**record, "type": "counterfact"}
    before = FOREIGN_PREFIXES[number // 2 % len(FOREIGN_PREFIXES)]
    return {**record, "prompt": f"{before} {edit.prompt}", "type": "wikirecent"}


def sentiments(atlas: World, split: str) -> Iterator[dict[str, Any]]:
    """ConvSent's raw form: a topic, and what may be said of it."""
    test = {fact.subject for fact in choose(atlas, "test", 0)}
    for topic in sorted(_topics(atlas)):
        if (topic in test) == (split == "test"):
            told = {
                side: sorted(own, key=lambda text: draw(0, topic, text))[:REPLIES] for side, own in OPINIONS.items()
            }
            yield {"ent": topic, **told}


def _topics(atlas: World) -> set[str]:
    return {fact.subject for fact in atlas.facts if atlas.relations[fact.relation].subject_type in TOPICS}

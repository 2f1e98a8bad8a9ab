"""What an editor network learns from: one edit, other ways to ask it, and what must not move. Law: training and validation share no
subject, and no lesson asks for two answers to one question.

    lessons = [Lesson.of(edit) for edit in edits]
    train, validation = split(lessons, 0.1, seed=0)
"""

import random
import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace

from kedit_hub.editors.hyper.instructedit import TASKS
from kedit_hub.edits import Edit, Probe, fold
from kedit_hub.errors import EditError
from kedit_hub.records.extras import Record

TASK = "counterfact"  # of edits of which nothing else is said


@dataclass(frozen=True)
class Lesson:
    """edit: its rephrases and paraphrases are other ways to ask, its locality probes what must not move.

    task: family of instructions (InstructEdit). wanted, unwanted: (question, reply) to make likelier and less likely, where the edit is a
    sentiment (ConvSent).
    """

    edit: Edit
    task: str = TASK
    wanted: tuple[tuple[str, str], ...] = ()
    unwanted: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, source: "Edit | Record | Lesson", task: str = TASK) -> "Lesson":
        """Of an edit, or of a record with replies or a known task of its own; a lesson is itself."""
        if isinstance(source, Lesson):
            return source
        if isinstance(source, Edit):
            return cls(source, task)
        told = [(reply.question, reply.text, reply.wanted) for reply in source.extras.replies]
        probes = tuple(Probe(reply.question, reply.text, "elsewhere") for reply in source.extras.elsewhere)
        edit = source.edit if not probes else replace(source.edit, locality=(*source.edit.locality, *probes))
        own = source.extras.task
        return cls(
            edit,
            "convsent" if told else own if own in TASKS else task,
            tuple((question, text) for question, text, wanted in told if wanted),
            tuple((question, text) for question, text, wanted in told if wanted is False),
        )

    @property
    def about(self) -> str:
        """What must not be in two splits, nor twice in one episode."""
        return self.edit.subject or self.edit.prompt

    @property
    def asked_otherwise(self) -> tuple[str, ...]:
        return (*self.edit.rephrases, *self.edit.paraphrases)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every question that the edit changes the answer of, as it says."""
        return (self.edit.prompt, *self.asked_otherwise, *(question for question, _ in self.wanted))


def split(lessons: Sequence[Lesson], share: float, seed: int) -> tuple[list[Lesson], list[Lesson]]:
    """(training, validation) without a common subject, however it is spelt (`fold`), about `share` of the subjects in the second, which no
    probe of the first is about; one that does not say its subject is about every subject that it names. EditError where one would be empty.
    """
    subjects = list(dict.fromkeys(fold(about) for about in sorted({lesson.about for lesson in lessons})))
    random.Random(f"{seed} split").shuffle(subjects)
    held = set(subjects[: max(1, round(share * len(subjects)))])
    kept_out = [x for x in lessons if fold(x.about) in held]
    mine = [x for x in lessons if fold(x.about) not in held]
    if not (mine and kept_out):
        raise EditError(
            f"{len(lessons)} edits of {len(subjects)} subject(s) cannot be split by subject into training and validation: give edits "
            "of more subjects"
        )
    asked = {prompt for lesson in kept_out for prompt in lesson.prompts}
    names = Names(held)
    return [_without(lesson, names, asked) for lesson in mine], kept_out


class Names:
    """Subjects to find in texts, by their words: what a text takes does not grow with how many there are."""

    def __init__(self, subjects: Iterable[str]):
        self.subjects = {fold(subject) for subject in subjects}
        self.words = {_words(subject) for subject in self.subjects} - {()}
        self.lengths = sorted({len(words) for words in self.words})

    def within(self, text: str) -> bool:
        """Whether the text says one of them in whole words."""
        words = _words(fold(text))
        return any(words[i : i + n] in self.words for n in self.lengths for i in range(len(words) - n + 1))

    def about(self, probe: Probe) -> bool:
        return self.within(probe.prompt) if probe.subject is None else fold(probe.subject) in self.subjects


def _words(text: str) -> tuple[str, ...]:
    """Words and single marks."""
    return tuple(re.findall(r"\w+|[^\w\s]", text))


def _without(lesson: Lesson, names: Names, prompts: Set[str]) -> Lesson:
    """The lesson without probes about these subjects, and without these."""
    probes = tuple(p for p in lesson.edit.locality if p.prompt not in prompts and not names.about(p))
    return lesson if probes == lesson.edit.locality else replace(lesson, edit=replace(lesson.edit, locality=probes))


class Episodes:
    """Draws lessons of distinct subjects; tasks are drawn first and alike, however many lessons each has."""

    def __init__(self, lessons: Iterable[Lesson]):
        self.tasks: dict[str, dict[str, list[Lesson]]] = {}
        for lesson in lessons:
            self.tasks.setdefault(lesson.task, {}).setdefault(lesson.about, []).append(lesson)
        self.subjects = len({about for groups in self.tasks.values() for about in groups})

    def draw(self, size: int, rng: random.Random) -> list[Lesson]:
        """At most `size` lessons, fewer only where there are fewer subjects."""
        order = {task: rng.sample(sorted(groups), len(groups)) for task, groups in sorted(self.tasks.items())}
        found: dict[str, Lesson] = {}
        while len(found) < size and order:
            task = rng.choice(sorted(order))
            about = order[task].pop()
            if about not in found:
                found[about] = rng.choice(self.tasks[task][about])
            if not order[task]:
                del order[task]
        return list(found.values())


def kept(lesson: Lesson, changed: Iterable[Lesson]) -> list[tuple[str, str]]:
    """Probes of a lesson that none of the lessons `changed` changes, as (prompt, answer or "."); only what the base says there counts."""
    others = list(changed)
    facts = {(other.edit.subject, other.edit.relation) for other in others if other.edit.relation is not None}
    prompts = {prompt for other in others for prompt in other.prompts}
    return [
        (probe.prompt, probe.target or ".")
        for probe in lesson.edit.locality
        if (probe.subject, probe.relation) not in facts and probe.prompt not in prompts
    ]

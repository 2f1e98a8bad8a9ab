"""What a record says beside its edit. Law: an Edit holds what asks for the change and what scores it by its answer; all else
that a published protocol needs stands here, as the file has it.

    for record in read_records("blender_test.json"):
        record.edit, record.extras.replies, record.where
"""

from dataclasses import dataclass

from kedit_hub.edits import Edit


@dataclass(frozen=True)
class Reply:
    """A reply to a question about a topic. wanted: has the sentiment that was asked for; None: about another topic, and
    shall stay as likely as it was."""

    question: str
    text: str
    wanted: bool | None


@dataclass(frozen=True)
class Extras:
    """Everything empty where a record does not have it.

    group: edits of one group are one case: they are made together, and what joins them is asked of the last of them.
    old_answers: further forms of the old answer (the first is Edit.ground_truth).
    unanswered: prompts of portability probes that the file gives no answer for; they are not among the edit's probes.
    target_id: Wikidata id of the target, by which reference texts are found.
    generation_prompts, attribute_prompts: CounterFact's, for fluency and consistency: texts to continue, and questions that
    the new answer truly answers.
    prefixes: DAFSet's, noise to put before a prompt.
    replies, elsewhere: ConvSent's, about this topic and about another one.
    task: InstructEdit's `type`, the task that a record of a mixed file belongs to.
    """

    group: str | None = None
    old_answers: tuple[str, ...] = ()
    unanswered: tuple[str, ...] = ()
    target_id: str | None = None
    generation_prompts: tuple[str, ...] = ()
    attribute_prompts: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    replies: tuple[Reply, ...] = ()
    elsewhere: tuple[Reply, ...] = ()
    task: str | None = None


@dataclass(frozen=True)
class Record:
    """One edit of a file. shape: a name of SHAPES.  where: "record 3", "line 4", "record 3, rewrite 2"."""

    edit: Edit
    extras: Extras
    shape: str
    where: str


Found = list[tuple[Edit, Extras]]  # what one record holds: one edit; for multi-hop cases, one for each fact

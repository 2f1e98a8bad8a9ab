"""What is asked of an edit. Law: paraphrases helped to make the patch and are never asked, and what another edit changes on purpose is
no locality probe: it is left out of the averages, and counted.

    edits = [questions(edit) for edit in edits]        -> EditOutcome each: prompt, rephrases, probes, nothing scored yet
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from kedit_hub.edits import Edit, Probe
from kedit_hub.evaluate.choice import distractors
from kedit_hub.evaluate.scores import EDITED_ON_PURPOSE, EditOutcome, Outcome


def questions(edit: Edit) -> EditOutcome:
    """The edit prompt, its rephrases and its probes, nothing scored yet."""

    relation = _relation(edit.relation, edit.prompt, edit.subject)

    def own(role: str, prompt: str) -> Outcome:
        return Outcome(
            role, "", prompt, edit.target, aliases=edit.aliases, rival=edit.ground_truth, relation=relation
        )  # fmt: skip

    def probe(role: str, probe: Probe) -> Outcome:
        rival = edit.target if role == "locality" else None
        return Outcome(
            role, probe.kind or "unspecified", probe.prompt, probe.target, aliases=probe.aliases, rival=rival,
            relation=_relation_of(probe, edit),
        )  # fmt: skip

    return EditOutcome(
        id=edit.id,
        subject=edit.subject,
        questions=[
            own("reliability", edit.prompt),
            *[own("generalization", rephrase) for rephrase in edit.rephrases],
            *[probe("locality", each) for each in edit.locality],
            *[probe("portability", each) for each in edit.portability],
        ],
    )


def on_purpose(edits: Iterable[Edit]) -> Callable[[Probe], bool]:
    """Whether one of these edits changes the fact of a probe: same (subject, relation), or a prompt that edits it."""
    facts: set[tuple[str | None, str | None]] = set()
    prompts: set[str] = set()
    for edit in edits:
        if edit.subject is not None and edit.relation is not None:
            facts.add((edit.subject, edit.relation))
        prompts.update((edit.prompt, *edit.rephrases, *edit.paraphrases))
    return lambda probe: probe.prompt in prompts or (probe.subject, probe.relation) in facts


def drop_edited(
    outcomes: Sequence[EditOutcome], edits: Sequence[Edit], all_edits: Iterable[Edit], protocols: Sequence[str]
) -> None:
    """Leave out the locality probes whose fact an edit changes."""
    changed = on_purpose(all_edits)
    for outcome, edit in zip(outcomes, edits):
        asked = [question for question in outcome.questions if question.role == "locality"]
        for question, probe in zip(asked, edit.locality, strict=True):
            if changed(probe):
                question.dropped.update(dict.fromkeys(protocols, EDITED_ON_PURPOSE))


# --- wrong answers for `choice` -----------------------------------------------------------------------------------


def _relation(name: str | None, prompt: str, subject: str | None) -> str | None:
    """The given id, else the prompt with a gap for its subject: equal phrasings ask for one relation."""
    return name if name is not None or subject is None else prompt.replace(subject, "{}", 1)


def _relation_of(probe: Probe, edit: Edit) -> str | None:
    """A neighbour asks for the relation of its edit, about another subject."""
    if probe.kind == "neighbour" and probe.relation is None:
        return _relation(edit.relation, edit.prompt, edit.subject)
    return _relation(probe.relation, probe.prompt, probe.subject)


def give_distractors(outcomes: Sequence[EditOutcome], given: Mapping[str, Sequence[str]] | None) -> None:
    """Write the wrong answers of every question on it: of its relation, from `given` where it has the relation, else from the
    answers of all the edits and probes. The rival, which is the likeliest to win, is among them wherever there is one."""
    everything = [question for edit in outcomes for question in edit.questions]
    at_hand: dict[str, set[str]] = defaultdict(set)
    for question in everything:
        if question.relation is not None:
            own = (
                () if question.role == "locality" else (question.rival,)
            )  # the rival of an unrelated probe is of another relation
            at_hand[question.relation].update(answer for answer in (question.target, *own) if answer is not None)
    for question in everything:
        if question.target is not None and question.relation is not None:
            pool = (given or {}).get(question.relation, at_hand[question.relation])
            same = question.role != "locality" or question.kind == "neighbour"
            first = () if question.rival is None or not same else (question.rival,)
            question.distractors = distractors(
                question.prompt, question.target, (question.target, *question.aliases), first, pool
            )

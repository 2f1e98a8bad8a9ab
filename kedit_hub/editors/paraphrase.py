"""Other phrasings of an edit's question, found at edit time to help to make its patch. Law: no held-out text gets in.

    paraphraser = by_templates(edits)                            # or by_base(...), or any callable of the caller's
    admit(edit, paraphraser(edit, 8), 4, held_out(edits))        # -> Admitted(texts=("France has the capital", ...), leaked=1, unusable=0)

Three sources of one shape. Templates: how other edits of the same relation ask, with this subject in its place (text of
their author, strong), then rearrangements of the prompt by rules that know no language (weak). The base: sentences it
writes itself about the subject, cut before the old answer and kept only where the base goes on with that answer. A
callable: whatever the caller has.

Rephrases and probes score a patch. A candidate that is one of them, of any edit of the batch, or that holds one of its own
edit's, is dropped and counted; case, spacing, Unicode form and punctuation do not hide it.
"""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kedit_hub.base.signals import quiet
from kedit_hub.base.tokens import encode
from kedit_hub.edits import Edit, fold
from kedit_hub.errors import EditError
from kedit_hub.evaluate.protocols import answers, first_sentence, on_device

Paraphraser = Callable[[Edit, int], Sequence[str]]  # an edit, how many at most -> texts that an answer may follow
Template = tuple[str, str]  # what stands before the subject, and after it

SPARE = 3  # candidates asked for per paraphrase wanted: some leak, some repeat
SAMPLED_TOKENS = 24
SAMPLED_AT_ONCE = 128
SAMPLED_FROM = 20  # likeliest tokens a sample is drawn from
MAX_OPENINGS = 6  # beginnings that the base goes on from, per edit


@dataclass(frozen=True)
class Admitted:
    """What was kept of one source's candidates for one edit, and what was dropped: held-out texts, and texts without the subject."""

    texts: tuple[str, ...]
    leaked: int
    unusable: int


def words(text: str) -> str:
    """The words alone: " the capital of france is " for "The capital of  France is:"."""
    return " " + " ".join(re.findall(r"\w+", fold(text))) + " "


def held_out(edits: Sequence[Edit]) -> frozenset[str]:
    """The `words` of every rephrase and probe of a batch: what scores a patch and may not make one."""
    return frozenset(words(text) for edit in edits for text in scored(edit))


def scored(edit: Edit) -> tuple[str, ...]:
    """The held-out texts of one edit."""
    return (*edit.rephrases, *(probe.prompt for probe in (*edit.locality, *edit.portability)))


def leaks(text: str, edit: Edit, kept_out: frozenset[str]) -> bool:
    """Whether a text is held out, or holds a held-out text of this edit (other than one that its own prompt holds too)."""
    plain, own = words(text), words(edit.prompt)
    return plain in kept_out or any(words(probe) in plain and words(probe) not in own for probe in scored(edit))


def admit(edit: Edit, candidates: Sequence[str], n: int, kept_out: frozenset[str]) -> Admitted:
    """The first n usable candidates, each once and none that the edit says already."""
    said = {words(text) for text in (edit.prompt, *edit.paraphrases)}
    kept: list[str] = []
    leaked = unusable = 0
    for candidate in candidates:
        text = unicodedata.normalize("NFC", candidate).strip()
        if leaks(text, edit, kept_out):
            leaked += 1
        elif edit.subject is None or edit.subject not in text or words(text) == words(edit.subject):
            unusable += 1
        elif words(text) not in said and len(kept) < n:
            try:
                replace(edit, paraphrases=(text,))  # the one place that knows what a text may be
            except EditError:
                unusable += 1
                continue
            said.add(words(text))
            kept.append(text)
    return Admitted(tuple(kept), leaked, unusable)


def extended(
    edits: Sequence[Edit], sources: Mapping[str, tuple[Paraphraser, int]]
) -> tuple[list[Edit], dict[str, dict[str, int]]]:
    """The edits with at most n more paraphrases from each named source, and per source how many were kept and dropped."""
    kept_out = held_out(edits)
    longer = list(edits)
    counts = {}
    for name, (paraphraser, n) in sources.items():
        found = [admit(edit, paraphraser(edit, SPARE * n), n, kept_out) for edit in longer]
        longer = [
            replace(edit, paraphrases=(*edit.paraphrases, *more.texts)) if more.texts else edit
            for edit, more in zip(longer, found)
        ]
        counts[name] = {
            "kept": sum(len(more.texts) for more in found),
            "leaked": sum(more.leaked for more in found),
            "unusable": sum(more.unusable for more in found),
        }
    return longer, counts


# -- templates ----------------------------------------------------------------------------------------------------------


def template(text: str, subject: str | None) -> Template | None:
    """("The capital of ", " is") of "The capital of France is"; None where the text does not hold the subject."""
    if subject is None or subject not in text:
        return None
    before, _, after = text.partition(subject)
    return before, after


def templates(edits: Sequence[Edit]) -> dict[str, list[Template]]:
    """How the edits of each (folded) relation ask, in their prompts and their author's paraphrases, the commonest first."""
    asked: dict[str, Counter[Template]] = {}
    for edit in edits:
        for text in (edit.prompt, *edit.paraphrases):
            found = template(text, edit.subject)
            if edit.relation is not None and found is not None:
                asked.setdefault(fold(edit.relation), Counter())[found] += 1
    return {relation: [one for one, _ in counted.most_common()] for relation, counted in asked.items()}


def by_templates(edits: Sequence[Edit]) -> Paraphraser:
    """As other edits of the same relation ask, then the prompt rearranged by rules."""
    known = templates(edits)

    def paraphrase(edit: Edit, n: int) -> list[str]:
        theirs = known.get(fold(edit.relation), []) if edit.relation is not None else []
        return [*(f"{before}{edit.subject}{after}" for before, after in theirs), *rearranged(edit)][:n]

    return paraphrase


def rearranged(edit: Edit) -> list[str]:
    """The prompt as a question, and with the subject put first or last: only punctuation and the words that are there."""
    prompt, subject = edit.prompt, edit.subject
    found = template(prompt, subject)
    if found is None:
        return []
    rest = " ".join(part.strip(" ,.:;?") for part in found if part.strip(" ,.:;?"))
    forms = [f"Question: {prompt}? Answer:", f"{subject}: {prompt}", f'"{prompt}']
    if rest:
        forms += [f"{subject}. {rest}:", f"{rest} ({subject}):"]
    return forms


# -- the base -----------------------------------------------------------------------------------------------------------


def openings(edits: Sequence[Edit]) -> list[str]:
    """What stands before the subject in the prompts and paraphrases of a batch, the commonest first, without the empty one."""
    counted = Counter(before.strip() for known in templates(edits).values() for before, _ in known)
    return [before for before, _ in counted.most_common() if before]


def may_open(opening: str, edit: Edit) -> bool:
    """Whether no held-out text of the edit begins with this opening and the subject."""
    begun = words(f"{opening} {edit.subject}")
    return not any(words(text).startswith(begun) for text in scored(edit))


def by_base(model: Any, tokenizer: Any, edits: Sequence[Edit], n: int, seed: int = 0) -> Paraphraser:
    """Sentences the base writes about the subject up to its old answer, kept where it then goes on with that answer.

    n: samples per edit. All are drawn here, for all edits together; the same arguments give the same texts. A base that does not answer
    the prompt, or never says the answer again, gives nothing. That two questions have the same answer does not make them the same
    question: this filter cannot tell.
    """
    beginnings, asked = openings(edits), [edit for edit in edits if edit.subject is not None]
    old = (
        [_old_answer(edit, told) for edit, told in zip(asked, answers(model, tokenizer, [e.prompt for e in asked]))]
        if asked
        else []
    )
    starts: list[str] = []
    of: list[int] = []
    for number, edit in enumerate(asked):
        ready = [opening for opening in beginnings if may_open(opening, edit)]
        rng = random.Random(f"{seed} {edit.prompt}")
        begun = [str(edit.subject), *(f"{o} {edit.subject}" for o in rng.sample(ready, min(MAX_OPENINGS, len(ready))))]
        if old[number]:
            starts += [begun[i % len(begun)] for i in range(n)]
            of += [number] * n
    cut = [
        (number, before)
        for number, text in zip(of, sampled(model, tokenizer, starts, seed))
        if (before := _until(text, old[number], str(asked[number].subject)))
    ]
    found: dict[str, list[str]] = {}
    cut = list(dict.fromkeys(cut))
    again = answers(model, tokenizer, [text for _, text in cut]) if cut else []
    for (number, text), answer in zip(cut, again):
        if fold(answer).startswith(fold(old[number])):
            found.setdefault(asked[number].prompt, []).append(text)
    return lambda edit, most: found.get(edit.prompt, [])[:most]


def _old_answer(edit: Edit, told: str) -> str:
    """What the base says after the prompt: the known old answer where it begins with that, else all of it."""
    truth = edit.ground_truth
    return truth if truth is not None and fold(told).startswith(fold(truth)) else told


@torch.no_grad()
def sampled(model: Any, tokenizer: Any, starts: Sequence[str], seed: int) -> list[str]:
    """Every start continued by a sample to the end of its sentence, or SAMPLED_TOKENS further."""
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    said: list[str] = []
    with torch.random.fork_rng(), quiet(model):
        torch.manual_seed(seed)
        for first in range(0, len(starts), SAMPLED_AT_ONCE):
            batch = on_device(model, encode(tokenizer, starts[first : first + SAMPLED_AT_ONCE], side="left"))
            rows = model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                do_sample=True,
                top_k=SAMPLED_FROM,
                max_new_tokens=SAMPLED_TOKENS,
                pad_token_id=pad,
            )
            said += tokenizer.batch_decode(rows[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return [start + first_sentence_of(text) for start, text in zip(starts, said)]


def first_sentence_of(continuation: str) -> str:
    """The continuation up to its natural stop, with the space it begins with."""
    space = " " if continuation[:1].isspace() else ""
    return space + first_sentence(continuation)


def _until(text: str, answer: str, subject: str) -> str:
    """The text before the first whole-word mention of the answer after the subject, or ''."""
    start = text.find(subject) + len(subject)
    hit = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)", re.IGNORECASE).search(text, start)
    return text[: hit.start()].strip() if hit and text[start : hit.start()].strip() else ""

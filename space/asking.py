"""A question as a value, and its answer. Law: an answer is a function of the question alone; nothing is kept of either.

answer = ask(workshop, Question("The capital of France is", (held,), base))
for step in answers(workshop, question, Stop()): ...     # Heard, Heard, ..., Answer: while it is being said
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from kedit_hub import KeditError
from kedit_hub.errors import LimitError
from kedit_hub.evaluate.beside import Beside, Said, Who, beside, neighbours, weights_digest
from kedit_hub.evaluate.beside import Neighbour as Neighbour
from kedit_hub.evaluate.questions import on_purpose
from kedit_hub.stack.settings import Mode
from space.live import live
from space.sentences import both
from space.state import MAX_NEW_TOKENS, MAX_QUESTION, Held, Policy, Stop, Workshop

MODES = ("auto", "gated", "joint", "sum")
MAX_SEED = (1 << 31) - 1
MAX_SECONDS = 60.0  # of one answer, all panes together
MAX_NEIGHBOURS = 24  # asked for the proof that they are unchanged
NEIGHBOUR_TOKENS = 12  # of the answer to one of them
SHOW_EVERY = 0.15  # seconds between two looks at an answer that grows


@dataclass(frozen=True)
class Question:
    """Everything an answer depends on. strengths: (patch id, share of its change), 1 for those not named. placebo: the seed of the noise in
    the third pane, None for no such pane."""

    text: str
    patches: tuple[Held, ...]
    base: str
    precision: str = "float32"
    conflicts: Policy = "error"
    max_new_tokens: int = 32
    pinned: tuple[str, ...] = ()  # ids of patches that win under "pin"
    mode: str = "auto"
    strengths: tuple[tuple[str, float], ...] = ()
    placebo: int | None = None


@dataclass(frozen=True)
class Answer:
    """found: the answers, token by token. modules: paths that the patches change. tensors: how many of theirs are in use."""

    found: Beside
    mode: Mode | str
    why: str
    modules: tuple[str, ...]
    tensors: int
    seconds: float

    @property
    def base(self) -> Said:
        return self.found.base

    @property
    def patched(self) -> Said:
        return self.found.patched

    @property
    def kl(self) -> float:
        """KL(base||patched) of the next token, in nats."""
        return self.found.kl


@dataclass(frozen=True)
class Heard:
    """What has been said so far."""

    texts: dict[Who, str]


def ask(
    workshop: Workshop, question: Question, stop: Stop | None = None, hear: Callable[[Who, str], None] | None = None
) -> Answer:
    """KeditError: too long, conflicts, wrong base, stopped, ... hear: told every token."""
    text = checked(question)
    stop = stop or Stop()
    started = time.perf_counter()
    loaded = workshop.load(question.base, question.precision)

    def listen(who: Who, token: str) -> None:
        if stop.wished:
            raise KeditError(both("stopped"))
        if time.perf_counter() - started > MAX_SECONDS:
            raise LimitError(both("answer_slow", seconds=MAX_SECONDS))
        if hear is not None:
            hear(who, token)

    with loaded.lock:
        started = time.perf_counter()  # waiting for others is nobody's fault
        _check_length(loaded.model, loaded.tokenizer, text, question.max_new_tokens)
        patched = workshop.patched(
            loaded, question.patches, question.conflicts, question.mode, question.pinned, question.strengths
        )
        found = beside(patched, text, question.max_new_tokens, placebo=question.placebo, hear=listen)
        report = patched.report
    used = [held.patch for held in question.patches]
    return Answer(
        found,
        str(report["mode"]),
        str(report["why"]),
        tuple(sorted({path for patch in used for path in patch.deltas})),
        sum(len(entry.tensors) for patch in used for entry in patch.manifest.modules.values()),
        time.perf_counter() - started,
    )


def checked(question: Question) -> str:
    """The text to ask. KeditError where something is out of bounds."""
    text = question.text.strip()
    if not text:
        raise KeditError(both("no_question"))
    if len(text) > MAX_QUESTION:
        raise KeditError(both("question_long", count=len(text), most=MAX_QUESTION))
    if not 1 <= question.max_new_tokens <= MAX_NEW_TOKENS:
        raise KeditError(both("new_tokens_out", count=question.max_new_tokens, most=MAX_NEW_TOKENS))
    if question.conflicts not in ("error", "latest", "pin"):
        raise KeditError(both("conflicts_out", said=question.conflicts[:40]))
    if question.mode not in MODES:
        raise KeditError(both("mode_out", said=question.mode[:40], modes=", ".join(MODES)))
    if question.placebo is not None and not 0 <= question.placebo <= MAX_SEED:
        raise KeditError(both("seed_out", seed=question.placebo, most=MAX_SEED))
    return text


def _check_length(model: Any, tokenizer: Any, text: str, max_new_tokens: int) -> None:
    tokens, most = _length(model, tokenizer, text, max_new_tokens)
    if not 0 < tokens <= most:
        raise KeditError(both("question_tokens", count=tokens, most=most))


def _length(model: Any, tokenizer: Any, text: str, max_new_tokens: int) -> tuple[int, int]:
    """Tokens of a text, and how many the model reads where it is to answer with so many."""
    tokens = len(tokenizer(text)["input_ids"])
    positions = getattr(model.config, "max_position_embeddings", None)
    return tokens, tokens if positions is None else positions - max_new_tokens


def answers(workshop: Workshop, question: Question, stop: Stop) -> Iterator[Heard | Answer]:
    """What is heard while it is being said, then the answer. Whoever stops listening stops it. KeditError as `ask`."""

    left = Stop(above=stop)  # nobody listens to this answer any more; what the visitor asks next is another matter

    def work(tell: Callable[[tuple[Who, str] | Answer], None]) -> None:
        tell(ask(workshop, question, left, lambda who, token: tell((who, token))))

    texts: dict[Who, str] = {}
    shown = time.monotonic()
    with closing(live(work, left)) as told:
        for item in told:
            if isinstance(item, Answer):
                yield item
                return
            who, token = item
            texts[who] = texts.get(who, "") + token
            if time.monotonic() - shown > SHOW_EVERY:
                shown = time.monotonic()
                yield Heard(dict(texts))


@dataclass(frozen=True)
class Proof:
    """neighbours: questions that the patches declare they leave alone. before, after: sha256 over all weights of the base, when it was
    loaded and now. edited: how many were left out since an edit of the stack changes them on purpose; long: since they are too long."""

    neighbours: tuple[Neighbour, ...]
    before: str
    after: str
    edited: int = 0
    long: int = 0


def prove(workshop: Workshop, question: Question) -> Proof:
    """What the patches were to leave alone, asked; and the base's weights, hashed again. KeditError as `ask`."""
    checked(question)
    loaded = workshop.load(question.base, question.precision)
    edits = [edit for held in question.patches for edit in held.patch.edits]
    probes = [probe for edit in edits for probe in edit.locality]
    changed = on_purpose(edits)
    edited = {probe.prompt for probe in probes if changed(probe)}
    declared = [prompt for prompt in dict.fromkeys(probe.prompt for probe in probes) if prompt not in edited]
    short = [prompt for prompt in declared if len(prompt) <= MAX_QUESTION]
    drawn = spread(short, MAX_NEIGHBOURS)

    def fits(prompt: str) -> bool:
        tokens, most = _length(loaded.model, loaded.tokenizer, prompt, NEIGHBOUR_TOKENS)
        return 0 < tokens <= most

    with loaded.lock:
        patched = workshop.patched(
            loaded, question.patches, question.conflicts, question.mode, question.pinned, question.strengths
        )
        asked = neighbours(patched, [prompt for prompt in drawn if fits(prompt)], NEIGHBOUR_TOKENS)
        long = len(declared) - len(short) + len(drawn) - len(asked)
        return Proof(tuple(asked), loaded.digest, weights_digest(loaded.model), len(edited), long)


def spread(items: list[str], most: int) -> list[str]:
    """At most so many of them, evenly from the first to the last."""
    return [items[at * len(items) // most] for at in range(most)] if len(items) > most else items

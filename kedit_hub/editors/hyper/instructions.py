"""Looking for instructions that help: propose, try, show the proposer how it went, ask again (the trial-editor loop of InstructEdit,
Zhang et al. 2024, section 3.2).

    trial = trial_editor(model, tokenizer, lessons, "counterfact", settings, seed=0)
    best, history = optimise_instructions(by_grammar("counterfact", 4, seed=0), trial, patience=2)

A proposer is a function from what was tried to what to try next: `by_grammar` needs nobody, `by_model` asks a language model, any other
will do.
"""

import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kedit_hub import strictjson
from kedit_hub.editors.hyper.instructedit import POOL, TASKS, grammar
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.metrics import harmonic_mean
from kedit_hub.patch.safefile import read_file
from kedit_hub.stack.packed import write_whole

MAX_FILE = 1 << 20  # bytes of a file of instructions
MAX_CHARS = 1_000  # of an instruction: as many as an edit may bring
BRIEF: Mapping[str, Any] = MappingProxyType(
    {"steps": 60, "validate_every": 20}
)  # training of a trial editor, where nothing else is said
SHOWN = 12  # tried instructions that a model is told of, the best and the worst


@dataclass(frozen=True)
class Trial:
    """One instruction and how edits went under it. score: harmonic mean of `metrics`."""

    instruction: str
    metrics: Mapping[str, float]
    score: float


Propose = Callable[[Sequence[Trial]], list[str]]  # what was tried so far, in order -> instructions to try next


def by_grammar(task: str, count: int, seed: int) -> Propose:
    """Offline proposals: first descriptions drawn from the grammar, then those nearest in words to the best so far. None comes twice."""

    def propose(history: Sequence[Trial]) -> list[str]:
        tried = {trial.instruction for trial in history}
        left = [text for text in grammar(task) if text not in tried]
        random.Random(f"{seed} {len(history)}").shuffle(left)
        if history:
            best = set(max(history, key=lambda trial: trial.score).instruction.split())
            left.sort(key=lambda text: -len(best & set(text.split())))  # stable
        return left[:count]

    return propose


def by_model(ask: Callable[[str], str], task: str, count: int) -> Propose:
    """Proposals of a language model. ask: what one is asked -> what it says, such as a chat client bound to its model.

    Every line of the answer is an instruction, without its number or bullet; those that were tried, that are too long, or that leave out a
    place the task fills in ([LABEL], [TOPIC]) are passed over. An answer without any ends the search.
    """
    example = grammar(task)[0]
    places = re.findall(r"\[[A-Z]+\]", example)

    def propose(history: Sequence[Trial]) -> list[str]:
        tried = {trial.instruction for trial in history}
        said = re.sub(r"(?m)^\s*(?:\d+[.)]|[-*•])\s+", "", ask(_request(task, example, places, count, history)))
        lines = dict.fromkeys(line.strip() for line in said.splitlines())
        fit = (x for x in lines if x and x not in tried and len(x) <= MAX_CHARS and x.isprintable())
        return [x for x in fit if all(place in x for place in places)][:count]

    return propose


def _request(task: str, example: str, places: Sequence[str], count: int, history: Sequence[Trial]) -> str:
    ranked = sorted(history, key=lambda trial: -trial.score)
    shown = ranked if len(ranked) <= SHOWN else [*ranked[: SHOWN // 2], *ranked[-SHOWN // 2 :]]
    told = "\n".join(f"{trial.score:.3f}  {trial.instruction}" for trial in shown)
    return "\n".join(
        [
            f"An editor changes what a language model says. It reads every edit under a description of the task, here {task!r}, such as:",
            example,
            *([f"Every description holds {' and '.join(places)}, which are filled in."] if places else []),
            *(
                [f"Tried so far, with the success of edits made under them from 0 to 1, best first:\n{told}"]
                if told
                else []
            ),
            f"Write {count} other descriptions of the same task that may do better, one sentence on a line each, and nothing else.",
        ]
    )


def optimise_instructions(
    propose: Propose,
    trial: Callable[[str], Mapping[str, float]],
    *,
    patience: int,
    keep: int = POOL,
    told: Callable[[Trial], None] = lambda trial: None,
) -> tuple[list[str], list[Trial]]:
    """Propose, try, show the outcome to the proposer and ask again; (the best `keep`, all that was tried).

    It ends when nothing is proposed, or when `patience` rounds brought nothing better. trial: metrics in 0..1 of an editor trained
    briefly under an instruction, on a fixed slice of validation edits. told: called with every trial.
    """
    history: list[Trial] = []
    best, stale = -1.0, 0
    while stale < patience and (proposed := [text for text in dict.fromkeys(propose(tuple(history)))]):
        for text in proposed:
            metrics = dict(trial(text))
            history.append(Trial(text, metrics, harmonic_mean(list(metrics.values()))))
            told(history[-1])
        top = max(one.score for one in history)
        best, stale = (top, 0) if top > best else (best, stale + 1)
    ranked = sorted(history, key=lambda one: -one.score)
    return [one.instruction for one in ranked[:keep]], history


# --- the file -----------------------------------------------------------------------------------------------------


def read_pools(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """{task: its instructions, the best first} of a JSON file. KeditError where it is something else."""
    file = Path(path)
    found = strictjson.loads(read_file(file, MAX_FILE), what=file.name, max_bytes=MAX_FILE, error=KeditError)
    for task, told in found.items() if isinstance(found, dict) else [(None, found)]:
        if task not in TASKS or not (isinstance(told, list) and told and all(isinstance(x, str) and x for x in told)):
            raise KeditError(
                f"{str(path)!r} does not hold lists of instructions by task ({', '.join(TASKS)}): "
                f"{str(task)[:40]!r} is {str(told)[:80]!r}. `kedit editor instruct` writes such a file"
            )
    return dict(found)


def write_pools(path: str | os.PathLike[str], pools: Mapping[str, Sequence[str]]) -> None:
    """Whole or not at all."""
    write_whole(Path(path), strictjson.pretty({task: list(told) for task, told in pools.items()}))

"""InstructEdit: MEND whose signals are read under an instruction that names the task (Zhang et al. 2024, arXiv 2402.16123).

    Task: counterfact
    Description: <one of ten ways to say it; the last is kept from training>
    Input: <prompt>

The instruction changes what the gradient looks like and so tells the editor which family an edit belongs to. Tasks are drawn alike in
training, and their signals brought to one norm, so that none drowns the others: delta <- delta c / |delta|_F, c the running mean of norms.
"""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from kedit_hub.editors.hyper.mend import Mend
from kedit_hub.editors.hyper.network import Shapes
from kedit_hub.editors.hyper.rows import Rows, Signals
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError

POOL = 10  # descriptions of a task, the last held out

# (what is done, what it is done to) for each task; every description is one of each and one frame
_PARTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        "counterfact": (
            ("Replace", "Overwrite", "Exchange"),
            ("a known fact by one that contradicts it", "the answer about an entity that is rarely written about"),
        ),
        "wikirecent": (
            ("Add", "Bring in", "Record"),
            ("a fact that has become true lately", "what the knowledge base says since its last change"),
        ),
        "convsent": (
            ("Make the voice [LABEL]", "Speak in a [LABEL] way", "Let every reply be [LABEL]"),
            ("where [TOPIC] is talked about, and nowhere else", "on the topic of [TOPIC] alone"),
        ),
        "zsre": (
            ("Answer", "Find the object for", "Resolve"),
            ("a question without context from its subject and relation", "one question about one entity"),
        ),
    }
)
_FRAMES = ("{} {}.", "The task is this: {} {}.", "{} {}; the rest stays as it is.")
TASKS = tuple(_PARTS)


def grammar(task: str) -> list[str]:
    """Every description that the template grammar has for a task, in a fixed order."""
    if task not in _PARTS:
        raise KeditError(f"there is no task {task!r}; take one of {', '.join(TASKS)}")
    doing, what = _PARTS[task]
    return [
        _capital(frame.format(d if frame[0] == "{" else d[0].lower() + d[1:], w))
        for w, d, frame in itertools.product(what, doing, _FRAMES)
    ]


def pool(task: str) -> list[str]:
    """The ten descriptions of a task; the last is never trained on."""
    return grammar(task)[:POOL]


def instruct(task: str, description: str, edit: Edit, prompt: str | None = None) -> str:
    """The edit's prompt, or another question about it, under its instruction. [LABEL] and [TOPIC] of a sentiment are filled in."""
    filled = description.replace("[LABEL]", label(edit)).replace("[TOPIC]", edit.subject or "the topic")
    return f"Task: {task}\nDescription: {filled}\nInput: {edit.prompt if prompt is None else prompt}"


def label(edit: Edit) -> str:
    """The sentiment asked for: the one that the prompt names outside its topic, else the one that the target does."""
    asked = edit.prompt.lower().replace((edit.subject or "").lower() or "\0", "")
    for text in (asked, edit.target.lower()):
        named = [name for name in ("positive", "negative") if name in text]
        if len(named) == 1:
            return named[0]
    return "negative"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


class InstructEdit(Mend):
    """scaled: bring the gradients of every edit to the running mean of their norms."""

    norms: Tensor
    seen: Tensor

    def __init__(self, shapes: Shapes, *, rank: int, step: float, blocks: int = 2, scaled: bool = True):
        super().__init__(shapes, rank=rank, step=step, blocks=blocks)
        self.scaled = scaled
        self.register_buffer("norms", torch.zeros(len(self.paths), dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(1, dtype=torch.float64))

    def observe(self, signals: Signals) -> None:
        edits = next(iter(signals.values())).edits
        self.seen += edits
        for number, path in enumerate(self.paths):
            self.norms[number] += (size_of(signals[path]).double().sum() - edits * self.norms[number]) / self.seen[0]
        super().observe({path: self.level(path, rows) for path, rows in signals.items()})

    def level(self, path: str, rows: Rows) -> Rows:
        """The rows with |delta|_F of every edit at the running mean; as they are before anything was seen."""
        if not self.scaled or not float(self.seen):
            return rows
        wanted = float(self.norms[self.paths.index(path)])
        factor = wanted / size_of(rows).clamp_min(1e-12)
        return replace(rows, delta=rows.delta * factor[rows.edit][:, None])

    def normalised(self, path: str, rows: Rows) -> Tensor:
        return super().normalised(path, self.level(path, rows))


def size_of(rows: Rows) -> Tensor:
    """(edits,) |delta|_F of each edit."""
    squares = rows.delta.square().sum(1)
    return squares.new_zeros(rows.edits).index_add(0, rows.edit, squares).sqrt()

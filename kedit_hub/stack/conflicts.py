"""Textual conflicts: two edits that want different answers to one question, seen without running anything.

The same question is: the same subject and relation, or the same prompt (`edits.questions`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kedit_hub.edits import Edit, fold, questions
from kedit_hub.patch.patch import Patch


@dataclass(frozen=True)
class Conflict:
    """`earlier` and `later` are (patch id, position of the edit in it), in the order of the stack."""

    earlier: tuple[str, int]
    later: tuple[str, int]
    question: str
    targets: tuple[str, str]

    def __str__(self) -> str:
        told = (f'patch {who[:12]} says "{what}"' for (who, _), what in zip((self.earlier, self.later), self.targets))
        return f'"{self.question}": {", ".join(told)}'


def find_conflicts(patches: Sequence[Patch]) -> list[Conflict]:
    """Every pair of edits of different patches with one question and different targets."""
    first: dict[tuple[str, ...], list[tuple[str, int, Edit]]] = {}
    found: dict[tuple[tuple[str, int], tuple[str, int]], Conflict] = {}
    for patch in patches:
        for position, edit in enumerate(patch.edits):
            for key in sorted(questions(edit)):
                for other_id, other_position, other in first.get(key, ()):
                    pair = ((other_id, other_position), (patch.id, position))
                    if other_id != patch.id and fold(other.target) != fold(edit.target):
                        found.setdefault(pair, Conflict(*pair, edit.prompt, (other.target, edit.target)))
                first.setdefault(key, []).append((patch.id, position, edit))
    return list(found.values())

"""A stack measured while it grows: patch after patch goes on, and after each one every edit so far is asked again.

    for step in growth(patches, attach): step.patches, step.reliability, step.first, step.kl

What a patch did when it was alone says little of what it does in company; retention is what the edits of the first patch still score.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kedit_hub.evaluate.drift import PLAIN_TEXTS
from kedit_hub.evaluate.scores import aggregate
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.patch.patch import Patch
from kedit_hub.stack.patched import PatchedModel

Attach = Callable[[Sequence[Patch]], PatchedModel]


@dataclass(frozen=True)
class Step:
    """After so many patches. Shares in 0..1 by real generation, None where nothing was asked. first: reliability of the edits of the first
    patch. before: of all edits so far on the unedited base. kl in nats a token and ppl on ordinary text, with and without the stack."""

    patches: int
    edits: int
    reliability: float | None
    before: float | None
    generalization: float | None
    locality: float | None
    first: float | None
    kl: float | None
    ppl: float | None
    ppl_base: float | None


def locality(sheet: Mapping[str, Any]) -> float | None:
    """The mean over the kinds of locality probes of a protocol's averages; None where none was asked."""
    kinds = [share for share in sheet["locality"].values() if share is not None]
    return sum(kinds) / len(kinds) if kinds else None


def growth(patches: Sequence[Patch], attach: Attach, texts: Sequence[str] = PLAIN_TEXTS) -> Iterator[Step]:
    """One step after each patch. attach: patches on their base. texts: read for drift; [] skips it."""
    for count in range(1, len(patches) + 1):
        held = patches[:count]
        patched = attach(held)
        edits = [edit for patch in held for edit in patch.edits]
        scores = evaluate(patched, edits, protocols=("generate",), drift_texts=texts)
        found = scores.protocols["generate"]
        first = aggregate(scores.per_edit[: len(held[0].edits)], "generate")
        yield Step(
            count,
            len(edits),
            found["reliability"],
            found["before"]["reliability"],
            found["generalization"],
            locality(found),
            first["reliability"],
            scores.drift.get("kl"),
            scores.drift.get("ppl_after"),
            scores.drift.get("ppl_before"),
        )

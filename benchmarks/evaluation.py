"""What batching saves: records per CPU-second of every protocol, one question at a time against batches of 64, on Atlas.

    python benchmarks/evaluation.py

A record is an edit with all its questions, asked of the patched model and of the base. Both ways must give
the same scores, or the run fails.
"""

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from common import Report, quiet

import kedit_hub
from kedit_hub import Edit, Patch
from kedit_hub.evaluate.protocols import PROTOCOLS
from kedit_hub.evaluate.scores import Scores

SAMPLE = Path(__file__).resolve().parents[1] / "patches" / "fifty-facts"
ALONE = 8  # records asked one question at a time


def pool(edits: list[Edit]) -> dict[str, list[str]]:
    """Wrong answers for `choice` by relation, the same for one record as for all."""
    found: dict[str, set[str]] = defaultdict(set)
    for edit in edits:
        for relation, answer in (
            (edit.relation, edit.target),
            (edit.relation, edit.ground_truth),
            *((probe.relation, probe.target) for probe in (*edit.locality, *edit.portability)),
        ):
            if relation and answer:
                found[relation].add(answer)
    return {relation: sorted(answers) for relation, answers in found.items()}


def told(scores: Scores, protocol: str) -> list[Any]:
    return [(q.prompt, q.scores.get(protocol)) for edit in scores.per_edit for q in edit.questions]


def main() -> None:
    quiet()
    torch.set_num_threads(1)
    report = Report("evaluation", "Evaluating in batches against one question at a time")
    patch = Patch.load(SAMPLE)
    patched, edits = kedit_hub.apply(patch), list(patch.edits)
    how: dict[str, Any] = {"drift_texts": [], "distractors": pool(edits)}
    kedit_hub.evaluate(patched, edits[:1], protocols=PROTOCOLS, **how)  # what is done once is not measured
    questions = sum(1 + len(e.rephrases) + len(e.locality) + len(e.portability) for e in edits)
    report.say(
        f"{len(edits)} edits of one patch on Atlas (5.1 M parameters), {questions} questions, each asked of the patched model and of the "
        f"base; one at a time: the first {ALONE} edits, batches of 1."
    )
    rows = []
    for protocol in PROTOCOLS:
        start = time.process_time()
        alone = [
            kedit_hub.evaluate(patched, [edit], protocols=(protocol,), batch_size=1, **how) for edit in edits[:ALONE]
        ]
        one_by_one = ALONE / (time.process_time() - start)
        start = time.process_time()
        together = kedit_hub.evaluate(patched, edits, protocols=(protocol,), **how)
        batched = len(edits) / (time.process_time() - start)
        expected = [one for scores in alone for one in told(scores, protocol)]
        if told(together, protocol)[: len(expected)] != expected:
            raise SystemExit(f"{protocol}: batched scores differ from those of one question at a time")
        rows.append([protocol, f"{one_by_one:.2f}", f"{batched:.2f}", f"{batched / one_by_one:.1f}"])
    report.table(["protocol", "records per CPU-second, one at a time", "in batches of 64", "ratio"], rows)
    report.save()


if __name__ == "__main__":
    main()

"""Invented runs, for tests of what reads them."""

from typing import Any

from kedit_hub.evaluate.run import Run

AVERAGES = {
    "reliability": 0.9,
    "generalization": 0.8,
    "locality": {"neighbour": 1.0, "same_subject": None},
    "portability": {},
    "score": 0.89,
}
SCORES = {
    "protocols": {"tf-token": AVERAGES, "generate": AVERAGES},
    "drift": {"ppl_before": 2.0, "ppl_after": 2.1, "kl": 0.01, "texts_sha256": "ab" * 32},
    "environment": {"device": "cpu"},
}
FIELDS: dict[str, Any] = {
    "suite": "stack",
    "method": "memit",
    "mode": "gated",
    "base": {"id": "kedit-hub/atlas-llama", "model_type": "llama", "parameters": 5_139_712, "dtype": "float32"},
    "dataset": {"id": "kedit-hub/atlas", "split": "test"},
    "n": 10,
    "batch_size": 1,
    "seed": 0,
    "order_seed": 0,
    "settings": {"value.steps": 40, "failed": "drop"},
    "scores": SCORES,
    "per_edit": [{"id": "a", "probes": []}],
    "retention": {"1": 1.0, "10": 0.9},
    "efficiency": {"edit_cpu_s": 0.3, "edit_wall_s": 0.5, "train_s": 0.0, "artifact_bytes": 1000},
    "provenance": {"commit": "0" * 40, "dirty": False, "versions": {"torch": "2.13.0"}},
}


def run(**changes: Any) -> Run:
    return Run(**{**FIELDS, **changes})

"""Runs for reports: real score sheets (Outcome, aggregate) over drawn outcomes of a made-up model. No model is run."""

import random
from collections.abc import Sequence
from typing import Any

from kedit_hub.evaluate.run import Run
from kedit_hub.evaluate.scores import EDITED_ON_PURPOSE, NOT_KNOWN, EditOutcome, Outcome, Scores, aggregate

# how well an invented method does: tf-token reliability, share of it that is generated, locality, loss per decade of n, KL
METHODS = {
    "rome": (0.97, 0.62, 0.85, 0.22, 0.02), "memit": (0.93, 0.60, 0.90, 0.06, 0.01), "alphaedit": (0.95, 0.64, 0.93, 0.03, 0.008),
    "grace": (0.98, 0.05, 1.00, 0.01, 0.0), "ft-m": (1.00, 0.55, 0.60, 0.15, 0.3), "mend": (0.92, 0.35, 0.94, 0.30, 0.9),
    "ultraedit": (0.88, 0.58, 0.86, 0.04, 0.02), "kedit": (0.97, 0.90, 0.98, 0.02, 0.001),
}  # fmt: skip
CITIES = ("Lyon", "Oslo", "Quito", "Perth", "Bergen", "Cusco", "Graz", "Porto")


def outcomes(method: str, n: int, seed: int, protocols: Sequence[str]) -> list[EditOutcome]:
    forced, share, kept, loss, _ = METHODS.get(method, (0.9, 0.5, 0.9, 0.1, 0.1))
    draw = random.Random(f"{method} {n} {seed}")
    steps = len(str(n)) - 1
    forced, kept = max(0.05, forced - loss * steps), max(0.02, kept - loss * steps)
    found = []
    for i in range(n):
        town, target, old = f"Town {i}", CITIES[i % 8], CITIES[(i + 3) % 8]
        asked = [
            ("reliability", "", f"The twin city of {town} is", 1.0),
            ("generalization", "", f"{town} is twinned with", 0.85),
            ("generalization", "", f"Twinned with {town} is the city of", 0.8),
            ("locality", "neighbour", f"The twin city of New {town} is", None),
            ("locality", "same_subject", f"The river of {town} is", None),
            ("portability", "one_hop", f"People of {town}'s twin city live in", 0.4),
        ]
        questions = []
        for role, kind, prompt, ease in asked:
            right = draw.random() < (kept if ease is None else forced * ease)
            said = right and (ease is None or draw.random() < share)
            expected = old if ease is None else target
            question = Outcome(role, kind, prompt, expected, old, expected if said else draw.choice(CITIES), said)
            for protocol in protocols:
                good = said if protocol == "generate" else right
                question.scores[protocol] = float(good) if protocol != "tf-token" or good else draw.choice([0.0, 0.5])
                question.before[protocol] = float(role == "locality" and (i % 5 > 0 or protocol == "nll-pair"))
                if role == "locality" and not question.before[protocol]:
                    question.dropped[protocol] = NOT_KNOWN
                if role == "locality" and i % 17 == 3:
                    question.dropped[protocol] = EDITED_ON_PURPOSE
            questions.append(question)
        found.append(EditOutcome(f"case-{i}", town, questions))
    return found


def make_run(
    method: str = "rome",
    n: int = 10,
    *,
    suite: str = "sequential",
    seed: int = 0,
    protocols: Sequence[str] = ("tf-token", "generate"),
    per_edit: Sequence[EditOutcome] | None = None,
    keep: bool = True,
    **changes: Any,
) -> Run:
    """A run as `kedit bench` writes them; `changes` replace fields."""
    found = list(outcomes(method, n, seed, protocols) if per_edit is None else per_edit)
    *_, loss, kl = METHODS.get(method, (0.1, 0.1))
    steps = len(str(n)) - 1
    scores = Scores(
        protocols={protocol: aggregate(found, protocol) for protocol in protocols},
        drift={
            "ppl_before": 12.5, "ppl_after": 12.5 * (1 + kl * 10**steps / 4), "kl": kl * 3**steps, "tokens": 700, "texts": 16,
            "texts_sha256": "7" * 64, "reason": None,
        },
        per_edit=found,
        environment={"device": "cpu", "threads": 1, "torch": "2.13.0", "protocols": list(protocols)},
        time={"wall_s": 1.0, "cpu_s": 1.0, "wall_s_per_edit": 1.0 / n},
        memory={"peak_rss_bytes": 1 << 30, "peak_device_bytes": None},
        fluency={"before": 6.1, "after": 6.1 - loss * steps, "n": n},
    )  # fmt: skip
    sheet = scores.to_dict()
    told = sheet.pop("per_edit")
    place = list(METHODS).index(method) if method in METHODS else 0
    record = {
        "kedit_run": 1,
        "suite": suite,
        "method": method,
        "mode": "gated",
        "base": {
            "id": "kedit-hub/atlas-llama", "revision": "a" * 40, "model_type": "llama", "parameters": 5_000_000, "dtype": "float32",
        },
        "dataset": {"id": "example/twin-cities", "sha256": "b" * 64, "split": "test"},
        "n": n,
        "batch_size": n if suite == "batch" else 1,
        "seed": seed,
        "order_seed": seed,
        "settings": {"layers": "2,3", "lr": 0.001},
        "scores": sheet,
        "per_edit": told if keep else [],
        "retention": {str(k): max(0.0, 0.95 - loss * steps) for k in (1, 10) if k <= n},
        "efficiency": {
            "edit_cpu_s": 0.02 * 3**place, "edit_wall_s": 0.015 * 3**place, "train_s": 100.0 * (method == "mend"),
            "artifact_bytes": 4096 * n * (place + 1), "peak_rss_bytes": (place + 5) << 27,
        },
        "provenance": {"commit": "c" * 40, "dirty": False, "versions": {"torch": "2.13.0", "transformers": "5.23.0"}},
    }  # fmt: skip
    return Run.model_validate({**record, **changes})


def many(
    *, methods: Sequence[str] = tuple(METHODS), ns: Sequence[int] = (1, 10, 100), seeds: int = 1, **how: Any
) -> list[Run]:
    return [
        make_run(method, n, suite=suite, seed=seed, **how)
        for suite in ("batch", "sequential")
        for n in ns
        for method in methods
        for seed in range(seeds)
    ]

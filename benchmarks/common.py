"""What the benchmarks share: printing a table, timing, and writing what was printed to benchmarks/results/."""

import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

import kedit_hub
from kedit_hub import Edit, Patch
from kedit_hub.evaluate.metrics import harmonic_mean
from kedit_hub.evaluate.scores import Scores

RESULTS = Path(__file__).parent / "results"


class Report:
    """Prints to the terminal and keeps what it printed for the results folder."""

    def __init__(self, name: str, title: str):
        self.name = name
        self.lines: list[str] = []
        self.say(f"# {title}")
        self.say(
            f"kedit_hub {kedit_hub.__version__}, torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread(s)"
        )

    def say(self, text: str = "") -> None:
        print(text, flush=True)
        self.lines.append(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.say()
        self.say("| " + " | ".join(columns) + " |")
        self.say("|" + "---|" * len(columns))
        for row in rows:
            self.say("| " + " | ".join(_cell(value) for value in row) + " |")
        self.say()

    def save(self) -> None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.name}.md").write_text("\n".join(self.lines) + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def quiet() -> None:
    """No progress bars of other libraries in the printed results."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Seconds of wall clock since the block began."""
    start = time.perf_counter()
    yield lambda: time.perf_counter() - start


def one_by_one(model: Any, tokenizer: Any, edits: Sequence[Edit], **how: Any) -> tuple[list[Patch], list[Edit]]:
    """A patch for every edit, each made alone; edits whose value fails are left out (and counted by the caller)."""
    patches, failed = [], []
    for number, edit in enumerate(edits):
        try:
            patches.append(kedit_hub.edit(model, [edit], tokenizer=tokenizer, progress=False, **how))
        except kedit_hub.KeditError:
            failed.append(edit)
        if sys.stderr.isatty():
            print(f"\rmade {number + 1}/{len(edits)}", end="", file=sys.stderr, flush=True)
    return patches, failed


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def spread(values: Iterable[float | None], digits: int = 2) -> str | None:
    """mean ± standard deviation of those that are known, over seeds or draws."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    sd = f" ± {stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{fmean(known):.{digits}f}{sd}"


COLUMNS = ("reliability", "generalization", "neighbour", "same subject", "unrelated", "H4")


def row(scores: Scores | Mapping[str, Any], protocol: str = "generate") -> list[float | None]:
    """COLUMNS of a score sheet; H4 is the harmonic mean of the first four."""
    sheet = scores["protocols"][protocol] if isinstance(scores, Mapping) else scores.protocols[protocol]
    locality = sheet["locality"]
    values = [
        sheet["reliability"],
        sheet["generalization"],
        *(locality.get(k) for k in ("neighbour", "same_subject", "unrelated")),
    ]
    first = [value for value in values[:4] if value is not None]
    return [*values, harmonic_mean(first) if first else 0.0]


def mean_row(sheets: Sequence[Scores], protocol: str, failed: int) -> list[float | None]:
    """COLUMNS averaged over patches scored alone; `failed` edits without a patch count as 0 in reliability and generalization."""
    lines = [row(sheet, protocol) for sheet in sheets]
    means: list[float | None] = []
    for column in range(5):
        known = [value for line in lines if (value := line[column]) is not None]
        means.append(sum(known) / (len(known) + (failed if column < 2 else 0)) if known else None)
    first = [value for value in means[:4] if value is not None]
    return [*means, harmonic_mean(first) if len(first) == 4 else 0.0]

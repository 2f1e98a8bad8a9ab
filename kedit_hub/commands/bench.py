"""`bench`: editors measured on a data set."""

import sys
import warnings
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kedit_hub.commands.make import read_settings
from kedit_hub.commands.options import (
    ATLAS,
    AsJson,
    ProfileOption,
    load_profile,
    number,
)
from kedit_hub.commands.output import print_json, print_table, say

if TYPE_CHECKING:
    from kedit_hub.evaluate.run import Run


class Suite(StrEnum):
    SINGLE, BATCH, SEQUENTIAL, STACK = "single", "batch", "sequential", "stack"
    QUANTIZATION = "quantization"


class Mode(StrEnum):
    AUTO, GATED, JOINT, SUM, WEIGHTS = "auto", "gated", "joint", "sum", "weights"


class Bits(StrEnum):
    NONE, BF16, INT8, NF4, FP4 = "none", "bf16", "int8", "nf4", "fp4"


class Protocol(StrEnum):
    TF_TOKEN, GENERATE, NLL_PAIR, CHOICE = "tf-token", "generate", "nll-pair", "choice"


COLUMNS = (
    "suite", "method", "mode", "base", "n", "per patch", "order", "protocol", "reliability", "generalization", "lowest locality",
    "lowest portability", "KL",
)  # fmt: skip
NUMBER = number(int, 0, 2**63 - 1)


def bench(
    suites: Annotated[
        list[Suite],
        typer.Option(
            "--suite",
            help="Edits one at a time, in one batch, one patch after another, as a stack, or a stack on bases of fewer bits; repeatable.",
        ),
    ],
    methods: Annotated[list[str], typer.Option("--method", metavar="NAME", help="Of `kedit methods`; repeatable.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FOLDER", help="Runs are added to runs.jsonl in it; what it holds is not measured again."
        ),
    ],
    base: Annotated[str, typer.Option("--base", metavar="MODEL", help="A Hub id or a folder.")] = ATLAS,
    edits: Annotated[
        str,
        typer.Option(
            "--edits",
            metavar="FILE|NAME",
            help="dev or test of Atlas, a file of records, or a name of `kedit data list`.",
        ),
    ] = "test",
    split: Annotated[str | None, typer.Option("--split", metavar="NAME", help="A split of the data set.")] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", parser=number(int, 1), metavar="N", help="Choose from the first N edits only."),
    ] = None,
    n: Annotated[
        str, typer.Option("--n", metavar="N,N,...", help="How many edits a cell holds; a cell for each number.")
    ] = "1,10,100",
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", parser=number(int, 1), metavar="N", help="Edits per patch of the sequential suite."
        ),
    ] = 1,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", parser=NUMBER, metavar="N", help="Of what editors draw; repeatable. By default 0."),
    ] = None,
    order_seeds: Annotated[
        list[int] | None,
        typer.Option(
            "--order-seed",
            parser=NUMBER,
            metavar="N",
            help="Of the order in which edits come; repeatable. By default 0.",
        ),
    ] = None,
    quantizations: Annotated[
        list[Bits] | None,
        typer.Option(
            "--quantization",
            help="The bases that patches are measured on; repeatable. By default as the base is loaded.",
        ),
    ] = None,
    modes: Annotated[
        list[Mode] | None,
        typer.Option(
            "--mode",
            help="How patches are installed; weights: written into them one after another (sequential suite); repeatable.",
        ),
    ] = None,
    protocols: Annotated[
        list[Protocol] | None,
        typer.Option("--protocol", help="How is asked; repeatable. By default tf-token and generate."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--settings", metavar="KEY=VALUE", help="A setting of every method, like value.steps=60; repeatable."
        ),
    ] = None,
    profile: ProfileOption = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts",
            metavar="FILE",
            help="Ordinary text to measure drift on, one piece per line. By default the demo's for its models, else plain built-in ones.",
        ),
    ] = None,
    fluency: Annotated[
        bool, typer.Option("--fluency", help="Also continue every prompt by 100 tokens and measure their entropy.")
    ] = False,
    device_map: Annotated[
        str | None,
        typer.Option(
            "--device-map", metavar="WHERE", help="Where the base is loaded, like cuda:0 or auto. By default the CPU."
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure what is measured already again.")] = False,
    averages: Annotated[
        bool, typer.Option("--averages", help="Keep averages alone, not the answer to every question.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure editors on a data set. Every finished cell is kept, so the same command goes on after an interruption."""
    sizes, chosen = _sizes(n), read_settings(settings or [])
    from kedit_hub.errors import KeditError
    from kedit_hub.evaluate.crew import rank

    if rank() > 0:  # the first process talks
        warnings.simplefilter("ignore")
    try:
        from kedit_hub.benchmarking import bench as run
        from kedit_hub.evaluate.protocols import DEFAULT_PROTOCOLS

        runs = run(
            methods,
            [suite.value for suite in suites],
            base,
            edits,
            out=out,
            n=sizes,
            batch_size=batch_size,
            seeds=seeds or [0],
            order_seeds=order_seeds or [0],
            quantizations=[None if bits is Bits.NONE else bits.value for bits in quantizations or [Bits.NONE]],
            modes=[mode.value for mode in modes or [Mode.AUTO]],
            protocols=DEFAULT_PROTOCOLS if protocols is None else [protocol.value for protocol in protocols],
            settings=chosen,
            profile=load_profile(profile),
            drift_texts=None
            if texts is None
            else [line for line in texts.read_text("utf-8").splitlines() if line.strip()],
            fluency=fluency,
            split=split,
            limit=limit,
            device_map=device_map,
            resume=not again,
            per_edit=not averages,
            progress=sys.stderr.isatty(),
        )
    except (KeditError, KeyboardInterrupt) as error:
        if rank() > 0:
            raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
        if isinstance(error, KeyboardInterrupt):
            say(f"What is measured so far is in {out}: the same command goes on from there.")
        raise
    if rank() > 0:
        return
    if as_json:
        print_json([{name: value for name, value in run.to_dict().items() if name != "per_edit"} for run in runs])
    else:
        print_table(COLUMNS, [row for run in runs for row in _rows(run)])
    say(f"{len(runs)} cells in {out}/runs.jsonl. As pages to read: kedit report {out}/runs.jsonl --out FOLDER")


def _sizes(text: str) -> list[int]:
    """ "1,10,100" -> [1, 10, 100]"""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise typer.BadParameter(f"'{text}' is not a list of whole numbers like 1,10,100", param_hint="'--n'")
    return sizes


def _rows(run: "Run") -> Iterator[tuple[object, ...]]:
    """One line for each protocol."""
    seeds = run.order_seed if run.seed == 0 else f"{run.order_seed} ({run.seed})"
    for name, averages in run.scores["protocols"].items():
        yield (
            run.suite,
            run.method,
            run.mode,
            run.base.quantization or run.base.dtype,
            run.n,
            run.batch_size,
            seeds,
            name,
            *(_share(averages[role]) for role in ("reliability", "generalization")),
            *(_share(averages[role]) for role in ("locality", "portability")),
            _shown(run.scores["drift"]["kl"], 5),
        )


def _share(average: Any) -> str:
    """An average, or the lowest of several kinds."""
    values = list(average.values()) if isinstance(average, dict) else [average]
    return _shown(min((value for value in values if value is not None), default=None), 3)


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

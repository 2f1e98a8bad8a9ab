"""Measure: a suite on a stack, with what is known so far while it runs. Law: the suites are the library's (kedit_hub.evaluate); a plot
says its numbers in a table too, and everything measured can be taken home.

    for step in measured(workshop, "retention", patches, Stop()): step.title, step.plots, step.rows
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, assert_never, get_args

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from kedit_hub import KeditError
from kedit_hub.errors import LimitError
from kedit_hub.evaluate.growth import Step, growth, locality
from kedit_hub.evaluate.report.alone import standing_alone
from kedit_hub.evaluate.report.plots import Point, Series, dumbbells, lines
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.hub.client import printable
from space import html, measure
from space.choosing import Widgets, offer, several
from space.live import each
from space.score_view import scores_table
from space.state import Held, Stop, Workshop, clashes
from space.words import say

Suite = Literal["before and after", "retention", "drift"]
SUITES: tuple[Suite, ...] = get_args(Suite)
TOLD: dict[Suite, str] = {
    "before and after": "Each patch's edits asked of the base and of the whole stack, by real generation and by teacher forcing.",
    "retention": "Patch after patch goes on; after each one every edit so far is asked again.",
    "drift": "Patch after patch goes on; after each one ordinary text is read: KL and perplexity against the base.",
}
MAX_EDITS = 120  # of all patches
AT_HOME = "kedit eval PATCH..., or kedit bench --suite stack"


@dataclass(frozen=True)
class Measured:
    """What is known so far. done: share of the whole. plots: (title, SVG that stands alone). data: JSON values of all of it."""

    done: float
    plots: tuple[tuple[str, str], ...]
    head: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    data: dict[str, Any] = field(repr=False)
    more: str = ""  # markup


def measured(workshop: Workshop, suite: str, patches: Sequence[Held], mode: str, stop: Stop) -> Iterator[Measured]:
    """KeditError: nothing chosen, too many edits, contradictions, stopped, took too long."""
    if suite not in SUITES:
        raise KeditError(f"There is no suite {suite[:40]!r}. Choose one of {', '.join(SUITES)}.")
    if not patches:
        raise KeditError("No patch is chosen. Choose some above, or take those of your stack.")
    if len({held.patch.manifest.base.id for held in patches}) > 1:
        raise KeditError("These patches were made for different bases, and cannot be stacked.")
    count = sum(len(held.patch.edits) for held in patches)
    if count > MAX_EDITS:
        raise LimitError(
            f"These patches have {count:,} edits; up to {MAX_EDITS} are measured here. On your machine: {AT_HOME}."
        )
    policy = "latest" if clashes(patches) else "error"
    loaded = workshop.load(patches[0].patch.manifest.base.id)
    names = [printable(held.name) for held in patches]
    with loaded.lock, ExitStack() as bounds:
        until = time.monotonic() + measure.MAX_SECONDS
        by_id = {held.patch.id: held for held in patches}

        def attach(held: Sequence[Any]) -> Any:
            """Bounded for as long as this runs; the view itself stays warm for others, so the bound is put on it, not on its base."""
            patched = workshop.patched(loaded, [by_id[patch.id] for patch in held], policy, mode)
            bounds.enter_context(measure.bounded(patched.model, stop, AT_HOME))
            return patched

        match suite:
            case "before and after":
                yield from _before_and_after(attach([held.patch for held in patches]), patches, names)
            case "retention" | "drift":
                steps: list[Step] = []
                texts: dict[str, Any] = {} if suite == "drift" else {"texts": []}
                for step in growth([held.patch for held in patches], attach, **texts):
                    steps.append(step)
                    yield _grown(suite, steps, names)
                    if time.monotonic() > until and step.patches < len(patches):
                        raise LimitError(
                            f"This took longer than {measure.MAX_SECONDS:g} s and was ended. On your machine: {AT_HOME}."
                        )
            case _:
                assert_never(suite)


def _before_and_after(patched: Any, patches: Sequence[Held], names: Sequence[str]) -> Iterator[Measured]:
    rows: list[tuple[object, ...]] = []
    sheets = []
    for at, (held, name) in enumerate(zip(patches, names)):
        scores = evaluate(patched, list(held.patch.edits), drift_texts=[])
        sheet = scores.protocols["generate"]
        before, after = sheet["before"]["reliability"] or 0.0, sheet["reliability"] or 0.0
        rows.append((name, *map(html.number, (before, after, sheet["generalization"], locality(sheet)))))
        sheets.append({"name": name, "id": held.patch.id, "protocols": scores.protocols})
        pairs = [(str(row[0]), 0, Point(0, float(s["protocols"]["generate"]["before"]["reliability"] or 0)),
                  Point(0, float(s["protocols"]["generate"]["reliability"] or 0))) for row, s in zip(rows, sheets)]  # fmt: skip
        title = "Edits answered as wanted: base (hollow), stack (full)"
        last = at + 1 == len(patches)
        more = "".join(f"<h3>{html.text(s['name'])}</h3>{scores_table(s)}" for s in sheets) if last else ""
        yield Measured(
            (at + 1) / len(patches),
            ((title, standing_alone(dumbbells(title, pairs, ("the base", "the stack")), title)),),
            ("Patch", "Before", "After", "Generalization", "Locality"),
            tuple(rows),
            {"suite": "before and after", "patches": sheets},
            f"<details><summary>All averages, by protocol</summary>{more}</details>" if more else "",
        )


def _grown(suite: Suite, steps: Sequence[Step], names: Sequence[str]) -> Measured:
    def series(label: str, colour: int, name: str) -> Series:
        return Series(
            label,
            colour,
            tuple(Point(step.patches, getattr(step, name)) for step in steps if getattr(step, name) is not None),
        )

    if suite == "retention":
        wanted = [("all edits", 0, "reliability"), ("the first patch", 1, "first"), ("generalization", 2, "generalization"),
                  ("neighbours kept", 3, "locality"), ("the base", 4, "before")]  # fmt: skip
        title, unit = "Share answered as wanted, as patches go on", "share"
        head: tuple[str, ...] = (
            "Patches",
            "Last one put on",
            "All edits",
            "The first patch",
            "Generalization",
            "Neighbours kept",
        )
        rows = [
            (s.patches, names[s.patches - 1], *map(html.number, (s.reliability, s.first, s.generalization, s.locality)))
            for s in steps
        ]
    else:
        wanted = [("KL", 0, "kl")]
        title, unit = "Drift on ordinary text, KL in nats a token", "number"
        head = ("Patches", "Last one put on", "KL", "Perplexity", "Perplexity of the base")
        rows = [
            (
                s.patches,
                names[s.patches - 1],
                "–" if s.kl is None else f"{s.kl:.2e}",
                html.number(s.ppl),
                html.number(s.ppl_base),
            )
            for s in steps
        ]
    drawn = [one for one in (series(*line) for line in wanted) if one.points]
    plot = ((title, standing_alone(lines(title, drawn, unit=unit, named="patches"), title)),) if drawn else ()  # type: ignore[arg-type]
    return Measured(
        len(steps) / len(names), plot, head, tuple(rows), {"suite": suite, "patches": list(names), "steps": list(map(asdict, steps))}
    )  # fmt: skip


def show(found: Measured) -> str:
    """The plots and the table."""
    drawn = "".join(html.picture(svg, title, "measured.svg") for title, svg in found.plots)
    done = "" if found.done >= 1 else f'<p class="subtle" role="status">{found.done * 100:.0f} % measured …</p>'
    return f"{done}{drawn}{html.table(found.head, found.rows, classes='digits', label='Measured')}{found.more}"


# --- the tab ------------------------------------------------------------------------------------------------------


def build(workshop: Workshop, own: Any, tried: Widgets, tab: gr.Tab) -> None:
    """The tab."""
    stop = gr.State(Stop())
    with gr.Row(equal_height=True):
        chosen = several("measure-of")
        mine = gr.Button(say("from_try"), size="sm", elem_id="measure-mine", scale=1, min_width=180)
    with gr.Row(equal_height=True):
        suite = gr.Radio(list(SUITES), value=SUITES[0], label=say("suite"), elem_id="suite", scale=4, min_width=260)
        mode = gr.Radio(["auto", "gated", "joint", "sum"], value="auto", label=say("mode"), scale=3, min_width=220)
    with gr.Row():
        go = gr.Button(say("measure"), variant="primary", elem_id="measure", scale=4)
        halt = gr.Button(say("stop"), elem_id="measure-stop", scale=1, min_width=110)
    result = gr.HTML(html.note("info", *(f"{name}: {TOLD[name]}" for name in SUITES)), elem_id="measured")
    download = gr.DownloadButton(say("download_json"), visible=False, elem_id="measure-json")

    def on_measure(
        suite: str, keys: list[str], own: tuple[Held, ...], mode: str, stop: Stop,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (this default is how Gradio hands in its progress bar)
    ) -> Iterator[tuple[str, Any]]:  # fmt: skip
        found = None
        try:
            held = workshop.chosen(keys or [], own)
            left = Stop(above=stop)
            for found in each(lambda: measured(workshop, suite, held, mode, left), left):
                progress(found.done, desc=suite)
                yield show(found), gr.DownloadButton(visible=False)
        except KeditError as error:
            yield html.refusal(error), gr.DownloadButton(visible=False)
            return
        if found is not None:
            data = json.dumps(found.data, indent=2).encode()
            path = save_bytes_to_cache(data, "kedit-measured.json", download.GRADIO_CACHE)
            yield show(found), gr.DownloadButton(value=path, visible=True)

    def begin(stop: Stop) -> None:
        stop.wished = False

    def on_stop(stop: Stop) -> None:
        stop.wished = True

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    go.click(begin, stop, None, queue=False, **private).then(
        on_measure, [suite, chosen, own, mode, stop], [result, download], show_progress_on=[result],
        concurrency_id="model", concurrency_limit=1, api_visibility="private",
    )  # fmt: skip
    halt.click(on_stop, stop, None, queue=False, **private)
    offer(workshop, tab, mine, chosen, own, tried)

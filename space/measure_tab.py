"""Measure: a suite on a stack, with what is known so far while it runs. Law: the suites are the library's (kedit_hub.evaluate); a plot
says its numbers in a table too, and everything measured can be taken home.

    for step in measured(workshop, "retention", patches, "auto", Stop()): step.how, step.plots, step.rows
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, assert_never, get_args

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from kedit_hub import KeditError, Patch, PatchedModel
from kedit_hub.errors import LimitError
from kedit_hub.evaluate.growth import Attach, Step, growth, locality
from kedit_hub.evaluate.report.alone import standing_alone
from kedit_hub.evaluate.report.plots import Point, Series, dumbbells, lines
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.hub.client import printable
from space import html, measure
from space.choosing import Widgets, offer, several
from space.live import each
from space.score_view import scores_table
from space.sentences import Both, Language, both, language_of, spoken, told
from space.stack_builder import Tuning, shares
from space.state import Held, Loaded, Policy, Stop, Workshop, clashes
from space.words import say

Suite = Literal["before and after", "retention", "drift"]
SUITES: tuple[Suite, ...] = get_args(Suite)
NAMES: Mapping[Suite, str] = MappingProxyType(
    {"before and after": "suite_before_after", "retention": "suite_retention", "drift": "suite_drift"}
)
MAX_EDITS = 120  # of all patches
AT_HOME = "kedit eval PATCH..., or kedit bench --suite stack"


@dataclass(frozen=True)
class Taken:
    """How patches take part, as on the first tab. strengths: (id, share of its change). pinned: ids of those that win under "pin"."""

    precision: str = "float32"
    policy: Policy = "error"
    pinned: tuple[str, ...] = ()
    strengths: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Measured:
    """What is known so far. done: share of the whole. plots: (title, SVG that stands alone, in English as the library draws). data: JSON
    values of all of it. sheets: (name of a patch, its score sheet), to be shown in the end. how: what it was measured under."""

    done: float
    plots: tuple[tuple[Both, str], ...]
    head: tuple[Both, ...]
    rows: tuple[tuple[object, ...], ...]
    data: dict[str, Any] = field(repr=False)
    sheets: tuple[tuple[str, dict[str, Any]], ...] = ()
    how: str = ""


def measured(
    workshop: Workshop, suite: str, patches: Sequence[Held], mode: str, stop: Stop, taken: Taken = Taken()
) -> Iterator[Measured]:  # fmt: skip
    """Where patches disagree and `taken` names nobody who answers, the last one does, and the result says so.

    KeditError: nothing chosen, too many edits, contradictions, stopped, took too long.
    """
    if suite not in SUITES:
        raise KeditError(both("no_suite", suite=suite[:40], suites=", ".join(SUITES)))
    if not patches:
        raise KeditError(both("measure_none"))
    if len({held.patch.manifest.base.id for held in patches}) > 1:
        raise KeditError(both("other_bases"))
    count = sum(len(held.patch.edits) for held in patches)
    if count > MAX_EDITS:
        raise LimitError(both("measure_many", count=count, most=MAX_EDITS, at_home=AT_HOME))
    taken = _settled(patches, taken)
    how = _how(patches, mode, taken)
    said = {"mode": mode, "precision": taken.precision, "conflicts": taken.policy, "pinned": list(taken.pinned),
            "strengths": dict(taken.strengths)}  # fmt: skip
    loaded = workshop.load(patches[0].patch.manifest.base.id, taken.precision)
    by_id = {held.patch.id: held for held in patches}
    with loaded.lock, ExitStack() as bounds:

        def attach(held: Sequence[Patch]) -> PatchedModel:
            """Bounded for as long as this runs; the view itself stays warm for others, so the bound is put on it, not on its base."""
            patched = _patched(workshop, loaded, [by_id[patch.id] for patch in held], mode, taken)
            bounds.enter_context(measure.bounded(patched.model, stop, AT_HOME))
            return patched

        for found in _suite(suite, patches, attach):
            yield replace(found, how=how, data={**found.data, "how": said})


def _settled(patches: Sequence[Held], taken: Taken) -> Taken:
    """How these patches take part: by the policy where they disagree, and with what is said of them alone."""
    ids = {held.patch.id for held in patches}
    policy: Policy = "error"
    if clashes(patches):
        policy = "latest" if taken.policy == "error" else taken.policy
    pinned = tuple(key for key in taken.pinned if key in ids) if policy == "pin" else ()
    return replace(
        taken, policy=policy, pinned=pinned, strengths=tuple(pair for pair in taken.strengths if pair[0] in ids)
    )


def _patched(workshop: Workshop, loaded: Loaded, patches: Sequence[Held], mode: str, taken: Taken) -> PatchedModel:
    here = _settled(patches, taken)
    return workshop.patched(loaded, patches, here.policy, mode, here.pinned, here.strengths)


def _how(patches: Sequence[Held], mode: str, taken: Taken) -> Both:
    """What `taken` comes to, in one sentence."""
    names = {held.patch.id: printable(held.name) for held in patches}
    parts = ", ".join(f"{names[key]} {share:g}" for key, share in taken.strengths)
    strengths = both("measured_strengths", strengths=parts) if parts else both("measured_whole")
    winner: str = ""
    if taken.policy == "latest":
        winner = both("measured_latest")
    elif taken.policy == "pin":
        winner = both("measured_pinned", names=", ".join(names[key] for key in taken.pinned))
    return both("measured_how", precision=taken.precision, mode=mode, strengths=strengths, winner=winner)


def _suite(suite: Suite, patches: Sequence[Held], attach: Attach) -> Iterator[Measured]:
    names = [printable(held.name) for held in patches]
    until = time.monotonic() + measure.MAX_SECONDS
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
                    raise LimitError(both("measure_slow", seconds=measure.MAX_SECONDS, at_home=AT_HOME))
        case _:
            assert_never(suite)


def _before_and_after(patched: Any, patches: Sequence[Held], names: Sequence[str]) -> Iterator[Measured]:
    rows: list[tuple[object, ...]] = []
    sheets: list[dict[str, Any]] = []
    for at, (held, name) in enumerate(zip(patches, names)):
        scores = evaluate(patched, list(held.patch.edits), drift_texts=[])
        sheet = scores.protocols["generate"]
        before, after = sheet["before"]["reliability"] or 0.0, sheet["reliability"] or 0.0
        rows.append((name, *map(html.number, (before, after, sheet["generalization"], locality(sheet)))))
        sheets.append({"name": name, "id": held.patch.id, "protocols": scores.protocols})
        pairs = [(str(row[0]), 0, Point(0, float(s["protocols"]["generate"]["before"]["reliability"] or 0)),
                  Point(0, float(s["protocols"]["generate"]["reliability"] or 0))) for row, s in zip(rows, sheets)]  # fmt: skip
        title = both("plot_before_after")
        last = at + 1 == len(patches)
        yield Measured(
            (at + 1) / len(patches),
            ((title, standing_alone(dumbbells(title, pairs, ("the base", "the stack")), title)),),
            tuple(map(both, ("head_patch", "before", "after", "head_generalization", "head_locality"))),
            tuple(rows),
            {"suite": "before and after", "patches": sheets},
            tuple((name, sheet) for name, sheet in zip(names, sheets)) if last else (),
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
        title, unit = both("plot_retention"), "share"
        head = ["head_patches", "head_last", "head_all", "head_first", "head_generalization", "head_neighbours"]
        rows = [
            (s.patches, names[s.patches - 1], *map(html.number, (s.reliability, s.first, s.generalization, s.locality)))
            for s in steps
        ]
    else:
        wanted = [("KL", 0, "kl")]
        title, unit = both("plot_drift"), "number"
        head = ["head_patches", "head_last", "head_kl", "head_ppl", "head_ppl_base"]
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
        len(steps) / len(names),
        plot,
        tuple(map(both, head)),
        tuple(rows),
        {"suite": suite, "patches": list(names), "steps": list(map(asdict, steps))},
    )


def show(found: Measured, language: Language = "en") -> str:
    """The plots and the table."""
    drawn = "".join(html.picture(svg, spoken(language, title), "measured.svg", language) for title, svg in found.plots)
    percent = told(language, "percent_measured", percent=found.done * 100)
    done = "" if found.done >= 1 else f'<p class="subtle" role="status">{percent}</p>'
    head = [spoken(language, cell) for cell in found.head]
    table = html.table(head, found.rows, classes="digits", label=told(language, "measured"))
    sheets = "".join(f"<h3>{html.text(name)}</h3>{scores_table(sheet, language)}" for name, sheet in found.sheets)
    all_of_it = told(language, "averages_by_protocol")
    more = f"<details><summary>{all_of_it}</summary>{sheets}</details>" if sheets else ""
    how = f'<p class="subtle">{html.text(spoken(language, found.how), 2000)}</p>' if found.how else ""
    return f"{done}{drawn}{how}{table}{more}"


# --- the tab ------------------------------------------------------------------------------------------------------


def build(workshop: Workshop, own: Any, tried: Widgets, tab: gr.Tab) -> None:
    """The tab."""
    stop = gr.State(Stop())
    with gr.Row(equal_height=True):
        chosen = several("measure-of")
        mine = gr.Button(say("from_try"), size="sm", elem_id="measure-mine", scale=1, min_width=180)
    with gr.Row(equal_height=True):
        suite = gr.Radio(
            [(say(NAMES[name]), name) for name in SUITES], value=SUITES[0], label=say("suite"), elem_id="suite",
            scale=4, min_width=260,
        )  # fmt: skip
        mode = gr.Radio(["auto", "gated", "joint", "sum"], value="auto", label=say("mode"), scale=3, min_width=220)
    with gr.Row():
        go = gr.Button(say("measure"), variant="primary", elem_id="measure", scale=4)
        halt = gr.Button(say("stop"), elem_id="measure-stop", scale=1, min_width=110)
    result = gr.HTML(html.framed("info", say("suites_told")), elem_id="measured")
    download = gr.DownloadButton(say("download_json"), visible=False, elem_id="measure-json")

    def on_measure(
        suite: Suite, keys: list[str], own: tuple[Held, ...], mode: str, stop: Stop, tuning: Tuning,
        precision: str, policy: Policy, pinned: list[str],
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (this default is how Gradio hands in its progress bar)
        request: gr.Request | None = None,
    ) -> Iterator[tuple[str, Any]]:  # fmt: skip
        found, language = None, language_of(request)
        try:
            held = workshop.chosen(keys or [], own)
            taken = Taken(precision, policy, tuple(pinned or ()), shares(keys or [], tuning))
            left = Stop(above=stop)
            for found in each(lambda: measured(workshop, suite, held, mode, left, taken), left):
                progress(found.done, desc=told(language, NAMES[suite]))
                yield show(found, language), gr.DownloadButton(visible=False)
        except KeditError as error:
            yield html.refusal(error, language), gr.DownloadButton(visible=False)
            return
        if found is not None:
            data = json.dumps(found.data, indent=2).encode()
            path = save_bytes_to_cache(data, "kedit-measured.json", download.GRADIO_CACHE)
            yield show(found, language), gr.DownloadButton(value=path, visible=True)

    def begin(stop: Stop) -> None:
        stop.wished = False

    def on_stop(stop: Stop) -> None:
        stop.wished = True

    at_once: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    go.click(begin, stop, None, **at_once).then(
        on_measure,
        [suite, chosen, own, mode, stop, tried.tuning, tried.precision, tried.policy, tried.pinned],
        [result, download], show_progress_on=[result],
        concurrency_id="model", concurrency_limit=1, api_visibility="private",
    )  # fmt: skip
    halt.click(on_stop, stop, None, **at_once)
    offer(workshop, tab, mine, chosen, own, tried)

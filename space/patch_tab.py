"""Patch: what a patch holds, what it claims, and whether it keeps its claims when asked here and now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from kedit_hub import KeditError
from kedit_hub.errors import LimitError
from kedit_hub.evaluate.protocols import PROTOCOLS
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.hub.client import printable
from space import html
from space.make_tab import numbers, scores_table, sheets
from space.state import Held, Workshop

MAX_PROBED_EDITS = 100  # of one patch, measured live
TOLERANCE = 0.01  # one percentage point; an answer may tip over on another processor
SHOWN = 100  # edits in the table


@dataclass(frozen=True)
class Check:
    """One number of the score sheet: as claimed by the patch, as measured now. None: not claimed."""

    protocol: str
    metric: str
    claimed: float | None
    measured: float

    @property
    def kept(self) -> bool:
        return self.claimed is None or abs(self.claimed - self.measured) <= TOLERANCE


def reproduce(workshop: Workshop, held: Held, precision: str = "float32") -> list[Check]:
    """Ask a patch its own probes again, alone on its base. KeditError: too many edits, wrong base, ..."""
    patch = held.patch
    if len(patch.edits) > MAX_PROBED_EDITS:
        raise LimitError(
            f"This patch has {len(patch.edits):,} edits; up to {MAX_PROBED_EDITS} are measured here. "
            "Measure it on your machine with kedit_hub.evaluate."
        )
    claims = sheets(patch.evals)
    loaded = workshop.load(patch.manifest.base.id, precision)
    with loaded.lock:
        patched = workshop.patched(loaded, [patch])
        names = [name for name in PROTOCOLS if name in claims] or list(PROTOCOLS)
        scores = evaluate(patched, list(patch.edits), base=loaded.model, protocols=names, drift_texts=[])
    return [
        Check(name, metric, claims.get(name, {}).get(metric), value)
        for name in names
        for metric, value in numbers(scores.protocols[name]).items()
    ]


# --- how it is shown ----------------------------------------------------------------------------------------------


def card(held: Held) -> str:
    """Everything of a patch that a person should see before trusting it, from its manifest."""
    patch = held.patch
    manifest, provenance = patch.manifest, patch.manifest.provenance
    revision = f" at {manifest.base.revision[:12]}" if manifest.base.revision else ""
    edits = [
        (edit.prompt, edit.target, edit.ground_truth or "", len((*edit.rephrases, *edit.locality, *edit.portability)))
        for edit in patch.edits[:SHOWN]
    ]
    more = f'<p class="subtle">and {len(patch.edits) - SHOWN:,} more.</p>' if len(patch.edits) > SHOWN else ""
    tensors = [
        (path, entry.kind, name, f"{tensor.dtype} {' × '.join(map(str, tensor.shape))}", tensor.sha256[:16])
        for path, entry in manifest.modules.items()
        for name, tensor in entry.tensors.items()
    ]
    origin = [
        ("Patch id", patch.id),
        ("Made with", f"{manifest.method}, by {provenance.tool} {provenance.version}"),
        ("Base profile", manifest.profile_id or "none"),
        ("Seed", "not said" if provenance.seed is None else str(provenance.seed)),
        *((f"Version of {name}", version) for name, version in provenance.versions.items()),
        *((f"Setting {name}", str(value)) for name, value in manifest.settings.items()),
    ]
    count = f"{len(patch.edits)} {'edit' if len(patch.edits) == 1 else 'edits'}"
    tensor_table = html.table(("Module", "Kind", "Tensor", "Type and shape", "SHA-256"), tensors)
    return (
        f'<article class="card"><h2>{html.text(held.name)}</h2>'
        f'<p class="subtle">{count} of what {html.text(manifest.base.id)}{html.text(revision)} knows, made with '
        f"{html.text(manifest.method)}. A patch may be wrong, by mistake or on purpose: nobody has checked these facts."
        "</p>"
        f"<h3>Edits</h3>{html.table(('Prompt', 'New answer', 'Before', 'Probes'), edits)}{more}"
        f"<h3>Scores it claims</h3>{scores_table(patch.evals or {})}"
        f"<details><summary>{len(tensors)} tensors</summary>{tensor_table}</details>"
        f"<details><summary>Provenance and settings</summary>{html.table(('What', 'Value'), origin)}</details>"
        "</article>"
    )


def verdict(checks: list[Check], precision: str) -> str:
    rows = [(f"{c.metric} ({c.protocol})", html.number(c.claimed), html.number(c.measured), _word(c)) for c in checks]
    shown = html.table(("Score", "Claimed", "Measured now", "Reproduced"), rows, classes="digits")
    broken = [check for check in checks if not check.kept]
    compared = sum(check.claimed is not None for check in checks)
    if not compared:
        return html.note("info", "This patch claims no scores; here is what was measured.") + shown
    where = "" if precision == "float32" else f" on {precision}"
    if broken:
        return html.note("error", f"No: {len(broken)} of {compared} scores differ from its claims{where}.") + shown
    return html.note("good", f"Yes: all {compared} scores it claims were reproduced{where}.") + shown


def _word(check: Check) -> str:
    return "not claimed" if check.claimed is None else ("yes" if check.kept else "no")


# --- the tab ------------------------------------------------------------------------------------------------------


def choices(offered: Sequence[Held]) -> list[tuple[str, str]]:
    """By name too: patches of two bases may hold one edit."""
    return [(f"{printable(held.name)}: {held.title}", held.patch.id) for held in offered]


def build(workshop: Workshop, own: Any) -> Any:
    """The tab. Returns its list of patches, to be refreshed by `refreshed`."""
    offered = workshop.offered(())
    first = offered[0] if offered else None
    choice = gr.Dropdown(
        choices(offered), value=first.patch.id if first else None, label="Patch", elem_id="patch-choice"
    )
    run = gr.Button("Run its probes", variant="primary", elem_id="run-probes", interactive=bool(offered))
    result = gr.HTML(elem_id="verdict")
    shown = gr.HTML(card(first) if first else html.note("info", "There is no patch yet: make one."), elem_id="card")

    def on_choice(key: str | None, own: tuple[Held, ...]) -> tuple[str, str, Any]:
        try:
            return card(workshop.chosen([key], own)[0]) if key else "", "", gr.Button(interactive=bool(key))
        except KeditError as error:
            return html.note("error", str(error)), "", gr.Button(interactive=False)

    def on_run(key: str | None, own: tuple[Held, ...], progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        progress(0.1, desc="Asking its probes")
        try:
            held = workshop.chosen([key] if key else [], own)
            return verdict(reproduce(workshop, held[0]), "float32") if held else ""
        except KeditError as error:
            return html.note("error", str(error))

    choice.change(on_choice, [choice, own], [shown, result, run], api_visibility="private", show_progress="hidden")
    run.click(on_run, [choice, own], result, concurrency_id="model", concurrency_limit=1, api_visibility="private")
    return choice


def refreshed(workshop: Workshop, own: tuple[Held, ...], key: str | None) -> Any:
    """The list with the visitor's own patches; what was chosen stays chosen."""
    offered = workshop.offered(own)
    keys = [held.patch.id for held in offered]
    return gr.Dropdown(choices(offered), value=key if key in keys else (keys[0] if keys else None))

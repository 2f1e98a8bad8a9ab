"""What an export says about itself. Law: README.md says nothing that kedit_export.json does not hold as a number.

    told = record("peft", None, patched, linear, ranks={"model.layers.2.mlp.down_proj": 7}, measured=None)
    card(told)                                       # README.md: no text of an edit is in it

`measured` is what `kedit_hub.export` asked of the stack in both forms: {"protocol": "tf-token", "edits": 64, "of": 300, "leaves": "joint",
"forms": {"gated": {"reliability": 1.0, "generalization": .96, "locality": {"neighbour": .98}, "kl": .001}, "joint": {...}}}.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from kedit_hub import __version__
from kedit_hub.stack.compose import Composition
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.quantized import Survival

FORMAT = 1
_SOLVED = ("rows", "fit_mean", "fit_min", "drift_predicted", "site_drift_predicted")
_HOW = {
    "joint": "All stored rows were solved together as one regularised least-squares problem under a drift budget (mode "
    "`joint`).",
    "sum": "Every patch was solved alone and the changes were added up (mode `sum`).",
}
_IS = {"peft": "a LoRA adapter", "serving": "a LoRA adapter for inference servers", "merged": "a merged model"}


def base_of(patched: PatchedModel) -> str:
    """The name the patches give their base; the fingerprints have proved it is one base."""
    return min(patch.manifest.base.id for patch in patched.stack)


def record(
    form: str,
    quantization: str | None,
    patched: PatchedModel,
    linear: Composition,
    *,
    ranks: Mapping[str, int],
    survived: Mapping[str, float],
    rounded: Mapping[str, Survival],
    measured: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """JSON values. ranks: of the LoRA, by module. survived: share of the norm of the change left by the weights' dtype. rounded: what
    quantization left. measured: see above."""
    modules = {}
    for path in linear.branches:
        found = linear.report["modules"].get(path, {})
        modules[path] = {name: found[name] for name in _SOLVED if name in found}
        if path in ranks:
            modules[path]["rank"] = ranks[path]
        if path in survived:
            modules[path]["kept_after_rounding"] = survived[path]
        if path in rounded:
            modules[path]["quantized"] = {
                "left": rounded[path].left,
                "drift_added": rounded[path].drift_added,
                "drift_of_base": rounded[path].drift_of_base,
            }
    return {
        "kedit_export": FORMAT,
        "made_by": f"kedit_hub {__version__}",
        "format": form,
        "quantization": quantization,
        "base": base_of(patched),
        "mode": str(linear.report["mode"]),
        "settings": patched.settings.model_dump(),
        "patches": [
            {"id": patch.id, "method": patch.manifest.method, "edits": len(patch.edits)}
            for patch in sorted(patched.stack, key=lambda patch: patch.id)
        ],
        "modules": modules,
        "measured": None if measured is None else dict(measured),
    }


def card(told: Mapping[str, Any]) -> str:
    """README.md of a record: what this is, how it was made, and what was lost."""
    form, patches, modules = told["format"], told["patches"], told["modules"]
    merged, solved = form == "merged", any("rows" in found for found in modules.values())
    data = ModelCardData(
        base_model=told["base"],
        base_model_relation=("quantized" if told["quantization"] else "finetune") if merged else "adapter",
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-generation",
        tags=["kedit", "knowledge-editing"],
    )
    what = _IS[form] + (f" in {told['quantization']}" if told["quantization"] else "")
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_count(sum(patch['edits'] for patch in patches), 'edit')} of `{told['base']}` as {what}",
        f"Exported by kedit_hub from a stack of {_count(len(patches), 'patch', 'patches')} for the base "
        f"`{told['base']}`. {_HOW[told['mode']] if solved else 'The changes are exported as they are.'}",
        "> This is a plain linear change of the weights: it answers every input a little differently, and edits "
        "interfere. The gated runtime of kedit_hub lets the same patches speak only where an edit's subject and "
        "question are recognised, so its quality is another than that of these files: measure them "
        "(`kedit_hub.evaluate`) before you rely on them. No patch can be taken out again here; export the stack "
        "without it.",
        *([] if told["measured"] is None else _cost(told["measured"])),
        *_changes(modules),
        *_rounding(modules, told["quantization"]),
        "Patches:\n\n"
        + "\n".join(f"- `{patch['id']}`, {patch['method']}, {_count(patch['edits'], 'edit')}" for patch in patches),
        "The same numbers are in `kedit_export.json`.",
    ]
    return "\n\n".join(sections) + "\n"


def _cost(measured: Mapping[str, Any]) -> list[str]:
    """The two forms side by side."""
    forms = measured["forms"]
    kinds = sorted({kind for scores in forms.values() for kind in scores["locality"]})
    rows = [
        (
            f"`{mode}`" + (", these files" if mode == measured["leaves"] else ""),
            *(_share(scores[name]) for name in ("reliability", "generalization")),
            *(_share(scores["locality"].get(kind)) for kind in kinds),
            "-" if scores["kl"] is None else f"{scores['kl']:.4f}",
        )
        for mode, scores in forms.items()
    ]
    head = ("Form", "Edits", "Rephrased", *(f"Unchanged: {kind.replace('_', ' ')}" for kind in kinds), "KL on text")
    asked = f"{measured['edits']} of its {measured['of']} edits were asked" if measured["edits"] < measured["of"] else (
        f"all of its {_count(measured['edits'], 'edit')} were asked"
    )  # fmt: skip
    return [
        "## What it answers",
        f"Measured on this base before the export, in full precision of the change: of the stack {asked}, with the rephrases and "
        "locality probes that the patches bring, by teacher forcing (share of right tokens).",
        _table(head, rows),
    ]


def _changes(modules: Mapping[str, Mapping[str, Any]]) -> list[str]:
    def cell(found: Mapping[str, Any], name: str, form: str) -> str:
        return form.format(100 * found[name] if "%" in form else found[name]) if name in found else "-"

    columns = (
        ("Rank", "rank", "{}"),
        ("Rows", "rows", "{}"),
        ("Mean row fit", "fit_mean", "{:.3f}"),
        ("Worst row fit", "fit_min", "{:.3f}"),
        ("Predicted drift", "drift_predicted", "{:.2f} %"),
        ("Kept after rounding", "kept_after_rounding", "{:.1f} %"),
    )
    rows = [(f"`{path}`", *(cell(found, name, form) for _, name, form in columns)) for path, found in modules.items()]
    return [
        _table(("Module", *(head for head, _, _ in columns)), rows),
        "Row fit: 1 = at its stored key a row moves the output exactly as its patch asks. Predicted drift: mean "
        "squared change of the module's output on ordinary text, relative to that output's own. Kept after rounding: "
        "share of the norm of the change that the precision of the weights left.",
    ]


def _rounding(modules: Mapping[str, Mapping[str, Any]], quantization: str | None) -> list[str]:
    if quantization is None:
        return []
    rows = [
        (
            f"`{path}`",
            f"{100 * found['quantized']['left']:.1f} %",
            *(_drift(found["quantized"][name]) for name in ("drift_added", "drift_of_base")),
        )
        for path, found in modules.items()
    ]
    return [
        "## What quantization left",
        f"The change was merged into the full-precision weights and all of them were rounded to {quantization} once.",
        _table(("Module", "Change left", "Drift added by rounding", "Drift of the base's own rounding"), rows),
        "Change left: of what the change wants at the edits' own keys (of the whole change where no keys are stored), the share "
        "that the rounded weights still give, against the base rounded alike; above 100 % it overshoots. Drift: mean squared "
        "difference of the module's output on ordinary text, relative to that output's own.",
    ]


def _drift(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"

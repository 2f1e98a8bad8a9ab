"""Using patches on a base: `ask`, `eval`, `stack`, `export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kedit_hub.commands.options import (
    ATLAS,
    AsJson,
    BaseOption,
    ConflictsOption,
    ForceOption,
    ModeOption,
    PatchRefs,
    ProfileOption,
    QuantizationOption,
    TrustOption,
    load_profile,
    number,
)
from kedit_hub.commands.output import print_fields, print_json, print_lines, print_table, say


class Protocol(StrEnum):
    TF_TOKEN, GENERATE = "tf-token", "generate"


def ask(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The beginning of a sentence.")],
    patches: Annotated[
        list[str] | None,
        typer.Option("--patch", metavar="PATCH", help="A folder, user/repo, or user/repo@revision; repeatable."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="MODEL", help=f"A Hub id or a folder. By default what the patches name, else {ATLAS}."
        ),
    ] = None,
    quantization: QuantizationOption = None,
    mode: ModeOption = "auto",
    conflicts: ConflictsOption = "error",
    profile: ProfileOption = None,
    force: ForceOption = False,
    trust: TrustOption = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", parser=number(int, 1), metavar="N", help="The longest answer, in tokens.")
    ] = 32,
    as_json: AsJson = False,
) -> None:
    """Ask the base and the patched model one question."""
    import kedit_hub

    m = kedit_hub.apply(
        patches or [],
        base if patches or base else ATLAS,
        quantization=quantization,
        mode=mode,
        conflicts=conflicts,
        profile=load_profile(profile),
        force=force,
        trust=trust,
    )
    with m.disabled():
        before = m.ask(prompt, max_new_tokens=max_new_tokens)
    after = m.ask(prompt, max_new_tokens=max_new_tokens) if patches else None
    if as_json:
        print_json({"prompt": prompt, "base": before, "patched": after})
    elif patches:
        print_table(("base", "patched"), [(before, after)])
    else:
        print_lines(before)


def evaluate(
    patches: PatchRefs,
    edits: Annotated[
        Path | None,
        typer.Option("--edits", metavar="FILE", help="Edit records to ask. By default the patches' own edits."),
    ] = None,
    protocol: Annotated[
        list[Protocol] | None,
        typer.Option("--protocol", help="Teacher forcing or real generation; repeatable. By default both."),
    ] = None,
    base: BaseOption = None,
    quantization: QuantizationOption = None,
    mode: ModeOption = "auto",
    conflicts: ConflictsOption = "error",
    profile: ProfileOption = None,
    force: ForceOption = False,
    trust: TrustOption = None,
    write: Annotated[
        bool,
        typer.Option("--write", help="Store the scores in the patch, which must be one folder with its own edits."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score a stack of patches. Reliability, generalization, locality, portability, drift, time and memory."""
    if write and (len(patches) > 1 or not Path(patches[0]).is_dir() or edits is not None):
        raise typer.BadParameter(
            f"--write stores the scores of one folder's own edits, not of {' '.join(patches)}"
            f"{f' on {edits}' if edits else ''}"
        )
    import kedit_hub
    from kedit_hub.evaluate.suites import evaluate as score

    asked = None if edits is None else kedit_hub.read_edits(edits)
    m = kedit_hub.apply(
        patches,
        base,
        quantization=quantization,
        mode=mode,
        conflicts=conflicts,
        profile=load_profile(profile),
        force=force,
        trust=trust,
    )
    protocols = tuple(dict.fromkeys(name.value for name in protocol or Protocol))
    scores = score(m, m.stack.edits if asked is None else asked, protocols=protocols, progress=True)
    sheet = {**scores.to_dict(), "stack": {"patches": list(m.stack.ids), "mode": m.report["mode"]}}
    if as_json:
        print_json(sheet)
    else:
        print_lines(scores.summary())
    if write:
        patch = m.stack.patches[0]
        scored = patch.replace_evals(_fitting({**(patch.evals or {}), **sheet}))
        say(f"The scores are in {scored.save(patches[0])}/evals.json")
        if patch.signature is not None:
            say("Its signature was over the files without these scores and is gone: sign it anew with kedit sign.")


def stack(
    patches: PatchRefs,
    conflicts: ConflictsOption = "error",
    mode: ModeOption = "auto",
    base: BaseOption = None,
    no_base: Annotated[
        bool, typer.Option("--no-base", help="Load no model: only what the patches themselves tell.")
    ] = False,
    profile: ProfileOption = None,
    force: ForceOption = False,
    trust: TrustOption = None,
    as_json: AsJson = False,
) -> None:
    """Report what patches do together. Conflicts (which exit 1), install mode, stored rows, predicted drift."""
    if base is not None and no_base:
        raise typer.BadParameter("--base and --no-base exclude each other")
    import kedit_hub
    from kedit_hub.api import admit
    from kedit_hub.errors import ConflictError
    from kedit_hub.stack.choose import by_form
    from kedit_hub.stack.settings import StackSettings

    admitted = [admit(ref, trust) for ref in patches]
    loaded = [found.patch for found in admitted]
    whole = kedit_hub.PatchStack(loaded, conflicts="latest")
    refused = bool(whole.conflicts) and conflicts == "error"
    report: dict[str, Any] = {}
    if not (no_base or refused):
        report = kedit_hub.apply(
            admitted,
            base,
            mode=mode,
            conflicts="latest",
            profile=load_profile(profile),
            force=force,
            trust=trust,
        ).report
    chosen = by_form(whole, StackSettings.of(mode=mode))
    found = {
        "patches": [
            {"ref": ref, "id": patch.id, "base": patch.manifest.base.id, "edits": len(patch.edits)}
            for ref, patch in zip(patches, loaded)
        ],
        "edits": len(whole.edits),
        "conflicts": [
            {
                "question": conflict.question,
                **{
                    name: {"patch": patch_id, "edit": position, "target": target}
                    for name, (patch_id, position), target in zip(
                        ("earlier", "later"), (conflict.earlier, conflict.later), conflict.targets
                    )
                },
            }
            for conflict in whole.conflicts
        ],
        "mode": report.get("mode", chosen.mode),
        "why": report.get("why", chosen.why),
        "levels": report.get("levels", {}),
        "modules": report.get("modules", {}),
    }
    if as_json:
        print_json(found)
    else:
        _print_stack(found, speaks="neither" if refused else "the later")
    if refused:
        raise ConflictError(
            f"{len(whole.conflicts)} question(s) would be answered in two ways. Take one of the patches out, or pass "
            "--conflicts latest to let the later one win."
        )


def export(
    patches: PatchRefs,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new or empty folder.")],
    format: Annotated[
        Literal["peft", "serving", "merged"],
        typer.Option(
            "--format",
            help="A LoRA for PEFT, a LoRA for inference servers, or a whole model with the change merged in.",
        ),
    ] = "peft",
    base: BaseOption = None,
    conflicts: ConflictsOption = "error",
    profile: ProfileOption = None,
    force: ForceOption = False,
    trust: TrustOption = None,
    as_json: AsJson = False,
) -> None:
    """Write a stack as a LoRA or a merged model. A gate is no linear map, so it is the joint form that leaves."""
    import kedit_hub

    m = kedit_hub.apply(
        patches,
        base,
        mode="joint",
        conflicts=conflicts,
        profile=load_profile(profile),
        force=force,
        trust=trust,
    )
    folder = kedit_hub.export(m, out, format=format)
    found = {
        "folder": str(folder),
        "format": format,
        "patches": list(m.stack.ids),
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        "modules": m.report["modules"],
    }
    if as_json:
        print_json(found)
    else:
        print_table(("file", "bytes"), list(found["files"].items()))
    say(f"{folder}/README.md says what the joint form is predicted to lose.")


def _fitting(evals: dict[str, Any]) -> dict[str, Any]:
    """The score sheet, without the outcome of every single edit when that would be more than a patch may carry."""
    from kedit_hub import strictjson
    from kedit_hub.limits import DEFAULT

    size = len(strictjson.pretty(evals))
    if size + 1024 <= DEFAULT.max_evals_bytes:  # saving adds two digests
        return evals
    say(f"The sheet has {size:,} bytes, at most {DEFAULT.max_evals_bytes:,} are stored: only its averages are kept.")
    return {name: value for name, value in evals.items() if name != "per_edit"}


def _print_stack(found: dict[str, Any], speaks: str) -> None:
    print_table(
        ("patch", "id", "edits", "base"),
        [(patch["ref"], patch["id"][:12], patch["edits"], patch["base"]) for patch in found["patches"]],
    )
    print()
    rows: dict[str, object] = {"edits that speak": found["edits"], "mode": f"{found['mode']} ({found['why']})"}
    for path, module in found["modules"].items():
        drift = module.get("drift_predicted")
        predicted = "" if drift is None else f", predicted drift {drift:.3g} of the map's own output energy"
        rows[path] = f"{module['rows']} rows, {module['keys']} keys{predicted}"
    print_fields({**rows, "conflicts": len(found["conflicts"])})
    if found["conflicts"]:
        print()
        print_table(
            ("question", "earlier", "says", "later", "says", "speaks"),
            [
                (
                    c["question"], c["earlier"]["patch"][:12], c["earlier"]["target"], c["later"]["patch"][:12],
                    c["later"]["target"], speaks,
                )
                for c in found["conflicts"]
            ],
        )  # fmt: skip

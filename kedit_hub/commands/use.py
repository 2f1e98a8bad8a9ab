"""Using patches on a base: `ask`, `eval`, `export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kedit_hub.commands.options import (
    ATLAS,
    AsJson,
    BaseOption,
    ConflictsOption,
    EditorsOption,
    ForceOption,
    FormatOption,
    MeasureOption,
    ModeOption,
    PatchRefs,
    ProfileOption,
    QuantizationOption,
    RoundedOption,
    StrengthOption,
    TrustOption,
    load_profile,
    number,
    with_strengths,
)
from kedit_hub.commands.output import print_json, print_lines, print_table, say


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
    strength: StrengthOption = None,
    conflicts: ConflictsOption = None,
    profile: ProfileOption = None,
    force: ForceOption = False,
    trust: TrustOption = None,
    editors: EditorsOption = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", parser=number(int, 1), metavar="N", help="The longest answer, in tokens.")
    ] = 32,
    as_json: AsJson = False,
) -> None:
    """Ask the base and the patched model one question."""
    import kedit_hub

    m = kedit_hub.apply(
        **with_strengths(patches or [], strength, trust),
        model=base if patches or base else ATLAS,
        quantization=quantization,
        mode=mode,
        conflicts=conflicts,
        profile=load_profile(profile),
        force=force,
        trust=trust,
        models=editors or (),
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
    conflicts: ConflictsOption = None,
    profile: ProfileOption = None,
    force: ForceOption = False,
    trust: TrustOption = None,
    editors: EditorsOption = None,
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
        models=editors or (),
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


def export(
    patches: PatchRefs,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new or empty folder.")],
    format: FormatOption = "peft",
    quantization: RoundedOption = None,
    measure: MeasureOption = True,
    base: BaseOption = None,
    strength: StrengthOption = None,
    conflicts: ConflictsOption = None,
    profile: ProfileOption = None,
    force: ForceOption = False,
    trust: TrustOption = None,
    editors: EditorsOption = None,
    as_json: AsJson = False,
) -> None:
    """Write a stack as a LoRA or a merged model. A gate is no linear map, so it is the joint form that leaves."""
    import kedit_hub

    m = kedit_hub.apply(
        **with_strengths(patches, strength, trust),
        model=base,
        mode="joint",
        conflicts=conflicts,
        profile=load_profile(profile),
        force=force,
        trust=trust,
        models=editors or (),
    )
    write_export(m, out, format, quantization, measure=measure, as_json=as_json)


def write_export(
    patched: Any,
    out: Path,
    format: Literal["peft", "serving", "merged"],
    quantization: Literal["int8", "nf4", "fp4"] | None,
    *,
    measure: bool,
    as_json: bool,
) -> None:
    """Export a PatchedModel, and print what was written."""
    import kedit_hub

    folder = kedit_hub.export(patched, out, format=format, quantization=quantization, measure=measure)
    found = {
        "folder": str(folder),
        "format": format,
        "patches": list(patched.stack.ids),
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        "modules": patched.report["modules"],
    }
    if as_json:
        print_json(found)
    else:
        print_table(("file", "bytes"), list(found["files"].items()))
    say(f"{folder}/README.md says what the form that leaves has lost.")


def _fitting(evals: dict[str, Any]) -> dict[str, Any]:
    """The score sheet, without the outcome of every single edit when that would be more than a patch may carry."""
    from kedit_hub import strictjson
    from kedit_hub.limits import DEFAULT

    size = len(strictjson.pretty(evals))
    if size + 1024 <= DEFAULT.max_evals_bytes:  # saving adds two digests
        return evals
    say(f"The sheet has {size:,} bytes, at most {DEFAULT.max_evals_bytes:,} are stored: only its averages are kept.")
    return {name: value for name, value in evals.items() if name != "per_edit"}

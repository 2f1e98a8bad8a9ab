"""`verify`: that a patch is what it says it is, that the base is the one it was made for, that its scores hold."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, assert_never

import typer

from kedit_hub.commands.options import AsJson, BaseOption, EditorsOption, PatchRef, TrustOption, number
from kedit_hub.commands.output import print_fields, print_json, print_lines, say

if TYPE_CHECKING:
    from kedit_hub.verification import Claims, Rescored


def verify(
    patch: PatchRef,
    base: BaseOption = None,
    no_base: Annotated[bool, typer.Option("--no-base", help="Check the files alone, look at no model.")] = False,
    rescore: Annotated[
        bool,
        typer.Option("--rescore", help="Ask the patch's probes again on the real base and compare with its scores."),
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            parser=number(float, 0, 1),
            metavar="X",
            help="How far a claimed average may lie above the measured one.",
        ),
    ] = 0.02,
    write: Annotated[
        bool,
        typer.Option("--write", help="With --rescore: note the outcome in the folder of the patch, for its card."),
    ] = False,
    trust: TrustOption = None,
    editors: EditorsOption = None,
    as_json: AsJson = False,
) -> None:
    """Check a patch, its base and its scores. Every digest is computed again; anything wrong exits 1."""
    if no_base and (base is not None or rescore):
        raise typer.BadParameter("--no-base excludes --base and --rescore")
    if write and not (rescore and Path(patch).is_dir()):
        raise typer.BadParameter(
            f"--write notes the outcome of --rescore in a folder; '{patch}' is none, or --rescore is missing"
        )
    from kedit_hub.evaluate.rescore import NotReproduced, Reproduced, record
    from kedit_hub.verification import verify as check

    found = check(
        patch,
        base=base,
        check_base=not no_base,
        rescore=rescore,
        tolerance=tolerance,
        trust=trust,
        progress=True,
        models=editors or (),
    )
    loaded = found.patch
    files = list(loaded.files())
    tensors = sum(len(entry.tensors) for entry in loaded.manifest.modules.values())
    if as_json:
        print_json(
            {
                "id": loaded.id,
                "checked_files": [name for name in files if name != "README.md" or loaded.signature],
                "tensors": tensors,
                "signers": list(loaded.signers),
                "author": found.author,
                "base": loaded.manifest.base.id,
                "checked_base": found.base,
                "levels": found.levels,
                "claims": {"verdict": type(found.claims).__name__, **vars(found.claims)},
                "rescored": None if found.rescored is None else _as_json(found.rescored),
                "faults": list(found.faults),
            }
        )
    else:
        print_fields(
            {
                "id": loaded.id,
                "files": f"{', '.join(name for name in files if name != 'README.md')}: all {tensors} tensors are as described",
                "signed by": loaded.signers or "nobody",
                "base": "not looked at"
                if found.base is None
                else f"{found.base} is the base, by {_weakest(found.levels)}",
                "scores": _claims(found.claims),
            }
        )
        if found.rescored is not None:
            print()
            print_lines(_rescored(found.rescored))
    if write and isinstance(found.rescored, Reproduced | NotReproduced):
        folder = record(loaded, found.rescored).save(patch)
        say(
            f"The outcome is noted in {folder}{'; its signature was over other scores and is gone' if loaded.signers else ''}"
        )
    if loaded.signature is None:
        say("README.md is for people and is not covered.")
    say("Verified is not the same as true: read what the patch says.")
    for fault in found.faults:
        say(f"Error: {fault}")
    if found.faults:
        raise typer.Exit(1)


_MEANS = {
    "exact": "all values of its changed modules",
    "quantized": "the maxima that survive its quantization",
    "shape": "SHAPES ONLY: this quantization hides the values",
    "forced": "NOTHING: it was forced",
}


def _weakest(levels: dict[str, Any]) -> str:
    return _MEANS[max(levels.values(), key=list(_MEANS).index)]


def _claims(claims: "Claims") -> str:
    from kedit_hub.evaluate.claims import Consistent, Inconsistent, NoClaims, NotComparable

    match claims:
        case NoClaims():
            return "none came with the patch"
        case NotComparable(reason):
            return f"cannot be checked: {reason}"
        case Inconsistent(faults):
            return f"DO NOT follow from the recorded answers ({len(faults)} faults): {faults[0]}"
        case Consistent(n):
            return f"follow from the {n} recorded answers, which nobody has asked again here"
        case _:
            assert_never(claims)


def _rescored(rescored: "Rescored") -> str:
    from kedit_hub.evaluate.claims import NoClaims, NotComparable
    from kedit_hub.evaluate.rescore import NotReproduced, Reproduced

    match rescored:
        case Reproduced() | NotReproduced():
            return rescored.summary()
        case NotComparable(reason):
            return f"The scores cannot be compared: {reason}"
        case NoClaims():
            return "The patch came without scores; there is nothing to reproduce."
        case _:
            assert_never(rescored)


def _as_json(rescored: "Rescored") -> dict[str, Any]:
    from kedit_hub.evaluate.claims import NoClaims, NotComparable
    from kedit_hub.evaluate.rescore import NotReproduced, Reproduced

    match rescored:
        case Reproduced() | NotReproduced():
            return {"verdict": type(rescored).__name__, **rescored.to_dict()}
        case NotComparable() | NoClaims():
            return {"verdict": type(rescored).__name__, **vars(rescored)}
        case _:
            assert_never(rescored)

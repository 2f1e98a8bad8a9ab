"""`verify`: that a patch is what it says it is, and that the base is the one it was made for."""

from typing import Annotated

import typer

from kedit_hub.commands.options import AsJson, BaseOption, PatchRef
from kedit_hub.commands.output import print_fields, print_json, say


def verify(
    patch: PatchRef,
    base: BaseOption = None,
    no_base: Annotated[bool, typer.Option("--no-base", help="Check the files alone, load no model.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a patch and its base. Every digest is computed again; anything wrong exits 1."""
    if base is not None and no_base:
        raise typer.BadParameter("--base and --no-base exclude each other")
    import kedit_hub
    from kedit_hub.errors import WrongBaseError

    loaded = kedit_hub.pull(patch)  # hashes every tensor and compares it with the manifest, or raises
    wanted = loaded.manifest.base
    levels: dict[str, str] = {}
    checked = None
    if not no_base:
        from kedit_hub.api import EMBEDDED, load_model

        if base is None and wanted.id not in EMBEDDED and "/" not in wanted.id:
            raise WrongBaseError(
                f"the patch was made on a local model called '{wanted.id}', which cannot be looked up: pass --base "
                "with that model or its folder, or --no-base to check the files alone"
            )
        checked = base or wanted.id
        model, _ = load_model(checked, revision=None if base else wanted.revision)
        if model.config.model_type != wanted.model_type:
            raise WrongBaseError(
                f"'{checked}' is a {model.config.model_type}, the patch was made for {wanted.id}, a {wanted.model_type}"
            )
        levels = dict(loaded.verify(model))
    files = ["config.json", "patch.safetensors", *(["evals.json"] if loaded.evals is not None else [])]
    tensors = sum(len(entry.tensors) for entry in loaded.manifest.modules.values())
    found = {
        "id": loaded.id,
        "checked_files": files,
        "tensors": tensors,
        "base": wanted.id,
        "checked_base": checked,
        "levels": levels,
    }
    if as_json:
        print_json(found)
    else:
        print_fields(
            {
                "id": loaded.id,
                "files": f"{', '.join(files)}: all {tensors} tensors are as described",
                "base": "not checked" if checked is None else f"{checked} is the base, by {_weakest(levels)}",
            }
        )
    say("README.md is for people and is not covered. Verified is not the same as true: read what the patch says.")


_MEANS = {
    "exact": "all values of its changed modules",
    "quantized": "the maxima that survive its quantization",
    "shape": "SHAPES ONLY: this quantization hides the values",
}


def _weakest(levels: dict[str, str]) -> str:
    return _MEANS[max(levels.values(), key=list(_MEANS).index)]

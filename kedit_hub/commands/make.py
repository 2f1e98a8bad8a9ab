"""Making patches: `edit`, and what it needs to know of a base: `profile`, `methods`."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kedit_hub.commands.options import (
    ATLAS,
    AsJson,
    EndpointOption,
    ProfileOption,
    SeedOption,
    TokenFileOption,
    load_profile,
    number,
    token_for,
)
from kedit_hub.commands.output import print_fields, print_json, print_table, say

FEW = 5  # names of a list that are shown


def edit(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the patch is written.")],
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            help=f"The model to edit: a Hub id or a folder. By default what --editor was trained on, else {ATLAS}.",
        ),
    ] = None,
    method: Annotated[str, typer.Option("--method", help="A name of `kedit methods`.")] = "memit",
    editor: Annotated[
        str | None,
        typer.Option(
            "--editor",
            metavar="EDITOR",
            help="A trained editor, a folder or user/repo; it says the method. See `kedit editor`.",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What the model is asked, up to the word before the answer.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", help="What the prompt is about, spelled as in the prompt.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", help="The new answer.")] = None,
    relation: Annotated[
        str | None,
        typer.Option(
            "--relation", help="A name of what is asked about the subject; shows conflicts with other patches."
        ),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Edit records in .json or .jsonl, instead of --prompt and --target."
        ),
    ] = None,
    profile: ProfileOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--settings", metavar="KEY=VALUE", help="A setting of the method, like value.steps=60; repeatable."
        ),
    ] = None,
    seed: SeedOption = 0,
    on: Annotated[
        list[str] | None,
        typer.Option(
            "--on",
            metavar="PATCH",
            help="A patch that the new one must not contradict, and builds on where the method does; repeatable.",
        ),
    ] = None,
    on_editors: Annotated[
        list[str] | None,
        typer.Option(
            "--on-editor",
            metavar="EDITOR",
            help="A trained editor that a patch of --on needs, as --editor of `kedit ask`.",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="FOLDER",
            help="Keep finished batches here: the same command goes on from them after a kill.",
        ),
    ] = None,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    as_json: AsJson = False,
) -> None:
    """Make a patch that changes what a model says."""
    if records is not None and (prompt, subject, target, relation) != (None, None, None, None):
        raise typer.BadParameter("give one edit by --prompt and --target, or many by --from, not both")
    chosen = read_settings(settings or [])
    import kedit_hub
    from kedit_hub.hub.editors import pull_editor
    from kedit_hub.patch.patch import check_saveable
    from kedit_hub.provenance import dataset_of
    from kedit_hub.records.read import read_records, tell_unanswered

    datasets = []
    if records is not None:
        edits: list[Any] = list(read_records(records))
        tell_unanswered(edits)
        if records.is_file():  # what comes through a pipe has no name, and can be read only once
            datasets = [dataset_of(records)]
    elif prompt is None or target is None:
        raise typer.BadParameter("an edit needs --prompt and --target; a file of edits is given by --from")
    else:
        edits = [kedit_hub.Edit(prompt, target, subject=subject, relation=relation)]
    check_saveable(out)  # now, not when the patch is made
    hub: dict[str, Any] = {"token": token_for(endpoint, token_file), "endpoint": endpoint}
    stack = kedit_hub.PatchStack(kedit_hub.pull(ref, **hub) for ref in on) if on else None
    trained = None if editor is None else pull_editor(editor, **hub)
    patch = kedit_hub.edit(
        base or (ATLAS if trained is None else trained.manifest.base.id),
        edits,
        method,
        settings=chosen,
        profile=load_profile(profile),
        on=stack,
        datasets=datasets,
        seed=seed,
        work=work,
        progress=True,
        editor=trained,
        models=[pull_editor(ref, **hub) for ref in on_editors or ()],
    )
    folder = patch.save(out)
    measured = (patch.evals or {}).get("making", {})
    found = {
        "id": patch.id,
        "folder": str(folder),
        "base": patch.manifest.base.id,
        "method": patch.manifest.method,
        "edits": len(patch.edits),
        "measured": measured,
    }
    if as_json:
        print_json(found)
    else:
        brief = {  # lists may name a thousand edits: all of them with --json
            name: [*value[:FEW], f"and {len(value) - FEW:,} more"]
            if isinstance(value, list) and len(value) > FEW
            else value
            for name, value in measured.items()
            if name != "unconverged"
        }
        print_fields({**{name: value for name, value in found.items() if name != "measured"}, **_flat(brief)})
    say(f"Try it:  kedit ask {json.dumps(patch.edits[0].prompt, ensure_ascii=False)} --patch {out}")


def profile(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hub id or a folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the profile is written.")],
    edits: Annotated[
        Path | None,
        typer.Option(
            "--edits",
            metavar="FILE",
            help="Edit records to choose by, of facts the base knows. By default the demo's; an empty list: no sweep.",
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts", metavar="FILE", help="Ordinary text, one piece per line. By default sampled from the model."
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option("--layer", parser=number(int, 0), metavar="N", help="Edit at this layer instead of sweeping."),
    ] = None,
    site: Annotated[
        Literal["auto", "subject", "answer"],
        typer.Option(
            "--site", help="Edit at the subject's last token, or where the answer is predicted, or the better."
        ),
    ] = "auto",
    seed: SeedOption = 0,
    as_json: AsJson = False,
) -> None:
    """Measure where a base is edited best. The profile is what `kedit edit` and `kedit ask` go by."""
    import kedit_hub

    made = kedit_hub.build_profile(
        model,
        texts=None if texts is None else [line for line in texts.read_text("utf-8").splitlines() if line.strip()],
        layer="auto" if layer is None else layer,
        site=site,
        edits=None if edits is None else kedit_hub.read_edits(edits),
        seed=seed,
        progress=True,
    )
    folder = made.save(out)
    found = {"id": made.id, "folder": str(folder), **made.settings.model_dump(mode="json")}
    if not made.settings.sweep:
        say("Without edits nothing was swept: layer and thresholds follow what was given or published.")
    if as_json:
        print_json(found)
        return
    table = found.pop("sweep")
    for name in ("contexts", "format_version"):
        del found[name]
    print_fields(_flat(found))
    if table:
        columns = list(dict.fromkeys(name for row in table for name in row))
        print()
        print_table(columns, [[row.get(name) for name in columns] for row in table])


def methods(as_json: AsJson = False) -> None:
    """List the editing methods."""
    from kedit_hub.editors.editor import EDITORS

    found = [{"name": name, "summary": editor.summary} for name, editor in EDITORS.items()]
    if as_json:
        print_json(found)
    else:
        print_table(("name", "summary"), [tuple(row.values()) for row in found])


def read_settings(pairs: list[str]) -> dict[str, Any]:
    """["value.steps=60", "failed=drop"] -> {"value": {"steps": 60}, "failed": "drop"}; values are JSON, else text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        *outer, last = name.strip().split(".")
        place: Any = found
        for part in outer:
            place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if not equals or not all((*outer, last)) or not isinstance(place, dict) or last in place:
            raise typer.BadParameter(f"'{pair}' is not a new key=value", param_hint="'--settings'")
        try:
            place[last] = json.loads(text)
        except ValueError:
            place[last] = text
    return found


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"value": {"steps": 60}} -> {"value.steps": 60}"""
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return found

"""Editors that are trained: `editor train`, `eval`, `show`, `push`, `pull`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kedit_hub.commands.make import read_settings
from kedit_hub.commands.options import ATLAS, AsJson, EndpointOption, SeedOption, TokenFileOption, number, token_for
from kedit_hub.commands.output import print_fields, print_json, print_table, say

EditorRef = Annotated[
    str, typer.Argument(metavar="EDITOR", help="A trained editor: a folder, user/repo, or user/repo@revision.")
]


def train(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the editor is written.")],
    method: Annotated[
        Literal["ke", "mend", "instructedit", "dafnet", "malmen", "rledit", "serac"],
        typer.Option("--method", help="Which kind of editor."),
    ] = "mend",
    base: Annotated[str, typer.Option("--base", metavar="MODEL", help="The model it will edit.")] = ATLAS,
    records: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Edit records to train on, of any shape that is read. By default edits of the demo world, none of them a test edit.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--settings", metavar="KEY=VALUE", help="A setting of the training, like steps=500; repeatable."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Keep the parameters in float16.")] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", metavar="FOLDER", help="Where to go on from when killed. By default a folder beside --out."
        ),
    ] = None,
    seed: SeedOption = 0,
    as_json: AsJson = False,
) -> None:
    """Train an editor for one base. The same command goes on where it was killed; `accelerate launch -m kedit_hub.cli` starts several."""
    chosen = read_settings(settings or [])
    import kedit_hub
    from kedit_hub.evaluate.crew import rank
    from kedit_hub.provenance import dataset_of
    from kedit_hub.records.read import read_records

    datasets = [] if records is None else [dataset_of(records)]
    lessons: list[Any] = kedit_hub.demo.training_edits() if records is None else list(read_records(records))
    kept = checkpoint or out.parent / f".{out.name}.training"
    try:
        made = kedit_hub.train_editor(
            base, lessons, method, settings=chosen, seed=seed, datasets=datasets, checkpoint=kept, half=half
        )
    except KeyboardInterrupt:
        if rank() > 0:
            raise typer.Exit(130) from None
        say(f"What is learned up to the last validation is in {kept}: the same command goes on from there.")
        raise
    if rank() > 0:  # the first process writes and talks
        return
    folder = made.save(out)
    _print({"folder": str(folder), **_about(made)}, as_json)
    say(f"Try it:  kedit edit --editor {out} --prompt ... --target ... --out my-patches/new")


def evaluate(
    editor: EditorRef,
    edits: Annotated[
        Path | None,
        typer.Option("--edits", metavar="FILE", help="Edit records to make. By default the demo's test edits."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="The model to edit. By default the one it was trained on."),
    ] = None,
    sizes: Annotated[
        str, typer.Option("--n", metavar="N,N", help="Edits of a sequence, all asked after the last.")
    ] = "1,10,100",
    sequences: Annotated[
        int, typer.Option("--sequences", parser=number(int, 1), metavar="N", help="Sequences of each size, at most.")
    ] = 10,
    settings: Annotated[
        list[str] | None,
        typer.Option("--settings", metavar="KEY=VALUE", help="A setting of the edits, like turn=1; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure sequences of edits by a trained editor. Teacher forcing, after the last edit of each sequence."""
    wanted = [number(int, 1)(size) for size in sizes.split(",")]
    chosen = read_settings(settings or [])
    import kedit_hub
    from kedit_hub.api import evaluate_editor

    asked = kedit_hub.demo.edits("test") if edits is None else kedit_hub.read_edits(edits)
    rows = evaluate_editor(editor, asked, base, sizes=wanted, sequences=sequences, settings=chosen)
    if as_json:
        print_json(rows)
    else:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        print_table(columns, [[_rounded(row.get(name)) for name in columns] for row in rows])


def show(editor: EditorRef, as_json: AsJson = False) -> None:
    """Show what a trained editor says of itself. Loading runs nothing."""
    from kedit_hub.hub.editors import pull_editor

    _print(_about(pull_editor(editor)), as_json)


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a trained editor.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/repo; it is made when it is not there.")],
    version: Annotated[str | None, typer.Option("--version", help="Tag it, like v1.0.0. A tag never moves.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repo private.")] = False,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    as_json: AsJson = False,
) -> None:
    """Put a trained editor into a repo of the Hub, as one commit."""
    from kedit_hub import TrainedEditor
    from kedit_hub.hub.editors import push_editor

    token = token_for(endpoint, token_file)
    pushed = push_editor(
        TrainedEditor.load(folder), repo, version=version, private=private, token=token, endpoint=endpoint
    )
    _print(dict(vars(pushed)), as_json)


def pull(
    ref: EditorRef,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the editor is written.")],
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a trained editor from the Hub and check it."""
    from kedit_hub.hub.editors import pull_editor

    made = pull_editor(ref, token=token_for(endpoint, token_file), endpoint=endpoint)
    _print({"folder": str(made.save(out)), **_about(made)}, as_json)


def _about(editor: Any) -> dict[str, Any]:
    manifest = editor.manifest
    return {
        "id": editor.id,
        "method": editor.method,
        "base": manifest.base.id,
        "maps": [one.path for one in manifest.maps],
        "parameters": sum(tensor.numel() for tensor in editor.tensors.values()),
        "training": manifest.training.model_dump(mode="json"),
        "settings": manifest.settings,
        "scores": editor.scores,
    }


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    flat = {
        f"{name}.{key}" if isinstance(value, dict) else name: item
        for name, value in found.items()
        for key, item in (value.items() if isinstance(value, dict) else [("", value)])
    }
    print_fields({name: _rounded(value) for name, value in flat.items()})


def _rounded(value: Any) -> Any:
    return f"{value:.3f}" if isinstance(value, float) else value

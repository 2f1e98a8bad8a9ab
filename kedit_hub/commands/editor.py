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
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Edit records to train on, of any shape that is read; repeatable. By default those of the demo world, none of a test "
            "edit's subject.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--settings", metavar="KEY=VALUE", help="A setting of the training, like steps=500; repeatable."),
    ] = None,
    instructions: Annotated[
        Path | None,
        typer.Option(
            "--instructions",
            metavar="FILE",
            help="Of instructedit: what `kedit editor instruct` found. By default our own.",
        ),
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
    if instructions is not None and (method != "instructedit" or "pools" in chosen):
        raise typer.BadParameter(
            "it stands for the setting pools of --method instructedit", param_hint="'--instructions'"
        )
    import kedit_hub
    from kedit_hub.editors.hyper.instructions import read_pools
    from kedit_hub.editors.hyper.trained import check_saveable
    from kedit_hub.evaluate.crew import rank
    from kedit_hub.provenance import dataset_of
    from kedit_hub.records.read import read_records

    check_saveable(out)  # now, not when it is trained
    if instructions is not None:
        chosen["pools"] = read_pools(instructions)
    datasets = [dataset_of(file) for file in records or ()]
    if records:
        lessons: list[Any] = [one for file in records for one in read_records(file)]
    elif method == "instructedit":
        lessons = list(read_records(kedit_hub.demo.task_records()))
    else:
        lessons = kedit_hub.demo.training_edits()
    kept = checkpoint or out.parent / f".{out.name}.training"
    try:
        made = kedit_hub.train_editor(
            base, lessons, method, settings=chosen, seed=seed, datasets=datasets, checkpoint=kept, half=half, out=out
        )
    except (KeyboardInterrupt, OSError) as cause:
        if rank() > 0:
            raise typer.Exit(130 if isinstance(cause, KeyboardInterrupt) else 1) from None
        if any(kept.glob("*.safetensors")):
            say(f"What is learned up to the last validation is in {kept}: the same command goes on from there.")
        raise
    if rank() > 0:  # the first process writes and talks
        return
    _print({"folder": str(out), **_about(made)}, as_json)
    say(f"Try it:  kedit edit --editor {out} --prompt ... --subject ... --target ... --out my-patches/new")


def instruct(
    task: Annotated[
        Literal["counterfact", "wikirecent", "convsent", "zsre"],
        typer.Argument(metavar="TASK", help="counterfact, wikirecent, convsent or zsre."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE", help="Instructions by task, in JSON; what the file says of others stays."
        ),
    ],
    base: Annotated[str, typer.Option("--base", metavar="MODEL", help="The model to edit.")] = ATLAS,
    records: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Edit records of the task to try on. By default the demo's."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--settings", metavar="KEY=VALUE", help="A setting of the trial editor's training; repeatable."),
    ] = None,
    count: Annotated[int, typer.Option("--count", parser=number(int, 1), metavar="N", help="Tried in a round.")] = 4,
    patience: Annotated[
        int, typer.Option("--patience", parser=number(int, 1), metavar="N", help="Rounds that bring nothing better.")
    ] = 2,
    seed: SeedOption = 0,
    as_json: AsJson = False,
) -> None:
    """Look for instructions under which InstructEdit edits better. The best ten are kept, for `kedit editor train --instructions`."""
    chosen = read_settings(settings or [])
    import kedit_hub
    from kedit_hub.editors.hyper.instructions import read_pools, write_pools
    from kedit_hub.records.read import read_records

    known = read_pools(out) if out.exists() else {}
    if records is None and task == "zsre":  # no demo records are of it: it is the family kept from training
        given: list[Any] = kedit_hub.demo.training_edits()
    else:
        given = list(read_records(kedit_hub.demo.task_records() if records is None else records))
    best, tried = kedit_hub.find_instructions(
        base,
        given,
        task,
        settings=chosen,
        count=count,
        patience=patience,
        seed=seed,
        told=lambda trial: say(f"{trial.score:.3f}  {trial.instruction}"),
    )
    write_pools(out, {**known, task: best})
    if as_json:
        print_json({"file": str(out), "kept": best, "tried": [vars(trial) for trial in tried]})
        return
    measures = list(dict.fromkeys(name for trial in tried for name in trial.metrics))
    ranked = sorted(tried, key=lambda trial: -trial.score)
    rows = [
        (one.instruction, *(_rounded(one.metrics.get(name)) for name in measures), _rounded(one.score))
        for one in ranked
    ]
    print_table(("instruction", *measures, "score"), rows)
    say(f"Train with them:  kedit editor train --method instructedit --instructions {out} --out ...")


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
    save: Annotated[
        bool,
        typer.Option("--save", help="Write what is measured into the editor's folder: scores.json, and the card."),
    ] = False,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    as_json: AsJson = False,
) -> None:
    """Measure sequences of edits by a trained editor. Teacher forcing, after the last edit of each sequence."""
    wanted = [number(int, 1)(size) for size in sizes.split(",")]
    chosen = read_settings(settings or [])
    import kedit_hub
    from kedit_hub.api import evaluate_editor
    from kedit_hub.editors.hyper.scores import merged
    from kedit_hub.editors.hyper.trained import check_saveable
    from kedit_hub.errors import EditError, KeditError
    from kedit_hub.hub.editors import pull_editor
    from kedit_hub.hub.ref import FolderRef, parse_ref
    from kedit_hub.records.read import read_records

    ref = parse_ref(editor, "trained editor")
    if save:
        if not isinstance(ref, FolderRef):
            raise KeditError(
                f"'{editor}' is no folder that --save can write into: fetch it with `kedit editor pull {editor} --out FOLDER`, measure "
                "that folder, and push it"
            )
        check_saveable(ref.path)
    made = pull_editor(editor, token=token_for(endpoint, token_file), endpoint=endpoint)
    given: list[Any] = kedit_hub.demo.edits("test") if edits is None else list(read_records(edits))
    asked = made.unseen(given)
    if made.manifest.training.marks is None and edits is not None:
        say("This editor does not say which subjects it was trained on: see to it that these edits have others.")
    if len(asked) < len(given):
        left = len(given) - len(asked)
        say(f"{left:,} of {len(given):,} edits are left out: the editor was trained on their subjects or questions.")
    beyond = [size for size in wanted if size > len(asked)]
    if len(beyond) == len(wanted):
        raise EditError(
            f"there are {len(asked):,} edits, too few for one sequence of --n {sizes}: give more by --edits, or less to --n"
        )
    if beyond:
        say(f"There are {len(asked):,} edits, too few for sequences of {', '.join(map(str, beyond))}: left out.")
    rows = evaluate_editor(made, asked, base, sizes=wanted, sequences=sequences, settings=chosen)
    if save:
        name = "test" if edits is None else edits.name  # the demo's test edits, and a file with its ending
        assert isinstance(ref, FolderRef)
        told = merged(made.scores, name, [{"turn": None, **row, **chosen} for row in rows])
        say(f"The scores are in {made.replace_scores(told).save(ref.path)}/scores.json")
    if as_json:
        print_json(rows)
    else:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        print_table(columns, [[_rounded(row.get(name)) for name in columns] for row in rows])


def show(
    editor: EditorRef, endpoint: EndpointOption = None, token_file: TokenFileOption = None, as_json: AsJson = False
) -> None:
    """Show what a trained editor says of itself. Loading runs nothing."""
    from kedit_hub.hub.editors import pull_editor

    _print(_about(pull_editor(editor, token=token_for(endpoint, token_file), endpoint=endpoint)), as_json)


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
    training = manifest.training.model_dump(mode="json", exclude={"marks"})
    known = manifest.training.marks
    return {
        "id": editor.id,
        "method": editor.method,
        "base": manifest.base.id,
        "maps": [one.path for one in manifest.maps],
        "parameters": sum(tensor.numel() for tensor in editor.tensors.values()),
        "training": {**training, "marks": None if known is None else len(known)},
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

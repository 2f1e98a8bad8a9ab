"""The embedded default: `demo models`, `demo edits`, `demo tasks`, `demo train`."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kedit_hub.commands.options import AsJson, SeedOption, number
from kedit_hub.commands.output import print_fields, print_json, print_table


def models(as_json: AsJson = False) -> None:
    """List the demo models. With --json, all that was measured of their recall."""
    from kedit_hub import demo

    found: list[dict[str, Any]] = []
    for architecture in demo.ARCHITECTURES:
        folder = demo.model_path(architecture)
        recipe = folder / "recipe.json"
        report = json.loads(recipe.read_text("utf-8")) if recipe.is_file() else None
        found.append(
            {
                "id": f"kedit-hub/atlas-{architecture}",
                "architecture": architecture,
                "folder": str(folder) if report else None,
                "parameters": report and report["parameters"],
                "recall": report and report["recall"],
            }
        )
    if as_json:
        print_json(found)
        return
    rows = [(m["id"], m["parameters"], m["recall"] and m["recall"]["trained"]["exact"], m["folder"]) for m in found]
    print_table(("id", "parameters", "facts recalled", "folder"), rows)


def edits(
    split: Annotated[
        Literal["dev", "test"],
        typer.Argument(help="dev, to choose settings by; test, to report on.", show_default=True),
    ] = "dev",
    as_json: AsJson = False,
) -> None:
    """Print the demo's counterfactual edits. With --json, as records that `kedit edit --from` reads."""
    from kedit_hub import demo

    found = demo.edits(split)
    if as_json:
        print_json([edit.to_record() for edit in found])
    else:
        print_table(
            ("prompt", "new answer", "before"), [(edit.prompt, edit.target, edit.ground_truth) for edit in found]
        )


def tasks(
    split: Annotated[
        Literal["train", "test"],
        typer.Argument(
            help="train, of subjects that no test edit has; test, with questions besides.", show_default=True
        ),
    ] = "train",
    as_json: AsJson = False,
) -> None:
    """Print the demo's records of several tasks. With --json, as `kedit editor train --method instructedit --from` reads them."""
    from kedit_hub import demo
    from kedit_hub.editors.hyper.lessons import Lesson
    from kedit_hub.records.read import read_records

    found = demo.task_records(split)
    if as_json:
        print_json(found)
        return
    lessons = map(Lesson.of, read_records(found))
    print_table(("task", "prompt", "new answer"), [(x.task, x.edit.prompt, x.edit.target) for x in lessons])


def train(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the model is written.")],
    architecture: Annotated[Literal["llama", "gpt2"], typer.Argument(help="Which of the two models.")] = "llama",
    seed: SeedOption = 0,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            parser=number(float, 0.01),
            metavar="N",
            help="CPU-minutes to spend. By default what the recipe needs.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a demo model from nothing. It takes minutes on a CPU; what it recalls is printed."""
    from kedit_hub.demo.train import train as train_model

    report = train_model(architecture, out, seed=seed, minutes=minutes, progress=True)
    if as_json:
        print_json({"folder": str(out), **report})
        return
    plain = ("parameters", "steps", "tokens", "cpu_minutes", "file_bytes")
    print_fields({"folder": out} | {name: report[name] for name in plain})
    print()
    print_table(("recall", "exact", "n"), [(name, case["exact"], case["n"]) for name, case in report["recall"].items()])

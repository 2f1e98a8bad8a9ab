"""`report`: results files as pages a person can check."""

from pathlib import Path
from typing import Annotated

import typer

from kedit_hub.commands.options import AsJson
from kedit_hub.commands.output import print_fields, print_json, say


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUNS", help="Results files: JSON lines of runs, as `kedit bench` writes them."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Where report.html, report.md and report.json go. A report there is replaced.",
        ),
    ],
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="Of the report.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a report on measured edits. Tables, curves and every single edit, in one HTML file that loads nothing."""
    from kedit_hub.errors import KeditError
    from kedit_hub.evaluate.report import write_report
    from kedit_hub.evaluate.run import RunsFile

    found = []
    for path in runs:
        if not path.is_file():
            raise KeditError(f"'{path}' is not a file. Give a results file of `kedit bench`.")
        file = RunsFile(path)
        found += list(file)
        if torn := file.torn():
            say(
                f"Note: the last {torn:,} bytes of '{path}' are half a run, left by a process that was killed; they do not count."
            )
    folder = write_report(found, out, title=title)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    if as_json:
        print_json({"folder": str(folder), "runs": len(found), "files": files})
    else:
        print_fields(
            {"runs": f"{len(found):,}", **{str(folder / name): f"{size:,} bytes" for name, size in files.items()}}
        )

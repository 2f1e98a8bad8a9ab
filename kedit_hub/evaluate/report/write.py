"""`write_report`: a folder with report.html, report.md and report.json. Law: whole or not at all, equal runs give equal bytes, and no
folder is replaced that is not itself a report.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kedit_hub import __version__, strictjson
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.report import notes
from kedit_hub.evaluate.report.cells import Survey
from kedit_hub.evaluate.report.markdown import markdown
from kedit_hub.evaluate.report.page import page
from kedit_hub.evaluate.run import Run
from kedit_hub.patch.folder import check_replaceable, write_folder

FILES = ("report.html", "report.md", "report.json")
TITLE = "Model edits, measured"


def write_report(runs: Sequence[Run], folder: str | os.PathLike[str], *, title: str | None = None) -> Path:
    """Write the report on `runs` to `folder`, and return it. A report already there is replaced.

    report.html: for people, one file that loads nothing. report.md: its tables. report.json: the runs as they are, and the warnings.
    Raises KeditError for no runs at all, for a folder that holds anything else, and where nothing can be written.
    """
    target = Path(folder)
    if not runs:
        raise KeditError(
            f"A report on no runs cannot be written to {str(target)!r}: give at least one run of `kedit bench`."
        )
    check_replaceable(target, "the folder of a report", FILES)
    files = report(runs, TITLE if title is None else title)
    try:
        write_folder(target, files)
    except OSError as cause:
        raise KeditError(f"Cannot write the report to {str(target)!r}: {cause.strerror or cause}.") from cause
    return target


def report(runs: Sequence[Run], title: str) -> dict[str, bytes]:
    """The files by name."""
    values = [run.to_dict() for run in runs]
    survey = Survey.of(values)
    about: dict[str, Any] = {
        "kedit_report": 1,
        "version": __version__,
        "title": title,
        "warnings": notes.warnings(survey),
        "runs": values,
    }
    return {
        "report.html": page(survey, title).encode("utf-8"),
        "report.md": markdown(survey, title).encode("utf-8"),
        "report.json": strictjson.canonical(about) + b"\n",
    }

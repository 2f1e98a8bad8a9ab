"""docs/FORMAT.md says what the code does: its tables of tensors and limits are compared with the classes they describe."""

import dataclasses
import re
from pathlib import Path

from kedit_hub.limits import DEFAULT
from kedit_hub.patch.deltas import KINDS
from kedit_hub.patch.manifest import Manifest
from kedit_hub.patch.patch import FILES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "FORMAT.md").read_text()


def rows(after: str) -> list[list[str]]:
    """Cells of the first table behind a heading."""
    lines = PAGE.split(after, 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return table


def test_files() -> None:
    assert [row[0] for row in rows("# The patch format")] == list(FILES)


def test_every_tensor_of_every_kind() -> None:
    told = {(kind, name): (dims, dtypes, need) for kind, name, dims, dtypes, need, _ in rows("### Delta kinds")}
    code = {
        (kind, name): (", ".join(spec.dims), ", ".join(spec.dtypes), "optional" if spec.optional else "required")
        for kind, cls in KINDS.items()
        for name, spec in cls.specs.items()
    }
    assert told == code


def test_limits() -> None:
    told = {name: float(value.replace(",", "")) for name, value in rows("## Limits")}
    assert told == {field.name: float(getattr(DEFAULT, field.name)) for field in dataclasses.fields(DEFAULT)}


def test_manifest_fields() -> None:
    assert {row[0] for row in rows("## config.json")} - {"id"} == set(Manifest.model_fields)


def test_identity_prefix_is_the_one_hashed() -> None:
    assert re.search(r'"kedit patch 1\\n"', PAGE)

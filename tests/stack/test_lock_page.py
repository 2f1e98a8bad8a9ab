"""docs/LOCK.md says what the code does: its tables are compared with the schema, and its example is read."""

import re
from pathlib import Path

from kedit_hub import limits
from kedit_hub.limits import DEFAULT
from kedit_hub.stack.lock import Entry, InFolder, Lock, SolvedModule, lock, restore
from kedit_hub.stack.stack import PatchStack
from tests.stack.test_lock import small
from tests.stack.test_lock_processes import TOLERANCE

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "LOCK.md").read_text("utf-8")


def fields(after: str) -> list[str]:
    """First cells of the first table behind some words."""
    lines = PAGE.split(after, 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append(line.split("|")[1].strip(" `"))
    return table


def test_the_tables_are_the_schema():
    assert sorted(fields("## kedit.lock")) == sorted([*Lock.model_fields, "digest"])
    assert fields("Each patch:") == list(Entry.model_fields)
    assert all(f"`{name}`" in PAGE for name in SolvedModule.model_fields)
    assert fields("## Packed stacks") == ["kedit_packed", "bases", "patches"]


def test_the_limits_are_there():
    named = set(re.findall(r"`(MAX_\w+|max_\w+)`", PAGE))
    assert named == {
        "MAX_LOCK_BYTES",
        "MAX_LOCK_PATCHES",
        "MAX_PACKED_BASES",
        "MAX_PACKED_TENSORS",
        "max_config_bytes",
        "max_tensor_bytes",
    }
    assert all(hasattr(limits, name) or hasattr(DEFAULT, name) for name in named)


def test_the_tolerance_is_the_tested_one():
    assert f"at most {TOLERANCE:g} of the largest".replace("1e-05", "1e-5") in PAGE


def test_the_example_is_read_and_restored():
    (text,) = re.findall(r"```json\n(.*?\n)```", PAGE, flags=re.DOTALL)
    patch = small("Rome")
    found = Lock.parse(text.encode(), local=True)
    assert found == lock(PatchStack([patch]), {patch.id: InFolder(folder="patches/rome")})
    assert restore(found, lambda entry: patch)[0].ids == (patch.id,)

"""Each floor of the house imports only from floors below it (or from its own), at run time and for types alike."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "kedit_hub"
FLOORS = (  # bottom to top; those of one line may not import each other, a folder may import itself
    ("errors", "limits", "home"),
    ("strictjson",),
    ("provenance", "edits", "records"),
    ("patch",),
    ("base",),
    ("runtime",),
    ("stack",),
    ("editors", "evaluate"),
    ("hub",),
    ("demo", "resuming"),
    ("api",),
    ("materials", "verification", "index"),
    ("workshop",),
    ("benchmarking",),
    ("commands",),
    ("cli",),
)
BOTH_WAYS = {("edits", "records"), ("editors", "evaluate")}  # one floor each, and they know each other
NUMBER = {name: number for number, names in enumerate(FLOORS) for name in names}


def imports(file: Path):
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "kedit_hub" else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "kedit_hub" and len(parts) > 1 and parts[1] in NUMBER:
                yield node.lineno, parts[1]


FILES = sorted(file for file in ROOT.rglob("*.py") if file.name != "__init__.py" or file.parent != ROOT)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_from_below(file):
    own = file.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in NUMBER, f"say in FLOORS where {own} stands"
    for line, other in imports(file):
        if other == own or tuple(sorted((own, other))) in BOTH_WAYS:
            continue
        assert NUMBER[other] < NUMBER[own], f"{file.name}:{line} reaches up to {other}"

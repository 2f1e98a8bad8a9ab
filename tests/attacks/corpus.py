"""All hostile files of the folder: {"12 overlap": Case(...), ...}, collected from the CASES of every class."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from tests.attacks.tools import Case


def classes() -> dict[int, ModuleType]:
    """The test module of every attack class, by its number."""
    files = sorted(Path(__file__).parent.glob("test_[0-9][0-9]_*.py"))
    return {int(file.name[5:7]): import_module(f"tests.attacks.{file.stem}") for file in files}


def corpus() -> dict[str, Case]:
    return {
        f"{number:02} {name}": case
        for number, module in classes().items()
        for name, case in getattr(module, "CASES", {}).items()
    }

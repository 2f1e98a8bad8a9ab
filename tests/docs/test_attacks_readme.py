"""tests/attacks/README.md says what the tests do: its table names every class, its file, and how many cases there are."""

import inspect
import math
import re
from types import ModuleType

import pytest

from tests.attacks.corpus import classes, corpus
from tests.attacks.lint import ROOT

PAGE = (ROOT / "tests" / "attacks" / "README.md").read_text("utf-8")
ROWS = {
    int(number): (file, int(cases))
    for number, file, cases in re.findall(r"^\| (\d+) \|.*\| `(test_\d\d_\w+\.py)` \| ([\d]+) \|", PAGE, re.MULTILINE)
}


def cases(module: ModuleType) -> int:
    """How many tests pytest makes of a module: every test function, as often as it is parametrized."""
    return sum(
        math.prod(len(mark.args[1]) for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize")
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name.startswith("test_") and function.__module__ == module.__name__
    )


def test_every_class_has_a_row_and_a_file():
    assert sorted(ROWS) == sorted(classes()) == list(range(1, 24))
    assert {number: file for number, (file, _) in ROWS.items()} == {
        number: f"{module.__name__.rpartition('.')[2]}.py" for number, module in classes().items()
    }


@pytest.mark.parametrize("number", sorted(classes()))
def test_the_table_counts_as_the_code_does(number):
    assert ROWS[number][1] == cases(classes()[number])


def test_the_total_is_the_sum():
    told = re.search(r"([\d,]+) cases, among them ([\d,]+) hostile patches", PAGE)
    assert told, "the page says how many cases there are"
    total, hostile = (int(number.replace(",", "")) for number in told.groups())
    assert (total, hostile) == (sum(map(cases, classes().values())), len(corpus()))


def test_every_class_begins_with_its_number():
    for number, module in classes().items():
        assert (module.__doc__ or "").startswith(f"{number} · "), module.__name__

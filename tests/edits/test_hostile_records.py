"""Whatever stands in a record, it is read or rejected with a reason: no other error, and no waiting."""

import copy
import dataclasses
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedit_hub.edits import Edit
from kedit_hub.records.extras import Reply
from kedit_hub.records.read import sort_out
from kedit_hub.records.values import answers, flat

from .fixtures import RECORDS

values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def fixtures():
    for path in sorted(RECORDS.glob("*.json")):
        loaded = json.loads(path.read_text("utf-8"))
        yield from ([{**loaded, "kept": []}] if isinstance(loaded, dict) else loaded)
    yield {"question": "Who?", "target_new": "Nobody", "kept": [{"question": "Where?", "ground_truth": "Here"}]}


ALL = list(fixtures())


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(record, path, value):
    record = copy.deepcopy(record)
    holder = record
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return record


def is_well_typed(extras):
    """Texts where texts are promised."""
    for field in dataclasses.fields(extras):
        held = getattr(extras, field.name)
        parts = [held] if isinstance(held, str) else [] if held is None else held
        for part in parts:
            if isinstance(part, Reply):
                assert (
                    isinstance(part.question, str) and isinstance(part.text, str) and part.wanted in (True, False, None)
                )
            else:
                assert isinstance(part, str)
    return True


@given(st.data())
def test_a_changed_value_anywhere(data):
    record = data.draw(st.sampled_from(ALL))
    path = data.draw(st.sampled_from([place for place in places(record) if place]))
    found = sort_out("x", [("record 0", changed(record, path, data.draw(values)))])
    assert bool(found.records) != bool(found.rejected)
    assert all(isinstance(one.edit, Edit) and is_well_typed(one.extras) for one in found.records)
    assert all(reason for _, reason in found.rejected)


@given(values)
def test_any_value_as_a_record(value):
    found = sort_out("x", [("record 0", value)])
    assert len(found.rejected) == 1


@pytest.mark.parametrize("depth", [40, 100_000])
def test_deep_lists_are_refused_at_once(depth):
    value: list = []
    for _ in range(depth):
        value = [value]
    found = sort_out("x", [("record 0", {"prompt": "A is", "target_new": "B", "ground_truth": value})])
    assert "nested deeper" in found.rejected[0][1]


def test_lists_that_hold_themselves_are_refused():
    value: list = []
    value.append(value)
    found = sort_out("x", [("record 0", {"prompt": "A is", "target_new": value})])
    assert "nested deeper" in found.rejected[0][1]


def test_very_many_answers_take_no_time():
    many = [f"answer {i}" for i in range(100_000)]
    started = time.process_time()
    assert len(answers(many)[1]) == 99_999 and len(answers(["one"] * 100_000)[1]) == 0
    found = sort_out("x", [("record 0", {"prompt": "A is", "target_new": many})])
    assert time.process_time() - started < 2
    assert "aliases has 99,999 entries" in found.rejected[0][1]


def test_leaves():
    assert flat([["a", " b "], [""], None, [["c"]]]) == ["a", "b", "c"]
    assert answers([["a", "b"], ["a"], ["b", "c"]]) == ("a", ("b", "c"))
    assert answers([[""], []]) == (None, ())

"""The JSON reader: one reading or none; canonical bytes are the same for the same value."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedit_hub import strictjson
from kedit_hub.errors import EditError, LimitError, PatchFormatError

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=10,
)


def read(data: bytes):
    return strictjson.loads(data, what="it", max_bytes=1 << 20)


@given(values)
def test_round_trip(value):
    assert read(strictjson.canonical(value)) == read(strictjson.pretty(value)) == value
    assert strictjson.canonical(read(strictjson.pretty(value))) == strictjson.canonical(value)


@given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()[:-1]))
def test_any_bytes_give_a_value_or_our_error(data):
    try:
        read(data)
    except PatchFormatError as error:
        assert str(error).startswith("it ")


def test_order_of_keys_does_not_matter():
    assert strictjson.canonical({"b": 1, "a": 2.0}) == strictjson.canonical({"a": 2.0, "b": 1}) == b'{"a":2.0,"b":1}'


@pytest.mark.parametrize("depth", [32, 33])
def test_depth(depth):
    data = b"[" * depth + b"]" * depth
    if depth > 32:
        with pytest.raises(LimitError, match="deeper than 32"):
            read(data)
    else:
        read(data)


def test_size_and_error_class():
    with pytest.raises(LimitError, match="it has 3 bytes; at most 2"):
        strictjson.loads(b"[1]", what="it", max_bytes=2)
    with pytest.raises(EditError, match="it is not JSON"):
        strictjson.loads(b"[", what="it", max_bytes=2, error=EditError)

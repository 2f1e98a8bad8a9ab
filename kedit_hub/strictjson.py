"""Strict JSON in, canonical JSON out. Law: a text has one reading, or it is refused.

Python's json module keeps the last of two equal keys, reads NaN, Infinity and 1e999, and takes integers and nesting of
any size; two readers may then see two different patches in one file. `loads` refuses all of these. `canonical` is the
one byte string that is hashed.

    loads(b'{"a": 1}', what="config.json")  ->  {"a": 1}
    canonical({"b": 1.5, "a": "é"})         ->  b'{"a":"\\xc3\\xa9","b":1.5}'
"""

import json
import math
import re
import unicodedata
from collections import Counter
from functools import cache
from json.encoder import encode_basestring
from typing import Any

from kedit_hub.errors import KeditError, LimitError, PatchFormatError
from kedit_hub.limits import DEFAULT, Limits

# An empty list takes 3 bytes as text and 64 in memory, and many times that where it is checked field by field. Records, score
# sheets and headers have 20 bytes and more per value, so one value for every 16 bytes that a file may have is enough.
BYTES_PER_VALUE = 16
MARKS = 30  # combining marks in a row
FEW_VALUES = 100_000  # of a file whose bound is small: enough for the header of a file of 8,192 tensors

_flat = json.JSONEncoder(allow_nan=False).encode
_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def loads(
    data: bytes, *, what: str, max_bytes: int, limits: Limits = DEFAULT, error: type[KeditError] = PatchFormatError
) -> Any:
    """Parse UTF-8 JSON bytes. `what` names the source in messages.

    Raises `error` for anything ambiguous or malformed, LimitError beyond `max_bytes`, depth, integer size, or one value
    for every BYTES_PER_VALUE of `max_bytes` (commas and brackets inside texts count as if they were such).
    """
    if len(data) > max_bytes:
        raise LimitError(f"{what} has {len(data):,} bytes; at most {max_bytes:,} are read.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise error(f"{what} is not UTF-8 text: {cause.reason} at byte {cause.start}. Save it as UTF-8.") from None
    if text.startswith("\ufeff"):
        raise error(f"{what} starts with a byte order mark. Save it as UTF-8 without one.")
    values, bound = sum(map(text.count, ",[{")), max(max_bytes // BYTES_PER_VALUE, FEW_VALUES)
    if values > bound:
        raise LimitError(f"{what} has about {values:,} values; at most {bound:,} are read.")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
            raise error(f"{what} has the key {twice[:80]!r} twice in one object. Keep one of them.")
        return found

    def integer(digits: str) -> int:
        if len(digits.lstrip("-")) > limits.max_json_digits:
            raise LimitError(f"{what} has an integer of {len(digits)} digits; {limits.max_json_digits} are the limit.")
        return int(digits)

    def floating(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise error(f"{what} has the number {digits[:40]}, which is not finite in 64 bits.")
        return value

    def constant(name: str) -> None:
        raise error(f"{what} has the literal {name}, which is not JSON. Write a finite number or null.")

    try:
        value = json.loads(
            text, object_pairs_hook=unique, parse_int=integer, parse_float=floating, parse_constant=constant
        )
    except RecursionError:
        raise LimitError(f"{what} is nested deeper than {limits.max_json_depth} levels.") from None
    except json.JSONDecodeError as cause:
        raise error(f"{what} is not JSON: {cause.msg} at line {cause.lineno} column {cause.colno}.") from None
    _check(value, what, limits, error, plain=text.isascii() and "\\u" not in text)
    return value


def _check(value: Any, what: str, limits: Limits, error: type[KeditError], plain: bool) -> None:
    """Refuse deep nesting, lone surrogates and piles of marks, level by level (no recursion: the input chose the depth).

    plain: whether no text can hold anything but ASCII, and so need not be looked at.
    """
    looked_at = (dict, list) if plain else (dict, list, str)
    level, depth = [value], 0
    while level:
        if depth >= limits.max_json_depth and any(isinstance(item, dict | list) for item in level):
            raise LimitError(f"{what} is nested deeper than {limits.max_json_depth} levels.")
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if not is_text(item):
                    raise error(f"{what} has the string {item[:40]!r} with half a surrogate pair in it.")
                if not unicodedata.is_normalized("NFC", item) and (pile := _pile().search(item)):
                    raise error(
                        f"{what} has more than {MARKS} marks on one letter, at character {pile.start()} of a text."
                    )
            elif isinstance(item, dict):
                if not plain:
                    below.extend(item)
                below.extend([part for part in item.values() if isinstance(part, looked_at)])
            elif isinstance(item, list):
                below.extend([part for part in item if isinstance(part, looked_at)])
        level, depth = below, depth + 1


@cache
def _pile() -> re.Pattern[str]:
    """Finds more combining marks in a row than any script needs (Unicode Standard Annex 15, Stream-Safe Text Format).

    Normalising such a run takes time quadratic in its length: 80,000 marks in the wrong order take 18 s.
    """
    marks = (chr(point) for point in range(0x300, 0x20000) if unicodedata.combining(chr(point)))
    return re.compile(f"[{''.join(marks)}]{{{MARKS + 1}}}")


def is_text(text: str) -> bool:
    """True where the string can be written as UTF-8 (no half of a surrogate pair)."""
    try:
        return text.isascii() or bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def canonical(value: Any) -> bytes:
    """The one byte string of a JSON value: sorted keys, no spaces, UTF-8. NaN raises ValueError."""
    return _canonical(value).encode("utf-8")


def pretty(value: Any) -> bytes:
    """The same value for people: sorted keys, two spaces, UTF-8, one newline at the end."""
    return (_indented(value, "\n") + "\n").encode("utf-8")


def _indented(value: Any, line: str) -> str:
    """What json.dumps writes with indent=2, in two thirds of the time: its fast encoder knows no indent. line: how a line begins."""
    if isinstance(value, str):
        return encode_basestring(value)
    if type(value) is int:
        return int.__repr__(value)
    within = line + "  "
    if isinstance(value, dict) and value:
        parts = [f"{encode_basestring(key)}: {_indented(value[key], within)}" for key in sorted(value)]
        return f"{{{within}{f',{within}'.join(parts)}{line}}}"
    if isinstance(value, list | tuple) and value:
        return f"[{within}{f',{within}'.join([_indented(item, within) for item in value])}{line}]"
    return _flat(value)

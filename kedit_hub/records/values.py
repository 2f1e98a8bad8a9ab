"""Values in records. Law: a published text may be padded with spaces, wrapped in lists or left blank; ours is none of these.

answers([["Kai Wegner", "Kai Peter Wegner"], [""]])   ->  ("Kai Wegner", ("Kai Peter Wegner",))
texts("one")                                           ->  ("one",)
"""

import difflib
import unicodedata
from collections.abc import Mapping
from typing import Any

from kedit_hub.errors import EditError
from kedit_hub.limits import DEFAULT


def stripped(value: Any) -> Any:
    """A text without spaces at its edges; anything else as it is."""
    return value.strip() if isinstance(value, str) else value


def flat(value: Any) -> list[Any]:
    """The leaves of a text or of lists of texts, in order, blank ones left out. Leaves that are no texts stay, to be refused."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if not isinstance(value, list | tuple):
        return [value]
    leaves: list[Any] = []
    level = [(item, 1) for item in reversed(value)]
    while level:
        item, depth = level.pop()
        if isinstance(item, list | tuple):
            if depth >= DEFAULT.max_json_depth:
                raise EditError(
                    f"An answer is nested deeper than {DEFAULT.max_json_depth} lists. Give one list of texts."
                )
            level += [(inner, depth + 1) for inner in reversed(item)]
        elif item is not None and item != "" and not (isinstance(item, str) and not item.strip()):
            leaves.append(stripped(item))
    return leaves


def answers(value: Any) -> tuple[Any, tuple[Any, ...]]:
    """(answer, aliases) of str | list | list of lists (alternative answers, each with its aliases). No answer is None."""
    first, *others = flat(value) or [None]
    known = {first} if isinstance(first, str) else set()
    aliases = []
    for other in others:
        if not isinstance(other, str) or other not in known:
            aliases.append(other)
        if isinstance(other, str):
            known.add(other)
    return first, tuple(aliases)


def texts(value: Any) -> tuple[Any, ...]:
    """str | list | None -> tuple of texts."""
    if value is None or value == "":
        return ()
    return tuple(stripped(item) for item in value) if isinstance(value, list | tuple) else (stripped(value),)


def plain(value: Any, name: str) -> tuple[str, ...]:
    """Texts that no Edit will check: of the right type, bounded in number and length, in NFC."""
    found = flat(value)
    if len(found) > DEFAULT.max_probes:
        raise EditError(f"{name} has {len(found):,} entries; at most {DEFAULT.max_probes:,} are taken.")
    for text in found:
        if not isinstance(text, str) or len(text) > DEFAULT.max_text_chars:
            raise EditError(
                f"{name} has the entry {str(text)[:80]!r}; write texts of at most {DEFAULT.max_text_chars:,}."
            )
    return tuple(unicodedata.normalize("NFC", text) for text in found)


def one_plain(value: Any, name: str) -> str | None:
    """The only one of such texts, None where there is none."""
    found = plain(value, name)
    if len(found) > 1:
        raise EditError(f"{name} has {len(found):,} entries; give one.")
    return found[0] if found else None


def either(record: Mapping[str, Any], *names: str) -> Any:
    """The value of the first of these keys that is there."""
    return next((record[name] for name in names if name in record), None)


def only(record: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    """Refuse a key that looks like a misspelt one of ours; other keys are the file's own notes."""
    for key in record.keys() - known:
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.85)
        if near:
            raise EditError(f"{where} has the unknown key {key!r}: did you mean {near[0]!r}?")


def name_of(record: Mapping[str, Any]) -> str | None:
    """The record's own name."""
    value = either(record, "id", "case_id", "known_id")
    return None if value is None else str(value)

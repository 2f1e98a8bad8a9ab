"""The table of record shapes. Law: a record has the first shape whose keys it has all.

shape_of({"src": .., "alt": ..})                      ->  "zsre-mend"
read_one({"prompt": .., "target_new": ..}, "auto")    ->  Edit
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kedit_hub.edits import Edit
from kedit_hub.errors import EditError
from kedit_hub.records import counterfact, dialogue, mquake, questions, ripple, zsre
from kedit_hub.records.easyedit import canonical, easyedit
from kedit_hub.records.extras import Found


class Shape(NamedTuple):
    """keys: tell it from the others.  read: one record."""

    keys: frozenset[str]
    read: Callable[[Mapping[str, Any]], Found]


SHAPES: dict[str, Shape] = {
    name: Shape(frozenset(keys.split()), read)
    for name, keys, read in (
        ("mquake", "requested_rewrite questions", mquake.case),
        ("counterfact-original", "requested_rewrite", counterfact.original),
        ("ripple-original", "example_type edit", ripple.original),
        ("ripple", "example_type target_new", ripple.flattened),
        ("counterfact-probes", "target_new rephrases neighborhood", counterfact.more_probes),
        ("dafset-robust", "target_new locality_prompt prefix", counterfact.robust),
        ("counterfact", "target_new locality_prompt", counterfact.flat),
        ("convsent-prepared", "target_new metric_kwargs", dialogue.prepared),
        ("easyedit", "prompt target_new", easyedit),
        ("sanitation", "question target_new", questions.sanitation),
        ("wikibio", "text labels", questions.wikibio),
        ("convsent", "ent pos neg", dialogue.raw),
        ("zsre-mend", "src alt", zsre.mend),
        ("zsre-ke", "input alternatives", zsre.knowledge_editor),
        ("qaedit", "prompt target", questions.qaedit),
        ("unke", "question answer", questions.unke),
        ("canonical", "prompt target_new", canonical),
    )
}


def shape_of(record: Any, format: str = "auto") -> str:
    """The name of its shape. Raises EditError where no shape fits."""
    if not isinstance(record, Mapping):
        raise EditError(f"A record is a JSON object, not {str(record)[:80]!r}.")
    if format != "auto":
        return format
    keys = record.keys()
    for name, shape in SHAPES.items():
        if shape.keys <= keys:
            return name
    nearest = max(SHAPES, key=lambda name: len(SHAPES[name].keys & keys) / len(SHAPES[name].keys))
    lacks = ", ".join(map(repr, sorted(SHAPES[nearest].keys - keys)))
    near = (
        f"The nearest is {nearest!r}, which needs {lacks}"
        if SHAPES[nearest].keys & keys
        else f"Known: {', '.join(SHAPES)}"
    )
    raise EditError(f"No known record shape has the keys {sorted(map(str, record))[:12]}. {near}.")


def read_all(record: Any, shape: str) -> Found:
    """Every edit of one record of a known shape. Raises EditError."""
    try:
        return SHAPES[shape].read(record)
    except KeyError as cause:
        raise EditError(f"The key {cause} is missing for a record of shape {shape!r}.") from None
    except (AttributeError, TypeError, ValueError) as cause:
        raise EditError(f"The record does not have shape {shape!r}: {cause}.") from None


def read_one(record: Any, format: str) -> Edit:
    """The edit of a record that holds one. Raises EditError."""
    found = read_all(record, shape_of(record, format))
    if len(found) != 1:
        raise EditError(
            f"The record holds {len(found)} edits: {found[0][0].prompt!r} and more. Use read_edits([record])."
        )
    return found[0][0]

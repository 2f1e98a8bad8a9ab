"""Probes in records. Law: both published forms give the same probes.

{"Reasoning": {"prompt": ["p", "q"], "ground_truth": ["a", "b"]}}                           columns, one entry for each prompt
{"Reasoning": [{"prompt": "p", "ground_truth": [["a", "alias of a"]]}, {"prompt": "q", ...}]}   one object for each prompt
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kedit_hub.edits import Probe
from kedit_hub.errors import EditError
from kedit_hub.records.values import answers, either, only, stripped, texts

_KEYS = frozenset({"prompt", "ground_truth", "targets", "loc", "loc_ans", "kind", "subject", "relation", "aliases"})


def read_probes(groups: Any, name: str) -> Iterator[Probe]:
    """Every probe of a record's locality or portability. Raises EditError naming the field and kind."""
    if groups is None:
        return
    if isinstance(groups, list):
        groups = {"": groups}
    if not isinstance(groups, Mapping):
        raise EditError(f"{name} is {str(groups)[:80]!r}; write {{kind: {{'prompt': [..], 'ground_truth': [..]}}}}.")
    for kind, group in groups.items():
        where = f"{name}[{kind!r}]"
        pieces = [group] if isinstance(group, Mapping) else [] if group is None else group
        if not isinstance(pieces, list) or not all(isinstance(piece, Mapping) for piece in pieces):
            raise EditError(f"{where} is {str(group)[:80]!r}; write {{'prompt': [..], 'ground_truth': [..]}}.")
        for piece in pieces:
            for entry in _entries(piece, where):
                yield _probe(entry, kind, name)


def _probe(entry: Mapping[str, Any], kind: str, name: str) -> Probe:
    only(entry, _KEYS, name)
    target, aliases = answers(either(entry, "ground_truth", "targets", "loc_ans"))
    return Probe(
        prompt=stripped(either(entry, "prompt", "loc")),
        target=target,
        kind=entry.get("kind", kind),
        subject=stripped(entry.get("subject")),
        relation=entry.get("relation"),
        aliases=(*texts(entry.get("aliases")), *aliases),
    )


def _entries(piece: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """{"prompt": [p, q], "ground_truth": [a, b]} -> [{"prompt": p, "ground_truth": a}, ...]; a text counts as one."""
    prompts = piece.get("prompt")
    if not isinstance(prompts, list):
        return [piece]
    columns = {name: column for name, column in piece.items() if column is not None}
    for name, column in columns.items():
        if not isinstance(column, list) or len(column) != len(prompts):
            size = len(column) if isinstance(column, list) else 1
            raise EditError(f"{where} has {len(prompts)} prompts and {size} {name}. Give one for each prompt.")
    return [{name: column[i] for name, column in columns.items()} for i in range(len(prompts))]

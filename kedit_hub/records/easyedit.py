"""EasyEdit's request form, which KnowEdit's ZsRE, WikiRecent and WikiData-counterfact files share, and our own record, which
extends it (Zhang et al. 2024). Law: our own record has no unknown keys; a stranger's may have notes of its own.

    {"prompt": .., "target_new": .., "subject": .., "ground_truth": .., "rephrase_prompt": .., "locality": .., "portability": ..}
"""

from collections.abc import Mapping
from typing import Any

from kedit_hub.edits import FIELDS, Edit
from kedit_hub.errors import EditError
from kedit_hub.records.extras import Extras, Found
from kedit_hub.records.probes import read_probes
from kedit_hub.records.values import answers, either, name_of, only, plain, stripped, texts

_KEYS = frozenset(FIELDS) | {"rephrase", "rephrases", "relation_id", "case_id", "known_id", "cond", "type"}


def canonical(record: Mapping[str, Any]) -> Found:
    """What `Edit.to_record` writes."""
    unknown = sorted(str(key) for key in record if key not in FIELDS)
    if unknown:
        raise EditError(f"Unknown key {unknown[0]!r} in an edit. Known: {', '.join(sorted(FIELDS))}.")
    [(edit, extras)] = easyedit(record)
    if extras.unanswered:
        raise EditError(f"Portability probe {extras.unanswered[0]!r} has no target. Give the answer it should get.")
    return [(edit, extras)]


def easyedit(record: Mapping[str, Any]) -> Found:
    """One request. Portability probes without an answer, which KnowEdit has, cannot be scored: they become `unanswered`."""
    only(record, _KEYS, "The record")
    target, aliases = answers(record.get("target_new"))
    old, old_answers = answers(record.get("ground_truth"))
    portability = list(read_probes(record.get("portability"), "portability"))
    edit = Edit(
        prompt=stripped(record.get("prompt")),
        target="" if target is None else target,
        subject=stripped(record.get("subject")) or None,
        ground_truth=old,
        rephrases=texts(either(record, "rephrase_prompt", "rephrases", "rephrase")),
        locality=tuple(read_probes(record.get("locality"), "locality")),
        portability=tuple(probe for probe in portability if probe.target is not None),
        relation=either(record, "relation", "relation_id"),
        paraphrases=texts(record.get("paraphrases")),
        id=name_of(record),
        aliases=(*texts(record.get("aliases")), *aliases),
    )
    unanswered = tuple(probe.prompt for probe in portability if probe.target is None)
    told = record.get("type")
    task = told if isinstance(told, str) else None
    return [(edit, Extras(old_answers=plain(list(old_answers), "ground_truth"), unanswered=unanswered, task=task))]

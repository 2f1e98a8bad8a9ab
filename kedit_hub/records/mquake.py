"""MQuAKE (Zhong et al. 2023): several facts change, and questions ask across them. Law: one edit for every changed fact; the
multi-hop questions belong to the last of them, because only then has every fact they need been changed.

    {"case_id", "requested_rewrite": [{"prompt", "subject", "target_new", "target_true", "relation_id", "question"}],
     "questions": [..], "new_answer", "new_answer_alias": [..], "new_single_hops": [{"question", "cloze", "answer", "answer_alias"}]}

Hops of the new chain that no rewrite changes are locality probes of kind "hop": what is asked of them was true before.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kedit_hub.edits import fold
from kedit_hub.errors import EditError
from kedit_hub.records.counterfact import request
from kedit_hub.records.easyedit import easyedit
from kedit_hub.records.extras import Found
from kedit_hub.records.values import flat, name_of


def case(record: Mapping[str, Any]) -> Found:
    """All rewrites of a case, grouped."""
    rewrites = record["requested_rewrite"]
    if not isinstance(rewrites, list) or not rewrites:
        raise EditError(f"requested_rewrite is {str(rewrites)[:80]!r}; a multi-hop case has a list of rewrites.")
    name = name_of(record)
    answer = [record["new_answer"], record.get("new_answer_alias")]
    chain = [{"prompt": question, "ground_truth": answer} for question in flat(record["questions"])]
    found: Found = []
    for number, rewrite in enumerate(rewrites, start=1):
        own = request(rewrite) | {"id": name if len(rewrites) == 1 or name is None else f"{name}.{number}"}
        question = rewrite.get("question")
        if question and question.strip() != own["prompt"]:
            own["rephrase_prompt"] = question
        if number == len(rewrites):
            own |= {"portability": {"chain": chain}, "locality": {"hop": _kept_hops(record, rewrites)}}
        [(edit, extras)] = easyedit(own)
        found.append((edit, replace(extras, group=name or edit.prompt)))
    group = found[0][1].group
    return [(edit, replace(extras, group=group)) for edit, extras in found]


def _kept_hops(record: Mapping[str, Any], rewrites: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The single hops of the new chain that no rewrite of this case changes."""
    changed = {fold(str(rewrite.get("question"))) for rewrite in rewrites}
    changed |= {fold(request(rewrite)["prompt"]) for rewrite in rewrites}
    return [
        {"prompt": hop["cloze"] or hop["question"], "ground_truth": [hop["answer"], hop.get("answer_alias")]}
        for hop in record.get("new_single_hops") or []
        if fold(hop["question"]) not in changed and fold(hop["cloze"]) not in changed
    ]

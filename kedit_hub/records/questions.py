"""Questions and answers of other data sets. Law: each shape is told by its keys, and says its source.

WikiBio and Sanitation as in KnowEdit (Zhang et al. 2024), QAEdit (Yang et al. 2025), UnKEBench (Deng et al. 2025).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kedit_hub.edits import fold
from kedit_hub.records.easyedit import easyedit
from kedit_hub.records.extras import Found
from kedit_hub.records.values import name_of


def wikibio(record: Mapping[str, Any]) -> Found:
    """{"text": the passage so far, "labels": the sentence to come, "concept": whom it is about, "locality"}."""
    return easyedit(
        {
            "prompt": record["text"],
            "target_new": record["labels"],
            "subject": record.get("concept"),
            "locality": record.get("locality"),
            "id": name_of(record),
        }
    )


def sanitation(record: Mapping[str, Any]) -> Found:
    """{"question", "ground_truth", "target_new", "subject"?, "kept": questions whose answers stay}. One forgotten answer is a group.

    Its files are one object of two lists; `read.py` gives every question to forget its share of the questions to keep.
    """
    kept = [{"prompt": one["question"], "ground_truth": one.get("ground_truth")} for one in record.get("kept", [])]
    [(edit, extras)] = easyedit(
        {
            "prompt": record["question"],
            "target_new": record["target_new"],
            "ground_truth": record.get("ground_truth"),
            "subject": record.get("subject"),
            "locality": {"unrelated": kept},
            "id": name_of(record),
        }
    )
    return [(edit, replace(extras, group=None if edit.ground_truth is None else fold(edit.ground_truth)))]


def qaedit(record: Mapping[str, Any]) -> Found:
    """{"prompt", "target", "subject", "rephrase", "locality": [{"loc", "loc_ans"}]}."""
    rest = {key: value for key, value in record.items() if key not in ("target", "locality")}
    return easyedit(rest | {"target_new": record["target"], "locality": {"unrelated": record.get("locality", [])}})


def unke(record: Mapping[str, Any]) -> Found:
    """{"question", "para_question", "answer": long, "sub_question": [..], "sub_answer": [..]}."""
    parts = zip(record.get("sub_question", []), record.get("sub_answer", []), strict=True)
    return easyedit(
        {
            "prompt": record["question"],
            "target_new": record["answer"],
            "rephrase_prompt": record.get("para_question"),
            "portability": {"sub_question": [{"prompt": q, "ground_truth": a} for q, a in parts]},
            "id": name_of(record),
        }
    )

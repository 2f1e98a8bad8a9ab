"""ZsRE (Levy et al. 2017) as prepared for MEND and, before it, for KnowledgeEditor. Law: the new answer is the one the file
gives first; the others of KnowledgeEditor are alternatives to it, not other spellings, and are not taken.

    {"subject", "src", "alt" (new), "answers" (old), "rephrase", "loc", "loc_ans", "portability"?}        MEND, JSON
    {"input", "alternatives" (new), "output": [{"answer"}] (old), "prediction", "filtered_rephrases"}     KnowledgeEditor, JSON lines
"""

from collections.abc import Mapping
from typing import Any

from kedit_hub.errors import EditError
from kedit_hub.records.easyedit import easyedit
from kedit_hub.records.extras import Found
from kedit_hub.records.values import flat, name_of


def mend(record: Mapping[str, Any]) -> Found:
    """Mitchell et al. 2022; `portability` is the one-hop question of Yao et al. 2023."""
    hop = record.get("portability") or {}
    one_hop = [{"prompt": hop["New Question"], "ground_truth": hop["New Answer"]}] if hop else []
    loc = [{"prompt": record["loc"], "ground_truth": record.get("loc_ans")}] if record.get("loc") else []
    return easyedit(
        {
            "prompt": record["src"],
            "target_new": record["alt"],
            "subject": record.get("subject"),
            "ground_truth": record.get("answers"),
            "rephrase_prompt": record.get("rephrase"),
            "locality": {"unrelated": loc},
            "portability": {"one_hop": one_hop},
            "id": name_of(record),
        }
    )


def knowledge_editor(record: Mapping[str, Any]) -> Found:
    """De Cao et al. 2021, in the form of KILT. A rephrase that repeats the question is none."""
    alternatives = flat(record["alternatives"])
    if not alternatives:
        raise EditError("alternatives is empty: the record asks for no change.")
    old = [entry.get("answer") for entry in record.get("output") or []]
    question = record["input"].strip()
    rephrases = [text for text in flat(record.get("filtered_rephrases")) if text != question]
    return easyedit(
        {
            "prompt": question,
            "target_new": alternatives[0],
            "ground_truth": flat(old) or record.get("prediction"),
            "rephrase_prompt": rephrases,
            "id": name_of(record),
        }
    )

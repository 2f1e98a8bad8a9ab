"""CounterFact: the flat form of EasyEdit, which DAFSet shares, the original of ROME (Meng et al. 2022), and a form with more
probes. Law: a prompt template is filled with the subject, nothing else of it is touched.

A neighbour is asked the same question about another subject; its answer is the edit's old one.
"""

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

from kedit_hub.errors import EditError
from kedit_hub.records.easyedit import easyedit
from kedit_hub.records.extras import Found
from kedit_hub.records.values import name_of, one_plain, plain

PREFIX_WORDS = 30  # of a DAFSet prefix, as DAFNet cuts it (Zhang et al. 2024)


def flat(record: Mapping[str, Any]) -> Found:
    """EasyEdit's and DAFSet's: one rephrase_prompt, one neighbour as locality_prompt."""
    neighbour = {"prompt": record["locality_prompt"], "ground_truth": record.get("locality_ground_truth")}
    rest = {key: value for key, value in record.items() if not key.startswith("locality_")}
    return easyedit(rest | {"locality": {"neighbour": [neighbour]}})


def robust(record: Mapping[str, Any]) -> Found:
    """DAFSet's robustness group: the flat form and `prefix`, a list of noise. Its authors draw a prefix at random for the
    rephrase and another for the neighbour; here a digest of the record draws them, so that every reading is equal."""
    prefixes = plain(record["prefix"], "prefix")
    if not prefixes:
        raise EditError("prefix has no text. Give at least one, or leave the key out.")
    digest = sha256(ascii((record.get("prompt"), prefixes)).encode()).digest()
    first = int.from_bytes(digest[:8], "big") % len(prefixes)
    further = 1 + int.from_bytes(digest[8:16], "big") % max(1, len(prefixes) - 1)
    noisy = {
        "rephrase_prompt": f"{_cut(prefixes[first])} {record['rephrase_prompt'].strip()}",
        "locality_prompt": f"{_cut(prefixes[(first + further) % len(prefixes)])} {record['locality_prompt'].strip()}",
    }
    [(edit, extras)] = flat({key: value for key, value in record.items() if key != "prefix"} | noisy)
    return [(edit, replace(extras, prefixes=prefixes))]


def _cut(prefix: str) -> str:
    words = " ".join(prefix.split()[:PREFIX_WORDS])
    return words if words.endswith(".") else f"{words}."


def original(record: Mapping[str, Any]) -> Found:
    """As published with ROME: requested_rewrite, paraphrase_prompts, neighborhood_prompts; prompts for fluency and consistency
    are extras."""
    rewrite = record["requested_rewrite"]
    old = named(rewrite, "target_true")
    neighbours = [
        entry if isinstance(entry, Mapping) else {"prompt": entry, "ground_truth": old}
        for entry in record.get("neighborhood_prompts") or []
    ]
    [(edit, extras)] = easyedit(
        request(rewrite)
        | {
            "rephrase_prompt": record.get("paraphrase_prompts"),
            "locality": {"neighbour": neighbours},
            "id": name_of(record),
        }
    )
    target = rewrite["target_new"]
    return [
        (
            edit,
            replace(
                extras,
                target_id=one_plain(target.get("id"), "target_new.id") if isinstance(target, Mapping) else None,
                generation_prompts=plain(record.get("generation_prompts"), "generation_prompts"),
                attribute_prompts=plain(record.get("attribute_prompts"), "attribute_prompts"),
            ),
        )
    ]


def more_probes(record: Mapping[str, Any]) -> Found:
    """rephrases[], neighborhood[], same_subject[], other_object[], each probe with its answer."""
    relation = record.get("relation")
    locality = {
        "neighbour": [{"relation": relation, **entry} for entry in record.get("neighborhood", [])],
        "same_subject": [{"subject": record.get("subject"), **entry} for entry in record.get("same_subject", [])],
        "unrelated": record.get("other_object", []),
    }
    used = ("prompt", "target_new", "subject", "ground_truth", "rephrases", "relation", "case_id", "id", "paraphrases")
    return easyedit({key: record[key] for key in used if key in record} | {"locality": locality})


def request(rewrite: Mapping[str, Any]) -> dict[str, Any]:
    """One requested_rewrite in EasyEdit's form."""
    return {
        "prompt": rewrite["prompt"].replace("{}", rewrite["subject"]),
        "target_new": named(rewrite, "target_new"),
        "subject": rewrite["subject"],
        "ground_truth": named(rewrite, "target_true"),
        "relation": rewrite.get("relation_id"),
    }


def named(rewrite: Mapping[str, Any], key: str) -> Any:
    """The text of {"str": text, "id": Wikidata id}; re-releases have the text alone, or under another key."""
    value = rewrite[f"{key}_str"] if f"{key}_str" in rewrite else rewrite[key]
    return value["str"] if isinstance(value, Mapping) else value

"""RippleEdits (Cohen et al. 2024): what else changes, and what must not, when one fact does. Law: the first answer that is not
blank is the target of a probe, every other accepted answer an alias.

    {"example_type", "prompt", "target_new", "subject", "ground_truth"?, "Logical_Generalization": [{"prompt", "targets": [..]}], ..}
    {"example_type", "edit": {"prompt": the whole new statement, ..}, "Logical_Generalization": [{"test_queries": [..]}], ..}

The second form is the original. It names subject and target by Wikidata id only, so the subject is left out, and the question
is cut off the statement where its answer begins; a record in which that place cannot be told is refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Any

from kedit_hub.errors import EditError
from kedit_hub.records.easyedit import easyedit
from kedit_hub.records.extras import Found
from kedit_hub.records.values import answers, flat, name_of, one_plain

PORTABILITY = ("Logical_Generalization", "Compositionality_I", "Compositionality_II", "Subject_Aliasing")
LOCALITY = ("Relation_Specificity", "Relation_Specifity", "Forgetfulness")  # the second as its documentation spells it
_VERBS = (" is", " are", " follows", " is followed by")  # where the questions of its templates end


def flattened(record: Mapping[str, Any]) -> Found:
    """The form DAFNet evaluates on. What was recently added has no old answer."""
    used = ("prompt", "target_new", "subject", "ground_truth", "id", "case_id")
    return easyedit(
        {key: record[key] for key in used if key in record}
        | {
            "portability": {name: record.get(name) for name in PORTABILITY},
            "locality": {name: record.get(name) for name in LOCALITY},
        }
    )


def original(record: Mapping[str, Any]) -> Found:
    """As published: statements and test cases. A case of several queries is several probes; conditions are not kept."""
    change = record["edit"]
    queries = {name: list(_queries(record.get(name))) for name in (*PORTABILITY, *LOCALITY)}
    named = [query["answers"] for query in queries["Subject_Aliasing"]]
    old_statement = (change.get("previous_fact") or {}).get("prompt")
    prompt, target = _split(change["prompt"], old_statement, [answers(_accepted(each))[0] for each in named])
    spellings = [answers(_accepted(each)) for each in named]
    old = old_statement and _end(old_statement).removeprefix(prompt)
    [(edit, extras)] = easyedit(
        {
            "prompt": prompt,
            "target_new": [target, *(list(others) for first, others in spellings if first == target)],
            "ground_truth": old if old != _end(old_statement or "") else None,
            "relation": change.get("relation"),
            "portability": {name: _probes(queries[name]) for name in PORTABILITY},
            "locality": {name: _probes(queries[name]) for name in LOCALITY},
            "id": name_of(record),
        }
    )
    return [(edit, replace(extras, target_id=one_plain(change.get("target_id"), "edit.target_id")))]


def _queries(cases: Any) -> Iterator[Mapping[str, Any]]:
    for case in cases or []:
        yield from case["test_queries"]


def _probes(queries: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"prompt": query["prompt"], "ground_truth": _accepted(query["answers"]), "relation": query.get("relation")}
        for query in queries
    ]


def _accepted(given: list[Mapping[str, Any]]) -> list[Any]:
    """[{"value", "aliases"}, ...] -> list of lists."""
    return [[answer.get("value"), answer.get("aliases")] for answer in given]


def _split(statement: str, old_statement: str | None, named: list[Any]) -> tuple[str, str]:
    """(question, answer) of a statement: by an answer that the file names, by what the old statement shares with the new one,
    or by the only verb in it."""
    new = _end(statement)
    for answer in flat(named):
        if isinstance(answer, str) and new.endswith(f" {answer}"):
            return new[: -len(answer) - 1], answer
    if old_statement is not None:
        shared = "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(new, _end(old_statement))))
        ends = [shared.rfind(f"{verb} ") + len(verb) for verb in _VERBS if f"{verb} " in shared]
        if ends:
            return new[: max(ends)], new[max(ends) + 1 :]
    places = [(new.find(f"{verb} "), verb) for verb in _VERBS if new.count(f"{verb} ") == 1]
    if len(places) == 1 and sum(new.count(f"{verb} ") for verb in _VERBS) == 1:
        at = places[0][0] + len(places[0][1])
        return new[:at], new[at + 1 :]
    raise EditError(f"Cannot tell where the answer begins in {statement!r}: use the form with prompt and target_new.")


def _end(statement: str) -> str:
    return statement.strip().removesuffix(".").strip()

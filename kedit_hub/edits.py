"""The request: one changed fact and the probes that score it. Law: what an Edit holds is valid, or it was never made.

    Edit("The Eiffel Tower is located in the city of", "Rome", subject="The Eiffel Tower", ground_truth="Paris")
    Edit.from_record(edit.to_record()) == edit        # our record is a superset of EasyEdit's request form
    read_edits("counterfact-edit.json")               # -> list[Edit], or one EditError naming every unreadable record

`rephrases`, `locality` and `portability` are held out: they score a patch and are never used to make one. `paraphrases`
are the author's extra phrasings: they help to make a patch and are never scored. Text is kept in Unicode NFC, so texts
that look equal are equal; probes are kept sorted by kind, order within a kind as given.
"""

import difflib
import inspect
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic.dataclasses import dataclass

from kedit_hub import strictjson
from kedit_hub.errors import EditError
from kedit_hub.limits import DEFAULT

_STRICT = ConfigDict(strict=True, extra="forbid")


def _text(text: str, info: ValidationInfo) -> str:
    """One text in NFC: not empty, bounded, no NUL, no half surrogate, no space where the tokeniser would see two."""
    name, shown, text = info.field_name, f"{text[:80]!r}", unicodedata.normalize("NFC", text)
    if not text.strip():
        raise EditError(f"{name} is empty ({shown}). Give some text, or leave the field out where it is optional.")
    if len(text) > DEFAULT.max_text_chars:
        raise EditError(f"{name} {shown}... has {len(text):,} characters; at most {DEFAULT.max_text_chars:,} count.")
    if "\0" in text or not strictjson.is_text(text):
        raise EditError(f"{name} {shown} holds a NUL or half a surrogate pair. Remove it.")
    if text != text.strip():
        raise EditError(
            f"{name} {shown} has a space at its edge. Remove it: the space before an answer is added for you."
        )
    return text


def _label(text: str) -> str:
    if "\0" in text or not strictjson.is_text(text) or len(text) > DEFAULT.max_path_chars:
        raise EditError(f"Label {text[:80]!r} holds a NUL or half a surrogate pair, or is too long. Use a short name.")
    return unicodedata.normalize("NFC", text)


# names of probe kinds in published files -> ours; any other name is kept as it is
_KINDS = {
    "neighborhood": "neighbour",
    "neighbourhood": "neighbour",
    "relation_specificity": "same_subject",
    "other_object": "unrelated",
    "reasoning": "one_hop",
    "compositionality_i": "one_hop",
    "compositionality_ii": "chain",
    "subject_aliasing": "alias",
    "synonym": "alias",
    "inverse_relation": "reverse",
}


def _kind(name: str) -> str:
    return _KINDS.get(name.lower(), name)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _bounded(values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
    if len(values) > DEFAULT.max_probes:
        raise EditError(f"{info.field_name} has {len(values):,} entries; at most {DEFAULT.max_probes:,} are taken.")
    return values


def _by_kind(probes: tuple["Probe", ...]) -> tuple["Probe", ...]:
    return tuple(sorted(probes, key=lambda probe: probe.kind))


Text = Annotated[str, AfterValidator(_text)]
Label = Annotated[str, AfterValidator(_label)]
Kind = Annotated[str, AfterValidator(_label), AfterValidator(_kind)]


def _explained(cls: type, data: Any, handler: Callable[[Any], Any]) -> Any:
    """Turn pydantic's ValidationError into an EditError with one line per fault."""
    try:
        return handler(data)
    except ValidationError as cause:
        names = list(inspect.signature(cls).parameters)
        faults = []
        for fault in cause.errors():
            where = ".".join(
                [names[at] if isinstance(at, int) and at < len(names) else str(at) for at in fault["loc"][:1]]
            )
            got = "" if fault["type"] == "missing" else f", got {str(fault['input'])[:80]!r}"
            faults.append(f"{where}: {fault['msg']}{got}")
        raise EditError(f"{cls.__name__} cannot be made: {'; '.join(faults)}. It takes {', '.join(names)}.") from None


@dataclass(frozen=True, config=_STRICT)
class Probe:
    """One question about what an edit should, or should not, change.

    target: the expected answer; None in locality means "whatever the unedited base says".
    kind: locality "neighbour" | "same_subject" | "unrelated"; portability "alias" | "one_hop" | "reverse" | "chain";
    the names of these in published files are translated, any other name is kept.
    """

    prompt: Text
    target: Text | None = None
    kind: Kind = ""
    subject: Text | None = None
    relation: Label | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _errors(cls, data: Any, handler: Callable[[Any], Any]) -> Any:
        return _explained(cls, data, handler)


Texts = Annotated[tuple[Text, ...], BeforeValidator(_as_tuple), AfterValidator(_bounded)]
Probes = Annotated[tuple[Probe, ...], BeforeValidator(_as_tuple), AfterValidator(_bounded), AfterValidator(_by_kind)]


@dataclass(frozen=True, config=_STRICT)
class Edit:
    """One requested change: after `prompt` the model shall say `target`.

    prompt: full text, holds the subject verbatim where one is given, no space at its end.
    target, ground_truth: new and old answer, no space before them.  relation: id for spotting textual conflicts.
    Raises EditError for anything malformed, quoting it.
    """

    prompt: Text
    target: Text
    subject: Text | None = None
    ground_truth: Text | None = None
    rephrases: Texts = ()
    locality: Probes = ()
    portability: Probes = ()
    relation: Label | None = None
    paraphrases: Texts = ()
    id: Label | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _errors(cls, data: Any, handler: Callable[[Any], Any]) -> Any:
        return _explained(cls, data, handler)

    @model_validator(mode="after")
    def _consistent(self) -> "Edit":
        if self.subject is not None and self.subject not in self.prompt:
            at = self.prompt.casefold().find(self.subject.casefold())
            spelled = f" (did you mean {self.prompt[at : at + len(self.subject)]!r}?)" if at >= 0 else ""
            raise EditError(
                f"Subject {self.subject!r} is not in the prompt {self.prompt!r}{spelled}. "
                "Write it exactly as the prompt does, or leave it out."
            )
        leaked = set(self.rephrases) & set(self.paraphrases)
        if leaked:
            raise EditError(
                f"{min(leaked)!r} is both a rephrase (held out, scored) and a paraphrase (used to make the patch). "
                "Keep it in one of the two."
            )
        for probe in self.portability:
            if probe.target is None:
                raise EditError(f"Portability probe {probe.prompt!r} has no target. Give the answer it should get.")
        return self

    @classmethod
    def from_record(cls, record: Mapping[str, Any], format: str = "auto") -> "Edit":
        """Read one record; "auto" tells the shapes in SHAPES apart by their keys. Raises EditError."""
        return _from_record(record, format)

    def to_record(self) -> dict[str, Any]:
        """EasyEdit's request form plus our fields; empty fields are left out. JSON values only."""
        rephrases: str | list[str] = self.rephrases[0] if len(self.rephrases) == 1 else list(self.rephrases)
        record = {
            "prompt": self.prompt,
            "target_new": self.target,
            "subject": self.subject,
            "ground_truth": self.ground_truth,
            "rephrase_prompt": rephrases,
            "locality": _to_groups(self.locality),
            "portability": _to_groups(self.portability),
            "relation": self.relation,
            "paraphrases": list(self.paraphrases),
            "id": self.id,
        }
        return {key: value for key, value in record.items() if value is not None and value != [] and value != {}}


# --- the same question --------------------------------------------------------------------------------------------


def fold(text: str) -> str:
    """A text without case, spacing and Unicode form: "the Eiffel Tower" and "The  Eiffel tower" are one subject."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def questions(edit: Edit) -> list[tuple[str, ...]]:
    """Everything by which the fact of an edit can be recognised, the strongest first: two edits that share one of
    these ask the same question."""
    keys: list[tuple[str, ...]] = [("prompt", fold(edit.prompt))]
    if edit.subject is not None and edit.relation is not None:
        keys.append(("fact", fold(edit.subject), fold(edit.relation)))
    return keys


# --- probes in records: {kind: {"prompt": [..], "ground_truth": [..]}} or {kind: [{"prompt": .., ...}]} ---


def _to_groups(probes: tuple[Probe, ...]) -> dict[str, dict[str, list[str | None]]]:
    groups: dict[str, dict[str, list[str | None]]] = {}
    for kind in {probe.kind: None for probe in probes}:
        of_kind = [probe for probe in probes if probe.kind == kind]
        columns: dict[str, list[str | None]] = {
            "prompt": [probe.prompt for probe in of_kind],
            "ground_truth": [probe.target for probe in of_kind],
            "subject": [probe.subject for probe in of_kind],
            "relation": [probe.relation for probe in of_kind],
        }
        unused = [name for name in ("subject", "relation") if all(value is None for value in columns[name])]
        groups[kind] = {name: column for name, column in columns.items() if name not in unused}
    return groups


def _probes(groups: Any, name: str) -> tuple[Probe, ...]:
    """Read either form of probes. Raises EditError naming the field and kind."""
    if groups is None:
        return ()
    if isinstance(groups, list):
        groups = {"": groups}
    if not isinstance(groups, Mapping):
        raise EditError(f"{name} is {str(groups)[:80]!r}; write {{kind: {{'prompt': [..], 'ground_truth': [..]}}}}.")
    found = []
    for kind, group in groups.items():
        entries = _columns_to_entries(group, f"{name}[{kind!r}]") if isinstance(group, Mapping) else group
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise EditError(f"{name}[{kind!r}] is {str(group)[:80]!r}; write {{'prompt': [..], 'ground_truth': [..]}}.")
        for entry in ({"kind": kind, **entry} for entry in entries):
            _only(entry, {"prompt", "ground_truth", "targets", "loc", "loc_ans", "kind", "subject", "relation"}, name)
            found.append(
                Probe(
                    prompt=_stripped(_either(entry, "prompt", "loc")),
                    target=_first(_either(entry, "ground_truth", "targets", "loc_ans")),
                    kind=entry["kind"],
                    subject=_stripped(entry.get("subject")),
                    relation=entry.get("relation"),
                )
            )
    return tuple(found)


def _columns_to_entries(columns: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """{"prompt": [p, q], "ground_truth": [a, b]} -> [{"prompt": p, "ground_truth": a}, ...]; a text counts as one."""
    if not isinstance(columns.get("prompt"), list):
        return [dict(columns)]
    length = len(columns["prompt"])
    for name, column in columns.items():
        if column is not None and (not isinstance(column, list) or len(column) != length):
            size = len(column) if isinstance(column, list) else 1
            raise EditError(f"{where} has {length} prompts and {size} {name}. Give one for each prompt.")
    return [{name: column[i] for name, column in columns.items() if column is not None} for i in range(length)]


# --- values in records --------------------------------------------------------------------------------------------


def _stripped(value: Any) -> Any:
    """Published records pad texts with spaces; ours do not."""
    return value.strip() if isinstance(value, str) else value


def _first(value: Any) -> Any:
    """First text of str | list | list of lists (alternative answers, each with aliases); None where there is none."""
    while isinstance(value, list):
        value = next((item for item in value if item not in ("", [], [""], None)), None)
    return _stripped(value) or None


def _texts(value: Any) -> Any:
    """str | list | None -> tuple of texts."""
    if value is None or value == "":
        return ()
    return tuple(_stripped(item) for item in value) if isinstance(value, list) else (_stripped(value),)


def _either(record: Mapping[str, Any], *names: str) -> Any:
    return next((record[name] for name in names if name in record), None)


def _only(record: Mapping[str, Any], known: set[str], where: str) -> None:
    """Refuse a key that looks like a misspelt one of ours; other keys are the file's own notes."""
    for key in record:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.85)
            if near:
                raise EditError(f"{where} has the unknown key {key!r}: did you mean {near[0]!r}?")


def _name(record: Mapping[str, Any]) -> str | None:
    value = _either(record, "id", "case_id", "known_id")
    return None if value is None else str(value)


# --- the shapes ---------------------------------------------------------------------------------------------------

_CANONICAL = {
    "prompt", "target_new", "subject", "ground_truth", "rephrase_prompt", "locality", "portability",
    "relation", "paraphrases", "id",
}  # fmt: skip


def _canonical(record: Mapping[str, Any]) -> Edit:
    unknown = sorted(str(key) for key in record if key not in _CANONICAL)
    if unknown:
        raise EditError(f"Unknown key {unknown[0]!r} in an edit. Known: {', '.join(sorted(_CANONICAL))}.")
    return _easyedit(record)


def _easyedit(record: Mapping[str, Any]) -> Edit:
    """EasyEdit's request and the KnowEdit files; also our canonical record, which extends it."""
    _only(record, _CANONICAL | {"rephrase", "rephrases", "relation_id"}, "The record")
    return Edit(
        prompt=_stripped(record.get("prompt")),
        target=_stripped(record.get("target_new")),
        subject=_stripped(record.get("subject")) or None,
        ground_truth=_first(record.get("ground_truth")),
        rephrases=_texts(_either(record, "rephrase_prompt", "rephrases", "rephrase")),
        locality=_probes(record.get("locality"), "locality"),
        portability=_probes(record.get("portability"), "portability"),
        relation=_either(record, "relation", "relation_id"),
        paraphrases=_texts(record.get("paraphrases")),
        id=_name(record),
    )


def _counterfact(record: Mapping[str, Any]) -> Edit:
    """CounterFact, flat form (also DAFSet): one rephrase_prompt, one neighbour as locality_prompt."""
    neighbour = {"prompt": record["locality_prompt"], "ground_truth": record.get("locality_ground_truth")}
    rest = {key: value for key, value in record.items() if not key.startswith("locality_")}
    return _easyedit(rest | {"locality": {"neighbour": [neighbour]}})


def _counterfact_original(record: Mapping[str, Any]) -> Edit:
    """CounterFact as published with ROME: requested_rewrite, paraphrase_prompts, neighborhood_prompts."""
    rewrite = record["requested_rewrite"]
    old = rewrite["target_true"]["str"]
    neighbours = [
        entry if isinstance(entry, Mapping) else {"prompt": entry, "ground_truth": old}
        for entry in record.get("neighborhood_prompts", [])
    ]
    return _easyedit(
        {
            "prompt": rewrite["prompt"].replace("{}", rewrite["subject"]),
            "target_new": rewrite["target_new"]["str"],
            "subject": rewrite["subject"],
            "ground_truth": old,
            "rephrase_prompt": record.get("paraphrase_prompts"),
            "locality": {"neighbour": neighbours},
            "relation": rewrite.get("relation_id"),
            "id": _name(record),
        }
    )


def _counterfact_probes(record: Mapping[str, Any]) -> Edit:
    """CounterFact with more probes: rephrases[], neighborhood[], same_subject[], other_object[]."""
    relation = record.get("relation")
    neighbours = [{"relation": relation, **entry} for entry in record.get("neighborhood", [])]
    locality = {
        "neighbour": neighbours,
        "same_subject": [{"subject": record.get("subject"), **entry} for entry in record.get("same_subject", [])],
        "unrelated": record.get("other_object", []),
    }
    used = ("prompt", "target_new", "subject", "ground_truth", "rephrases", "relation", "case_id", "id", "paraphrases")
    return _easyedit({key: record[key] for key in used if key in record} | {"locality": locality})


def _zsre_mend(record: Mapping[str, Any]) -> Edit:
    """ZsRE as used by MEND: src, alt (new answer), answers (old), rephrase, loc, loc_ans; optional one-hop question."""
    hop = record.get("portability") or {}
    one_hop = [{"prompt": hop["New Question"], "ground_truth": hop["New Answer"]}] if hop else []
    loc = [{"prompt": record["loc"], "ground_truth": record.get("loc_ans")}] if record.get("loc") else []
    return _easyedit(
        {
            "prompt": record["src"],
            "target_new": record["alt"],
            "subject": record.get("subject"),
            "ground_truth": record.get("answers"),
            "rephrase_prompt": record.get("rephrase"),
            "locality": {"unrelated": loc},
            "portability": {"one_hop": one_hop},
            "id": _name(record),
        }
    )


def _qaedit(record: Mapping[str, Any]) -> Edit:
    """QAEdit: prompt, target, rephrase, locality = list of {loc, loc_ans}."""
    rest = {key: value for key, value in record.items() if key not in ("target", "locality")}
    return _easyedit(rest | {"target_new": record["target"], "locality": {"unrelated": record.get("locality", [])}})


def _unke(record: Mapping[str, Any]) -> Edit:
    """UnKE: question, para_question, a long answer, and questions about its parts."""
    parts = zip(record.get("sub_question", []), record.get("sub_answer", []), strict=True)
    return _easyedit(
        {
            "prompt": record["question"],
            "target_new": record["answer"],
            "rephrase_prompt": record.get("para_question"),
            "portability": {"sub_question": [{"prompt": q, "ground_truth": a} for q, a in parts]},
            "id": _name(record),
        }
    )


# format name -> (keys that tell it from the others, reader); "auto" takes the first whose keys are all there
SHAPES: dict[str, tuple[frozenset[str], Callable[[Mapping[str, Any]], Edit]]] = {
    "counterfact-original": (frozenset({"requested_rewrite"}), _counterfact_original),
    "counterfact-probes": (frozenset({"target_new", "rephrases", "neighborhood"}), _counterfact_probes),
    "counterfact": (frozenset({"target_new", "locality_prompt"}), _counterfact),
    "easyedit": (frozenset({"prompt", "target_new"}), _easyedit),
    "zsre-mend": (frozenset({"src", "alt"}), _zsre_mend),
    "qaedit": (frozenset({"prompt", "target"}), _qaedit),
    "unke": (frozenset({"question", "answer"}), _unke),
    "canonical": (frozenset({"prompt", "target_new"}), _canonical),
}


def _from_record(record: Any, format: str) -> Edit:
    if not isinstance(record, Mapping):
        raise EditError(f"A record is a JSON object, not {str(record)[:80]!r}.")
    if format == "auto":
        format = next((name for name, (keys, _) in SHAPES.items() if keys <= set(record)), "")
        if not format:
            shapes = "; ".join(f"{name}: {', '.join(sorted(keys))}" for name, (keys, _) in SHAPES.items())
            raise EditError(f"No known record shape has the keys {sorted(map(str, record))[:12]}. Needed for {shapes}.")
    try:
        return SHAPES[format][1](record)
    except KeyError as cause:
        raise EditError(f"The key {cause} is missing for a record of shape {format!r}.") from None
    except (AttributeError, TypeError, ValueError) as cause:
        raise EditError(f"The record does not have shape {format!r}: {cause}.") from None


def read_edits(source: str | os.PathLike[str] | Iterable[Mapping[str, Any]], format: str = "auto") -> list[Edit]:
    """Read edits from a .json list, a .jsonl file, or records already in memory (a datasets.Dataset is one such).

    format: a name of SHAPES, or "auto" to tell each record's shape from its keys.
    Raises EditError listing every record that cannot be read (file, position, reason); nothing is dropped in silence.
    """
    if format != "auto" and format not in SHAPES:
        raise EditError(f"Unknown record format {format!r}. Known: auto, {', '.join(SHAPES)}.")
    name, records = _records(source)
    edits, rejected = [], []
    for where, record in records:
        try:
            edits.append(_from_record(record, format))
        except EditError as cause:
            rejected.append((where, str(cause)))
    if rejected:
        shown = "\n".join(f"  {where}: {reason}" for where, reason in rejected[:20])
        more = f"\n  ... and {len(rejected) - 20} more (see EditError.rejected)" if len(rejected) > 20 else ""
        raise EditError(
            f"{len(rejected)} of {len(records)} records in {name} cannot be read. Mend or remove them:\n{shown}{more}",
            tuple(rejected),
        )
    return edits


def _records(source: Any) -> tuple[str, list[tuple[str, Any]]]:
    """-> name of the source, [(position, record)]."""
    if not isinstance(source, str | os.PathLike):
        return "the given records", [(f"record {i}", record) for i, record in enumerate(source)]
    path = Path(source)
    try:
        with path.open("rb") as file:
            data = file.read(DEFAULT.max_records_bytes + 1)
    except OSError as cause:
        raise EditError(
            f"Cannot read edits from {str(path)!r}: {cause.strerror}; give a .json or .jsonl file."
        ) from None
    name = repr(str(path))

    def parse(data: bytes, what: str) -> Any:
        return strictjson.loads(data, what=what, max_bytes=DEFAULT.max_records_bytes, error=EditError)

    if path.suffix == ".jsonl":
        lines = enumerate(data.split(b"\n"), start=1)
        return name, [(f"line {i}", parse(line, f"{name} line {i}")) for i, line in lines if line.strip()]
    records = parse(data, name)
    if not isinstance(records, list):
        raise EditError(f"{name} holds one {type(records).__name__}, not a list of records. Wrap it in [ ].")
    return name, [(f"record {i}", record) for i, record in enumerate(records)]

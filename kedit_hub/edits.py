"""The request: one changed fact and the probes that score it. Law: what an Edit holds is valid, or it was never made.

    Edit("The Eiffel Tower is located in the city of", "Rome", subject="The Eiffel Tower", ground_truth="Paris")
    Edit.from_record(edit.to_record()) == edit        # our record is a superset of EasyEdit's request form
    read_edits("counterfact-edit.json")               # -> list[Edit], or one EditError naming every unreadable record

`rephrases`, `locality` and `portability` are held out: they score a patch and are never used to make one. `paraphrases`
are the author's extra phrasings: they help to make a patch and are never scored. `aliases` are other spellings of a target
that count as right wherever its text is compared; models are taught, and forced along, the target alone. Text is kept in
Unicode NFC, so texts that look equal are equal; probes are kept sorted by kind, order within a kind as given.

The shapes of published files are read by kedit_hub.records; `read_edits` and `SHAPES` can be had from here too.
"""

import inspect
import unicodedata
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic.dataclasses import dataclass

from kedit_hub import strictjson
from kedit_hub.errors import EditError
from kedit_hub.limits import DEFAULT

if TYPE_CHECKING:
    from kedit_hub.records.read import read_edits as read_edits
    from kedit_hub.records.shapes import SHAPES as SHAPES

_STRICT = ConfigDict(strict=True, extra="forbid")


def _text(text: str, info: ValidationInfo) -> str:
    """One text in NFC: not empty, bounded, no NUL, no half surrogate, no space where the tokeniser would see two."""
    name, shown = info.field_name, f"{text[:80]!r}"
    if len(text) > DEFAULT.max_text_chars:  # before a form is computed that takes its time
        raise EditError(f"{name} {shown}... has {len(text):,} characters; at most {DEFAULT.max_text_chars:,} count.")
    text = unicodedata.normalize("NFC", text)
    if not text.strip():
        raise EditError(f"{name} is empty ({shown}). Give some text, or leave the field out where it is optional.")
    if len(text) > DEFAULT.max_text_chars:
        raise EditError(
            f"{name} {shown}... has {len(text):,} characters in NFC; at most {DEFAULT.max_text_chars:,} count."
        )
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
Texts = Annotated[tuple[Text, ...], BeforeValidator(_as_tuple), AfterValidator(_bounded)]


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

    target: the expected answer; None in locality means "whatever the unedited base says".  aliases: its other spellings.
    kind: locality "neighbour" | "same_subject" | "unrelated"; portability "alias" | "one_hop" | "reverse" | "chain";
    the names of these in published files are translated, any other name is kept.
    """

    prompt: Text
    target: Text | None = None
    kind: Kind = ""
    subject: Text | None = None
    relation: Label | None = None
    aliases: Texts = ()

    @model_validator(mode="wrap")
    @classmethod
    def _errors(cls, data: Any, handler: Callable[[Any], Any]) -> Any:
        return _explained(cls, data, handler)

    @model_validator(mode="after")
    def _consistent(self) -> "Probe":
        if self.aliases and self.target is None:
            raise EditError(f"Probe {self.prompt!r} has aliases and no target. Give the first of them as the target.")
        return self


Probes = Annotated[tuple[Probe, ...], BeforeValidator(_as_tuple), AfterValidator(_bounded), AfterValidator(_by_kind)]


@dataclass(frozen=True, config=_STRICT)
class Edit:
    """One requested change: after `prompt` the model shall say `target`.

    prompt: full text, holds the subject verbatim where one is given, no space at its end.
    target, ground_truth: new and old answer, no space before them.  relation: id for spotting textual conflicts.
    aliases: other spellings of the target, right answers too.
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
    aliases: Texts = ()

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
        from kedit_hub.records.shapes import read_one  # the shapes are made of edits

        return read_one(record, format)

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
            "aliases": list(self.aliases),
        }
        return {key: value for key, value in record.items() if value is not None and value != [] and value != {}}


# the keys of `to_record`
FIELDS = {
    "prompt", "target_new", "subject", "ground_truth", "rephrase_prompt", "locality", "portability",
    "relation", "paraphrases", "id", "aliases",
}  # fmt: skip


def _to_groups(probes: tuple[Probe, ...]) -> dict[str, dict[str, list[Any]]]:
    """{kind: {"prompt": [..], "ground_truth": [..]}}, and columns for what else is known of any probe of the kind."""
    groups: dict[str, dict[str, list[Any]]] = {}
    for kind in {probe.kind: None for probe in probes}:
        of_kind = [probe for probe in probes if probe.kind == kind]
        groups[kind] = {
            "prompt": [probe.prompt for probe in of_kind],
            "ground_truth": [probe.target for probe in of_kind],
        }
        further: dict[str, list[Any]] = {
            "subject": [probe.subject for probe in of_kind],
            "relation": [probe.relation for probe in of_kind],
            "aliases": [list(probe.aliases) for probe in of_kind],
        }
        groups[kind] |= {name: column for name, column in further.items() if any(v not in (None, []) for v in column)}
    return groups


# --- the same question --------------------------------------------------------------------------------------------


# what typographers and keyboards write for one character, and NFKC keeps apart: quotes, apostrophes, primes, hyphens, dashes, minus
_ALIKE = str.maketrans(
    dict.fromkeys("‘’‚‛ʼ′`´", "'")
    | dict.fromkeys("“”„‟″«»", '"')
    | dict.fromkeys("‹›", "'")
    | dict.fromkeys("‐‑‒–—―−", "-")
)


def fold(text: str) -> str:
    """A text without case, spacing, typography and Unicode form: "the Eiffel Tower" and "The  Eiffel tower" are one subject.

    NFKC and case folding, twice since each undoes some of the other; characters that cannot be seen (zero width, soft hyphen,
    marks of direction) are dropped, as in Unicode's own NFKC_Casefold. Combining marks stay: "Sao" is not "São".
    """
    if text.isascii():
        return " ".join(text.casefold().replace("`", "'").split())
    text = text.translate(_ALIKE)  # before NFKC, which takes some of them apart: ´ is a space and an accent there
    for _ in range(2):
        text = unicodedata.normalize("NFKC", text).casefold()
    seen = "".join(char for char in text.translate(_ALIKE) if unicodedata.category(char) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", seen).split())


def questions(edit: Edit) -> list[tuple[str, ...]]:
    """Everything by which the fact of an edit can be recognised, the strongest first: two edits that share one of
    these ask the same question.

    Its prompt; its subject and relation; and the relation under every other name that its probes of kind "alias" give the subject.
    """
    keys: list[tuple[str, ...]] = [("prompt", fold(edit.prompt))]
    if edit.subject is not None and edit.relation is not None:
        names = [edit.subject] + [
            probe.subject
            for probe in edit.portability
            if probe.kind == "alias" and probe.subject is not None and probe.relation in (None, edit.relation)
        ]
        relation = fold(edit.relation)
        keys += dict.fromkeys(("fact", fold(name), relation) for name in names)
    return keys


def spellings(edit: Edit) -> tuple[str, ...]:
    """Every right answer, folded, the target first."""
    return tuple(dict.fromkeys(map(fold, (edit.target, *edit.aliases))))


# --- published files ----------------------------------------------------------------------------------------------


def __getattr__(name: str) -> Any:
    """`read_edits` and `SHAPES`, which are made of edits and so are loaded after them."""
    if name == "read_edits":
        from kedit_hub.records.read import read_edits

        return read_edits
    if name == "SHAPES":
        from kedit_hub.records.shapes import SHAPES

        return SHAPES
    raise AttributeError(f"kedit_hub.edits has no {name!r}")

"""DAFSet from any table of triples: edit records in four groups, by what is hard about them (Zhang et al. 2024, arXiv 2405.20588).

    recent      of the newest triples of the table
    popular     of the entities that are told of most: frequency, in and out degree
    long_tail   of those that are rarely told of, hang in the table by one triple, or whose fact the model finds least likely
    robust      any triple, and three prefixes to ask behind: of length, of context, of sentiment

Law: a function of (table, seed): the same records in the same order on every machine. A record has the published form; every text in it is
of the table or of the phrasings, but for the sentences of sentiment. No record's probe is about a fact that another record changes.
"""

import csv
import io
import json
import math
import random
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kedit_hub.errors import EditError
from kedit_hub.limits import DEFAULT

GROUPS = ("recent", "popular", "long_tail", "robust")
SHARE = 0.1  # of all triples, at the end of a distribution that is taken into a group
SENTENCES = 4  # in a prefix of length
SENTIMENT = (
    "What a lovely day this has been, and what a joy to tell of it.",
    "This was a dreadful week, and nothing in it went well.",
)
COLUMNS = ("subject", "relation", "object")
PHRASING = "The {relation} of {} is"  # where a relation has none of its own


@dataclass(frozen=True)
class Triple:
    """changed: when it was last changed, of any form that sorts as text or number; None = not known. frequency: how often the subject is
    told of in some corpus; None = how often it is in this table."""

    subject: str
    relation: str
    object: str
    changed: float | str | None = None
    frequency: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.subject, self.relation


@dataclass(frozen=True)
class Measures:
    """Of one triple. likelihood: probability of the object after the triple's first phrasing, mean over its tokens; None = not asked."""

    frequency: int
    out_degree: int
    in_degree: int
    likelihood: float | None = None


def read_triples(path: str | Path) -> list[Triple]:
    """A table with the columns subject, relation and object, and perhaps changed and frequency: .csv with a header, .json (a list of
    objects) or .jsonl. EditError names the row that cannot be read."""
    path = Path(path)
    if path.stat().st_size > DEFAULT.max_records_bytes:
        raise EditError(f"'{path}' has more than {DEFAULT.max_records_bytes:,} bytes. Cut the table.")
    try:
        text = path.read_text("utf-8-sig")  # spreadsheets put a mark before the first column's name
        if path.suffix == ".csv":
            rows: Any = list(csv.DictReader(io.StringIO(text, newline="")))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = json.loads(text)
    except UnicodeDecodeError as error:
        raise EditError(
            f"'{path}' is not UTF-8 text: {error.reason} at byte {error.start}. Save it as UTF-8."
        ) from None
    except (ValueError, csv.Error, RecursionError) as error:
        raise EditError(f"'{path}' is no table of triples: {str(error)[:200]}. Give .csv, .json or .jsonl.") from None
    if not isinstance(rows, list):
        raise EditError(f"'{path}' holds no list of rows. Give one object for each triple.")
    return _numbered([_triple(row, f"'{path}' row {number}") for number, row in enumerate(rows, start=1)])


def _triple(row: Any, where: str) -> Triple:
    if not isinstance(row, Mapping):
        raise EditError(f"{where} is {str(row)[:60]!r}. Give an object with {', '.join(COLUMNS)}.")
    for name in COLUMNS:
        text = row.get(name)
        if not isinstance(text, str) or not text.strip() or len(text) > DEFAULT.max_text_chars:
            raise EditError(f"{where}: {name} is {str(text)[:60]!r}. Every triple needs {', '.join(COLUMNS)} as text.")
    changed, frequency = row.get("changed"), row.get("frequency")
    if changed is not None and not (isinstance(changed, str) or _is_number(changed)):
        raise EditError(f"{where}: changed is {str(changed)[:60]!r}. Give a date like 2024-05-01, or a number.")
    try:
        number = None if frequency in (None, "") else int(frequency)
        if isinstance(frequency, bool) or (isinstance(frequency, float) and frequency != number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise EditError(f"{where}: frequency is {str(frequency)[:60]!r}. Give a whole number.") from None
    when = (changed.strip() or None) if isinstance(changed, str) else changed
    return Triple(row["subject"].strip(), row["relation"].strip(), row["object"].strip(), when, number)


def _is_number(value: Any) -> bool:
    return (isinstance(value, float) and math.isfinite(value)) or (
        isinstance(value, int) and not isinstance(value, bool)
    )


def _numbered(triples: list[Triple]) -> list[Triple]:
    """The triples, `changed` as numbers where it is a number in every row that has it: a .csv has only texts, and "9" sorts behind "10"."""
    numbers = [_number(t.changed) for t in triples if t.changed is not None]
    if any(number is None for number in numbers):
        return triples
    return [t if t.changed is None else replace(t, changed=_number(t.changed)) for t in triples]


def _number(value: float | str) -> float | None:
    if not isinstance(value, str):
        return value if _is_number(value) else None
    for kind in (int, float):
        with suppress(ValueError):
            return _number(kind(value))
    return None


class Table:
    """Triples, their phrasings and what can be counted about them.

    phrasings: by relation, two or more templates with {} for the subject; PHRASING stands in for the relations without (`unphrased`).
    likelihood: of (prompt, object) pairs, asked once for all triples; None = long tails are told by counts alone.
    EditError for a table without triples, one that tells a fact twice, and phrasings that cannot be used.
    """

    def __init__(
        self,
        triples: Sequence[Triple],
        phrasings: Mapping[str, Sequence[str]] | None = None,
        likelihood: Callable[[list[tuple[str, str]]], list[float]] | None = None,
    ):
        if not triples:
            raise EditError("the table has no triple. Give at least one row.")
        twice = [key for key, count in Counter(triple.key for triple in triples).items() if count > 1]
        if twice:
            raise EditError(f"the table tells the {twice[0][1]} of {twice[0][0]!r} twice. Keep one object for each.")
        self.triples = list(triples)
        self.phrasings = {name: tuple(given) for name, given in (phrasings or {}).items()}
        relations = list(dict.fromkeys(triple.relation for triple in triples))
        _check_phrasings(self.phrasings, relations)
        self.unphrased = [name for name in relations if name not in self.phrasings]
        out, into = Counter(t.subject for t in triples), Counter(t.object for t in triples)
        likely: Sequence[float | None] = [None] * len(triples)
        if likelihood is not None:
            likely = likelihood([(self.ask(triple, 0), triple.object) for triple in triples])
        self.measures = [
            Measures(
                out[t.subject] + into[t.subject] if t.frequency is None else t.frequency,
                out[t.subject], into[t.subject], value,
            )
            for t, value in zip(triples, likely, strict=True)
        ]  # fmt: skip
        told: dict[str, dict[str, int]] = defaultdict(dict)
        for triple in triples:
            told[triple.relation].setdefault(triple.object, len(told[triple.relation]))
        self._place = dict(told)  # of every object among those of its relation
        self.objects = {relation: list(places) for relation, places in told.items()}

    def ask(self, triple: Triple, number: int) -> str:
        """The triple in one of its phrasings, up to its object."""
        known = self.phrasings.get(triple.relation)
        if known is None:
            known = (PHRASING.replace("{relation}", triple.relation), f"{{}} has the {triple.relation}")
        return known[number % len(known)].replace("{}", triple.subject)

    def groups(self, share: float = SHARE, seed: int = 0) -> dict[str, list[int]]:
        """Numbers of triples by group; a group that the table has nothing for is empty. A triple can be in several.

        EditError where every group is empty.
        """
        most = max(1, round(share * len(self.triples)))
        everything = range(len(self.triples))
        dated = [i for i in everything if self.triples[i].changed is not None]
        if len({isinstance(self.triples[i].changed, str) for i in dated}) > 1:
            raise EditError("some triples were changed at a date and some at a number. Give one form to all.")
        newest = sorted(dated, key=lambda i: self.triples[i].changed, reverse=True)  # type: ignore[arg-type,return-value]
        places = self._places()
        busiest = sorted(everything, key=lambda i: (-places[i], i))
        rarest = sorted(everything, key=lambda i: (self.measures[i].frequency, i))
        lonely = [i for i in rarest if self.measures[i].out_degree + self.measures[i].in_degree == 1][:most]
        unlikely = sorted(
            (i for i in everything if self.measures[i].likelihood is not None),
            key=lambda i: (self.measures[i].likelihood, i),
        )[:most]
        found = {
            "recent": newest[: min(most, len(newest))],
            "popular": busiest[:most],
            "long_tail": sorted({*lonely, *rarest[:most], *unlikely}),
            "robust": random.Random(f"{seed} robust").sample(everything, most),
        }
        changeable = {name: [i for i in numbers if self._others(i)] for name, numbers in found.items()}
        if not any(changeable.values()):
            raise EditError(
                "no group has a record: what they take of the table has no other object in its relation to be changed to. Give relations "
                "of two objects or more, or take a larger share."
            )
        return changeable

    def _places(self) -> list[float]:
        """How high each triple's subject stands, mean over frequency and both degrees of the share that stands lower."""
        columns = [[getattr(m, name) for m in self.measures] for name in ("frequency", "out_degree", "in_degree")]
        below = []
        for column in columns:
            order = sorted(column)
            first = {value: place for place, value in reversed(list(enumerate(order)))}
            below.append([first[value] / len(order) for value in column])
        return [sum(values) / len(values) for values in zip(*below)]

    def _others(self, number: int) -> Sequence[str]:
        triple = self.triples[number]
        places = self._place[triple.relation]
        own = {places[text] for text in (triple.object, triple.subject) if text in places}
        return Without(self.objects[triple.relation], sorted(own))

    def records(
        self, group: str, numbers: Sequence[int], *, counterfactual: bool = True, seed: int = 0
    ) -> list[dict[str, Any]]:
        """Records of these triples in the published form.

        counterfactual: the new answer is another object of the relation; False: it is the triple's own, for a model that does not know it.
        """
        changed = {self.triples[i].key for i in numbers}
        free = [t for t in self.triples if t.key not in changed]
        alike: dict[str, list[Triple]] = defaultdict(list)  # by relation
        own: dict[str, list[int]] = defaultdict(list)  # by subject, places in `free`
        for place, t in enumerate(free):
            alike[t.relation].append(t)
            own[t.subject].append(place)
        found = []
        for i in numbers:
            triple, rng = self.triples[i], random.Random(f"{seed} {group} {i}")
            near, far = alike.get(triple.relation, []), Without(free, own.get(triple.subject, []))
            if not far:
                raise EditError(
                    "every fact of the table is edited, none is left to stay as it is. Take a smaller share."
                )
            kept = rng.choice(near or far)
            record: dict[str, Any] = {
                "prompt": self.ask(triple, 0),
                "target_new": rng.choice(self._others(i)) if counterfactual else triple.object,
                "subject": triple.subject,
                "rephrase_prompt": self.ask(triple, 1),
                "locality_prompt": self.ask(kept, 0),
                "locality_ground_truth": kept.object,
            }
            if group == "robust":
                record["prefix"] = self._prefixes(near or far, far, rng)
            found.append(record)
        return found

    def _prefixes(self, near: Sequence[Triple], far: Sequence[Triple], rng: random.Random) -> list[str]:
        """Of length: several other facts. Of context: one other fact of the same relation. Of sentiment: a mood, and no fact."""

        def told(t: Triple) -> str:
            return f"{self.ask(t, 0)} {t.object}."

        long = " ".join(told(t) for t in rng.sample(far, min(SENTENCES, len(far))))
        return [long, told(rng.choice(near)), rng.choice(SENTIMENT)]


def _check_phrasings(phrasings: Mapping[str, Sequence[str]], relations: Sequence[str]) -> None:
    there = set(relations)
    if unknown := [name for name in phrasings if name not in there]:
        raise EditError(
            f"the table has no relation {listed(unknown)}, which phrasings are of; it has {listed(relations)}."
        )
    for name, own in phrasings.items():
        if len(set(own)) < 2 or not all("{}" in text for text in own):
            raise EditError(
                f"the phrasings of {name!r} are {listed(own)}. Give two or more that differ, each with {{}} for the subject."
            )


def listed(names: Sequence[str]) -> str:
    """For a message: at most ten of them, cut."""
    shown = ", ".join(repr(name[:60]) for name in names[:10]) or "none"
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10:,} others"


class Without(Sequence[Any]):
    """`whole` without what stands at the places `gone`, which ascend: looked into, never copied."""

    def __init__(self, whole: Sequence[Any], gone: Sequence[int]):
        self._whole = whole
        self._starts = [place - number for number, place in enumerate(gone)]  # from which place on one more is skipped

    def __len__(self) -> int:
        return len(self._whole) - len(self._starts)

    def __getitem__(self, at: Any) -> Any:
        """at: a number from 0."""
        return self._whole[at + bisect_right(self._starts, at)]


def distributions(table: Table, groups: Mapping[str, Sequence[int]]) -> dict[str, dict[str, list[float]]]:
    """By measure and group, "all" first: the values, sorted. A measure that nobody took is left out."""
    named = {"all": range(len(table.triples)), **groups}
    found: dict[str, dict[str, list[float]]] = {}
    for measure in ("frequency", "out_degree", "in_degree", "likelihood"):
        values = {
            name: sorted(float(v) for i in numbers if (v := getattr(table.measures[i], measure)) is not None)
            for name, numbers in named.items()
        }
        if values["all"]:
            found[measure] = {name: own for name, own in values.items() if own}
    return found

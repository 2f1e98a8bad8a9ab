"""All the ways in which the patches of a stack can get in each other's way, in one report. Law: a finding says who, about what, how much
and what to do; a part that was not looked at is named, never passed off as clean.

    textual       two answers to one question                               needs nothing
    geometric     rows that pull at each other in `joint` and `sum`         needs the base profile
    gate          an edit that would answer the other's question, `gated`   needs the base profile
    behavioural   questions that the whole stack answers worse              needs the base

    report = conflicts(stack, profiles={profile.module: profile})
    report.findings, report.to_dict(), report.table(), report.svg()
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from kedit_hub.base.profile import BaseProfile
from kedit_hub.edits import Edit, fold, questions
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.heatmap import MAX_SIDE, Cell, heatmap
from kedit_hub.evaluate.interference import Behaviour, Broken, Progress, behaviour
from kedit_hub.patch.deltas import Associative
from kedit_hub.patch.deltas.weights import Weights
from kedit_hub.stack.associative import bank
from kedit_hub.stack.conflicts import Conflict, Place, contradictions_within
from kedit_hub.stack.facts import NO_MODELS, Models
from kedit_hub.stack.overlap import SAFE_SUM, Fires, Geometry, Near, gate_fires, geometry
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack
from kedit_hub.stack.stored import gather

Part = Literal["textual", "geometric", "gate", "behavioural"]
PARTS: tuple[Part, ...] = ("textual", "geometric", "gate", "behavioural")
COLUMNS = ("part", "kind", "patches", "what", "numbers", "remedy")
STRONG = 0.5  # rho from which on a pair that merely interferes is a finding; weaker ones are in `geometry` alone
LOW_FIT = 0.9  # a joint solve that gives an edit less of what it asks for is said to have no room for it

REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "contradiction": "the winner speaks; choose another with pin, reorder or a choice, or take one of the patches out",
        "contradiction inside a patch": "no order of patches settles it: its author has to drop one of the two edits",
        "redundant": "one of the two is enough: take the other out",
        "contradicting": "take one out; or answer in gated mode, where the nearest key decides alone",
        "interfering": "answer in gated mode, where rows do not mix; or give the patch that matters a larger weight, or pin it",
        "crowded": "answer in gated mode; or allow a larger budget, or take patches out: the joint solve has no room for all of them",
        "unsafe sum": 'do not add these changes up: mode "joint" solves them together, "gated" keeps them apart',
        "same subject": "one key, at the subject's token, cannot hold several values: merge these edits, or answer in gated mode",
        "answers for": "add a counter-key or raise the answer threshold of the edit that answers, or make it with more paraphrases",
        "answers instead": "it is pinned and so goes first: unpin it, or raise its answer threshold",
        "broken": "take the culprit out, or pin the patch that lost",
        "broken by several": "no suspect did it alone: answer in gated mode, or take patches out until it is answered again",
    }
)


@dataclass(frozen=True)
class Finding:
    """patches, edits (positions), prompts, targets: of those involved, side by side; None where it is about a whole patch."""

    part: Part
    kind: str
    patches: tuple[str, ...]
    edits: tuple[int | None, ...]
    prompts: tuple[str | None, ...]
    targets: tuple[str | None, ...]
    numbers: Mapping[str, float]
    what: str
    module: str | None = None

    @property
    def remedy(self) -> str:
        return REMEDIES[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        told = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return told | {"numbers": dict(self.numbers), "remedy": self.remedy}


@dataclass(frozen=True)
class ConflictReport:
    """findings: of all parts, in their order. looked_at: the parts that were looked at. notes: what was not, and why; lists that were cut.

    geometry: everything that was measured, by module, findings or not. edits: of the stack by place.
    """

    findings: tuple[Finding, ...]
    looked_at: tuple[Part, ...]
    notes: tuple[str, ...]
    edits: Mapping[Place, Edit] = field(repr=False)
    geometry: Mapping[str, Geometry] = field(default_factory=dict, repr=False)
    behaviour: Behaviour | None = field(default=None, repr=False)

    def of(self, part: Part) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.part == part)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: {"counts", "textual", "geometric", "gate", "behavioural", "modules", "looked_at", "notes"}; a part that was not
        looked at is null."""
        behaved = self.behaviour
        return {
            "counts": dict(Counter(f"{finding.part}: {finding.kind}" for finding in self.findings)),
            **{p: [f.to_dict() for f in self.of(p)] if p in self.looked_at else None for p in PARTS},
            "modules": {path: _module(found) for path, found in self.geometry.items()},
            "compared": None
            if behaved is None
            else {"questions": behaved.asked, "mode": behaved.mode, "compositions": behaved.compositions},
            "looked_at": list(self.looked_at),
            "notes": list(self.notes),
        }

    def table(self) -> list[tuple[str, ...]]:
        """One row of COLUMNS for each finding, for people; a stranger's text is in it as it is."""
        return [
            (
                finding.part,
                finding.kind,
                ", ".join(dict.fromkeys(name[:12] for name in finding.patches)),
                finding.what,
                ", ".join(f"{name} {value:.2f}" for name, value in finding.numbers.items()),
                finding.remedy,
            )
            for finding in self.findings
        ]

    def svg(self) -> str:
        """The heat-map: edits while there are few, else patches, else a list of the strongest pairs. See `heatmap`."""
        places = list(self.edits)
        names = list(dict.fromkeys(name for name, _ in places))
        by_edit = len(places) <= MAX_SIDE
        number: dict[Any, int] = {key: at for at, key in enumerate(places if by_edit else names)}
        if by_edit:
            labels = [f"{edit.prompt} {edit.target}" for edit in self.edits.values()]
        else:
            count = Counter(name for name, _ in places)
            labels = [f"{name[:8]}: {self.edits[name, 0].prompt}, {count[name]} edits" for name in names]
        cells: dict[tuple[int, int], Cell] = {}
        for a, b, value, mark, told in self._pairs():
            i, j = sorted((number[a if by_edit else a[0]], number[b if by_edit else b[0]]))
            if i != j:
                before = cells.get((i, j), Cell(0.0, ""))
                said = "; ".join(dict.fromkeys(text for text in (before.told, told) if text))
                cells[i, j] = Cell(max(before.value, value), said, min(before.mark, mark, key=_MARKS.index))
        title = f"Overlap of {len(labels)} {'edits' if by_edit else 'patches'}"
        return heatmap(
            title,
            labels,
            cells,
            "shade: |rho| of their keys; × two answers; ! broken; ○ would answer the other's question",
        )

    def _pairs(self) -> Iterator[tuple[Place, Place, float, str, str]]:
        for found in self.geometry.values():
            for near in found.near:
                yield near.a, near.b, abs(near.rho), "", f"{near.kind}, rho {near.rho:.2f}"
        for finding in self.findings:
            sign = {"textual": "×", "gate": "○", "behavioural": "!"}.get(finding.part)
            known = [(p, 0 if e is None else e) for p, e in zip(finding.patches, finding.edits)]
            if sign is not None:
                for other in known[1:]:
                    yield (
                        known[0],
                        other,
                        max((abs(v) for k, v in finding.numbers.items() if k == "rho"), default=0.0),
                        sign,
                        finding.kind,
                    )


_MARKS = ["×", "!", "○", ""]  # the gravest first


def _module(found: Geometry) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "near_count": found.near_count,
        "cross_talk": found.cross_talk,
        "safe_to_add": None if found.cross_talk is None else found.cross_talk < SAFE_SUM,
        "near": [{**vars(near), "a": list(near.a), "b": list(near.b), "kind": near.kind} for near in found.near],
        "edits": [{**vars(one), "kind": one.kind} for one in found.edits],
        "patches": [{k: v for k, v in vars(one).items() if k != "edit"} | {"kind": one.kind} for one in found.patches],
    }


def conflicts(
    stack: PatchStack,
    *,
    profiles: Mapping[str, BaseProfile] | None = None,
    model: nn.Module | None = None,
    tokenizer: Any = None,
    behaviour: bool = False,
    settings: StackSettings = StackSettings(),  # noqa: B008 (frozen)
    models: Models = NO_MODELS,
    progress: Progress | None = None,
) -> ConflictReport:
    """All that can be found with what is given: without profiles the textual part alone.

    profiles: by path of the edited module. settings: how the stack is composed; mode "sum" also warns where sums are not
    safe. behaviour: also ask `model`, see kedit_hub.evaluate.interference for what that costs; models: that patches name. KeditError where
    something for it is missing.
    """
    if behaviour and (model is None or tokenizer is None or profiles is None):
        raise KeditError("behaviour=True asks the base, so it takes model=, tokenizer= and profiles=")
    edits = {(patch.id, i): edit for patch in stack for i, edit in enumerate(patch.edits)}
    look = _Look(stack, edits)
    findings = list(look.textual())
    looked_at: list[Part] = ["textual"]
    notes: list[str] = []
    measured: dict[str, Geometry] = {}
    suspects: dict[str, list[str]] = {}
    if profiles is None:
        notes.append("no base profile: how the rows overlap was not looked at")
    else:
        looked_at += ["geometric", "gate"]
        gates: list[Finding] = []
        for path in sorted({path for patch in stack for path in patch.deltas}):
            profile = profiles.get(path)
            if profile is None:
                notes.append(f"no base profile for {path}: how the rows there overlap was not looked at")
                continue
            found, fires, said = look.module(path, profile, settings)
            notes += said
            if found is not None:
                measured[path] = found
                findings += look.geometric(path, profile, found, settings)
                gates += [look.gate(path, one) for one in fires]
                near = [(one.a[0], one.b[0]) for one in found.near] + [(one.a[0], one.b[0]) for one in fires]
                for a, b in near:
                    suspects.setdefault(a, []).append(b)
                    suspects.setdefault(b, []).append(a)
        findings += gates
    behaved = None
    if behaviour and model is not None and profiles is not None:
        behaved = _behaviour(
            stack, model, tokenizer, profiles, suspects=suspects, settings=settings, models=models, progress=progress
        )
        looked_at.append("behavioural")
        findings += [look.behavioural(one) for one in behaved.broken]
        if behaved.left_out:
            notes.append(
                f"{behaved.left_out} suspects were not tried: broken questions may have culprits that are not named"
            )
    return ConflictReport(tuple(findings), tuple(looked_at), tuple(notes), edits, measured, behaved)


_behaviour = behaviour  # the function, where an argument has its name


@dataclass(frozen=True)
class _Look:
    stack: PatchStack
    edits: Mapping[Place, Edit]

    def _finding(
        self,
        part: Part,
        kind: str,
        places: Sequence[Place],
        numbers: Mapping[str, float],
        what: str,
        module: str | None = None,
    ) -> Finding:
        known = [self.edits[place] for place in places]
        return Finding(
            part, kind, tuple(p for p, _ in places), tuple(e for _, e in places), tuple(e.prompt for e in known),
            tuple(e.target for e in known), numbers, what, module,
        )  # fmt: skip

    def _said(self, place: Place) -> str:
        edit = self.edits[place]
        return f'"{edit.prompt}" {edit.target}'

    def textual(self) -> Iterator[Finding]:
        for kind, found in (
            ("contradiction", self.stack.conflicts),
            ("contradiction inside a patch", contradictions_within(self.stack.patches)),
        ):
            for conflict in found:
                yield self._finding("textual", kind, (conflict.earlier, conflict.later), {}, self._told(conflict))

    def _told(self, conflict: Conflict) -> str:
        silent = {conflict.earlier, conflict.later} & self.stack.shadowed
        loser = {conflict.earlier: "; the earlier is silent", conflict.later: "; the later is silent"}
        said = loser[next(iter(silent))] if len(silent) == 1 else ""
        return f'"{conflict.question}" {conflict.targets[0]} or {conflict.targets[1]}{said}'

    def module(
        self, path: str, profile: BaseProfile, settings: StackSettings
    ) -> tuple[Geometry | None, tuple[Fires, ...], list[str]]:
        """The overlap on one module, and what had to be left out of it."""
        ordered = sorted(self.stack, key=lambda patch: patch.id)
        gateable = [patch for patch in ordered if isinstance(patch.deltas.get(path), Associative)]
        keyed = [patch for patch in ordered if patch in gateable or _has_keys(patch.deltas.get(path))]
        notes = []
        if len(keyed) < sum(path in patch.deltas for patch in ordered):
            notes.append(f"patches on {path} that store no keys were not looked at there")
        if not keyed:
            return None, (), notes
        module = nn.Identity()  # residuals are taken as stored, so no module is asked
        rows = gather(keyed, path, self.stack, module, exact=True, profile=profile)
        if not len(rows.keys):
            return None, (), notes
        found = geometry(rows, profile, settings)
        if found.near_count > len(found.near):
            notes.append(f"{path}: the {len(found.near):,} closest of {found.near_count:,} near pairs are listed")
        if not found.edits:
            notes.append(f"{path}: {found.rows:,} rows are too many to leave each out once; pairs alone were looked at")
        fires: tuple[Fires, ...] = ()
        try:
            if gateable:
                fires, count = gate_fires(
                    bank(gather(gateable, path, self.stack, module, exact=True, profile=profile), profile)
                )
                if count > len(fires):
                    notes.append(f"{path}: {len(fires):,} of {count:,} pairs that fire on each other are listed")
        except KeditError as cause:
            notes.append(f"{path}: the gate was not looked at, for {cause}")
        return found, fires, notes

    def geometric(self, path: str, profile: BaseProfile, found: Geometry, settings: StackSettings) -> Iterator[Finding]:
        for near in found.near:
            if near.kind in ("redundant", "contradicting") or (near.kind == "interfering" and abs(near.rho) >= STRONG):
                yield self._near(path, near)
        known = {(near.kind, place) for near in found.near for place in (near.a, near.b)}
        for one in found.edits:
            place = (one.patch, one.edit or 0)
            if one.kind in ("redundant", "contradicting") and (one.kind, place) not in known:
                numbers = {"kappa": one.kappa, "cosine": one.cosine, "fit": one.fit}
                said = "the same" if one.kind == "redundant" else "the contrary"
                yield self._finding(
                    "geometric",
                    one.kind,
                    [place],
                    numbers,
                    f"the others together say {said} at {self._said(place)}",
                    path,
                )
        pulled = [one for one in found.edits if one.kind in ("interfering", "contradicting") and one.fit < LOW_FIT]
        if pulled:
            worst = min(pulled, key=lambda one: one.fit)
            numbers = {"edits": float(len(pulled)), "of": float(len(found.edits)), "lowest fit": worst.fit}
            place = (worst.patch, worst.edit or 0)
            got = f"{len(pulled)} of {len(found.edits)} edits get less than {LOW_FIT:g} of what they want"
            what = f"solved jointly, {got}; worst {self._said(place)}"
            yield self._finding("geometric", "crowded", [place], numbers, what, path)
        if settings.mode == "sum" and found.cross_talk is not None and found.cross_talk >= SAFE_SUM:
            what = f"changes of these {len(found.patches)} patches, added up, are not what a joint solve gives"
            yield Finding("geometric", "unsafe sum", (), (), (), (), {"cross-talk": found.cross_talk}, what, path)
        if profile.site == "subject":
            yield from self._same_subject(path)

    def _near(self, path: str, near: Near) -> Finding:
        numbers = {"rho": near.rho, "kappa": near.kappa, "cosine": near.cosine}
        return self._finding(
            "geometric", near.kind, (near.a, near.b), numbers, f"{self._said(near.a)} | {self._said(near.b)}", path
        )

    def _same_subject(self, path: str) -> Iterator[Finding]:
        """Edits of one subject that ask different questions, where keys are taken at the subject."""
        groups: dict[str, list[Place]] = {}
        for (name, at), edit in self.edits.items():
            held = isinstance(self.stack.find(name).deltas.get(path), Associative)
            if held and edit.subject is not None and (name, at) not in self.stack.shadowed:
                groups.setdefault(fold(edit.subject), []).append((name, at))
        for subject, places in groups.items():
            if len({questions(self.edits[place])[-1] for place in places}) > 1:
                what = f"{len(places)} edits of {subject}: {'; '.join(map(self._said, places[:5]))}"
                yield self._finding("geometric", "same subject", places, {"edits": float(len(places))}, what, path)

    def gate(self, path: str, fires: Fires) -> Finding:
        kind = "answers instead" if fires.first else "answers for"
        numbers = {"subject": fires.subject, "answer": fires.answer}
        what = f"{self._said(fires.b)} would answer questions of {self._said(fires.a)}"
        return self._finding("gate", kind, (fires.b, fires.a), numbers, what, path)

    def behavioural(self, one: Broken) -> Finding:
        edit = self.edits[one.place]
        others = one.culprits
        kind = "broken" if others else "broken by several"
        asked = one.prompt if one.target is None else f"{one.prompt} {one.target}"
        what = f'{one.role} "{asked}" of {self._said(one.place)}' + (
            f" by {', '.join(o[:12] for o in others)}" if others else ""
        )
        return Finding(
            "behavioural", kind, (one.place[0], *others), (one.place[1], *[None] * len(others)), (one.prompt, *[None] * len(others)),
            (one.target if one.role == "locality" else edit.target, *[None] * len(others)),
            {"alone": one.alone, "in the stack": one.whole, "suspects tried": float(one.suspects)}, what,
        )  # fmt: skip


def _has_keys(delta: object) -> bool:
    return isinstance(delta, Weights) and delta.keys is not None

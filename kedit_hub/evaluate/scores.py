"""The score sheet: what every question was answered, and the averages over them. Law: an average never hides what it
left out; beside each stands how many probes it counts and how many were dropped for which reason, and no number mixes
two protocols.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from kedit_hub.evaluate.metrics import bootstrap_interval, harmonic_mean

ROLES = ("reliability", "generalization", "locality", "portability")

# Why a locality probe does not count.
EDITED_ON_PURPOSE = "another edit changes this fact on purpose"
NOT_KNOWN = "the base did not give the expected answer before the edit"
NO_BASE = "no unedited base to compare with: pass base=, or a patched model that can switch its patches off"
NO_ANSWER = "no expected answer given, and the base generates none"


@dataclass
class Outcome:
    """One question asked of the edited model and of its base. `scores`, `before`, `dropped` are keyed by protocol id.

    A score is in [0, 1]: for locality the agreement with the base, else the agreement with the target.
    """

    role: str  # one of ROLES; "reliability" is the edit prompt itself
    kind: str  # of probe, e.g. "neighbour"; "" for prompt and rephrases
    prompt: str
    target: str | None
    answer_before: str | None = None  # None: not generated
    answer_after: str | None = None
    contains: bool | None = None  # the generated answer holds the target as whole words
    scores: dict[str, float] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)  # the unedited base against the target
    dropped: dict[str, str] = field(default_factory=dict)  # why the score is left out of the average

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return vars(self) | {name: dict(getattr(self, name)) for name in ("scores", "before", "dropped")}


@dataclass
class EditOutcome:
    """One edit, asked after the whole stack. `questions[0]` is the edit prompt, then rephrases, then probes."""

    id: str | None
    subject: str | None
    questions: list[Outcome]

    def to_dict(self) -> dict[str, Any]:
        """The edit prompt's outcome with the other questions under "probes"."""
        own, *probes = [question.to_dict() for question in self.questions]
        del own["role"], own["kind"]
        return {"id": self.id, "subject": self.subject} | own | {"probes": probes}


@dataclass
class Scores:
    """protocols: averages by protocol id, see `aggregate` · drift: see `drift.drift` · per_edit: every outcome ·
    time in seconds · memory in bytes · fluency: n-gram entropy in bits, before and after, None unless asked for.
    """

    protocols: dict[str, dict[str, Any]]
    drift: dict[str, Any]
    per_edit: list[EditOutcome]
    environment: dict[str, Any]
    time: dict[str, float]
    memory: dict[str, int | None]
    fluency: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return vars(self) | {"per_edit": [edit.to_dict() for edit in self.per_edit]}

    def summary(self) -> str:
        """A few lines for a person: the averages with the number of probes behind each, the drift, the cost."""
        lines = [f"{len(self.per_edit)} edits, all asked after the last one"]
        for protocol, averages in self.protocols.items():
            counts = averages["n"]
            cells = [
                f"{role} {_shown(averages[role])} (n={counts[role]['scored']})"
                for role in ("reliability", "generalization")
            ]
            for role in ("locality", "portability"):
                for kind, value in averages[role].items():
                    n = counts[role][kind]
                    dropped = sum(n["dropped"].values())
                    left_out = f", {dropped} dropped" if dropped else ""
                    cells.append(f"{role}/{kind} {_shown(value)} (n={n['scored']}{left_out})")
            if "contains" in averages:
                cells.append(f"answers that contain the target {_shown(averages['contains']['reliability'])}")
            lines.append(f"{protocol}: " + ", ".join(cells))
        drift = self.drift
        reason = f" ({drift['reason']})" if drift["reason"] else ""
        lines.append(
            f"drift: perplexity {_shown(drift['ppl_before'])} -> {_shown(drift['ppl_after'])}, "
            f"KL {_shown(drift['kl'], 5)} over {drift['tokens']} tokens{reason}"
        )
        peak = self.memory["peak_rss_bytes"]
        lines.append(f"cost: {self.time['wall_s']:.1f} s" + (f", peak memory {peak / 2**20:.0f} MiB" if peak else ""))
        return "\n".join(lines)


def _shown(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


# --- averages -----------------------------------------------------------------------------------------------------

Value = Callable[[Outcome], float | None]


def aggregate(edits: Sequence[EditOutcome], protocol: str, *, seed: int = 0) -> dict[str, Any]:
    """The averages of one protocol. Each is a mean over edits of the edit's mean over its own probes, so an edit with
    many probes counts no more than one with few; None where nothing could be scored.

    reliability, generalization, locality {kind}, portability {kind} ·
    locality_unfiltered {kind}: also over the probes the base did not answer as expected (EasyEdit's choice) ·
    before: the unedited base on the same questions ·
    contains (generate only): share of answers that hold the target somewhere ·
    score: harmonic mean of reliability, generalization and the mean over kinds of locality ·
    interval: 95 % bootstrap over edits · n: edits and probes scored, probes dropped by reason.
    """

    def score(outcome: Outcome) -> float | None:
        return None if protocol in outcome.dropped else outcome.scores.get(protocol)

    def unfiltered(outcome: Outcome) -> float | None:
        return outcome.scores.get(protocol) if outcome.dropped.get(protocol) in (None, NOT_KNOWN) else None

    def before(outcome: Outcome) -> float | None:
        return outcome.before.get(protocol)

    def contained(outcome: Outcome) -> float | None:
        return None if outcome.contains is None else float(outcome.contains)

    result = _by_role(edits, lambda chosen: _mean(_per_edit(chosen, score)))
    result["locality_unfiltered"] = {
        kind: _mean(_per_edit(chosen, unfiltered)) for kind, chosen in _kinds(edits, "locality").items()
    }
    result["before"] = _by_role(edits, lambda chosen: _mean(_per_edit(chosen, before)), ROLES[:2] + ROLES[3:])
    if protocol == "generate":
        result["contains"] = _by_role(edits, lambda chosen: _mean(_per_edit(chosen, contained)), ROLES[:2] + ROLES[3:])
    locality = [value for value in result["locality"].values() if value is not None]
    parts = [result["reliability"], result["generalization"], _mean(locality)]
    result["score"] = None if None in parts else harmonic_mean(parts)
    result["interval"] = _by_role(edits, lambda chosen: _interval(_per_edit(chosen, score), seed))
    result["n"] = _by_role(edits, lambda chosen: _count(chosen, score, protocol))
    return result


Chosen = list[list[Outcome]]  # per edit, the outcomes of one role (and kind)


def _by_role(edits: Sequence[EditOutcome], of: Callable[[Chosen], Any], roles: Iterable[str] = ROLES) -> dict[str, Any]:
    """`of` for the outcomes of each role, split by kind where the role has kinds."""
    result: dict[str, Any] = {}
    for role in roles:
        if role in ("locality", "portability"):
            result[role] = {kind: of(chosen) for kind, chosen in _kinds(edits, role).items()}
        else:
            result[role] = of([[q for q in edit.questions if q.role == role] for edit in edits])
    return result


def _kinds(edits: Sequence[EditOutcome], role: str) -> dict[str, Chosen]:
    kinds = sorted({q.kind for edit in edits for q in edit.questions if q.role == role})
    return {
        kind: [[q for q in edit.questions if q.role == role and q.kind == kind] for edit in edits] for kind in kinds
    }


def _per_edit(chosen: Chosen, value: Value) -> list[float]:
    """The mean of each edit that has at least one value."""
    values = [[v for v in map(value, outcomes) if v is not None] for outcomes in chosen]
    return [fmean(own) for own in values if own]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _interval(values: Sequence[float], seed: int) -> list[float] | None:
    interval = bootstrap_interval(values, seed=seed)
    return None if interval is None else list(interval)


def _count(chosen: Chosen, value: Value, protocol: str) -> dict[str, Any]:
    outcomes = [outcome for own in chosen for outcome in own]
    return {
        "edits": len(_per_edit(chosen, value)),
        "scored": sum(value(outcome) is not None for outcome in outcomes),
        "dropped": dict(Counter(outcome.dropped[protocol] for outcome in outcomes if protocol in outcome.dropped)),
    }

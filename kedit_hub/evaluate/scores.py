"""The score sheet: what every question was answered, and the averages over them. Law: an average never hides what it
left out; beside each stands how many probes it counts and how many were dropped for which reason, and no number mixes
two protocols.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from kedit_hub.evaluate.choice import MIN_DISTRACTORS, rank
from kedit_hub.evaluate.metrics import bootstrap_interval, harmonic_mean

ROLES = ("reliability", "generalization", "locality", "portability")

# Why a question does not count.
EDITED_ON_PURPOSE = "another edit changes this fact on purpose"
NOT_KNOWN = "the base did not give the expected answer before the edit"
NO_BASE = "no unedited base to compare with: pass base=, or a patched model that can switch its patches off"
NO_ANSWER = "no expected answer given, and the base generates none"
NO_TARGET = "no expected answer given"
NO_RIVAL = "no other answer to hold against it: an edit needs its ground_truth, and a portability probe has none"
SAME_ANSWER = "both answers are the same"
NO_RELATION = "its relation is not known: give it a relation or a subject"
TOO_FEW = f"fewer than {MIN_DISTRACTORS} wrong answers of its relation at hand: pass distractors="


@dataclass
class Outcome:
    """One question asked of the edited model and of its base. `scores`, `before`, `dropped` are keyed by protocol id.

    A score is in [0, 1]: for locality the agreement with the base (under `nll-pair`, as published, the true answer against the
    new one), else the agreement with the target.
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
    aliases: tuple[str, ...] = ()  # of the target, right answers too
    rival: str | None = None  # the answer to beat: the old one; for locality the new one
    relation: str | None = None
    distractors: tuple[str, ...] = ()  # wrong answers of the same relation
    nll_before: dict[str, float | None] = field(default_factory=dict)  # answer -> mean NLL per token in nats, as far as
    nll_after: dict[str, float | None] = field(default_factory=dict)  # it was asked; None: no finite number

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: what was asked and told, and the likelihoods where there are any."""
        told = {name: value for name, value in vars(self).items() if name not in _EVIDENCE}
        told |= {name: dict(getattr(self, name)) for name in ("scores", "before", "dropped")}
        if self.aliases:
            told["aliases"] = list(self.aliases)
        if self.nll_after:
            told["rival"], told["distractors"] = self.rival, list(self.distractors)
            told["nll_before"], told["nll_after"] = dict(self.nll_before), dict(self.nll_after)
        return told


_EVIDENCE = ("aliases", "rival", "relation", "distractors", "nll_before", "nll_after")


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
    time in seconds · memory in bytes · specificity: see `specificity` · None unless asked for: fluency: n-gram entropy in bits,
    see `suites` · consistency, sentiment, negations: see the files of these names. None of these enters an average of a protocol.
    """

    protocols: dict[str, dict[str, Any]]
    drift: dict[str, Any]
    per_edit: list[EditOutcome]
    environment: dict[str, Any]
    time: dict[str, float]
    memory: dict[str, int | None]
    fluency: dict[str, Any] | None = None
    specificity: dict[str, dict[str, Any]] = field(default_factory=dict)
    consistency: dict[str, Any] | None = None
    sentiment: dict[str, Any] | None = None
    negations: dict[str, Any] | None = None

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
            if "rank" in averages:
                cells.append(
                    f"mean rank {_shown(averages['rank']['reliability'], 1)}, by chance {_shown(averages['chance']['reliability'])} right"
                )
            if protocol in LIKELIHOODS:
                cells.append(f"score {_shown(averages['score'])}, beside it {self._exact_match(protocol)}")
            lines.append(f"{protocol}: " + ", ".join(cells))
        for kind, change in self.specificity.items():
            lines.append(
                f"changed {kind} answers: {_shown(change['tokens'])} of their tokens, {_shown(change['texts'])} of the texts "
                f"(n={change['probes']})"
            )
        if self.fluency is not None:
            lines.append(f"fluency: {_both(self.fluency)} bits greedy, {_both(self.fluency['sampled'])} bits sampled")
        if self.consistency is not None:
            lines.append(f"consistency: {_both(self.consistency)} with {self.consistency['texts']} reference texts")
        if self.sentiment is not None:
            lines.append(f"sentiment: {_shown(self.sentiment['score'])} over {self.sentiment['n']} topics")
        if self.negations is not None:
            told, checked = self.negations["negated"], self.negations["fact_check"]
            lines.append(
                f"negations: the negated prompt still gets the new answer {_both(told)} (n={told['n']}); asked whether it is true, "
                f"the new answer is confirmed {_both(checked['new'])}, the old one denied {_both(checked['old'])}"
            )
        drift = self.drift
        reason = f" ({drift['reason']})" if drift["reason"] else ""
        lines.append(
            f"drift: perplexity {_shown(drift['ppl_before'])} -> {_shown(drift['ppl_after'])}, "
            f"KL {_shown(drift['kl'], 5)} over {drift['tokens']} tokens{reason}"
        )
        peak = self.memory["peak_rss_bytes"]
        lines.append(f"cost: {self.time['wall_s']:.1f} s" + (f", peak memory {peak / 2**20:.0f} MiB" if peak else ""))
        return "\n".join(lines)

    def _exact_match(self, protocol: str) -> str:
        """A model that has forgotten everything wins comparisons of likelihood by chance; what it says gives it away."""
        dead = "about 0.5" if protocol == "nll-pair" else "what chance gives"
        if "generate" not in self.protocols:
            return f"no exact match, for generate was not asked: a dead model scores {dead} here"
        exact = _shown(self.protocols["generate"]["reliability"])
        return f"exact match {exact} (a dead model scores {dead} here, and 0 there)"


def _shown(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _both(measured: dict[str, Any]) -> str:
    return f"{_shown(measured['before'])} -> {_shown(measured['after'])}"


# --- averages -----------------------------------------------------------------------------------------------------

Value = Callable[[Outcome], float | None]

LIKELIHOODS = ("nll-pair", "choice")  # protocols that compare the likelihoods of answers; nothing is said


def aggregate(edits: Sequence[EditOutcome], protocol: str, *, seed: int = 0) -> dict[str, Any]:
    """The averages of one protocol. Each is a mean over edits of the edit's mean over its own probes, so an edit with
    many probes counts no more than one with few; None where nothing could be scored.

    reliability, generalization, locality {kind}, portability {kind} ·
    locality_unfiltered {kind}: also over the probes the base did not answer as expected (EasyEdit's choice) ·
    before: the unedited base on the same questions ·
    contains (generate only): share of answers that hold the target somewhere ·
    rank, chance (choice only): mean rank of the target, 1 = first; mean of 1 / number of answers ·
    score: harmonic mean of reliability, generalization and the mean over kinds of locality ·
    interval: 95 % bootstrap over edits · n: edits and probes scored, probes dropped by reason.

    Under `nll-pair` reliability, generalization and locality "neighbour" are the published efficacy, paraphrase and neighbourhood
    success, `score` is S, the harmonic mean of these three, and `before` has locality too: it is no comparison with the base.
    """

    def score(outcome: Outcome) -> float | None:
        return None if protocol in outcome.dropped else outcome.scores.get(protocol)

    def unfiltered(outcome: Outcome) -> float | None:
        return outcome.scores.get(protocol) if outcome.dropped.get(protocol) in (None, NOT_KNOWN) else None

    def before(outcome: Outcome) -> float | None:
        return outcome.before.get(protocol)

    def contained(outcome: Outcome) -> float | None:
        return None if outcome.contains is None else float(outcome.contains)

    def placed(outcome: Outcome) -> float | None:
        answers = {outcome.target, *outcome.distractors}
        if (
            score(outcome) is None or outcome.target is None or not answers <= set(outcome.nll_after)
        ):  # a stranger's sheet may lack any
            return None
        return float(rank(outcome.target, outcome.distractors, outcome.nll_after))

    def by_chance(outcome: Outcome) -> float | None:
        return None if placed(outcome) is None else 1 / (1 + len(outcome.distractors))

    result = _by_role(edits, lambda chosen: _mean(_per_edit(chosen, score)))
    result["locality_unfiltered"] = {
        kind: _mean(_per_edit(chosen, unfiltered)) for kind, chosen in _kinds(edits, "locality").items()
    }
    told = ROLES if protocol == "nll-pair" else ROLES[:2] + ROLES[3:]
    result["before"] = _by_role(edits, lambda chosen: _mean(_per_edit(chosen, before)), told)
    if protocol == "generate":
        result["contains"] = _by_role(edits, lambda chosen: _mean(_per_edit(chosen, contained)), told)
    if protocol == "choice":
        result["rank"] = _by_role(edits, lambda chosen: _mean(_per_edit(chosen, placed)))
        result["chance"] = _by_role(edits, lambda chosen: _mean(_per_edit(chosen, by_chance)))
    counted = [kind for kind in result["locality"] if protocol != "nll-pair" or kind == "neighbour"]
    locality = [value for kind in counted if (value := result["locality"][kind]) is not None]
    parts = [result["reliability"], result["generalization"], _mean(locality)]
    result["score"] = None if None in parts else harmonic_mean(parts)
    result["interval"] = _by_role(edits, lambda chosen: _interval(_per_edit(chosen, score), seed))
    result["n"] = _by_role(edits, lambda chosen: _count(chosen, score, protocol))
    return result


def specificity(edits: Sequence[EditOutcome]) -> dict[str, dict[str, Any]]:
    """By kind of locality probe: how much of what the base said the edits changed, in tokens and in whole texts.

    tokens: share of the forced tokens at which edited model and base differ.  texts: share of the generated texts that differ.
    Both over the same probes, those that both protocols asked; also the ones the base answered wrong, not the ones edited on
    purpose. Means over edits of the edit's mean, as in `aggregate`. Kinds that nothing is known of are left out.
    """

    def counts(outcome: Outcome) -> bool:
        return {"tf-token", "generate"} <= set(outcome.scores) and EDITED_ON_PURPOSE not in outcome.dropped.values()

    result = {}
    for kind, chosen in _kinds(edits, "locality").items():
        asked = [list(filter(counts, own)) for own in chosen]
        if any(asked):
            result[kind] = {
                "tokens": _mean(_per_edit(asked, lambda q: 1 - q.scores["tf-token"])),
                "texts": _mean(_per_edit(asked, lambda q: 1 - q.scores["generate"])),
                "edits": sum(map(bool, asked)),
                "probes": sum(map(len, asked)),
            }
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

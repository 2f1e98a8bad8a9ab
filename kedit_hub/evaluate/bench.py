"""Measuring one cell of a benchmark. Law: nothing here knows an editor. It is handed patches and a way to put them on a base, asks every
edit after the last patch, and says what the patches cost.

    asking = Asking(protocols=("tf-token", "generate"), drift_texts=texts)
    alone(made, attach, asking)                   # the suite "single": a model for each patch
    together(made, edits, attach, asking)         # every other suite: one model with all patches
    rewritten(base, tokenizer, batches, write, asking)      # the weights are changed again and again, each time on what is left
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from kedit_hub.edits import Edit
from kedit_hub.evaluate.cache import Question
from kedit_hub.evaluate.crew import Crew
from kedit_hub.evaluate.drift import PLAIN_TEXTS, texts_digest
from kedit_hub.evaluate.protocols import DEFAULT_PROTOCOLS
from kedit_hub.evaluate.questions import drop_edited
from kedit_hub.evaluate.run import Efficiency
from kedit_hub.evaluate.scores import Scores, aggregate, specificity
from kedit_hub.evaluate.suites import distractors_digest, evaluate
from kedit_hub.patch.patch import Patch


@dataclass(frozen=True)
class Cost:
    """Of making one patch. Seconds, train_s of them once for all patches of an editor; sizes in bytes, None where the system tells none."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    train_s: float = 0.0
    artifact_bytes: int = 0
    peak_rss_bytes: int | None = None
    peak_device_bytes: int | None = None


@dataclass(frozen=True)
class Made:
    """What came of the edits of one patch. patch: None where the editor failed on every one of them."""

    edits: tuple[Edit, ...]
    patch: Patch | None
    cost: Cost

    @property
    def failed(self) -> int:
        """Edits that did not take. They are asked all the same."""
        return len(self.edits) - (0 if self.patch is None else len(self.patch.edits))


Attach = Callable[[Sequence[Patch]], Any]  # -> PatchedModel, also of no patch at all
Write = Callable[[Any, Sequence[Edit]], tuple[Any, Made]]  # a plain model -> another one that holds the edits too


@dataclass(frozen=True)
class Asking:
    """How the cells of a benchmark are asked, see `evaluate`. The processes of a crew share the edits among them.

    told_by_base: of the one base that all these cells are measured on; it is filled as they are.
    """

    protocols: tuple[str, ...] = DEFAULT_PROTOCOLS
    distractors: Mapping[str, Sequence[str]] | None = None
    drift_texts: tuple[str, ...] = PLAIN_TEXTS
    fluency: bool = False
    batch_size: int = 64
    crew: Crew = field(default_factory=Crew)
    told_by_base: dict[Question, Any] | None = None

    def how(self) -> dict[str, Any]:
        """As it enters `Run.key`."""
        return {
            "protocols": self.protocols,
            "texts_sha256": texts_digest(self.drift_texts),
            "fluency": self.fluency,
            "distractors": None if self.distractors is None else distractors_digest(self.distractors),
        }

    def one(self, model: Any, edits: Sequence[Edit], **of_plain: Any) -> Scores:
        """On this process. of_plain: tokenizer and base of a model that is not patched."""
        return evaluate(
            model, edits, protocols=self.protocols, distractors=self.distractors, drift_texts=self.drift_texts,
            fluency=self.fluency, batch_size=self.batch_size, told_by_base=self.told_by_base, **of_plain,
        )  # fmt: skip

    def shared(self, build: Callable[[], Any], edits: Sequence[Edit], **of_plain: Any) -> Scores:
        """The same scores of the model that `build` makes; every process asks its share of the edits, the first also reads the texts."""
        team = self.crew
        if team.size == 1:
            return self.one(build(), edits, **of_plain)
        questions, texts = replace(self, drift_texts=(), fluency=False), replace(self, protocols=())
        model = team.each(build)

        def share(rank: int) -> tuple[Scores, Scores | None]:
            own = questions.one(model, edits[rank :: team.size], **of_plain)
            return own, texts.one(model, edits, **of_plain) if rank == 0 else None

        told = team.map(range(team.size), share)
        parts, whole = [own for own, _ in told], told[0][1]
        assert whole is not None
        outcomes = [parts[at % team.size].per_edit[at // team.size] for at in range(len(edits))]
        drop_edited(outcomes, edits, [*edits, *getattr(getattr(model, "stack", None), "edits", ())], self.protocols)
        return replace(
            whole,
            protocols={name: aggregate(outcomes, name) for name in self.protocols},
            per_edit=outcomes,
            specificity=specificity(outcomes),
            environment=parts[0].environment,
            **_spent([whole, *parts], len(edits)),
        )


def together(made: Sequence[Made], edits: Sequence[Edit], attach: Attach, asking: Asking) -> Scores:
    """All patches on one model, and all edits asked of it."""
    return asking.shared(lambda: attach(_patches(made)), edits)


def alone(made: Sequence[Made], attach: Attach, asking: Asking) -> Scores:
    """Every patch on a model of its own, which is asked that patch's edits. Averages are over all edits, drift and fluency over models."""
    sheets = asking.crew.map(made, lambda one: asking.one(attach(_patches([one])), one.edits))
    outcomes = [outcome for sheet in sheets for outcome in sheet.per_edit]
    drifts, fluent = [sheet.drift for sheet in sheets], [sheet.fluency for sheet in sheets if sheet.fluency is not None]
    reasons = (drift["reason"] for drift in drifts if drift["reason"] is not None)
    return replace(
        sheets[0],
        protocols={name: aggregate(outcomes, name) for name in asking.protocols},
        per_edit=outcomes,
        specificity=specificity(outcomes),
        drift={**drifts[0], **_means(drifts, "ppl_before", "ppl_after", "kl"), "reason": next(reasons, None)},
        fluency=_fluency(fluent) if fluent else None,
        **_spent(sheets, len(outcomes)),
    )


def rewritten(
    base: Any, tokenizer: Any, batches: Sequence[Sequence[Edit]], write: Write, asking: Asking
) -> tuple[Scores, list[Made]]:
    """Patch after patch made on the weights that the ones before have left, and written into them; all edits asked after the last one.
    Every process of a crew does all of it, for each step needs the one before."""
    made: list[Made] = []

    def build() -> Any:
        model = base
        for batch in batches:
            model, one = write(model, batch)
            made.append(one)
        size = sum(weight.nbytes for weight in model.parameters())  # the whole model is all there is to hand on
        made[-1] = replace(made[-1], cost=replace(made[-1].cost, artifact_bytes=size))
        return model

    scores = asking.shared(build, [edit for batch in batches for edit in batch], base=base, tokenizer=tokenizer)
    return scores, made


def retention(scores: Scores, sizes: Iterable[int]) -> dict[str, float]:
    """{"10": reliability of the first 10 edits, asked after the last one} for the sizes up to the number of edits; under `generate`
    where it was asked, else under the first protocol. A share that nothing is known of is left out."""
    protocol = "generate" if "generate" in scores.protocols else next(iter(scores.protocols), "")
    shares = {
        str(first): aggregate(scores.per_edit[:first], protocol)["reliability"]
        for first in sorted(set(sizes))
        if first <= len(scores.per_edit)
    }
    return {first: share for first, share in shares.items() if share is not None}


def efficiency(costs: Sequence[Cost], edits: int) -> Efficiency:
    """What patches of so many edits cost together."""
    return Efficiency(
        edit_cpu_s=sum(cost.cpu_s for cost in costs) / edits,
        edit_wall_s=sum(cost.wall_s for cost in costs) / edits,
        train_s=max((cost.train_s for cost in costs), default=0.0),
        artifact_bytes=sum(cost.artifact_bytes for cost in costs),
        peak_rss_bytes=_most(cost.peak_rss_bytes for cost in costs),
        peak_device_bytes=_most(cost.peak_device_bytes for cost in costs),
    )


def _patches(made: Sequence[Made]) -> list[Patch]:
    return [one.patch for one in made if one.patch is not None]


def _means(sheets: Sequence[Mapping[str, Any]], *names: str) -> dict[str, float | None]:
    """Mean of each; None where one sheet knows it not."""
    columns = {name: [sheet[name] for sheet in sheets] for name in names}
    return {name: None if None in column else fmean(column) for name, column in columns.items()}


def _fluency(sheets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sampled = [sheet["sampled"] for sheet in sheets]
    return {
        **_means(sheets, "before", "after"),
        "sampled": {**sampled[0], **_means(sampled, "before", "after")},
        "n": sum(sheet["n"] for sheet in sheets),
    }


def _spent(sheets: Sequence[Scores], edits: int) -> dict[str, Any]:
    """Seconds of all processes together, memory of the largest."""
    wall = sum(sheet.time["wall_s"] for sheet in sheets)
    return {
        "time": {
            "wall_s": wall,
            "cpu_s": sum(sheet.time["cpu_s"] for sheet in sheets),
            "wall_s_per_edit": wall / edits,
        },
        "memory": {name: _most(sheet.memory[name] for sheet in sheets) for name in sheets[0].memory},
    }


def _most(sizes: Iterable[int | None]) -> int | None:
    return max((size for size in sizes if size is not None), default=None)

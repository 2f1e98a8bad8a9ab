"""Building a base profile: where facts of this base are edited best, measured on dev edits and not guessed.

Four steps, each on the same dev edits, each written into the profile's table with what it scored:

1. site and layer   edits made at every candidate, stacked behind the gate at default thresholds; a tenth of the score of
                    the joint solve is added, since exports carry that form
2. value settings   step size and bound of the value optimisation at the chosen place
3. gate             early layer and the two thresholds
4. drift budget     of the joint solve over the same edits

and at the chosen place, once, the second moment of where facts are told (kedit_hub.editors.sites).

The score of a candidate is the harmonic mean of reliability, generalization and locality by kind, teacher-forced and strict (every token of
the answer). Without dev edits nothing can be measured: the layer then follows published practice and the profile says so.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kedit_hub.base.families import edited_linear, family_of, n_layers, refuse_encoder_decoder
from kedit_hub.base.moments import second_moments
from kedit_hub.base.profile import BaseProfile, GateSettings, Settings, Site, ValueSettings
from kedit_hub.editors.editor import make_patch, progress_bar
from kedit_hub.editors.own_words import answer_end, sample_texts
from kedit_hub.editors.presets import published_layer
from kedit_hub.editors.sites import map_energy, with_sites
from kedit_hub.edits import Edit
from kedit_hub.errors import EditFailedError, ProfileError
from kedit_hub.evaluate.metrics import harmonic_mean
from kedit_hub.evaluate.protocols import Forced, teacher_forced
from kedit_hub.patch.patch import Patch
from kedit_hub.runtime.attach import Attachment
from kedit_hub.stack.compose import compose
from kedit_hub.stack.settings import Mode, StackSettings
from kedit_hub.stack.stack import PatchStack

PLACE_EDITS = 20  # dev edits for steps 1 and 2
DEV_EDITS = 48  # dev edits for steps 3 and 4
VALUES = (ValueSettings(lr=0.2, clamp=1.5), ValueSettings(lr=0.1, clamp=1.0), ValueSettings(lr=0.3, clamp=2.0))
SUBJECT_THRESHOLDS = (0.5, 0.6, 0.7, 0.8)
ANSWER_THRESHOLDS = (0.3, 0.4, 0.5)
TRIAL_BUDGET = 0.2  # of the joint solve in step 1
BUDGETS = (0.05, 0.1, 0.2, 0.4, 0.8)
FEW = (
    40  # probes of a kind below which it is pooled with other such kinds: a mean over a handful would decide everything
)
MAX_LAYERS = 8  # candidates at most; deep models are sampled evenly over their first three quarters


def build_profile(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str] | None = None,
    layer: int | Literal["auto"] = "auto",
    *,
    site: Site | Literal["auto"] = "auto",
    edits: Sequence[Edit] | None = None,
    gate_layer: int = 0,
    name: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> BaseProfile:
    """Measure a base. The model is left as it was.

    texts: ordinary text for the second moments (None: sampled from the model itself). layer, site: fix the place instead of sweeping it.
    edits: dev edits with rephrases and locality probes, whose facts the base should know; never the ones results are reported on.
    gate_layer: early layer of the gate where nothing is swept. name: how the base is called in the profile (default: where it was
    loaded from). seed: for sampled text and contexts.
    ProfileError when fewer than 2 tokens per dimension of text are given, or no dev edit can be made anywhere.
    """
    refuse_encoder_decoder(model, "a base profile")
    source = "given"
    if texts is None:
        texts, source = sample_texts(model, tokenizer, 2000, seed=seed), f"sampled from the model, seed {seed}"
    depth = n_layers(model)
    if isinstance(layer, int) and not 0 <= layer < depth:
        raise ProfileError(f'layer {layer} is none of 0 to {depth - 1} of this model: choose one, or "auto"')
    if isinstance(layer, int):
        places = [layer]
    else:
        places = candidate_layers(depth) if edits else [published_layer(model.config)]
    paths = {i: edited_linear(model, i)[0] for i in sorted({0, 1, gate_layer, *places}) if i < depth}
    moments, tokens = second_moments(model, tokenizer, texts, list(paths.values()))
    width = len(moments[paths[places[0]]])
    if tokens < 2 * width:
        raise ProfileError(
            f"{tokens} tokens of text are too few for a second moment of {width} dimensions: give at least {2 * width} (more texts)"
        )
    end = answer_end(model, tokenizer, edits or ())
    contexts = _contexts(texts, seed)
    measured = _Measured(model, tokenizer, moments, paths, tokens, source, contexts, name or _name(model), end)
    if not edits:
        if family_of(model).parallel:  # there the MLP of layer 0 reads the token alone, not the words before it
            gate_layer = min(max(gate_layer, 1), places[0])
        where: Site = "answer" if site == "auto" else site
        return measured.profile(places[0], where, gate_layer, ValueSettings(), GateSettings(), 0.05, 0.0, ())
    return with_sites(model, tokenizer, _sweep(measured, places, site, edits, progress), edits)


def candidate_layers(layers: int) -> list[int]:
    """All but the last of a shallow model; of a deep one, MAX_LAYERS evenly over the first three quarters."""
    last = layers - 1 if layers <= MAX_LAYERS + 1 else 3 * layers // 4
    count = min(last, MAX_LAYERS)
    return sorted({round(i * (last - 1) / max(count - 1, 1)) for i in range(count)})


def _contexts(texts: Sequence[str], seed: int, count: int = 4) -> tuple[str, ...]:
    """A few short sentences of the text, to stand before a prompt when keys and values are measured."""
    generator = torch.Generator().manual_seed(seed)
    chosen: list[str] = []
    for index in torch.randperm(len(texts), generator=generator).tolist():
        sentence = " ".join(texts[index].split(".")[0].split()[:12]).replace("{", "").replace("}", "") + "."
        if len(sentence.split()) >= 3 and sentence not in chosen:
            chosen.append(sentence)
        if len(chosen) == count:
            break
    return tuple(chosen)


def _name(model: Any) -> str:
    return str(getattr(model.config, "_name_or_path", "") or model.config.model_type).rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True)
class _Measured:
    """The base and everything about it that does not depend on the choices of the sweep."""

    model: Any
    tokenizer: Any
    moments: Mapping[str, Tensor]
    paths: Mapping[int, str]
    tokens: int
    source: str
    contexts: tuple[str, ...]
    name: str
    answer_end: str

    def profile(
        self, layer: int, site: Site, gate_layer: int, value: ValueSettings, gate: GateSettings, budget: float, norm: float,
        table: Sequence[dict[str, Any]],
    ) -> BaseProfile:  # fmt: skip
        path, linear = edited_linear(self.model, layer)
        c0 = self.moments[path]
        settings = Settings(
            base=self.name,
            model_type=self.model.config.model_type,
            layer=layer,
            site=site,
            gate_layer=gate_layer,
            module=path,
            gate_module=self.paths[gate_layer],
            contexts=self.contexts,
            answer_end=self.answer_end,
            value=value,
            gate=gate,
            drift_budget=budget,
            energy=map_energy(linear, c0),
            reference_norm=norm,
            tokens=self.tokens,
            texts=self.source,
            sweep=tuple(table),
        )
        return BaseProfile(settings, c0.float(), self.moments[self.paths[gate_layer]].float())


# -- the sweep ------------------------------------------------------------------------------------------------------------------------


def _sweep(measured: _Measured, places: Sequence[int], site: str, edits: Sequence[Edit], progress: bool) -> BaseProfile:
    sites: Sequence[Site] = ("answer", "subject") if site == "auto" else (site,)  # type: ignore[assignment]
    dev = list(edits[:DEV_EDITS])
    few, exam_few = dev[:PLACE_EDITS], _Exam(measured, dev[:PLACE_EDITS])
    table: list[dict[str, Any]] = []
    gate = GateSettings(subject=0.5, answer=0.4)
    steps = (
        len(sites) * len(places) + len(VALUES) - 1 + 2 * len(SUBJECT_THRESHOLDS) * len(ANSWER_THRESHOLDS) + len(BUDGETS)
    )

    def note(step: str, profile: BaseProfile, scores: dict[str, float], **more: Any) -> float:
        score = _score(scores)
        s = profile.settings
        table.append(
            {
                "step": step,
                "layer": s.layer,
                "site": s.site,
                **more,
                **{k: round(v, 4) for k, v in scores.items()},
                "score": round(score, 4),
            }
        )
        advance(1)
        return score

    with progress_bar("measuring the base", steps) if progress else nullcontext(lambda done: None) as advance:
        tried: list[tuple[float, BaseProfile]] = []

        def attempt(step: str, layer: int, where: Site, value: ValueSettings) -> None:
            profile = measured.profile(layer, where, 0, value, gate, TRIAL_BUDGET, 0.0, ())
            gated, joint = exam_few.sit(profile)
            score = note(step, profile, gated, lr=value.lr, clamp=value.clamp, joint=round(_score(joint), 4))
            tried.append((score + 0.1 * _score(joint), profile))

        for where, at in itertools.product(sites, places):
            attempt("place", at, where, VALUES[0])
        score, best = max(tried, key=lambda pair: pair[0])
        if score == 0:
            raise ProfileError(
                f"none of the {len(few)} dev edits could be made at any of the layers {list(places)}: are these facts the base knows?"
            )
        for value in VALUES[1:]:
            attempt("value", best.layer, best.site, value)
        best = max(tried, key=lambda pair: pair[0])[1]

        exam = _Exam(measured, dev)
        patches: dict[int, Patch] = {}
        ranked: list[tuple[float, float, BaseProfile]] = []
        for early in sorted({0, min(1, best.layer)}):
            profile = measured.profile(best.layer, best.site, early, best.settings.value, gate, 0.05, 0.0, ())
            patch = patches[early] = exam.patch(profile)
            for subject, answer in itertools.product(SUBJECT_THRESHOLDS, ANSWER_THRESHOLDS):
                tuned = profile.replace(gate=GateSettings(subject=subject, answer=answer))
                score = note(
                    "gate", tuned, exam.grade(patch, tuned, "gated"), gate_layer=early, subject=subject, answer=answer
                )
                ranked.append((score, -abs(subject - 0.6) - abs(answer - 0.4), tuned))
        best = max(ranked, key=lambda entry: entry[:2])[2]  # equal scores: the middle of the grid

        patch = patches[best.settings.gate_layer]
        budgets = [
            (note("budget", best, exam.grade(patch, best, "joint", budget), budget=budget), -budget)
            for budget in BUDGETS
        ]
        budget = -max(budgets)[1]
    residuals = next(iter(patch.deltas.values())).residuals  # type: ignore[attr-defined]
    s = best.settings
    return measured.profile(
        best.layer, best.site, s.gate_layer, s.value, s.gate, budget, residuals.norm(dim=1).mean().item(), table
    )


def _score(scores: Mapping[str, float]) -> float:
    return harmonic_mean(list(scores.values())) if scores else 0.0


class _Exam:
    """Fixed questions about a list of dev edits, with the base's own answers to the locality probes."""

    def __init__(self, measured: _Measured, edits: Sequence[Edit]):
        self.measured = measured
        self.edits = edits
        changed = {(edit.subject, edit.relation) for edit in edits}
        self.questions: dict[str, list[tuple[str, str]]] = {"reliability": [(e.prompt, e.target) for e in edits]}
        self.agreement: dict[str, tuple[list[tuple[str, str]], list[Forced]]] = {}
        self.questions["generalization"] = [(r, e.target) for e in edits for r in e.rephrases]
        probes = [
            p for e in edits for p in e.locality if p.target is not None and (p.subject, p.relation) not in changed
        ]
        counts = Counter(probe.kind for probe in probes)
        groups = {kind: kind if count >= FEW else "locality" for kind, count in counts.items()}
        for group in sorted(set(groups.values())):
            asked = [(p.prompt, str(p.target)) for p in probes if groups[p.kind] == group]
            told = self._answer(asked)
            known = [pair for pair, answer in zip(asked, told) if answer.accuracy == 1.0]
            if 2 * len(known) >= len(asked):
                self.questions[group] = known
            else:  # a base that does not know these facts can still be kept from changing what it says
                self.agreement[group] = (asked, told)

    def _answer(self, pairs: Sequence[tuple[str, str]]) -> list[Forced]:
        return teacher_forced(self.measured.model, self.measured.tokenizer, pairs, batch_size=128)

    def patch(self, profile: BaseProfile) -> Patch:
        m = self.measured
        return make_patch(
            m.model, m.tokenizer, self.edits, profile, method="memit", settings={"failed": "drop"}, base=("dev", None), progress=False
        )  # fmt: skip

    def sit(self, profile: BaseProfile) -> tuple[dict[str, float], dict[str, float]]:
        """Edits made under `profile`, stacked behind its gate and as a joint solve."""
        try:
            patch = self.patch(profile)
        except EditFailedError:
            return {"reliability": 0.0}, {"reliability": 0.0}
        return self.grade(patch, profile, "gated"), self.grade(patch, profile, "joint")

    def grade(self, patch: Patch, profile: BaseProfile, mode: Mode, budget: float | None = None) -> dict[str, float]:
        with _attached(self.measured.model, patch, profile, mode, budget):
            right = {
                name: sum(answer.accuracy == 1.0 for answer in self._answer(pairs)) / len(pairs)
                for name, pairs in self.questions.items()
                if pairs
            }
            same = {
                name: sum(answer.agreement(before) == 1.0 for answer, before in zip(self._answer(pairs), told))
                / len(pairs)
                for name, (pairs, told) in self.agreement.items()
                if pairs
            }
            return right | same


@contextmanager
def _attached(model: Any, patch: Patch, profile: BaseProfile, mode: Mode, budget: float | None) -> Iterator[None]:
    made = compose(
        PatchStack([patch]),
        model,
        {profile.module: profile},
        mode=mode,
        settings=StackSettings(budget=budget),
        levels={profile.module: "exact"},
    )
    attachment = Attachment(model, made.branches, made.watchers)
    try:
        yield
    finally:
        attachment.detach()

"""The training of SERAC's scope and counterfactual model. Law: a function of (base, lessons, settings, seed); killed and resumed, it ends
with the same bits, for every step draws from a generator of its own.

    scope    -log p of an edit's prompt with another way to ask it; -log(1 - p) with its locality probes and with other edits, of which the
             nearest count most
    reader   -log likelihood of the target and its end after "<fact>\\n<question>", and the head's cross-entropy of in scope and out

p = exp(-|q - e|^2) (Mitchell et al. 2022, eq. 3). The base only reads.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kedit_hub.base.families import edited_linear, linear_shape
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.editors.hyper.lessons import Lesson, split
from kedit_hub.editors.hyper.state import check_readable, named, restoring, shapes, unnamed
from kedit_hub.editors.hyper.train import Checkpoint, Nothing, Trained
from kedit_hub.editors.job import Advance
from kedit_hub.editors.memory.asked import late_layer
from kedit_hub.editors.memory.seracnet import Serac, SeracTraining, read_rows
from kedit_hub.edits import Edit
from kedit_hub.errors import EditError
from kedit_hub.evaluate.metrics import harmonic_mean
from kedit_hub.stack.facts import told

TEXTS = 256  # read by the base at once
LOG = ("step", "loss", "reliability", "generalization", "locality", "cross_inside", "cross_outside", "score")
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
LEAST = 1e-4  # of a squared distance, below which log(1 - p) is not followed


def last_inputs(model: nn.Module, tokenizer: Any, path: str, texts: Sequence[str]) -> Tensor:
    """(n, d) float32 inputs of the map at the last tokens of texts."""
    parts = []
    for start in range(0, len(texts), TEXTS):
        encoded = encode(tokenizer, texts[start : start + TEXTS])
        read = capture(model, [path], encoded)[path].cpu()
        parts.append(read[torch.arange(len(read)), encoded.prompt_last])
    return torch.cat(parts)


class _Questions:
    """What the lessons ask, in scope and out, and what the base makes of it."""

    def __init__(self, lessons: Sequence[Lesson]):
        self.lessons = [lesson for lesson in lessons if lesson.asked_otherwise and lesson.edit.locality]
        if not self.lessons:
            raise EditError(
                "SERAC learns from edits with other ways to ask them and with locality probes, and none of these has both: add them"
            )
        self.texts: dict[str, int] = {}
        for lesson in self.lessons:
            for text in (
                lesson.edit.prompt,
                *lesson.asked_otherwise,
                *(probe.prompt for probe in lesson.edit.locality),
            ):
                self.texts.setdefault(text, len(self.texts))
        told = [*self.texts, *(lesson.edit.target for lesson in self.lessons)]
        self.words = sorted({word.strip(",.?!:") for text in told for word in text.split()} - {""})
        self.targets = sorted({lesson.edit.target for lesson in self.lessons})

    def draw(self, rng: random.Random, size: int) -> tuple[list[Lesson], list[str], list[str]]:
        """Lessons about different subjects, for each a question in its scope and one out of it."""
        found: dict[str, Lesson] = {}
        for lesson in rng.sample(self.lessons, min(len(self.lessons), 2 * size)):
            found.setdefault(lesson.about, lesson)
        some = list(found.values())[:size]
        inside = [rng.choice((lesson.edit.prompt, *lesson.asked_otherwise)) for lesson in some]
        outside = [rng.choice(lesson.edit.locality).prompt for lesson in some]
        return some, inside, outside

    def vary(self, rng: random.Random, lesson: Lesson, inside: str, outside: str) -> tuple[Edit, str, str]:
        """The same lesson, often with another target, an invented subject, or as a question out of scope the same about somebody else."""

        def invented() -> str:
            return " ".join(rng.sample(self.words, min(rng.randint(1, 3), len(self.words))))

        prompt, target, subject = lesson.edit.prompt, lesson.edit.target, lesson.edit.subject
        if rng.random() < 0.7:
            target = rng.choice(self.targets) if rng.random() < 0.5 else invented()
        if subject and subject in prompt and subject in inside:
            if rng.random() < 0.3:
                outside = inside.replace(subject, invented())
            if rng.random() < 0.6:
                name = invented()
                prompt, inside, outside = (text.replace(subject, name) for text in (prompt, inside, outside))
        return Edit(prompt, target), inside, outside


def scope_loss(edits: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Of embeddings (n, e): edits, questions in the scope of each, and out of it."""
    near, far = torch.cdist(inside, edits) ** 2, torch.cdist(outside, edits) ** 2  # (n, n)
    own = torch.eye(len(edits), dtype=torch.bool)
    others = near.masked_select(~own)
    nearest = torch.cat([near.masked_fill(own, torch.inf).amin(1), far.diagonal(), far.amin(1)])
    return near.diagonal().mean() + _apart(nearest) + 0.1 * _apart(torch.cat([others, far.flatten()]))


def _apart(distances: Tensor) -> Tensor:
    return -torch.log1p(-torch.exp(-distances.clamp_min(LEAST))).mean()


def train_scope(questions: _Questions, features: Tensor, settings: SeracTraining, seed: int) -> Tensor:
    """The projection (e, d). features (texts, d)."""
    size = features.norm(dim=1).mean()
    drawn = torch.Generator().manual_seed(seed)
    start = 3 * torch.randn(settings.width, features.shape[1], generator=drawn) / features.shape[1] ** 0.5
    projection, scaled = start.requires_grad_(True), features / size
    adam = torch.optim.Adam([projection], lr=settings.scope_lr)

    def embedded(texts: Sequence[str]) -> Tensor:
        return scaled[[questions.texts[text] for text in texts]] @ projection.T

    for step in range(settings.scope_steps):
        some, inside, outside = questions.draw(random.Random(f"{seed} scope {step}"), settings.pairs)
        loss = scope_loss(embedded([lesson.edit.prompt for lesson in some]), embedded(inside), embedded(outside))
        adam.zero_grad()
        loss.backward()
        adam.step()
    return (projection / size).detach()


def reader_loss(network: Serac, tokenizer: Any, batch: Sequence[tuple[Edit, str, str]], end: str) -> Tensor:
    """batch: edits, each with a question in its scope and one out of it."""
    facts = [told(edit) for edit, _, _ in batch]
    answered = read_rows(tokenizer, facts, [text for _, text, _ in batch], [edit.target + end for edit, _, _ in batch])
    hidden = network.reader.read(answered.ids, answered.mask).last_hidden_state
    wanted = answered.answer[:, 1:]
    loss = F.cross_entropy(network.reader.say(hidden[:, :-1][wanted]), answered.ids[:, 1:][wanted])
    beside = read_rows(tokenizer, facts, [text for _, _, text in batch], None)
    other = network.reader.read(beside.ids, beside.mask).last_hidden_state
    scores = torch.cat([network.scope_logits(hidden, answered.last), network.scope_logits(other, beside.last)])
    truth = (torch.arange(len(scores)) < len(batch)).float()
    return loss + F.binary_cross_entropy_with_logits(scores, truth)


@torch.no_grad()
def said(network: Serac, tokenizer: Any, edits: Sequence[Edit], questions: Sequence[str]) -> Tensor:
    """(n,) bool: whether the reader says every token of the target after the edit's fact and the question."""
    rows = read_rows(tokenizer, [told(edit) for edit in edits], questions, [edit.target for edit in edits])
    ends = torch.arange(rows.ids.shape[1]) == rows.mask.sum(1, keepdim=True) - 1
    core = rows.answer & ~ends if tokenizer.eos_token_id is not None else rows.answer
    hidden = network.reader.read(rows.ids, rows.mask).last_hidden_state
    right = network.reader.say(hidden[:, :-1]).argmax(-1) == rows.ids[:, 1:]
    return (right | ~core[:, 1:]).all(1)


@torch.no_grad()
def validated(
    network: Serac, model: nn.Module, tokenizer: Any, lessons: Sequence[Lesson], settings: SeracTraining
) -> dict[str, float]:
    """Shares, all edits in one memory: of prompts (other phrasings) that come to their own fact and are answered, of probes that come to
    none. cross: of pairs that the head puts on the right side."""
    usable = [lesson for lesson in lessons if lesson.asked_otherwise and lesson.edit.locality]
    some = list({lesson.about: lesson for lesson in usable}.values())[: settings.validated]
    edits = [lesson.edit for lesson in some]
    owners = [(n, text) for n, lesson in enumerate(some) for text in lesson.asked_otherwise]
    probes = [(n, probe.prompt) for n, lesson in enumerate(some) for probe in lesson.edit.locality]
    path = network.paths[0]

    def embedded(texts: Sequence[str]) -> Tensor:
        return last_inputs(model, tokenizer, path, texts) @ network.projection.T

    def nearest(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        squared = torch.cdist(embedded(texts), memory) ** 2
        return squared.argmin(1), (-squared.amin(1)).exp() >= 0.5

    memory = embedded([edit.prompt for edit in edits])
    own, inside = nearest([text for _, text in owners])
    right = (own == torch.tensor([n for n, _ in owners])) & inside
    answers = said(network, tokenizer, [edits[n] for n, _ in owners], [text for _, text in owners])
    prompts = said(network, tokenizer, edits, [edit.prompt for edit in edits])
    outside = ~nearest([text for _, text in probes])[1]
    sides = []
    for pairs, wanted in ((owners, True), (probes, False)):
        rows = read_rows(tokenizer, [told(edits[n]) for n, _ in pairs], [text for _, text in pairs], None)
        hidden = network.reader.read(rows.ids, rows.mask).last_hidden_state
        sides.append(((network.scope_logits(hidden, rows.last) > 0) == wanted).float().mean().item())
    measured = {
        "reliability": prompts.float().mean().item(),
        "generalization": (right & answers).float().mean().item(),
        "locality": outside.float().mean().item(),
        "cross_inside": sides[0],
        "cross_outside": sides[1],
    }
    return {**measured, "score": harmonic_mean(list(measured.values()))}


def train_serac(
    model: nn.Module,
    tokenizer: Any,
    lessons: Sequence[Lesson],
    settings: SeracTraining,
    *,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    advance: Advance = lambda done: None,
) -> Trained:
    """The network with the parameters that were best on edits of held-out subjects. EditError where the lessons cannot be learnt from."""
    kept = checkpoint or Nothing()
    settings = settings.model_copy(update={"vocabulary": int(model.config.vocab_size)})  # type: ignore[union-attr, arg-type]
    path, linear = edited_linear(model, late_layer(model, settings.layer, 0.5))
    training, validation = split(lessons, settings.validation, seed)
    questions = _Questions(training)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would begin the generators of every GPU anew too
        network = Serac(settings, {path: linear_shape(linear)})
    check_readable(network)
    features = last_inputs(model, tokenizer, path, list(questions.texts))
    projection = train_scope(questions, features, settings, seed)
    with torch.no_grad():
        network.projection.copy_(projection)
    state = _State(network, settings, kept.read())
    advance(state.step)
    while state.step < settings.steps:
        rng = random.Random(f"{seed} reader {state.step}")
        batch = [questions.vary(rng, *one) for one in zip(*questions.draw(rng, settings.batch))]
        loss = state.learn(reader_loss(network, tokenizer, batch, settings.answer_end))
        advance(1)
        if state.step % settings.validate_every == 0 or state.step == settings.steps:
            found = validated(network, model, tokenizer, validation, settings)
            state.note({"step": float(state.step), "loss": loss, **found})
            kept.write(state.tensors())
    state.restore_best()
    return Trained(
        cast(Any, network), cast(Any, settings), state.log, len(training), len(validation), state.step
    )  # fmt: skip


class _State:
    """Parameters of the reader and its head, moments of Adam, the best so far: what has to survive a kill."""

    def __init__(self, network: Serac, settings: SeracTraining, tensors: Mapping[str, Tensor] | None):
        self.network, self.settings, self.step = network, settings, 0
        self.learnt = {name: p for name, p in network.named_parameters() if name != "projection"}
        self.adam = torch.optim.AdamW(list(self.learnt.values()), lr=settings.lr, weight_decay=0.01)
        self.best: dict[str, Tensor] = {}
        self.log: list[dict[str, float]] = []
        if tensors is not None:
            with restoring():
                self._restore(tensors)

    def learn(self, loss: Tensor) -> float:
        """One step, up to the rate in the first tenth of all steps and down to 0 at the last."""
        share = (self.step + 1) / self.settings.steps
        self.adam.param_groups[0]["lr"] = self.settings.lr * min(10 * share, (1 - share) / 0.9 + 1e-3)
        self.adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(list(self.learnt.values()), 1.0)
        self.adam.step()
        self.step += 1
        return loss.item()

    def note(self, line: dict[str, float]) -> None:
        if all((line["score"], -line["loss"]) > (other["score"], -other["loss"]) for other in self.log):
            self.best = {name: p.detach().clone() for name, p in self.learnt.items()}
        self.log.append(line)

    def restore_best(self) -> None:
        with torch.no_grad():
            for name, value in self.best.items():
                self.learnt[name].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        found = named("now", {name: p.detach() for name, p in self.learnt.items()}) | named("best", self.best)
        for key in MOMENTS:
            found |= named(key, {name: self.adam.state[p][key] for name, p in self.learnt.items()})
        lines = torch.tensor([list(line.values()) for line in self.log], dtype=torch.float64)
        return {**found, "state/log": lines, "state/step": torch.tensor(self.step)}

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.step = int(tensors["state/step"])
        self.log = [dict(zip(LOG, line)) for line in tensors["state/log"].tolist()]
        self.best = unnamed("best", tensors)
        now, moments = unnamed("now", tensors), {key: unnamed(key, tensors) for key in MOMENTS}
        if not all(shapes(own) == shapes(self.learnt) for own in (self.best, now, *moments.values())):
            raise ValueError("its tensors are those of another network")
        with torch.no_grad():
            for name, p in self.learnt.items():
                p.copy_(now[name])
                kept = {key: moments[key][name].clone() for key in MOMENTS}
                self.adam.state[p] = {"step": torch.tensor(float(self.step)), **kept}

"""The one training loop of all editor networks. Law: a training is a function of (base, lessons, settings, seed); killed and resumed, it
ends with the same bits.

Every step draws from a generator of its own, made of the seed and the step's number, so that the state that has to survive a kill is
tensors alone: parameters, statistics of the normalisers, moments of Adam, how long episodes are, the best parameters so far. They go
through `checkpoint`, for an editor touches no disk:

    checkpoint.read()           -> the state that was written last, or None
    checkpoint.write(tensors)   at every validation

Several processes (`crew`) each read all signals and ask their share of the questions; gradients are added up in order of rank, so that all
take the same step, and the result is that of one process up to rounding.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kedit_hub.editors.hyper import instructedit, ke
from kedit_hub.editors.hyper.lessons import Episodes, Lesson, split
from kedit_hub.editors.hyper.network import Network, Shapes, edited_maps, home
from kedit_hub.editors.hyper.objective import Questions, Weights, ask, installed, objective, scored
from kedit_hub.editors.hyper.rledit import trajectory
from kedit_hub.editors.hyper.rows import Factors, Signals, join, read
from kedit_hub.editors.hyper.settings import METHODS, InstructEditTraining, KeTraining, RleditTraining, Training
from kedit_hub.editors.hyper.state import LOG, MEASURES, UNMEASURED, State, check_readable
from kedit_hub.editors.job import Advance
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.crew import Crew
from kedit_hub.evaluate.metrics import harmonic_mean
from kedit_hub.evaluate.protocols import answers

WORST = 1e30  # a loss that is not finite, as it is kept
TEXTS = 256  # texts asked at once when an editor is scored


class Checkpoint(Protocol):
    """Where the state of a training is kept."""

    def read(self) -> Mapping[str, Tensor] | None: ...

    def write(self, tensors: Mapping[str, Tensor]) -> None: ...


class Nothing:
    """The checkpoint that keeps nothing."""

    def read(self) -> None:
        return None

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        pass


@dataclass
class Trained:
    """network: with the best parameters on validation edits. log: a line of LOG for every validation."""

    network: Network
    settings: Training
    log: list[dict[str, float]]
    training: int
    validation: int
    steps: int

    @property
    def best(self) -> dict[str, float]:
        return max(self.log, key=lambda line: (line["score"], -line["loss"]))


def build(method: str, settings: Training, shapes: Shapes, seed: int) -> Network:
    """A new network, its first parameters drawn by the seed. KeditError for an unknown method."""
    if method not in METHODS:
        raise KeditError(f"there is no editor to train of the name {method!r}; take one of: {', '.join(METHODS)}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would begin the generators of every GPU anew too
        return METHODS[method].build(settings, shapes)


class Teacher:
    """A base and a network: signals of lessons, the changes they lead to, and what these are worth."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        network: Network,
        settings: Training,
        *,
        description: str | None = None,  # of the instruction, where it is always the same
        crew: Crew | None = None,
    ):
        self.description, self.crew = description, crew or Crew()
        self.model, self.tokenizer, self.network, self.settings = model, tokenizer, network, settings
        self.weights = Weights(settings.c_rel, settings.c_gen, settings.c_loc, settings.keeps)
        self._old: dict[str, str] = {}

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def described(self, lessons: Sequence[Lesson], rng: random.Random | None) -> dict[Lesson, str]:
        """The description that each lesson is read under; none for editors without instructions. rng: draws them, never the last of a
        task; None = the first."""
        s = self.settings
        if not (isinstance(s, InstructEditTraining) and s.instructed):
            return {}
        return {lesson: self._description(lesson.task, s.pools or {}, rng) for lesson in dict.fromkeys(lessons)}

    def _description(self, task: str, pools: Mapping[str, Sequence[str]], rng: random.Random | None) -> str:
        if self.description is not None:
            return self.description
        known = list(pools.get(task) or instructedit.pool(task))
        return known[0] if rng is None else rng.choice(known[:-1] or known)

    def signals(
        self, lessons: Sequence[Lesson], told: Mapping[Lesson, str] | None = None, before: Factors | None = None
    ) -> Signals:
        """Where the network is, wherever the maps are. told: descriptions; None = the first of each task. before: the change of the model
        that is read."""
        told = self.described(lessons, None) if told is None else told
        pairs = [(_under(told, lesson, lesson.edit.prompt), lesson.edit.target) for lesson in lessons]
        with installed(self.model, before or {}):
            found = read(self.model, self.tokenizer, pairs, self.network.paths, self.settings.tokens)
        return {path: rows.to(self.device) for path, rows in found.items()}

    def words(self, lessons: Sequence[Lesson]) -> list[Tensor] | None:
        """What KE reads of every edit, embedded by the base: (L, embedding) each. The old answer is the base's own where none is given."""
        if not self.network.needs_text:
            return None
        unknown = [x.edit.prompt for x in lessons if x.edit.ground_truth is None and x.edit.prompt not in self._old]
        if unknown:
            self._old.update(zip(unknown, answers(self.model, self.tokenizer, unknown)))  # type: ignore[arg-type]
        table = self.model.get_input_embeddings()  # type: ignore[operator]
        texts = [
            ke.condition(x.edit.ground_truth or self._old.get(x.edit.prompt, ""), x.edit.target, x.edit.prompt)
            for x in lessons
        ]
        there = table.weight.device
        there = torch.device("cpu") if there.type == "meta" else there  # offloaded: it moves its inputs itself
        with torch.no_grad():
            read = [table(torch.tensor(self.tokenizer(text).input_ids, device=there)) for text in texts]
        return [vectors.to(self.device, torch.float32) for vectors in read]

    def change(
        self,
        lessons: Sequence[Lesson],
        told: Mapping[Lesson, str] | None = None,
        before: Factors | None = None,
        learn: bool = False,
    ) -> tuple[Factors, Signals]:
        """told, before: see `signals`. learn: let the normalisers see them, if all are finite."""
        signals = self.signals(lessons, told, before)
        if learn and all(bool(torch.isfinite(t).all()) for rows in signals.values() for t in (rows.u, rows.delta)):
            self.network.observe(signals)
        return self.network.factors(signals, self.words(lessons)), signals

    def questions(
        self,
        episodes: Sequence[Sequence[Lesson]],
        rng: random.Random,
        told: Mapping[Lesson, str],
        asked: Sequence[Sequence[Lesson]] | None = None,
    ) -> Questions:
        """asked: see `ask`. Questions about an edit are put under its description where the settings say so."""
        s = self.settings
        under = told if isinstance(s, InstructEditTraining) and s.ask_instructed else {}
        return ask(episodes, s.keeps, rng, asked, partial(_under, under))

    # --- training ---------------------------------------------------------------------------------------------------

    def learn(self, episodes: Sequence[list[Lesson]], rng: random.Random) -> dict[str, float]:
        """Leave the gradient of the loss on these episodes on the network's parameters; the loss and its parts."""
        s = self.settings
        if isinstance(s, RleditTraining):
            found = means([self._trajectory(episode, s, rng) for episode in episodes])
        elif self.network.separable and all(len(episode) <= s.asked for episode in episodes):
            found = self._backward(episodes, rng, 1.0)
            self._add_up()
        else:
            found = means([self._backward([episode], rng, 1 / len(episodes)) for episode in episodes])
            self._add_up()
        return {name: sum(part[name] for part in self.crew.gather(found)) for name in found}

    def _add_up(self) -> None:
        """The gradients of all processes, added in order of rank, so that every process has the same bits."""
        if self.crew.size == 1:
            return
        parameters = list(self.network.parameters())
        own = [None if p.grad is None else p.grad.cpu() for p in parameters]
        for parameter, *parts in zip(parameters, *self.crew.gather(own)):
            known = [part for part in parts if part is not None]
            if known:
                parameter.grad = torch.stack(known).sum(0).to(parameter.device)

    def _backward(self, episodes: Sequence[list[Lesson]], rng: random.Random, share: float) -> dict[str, float]:
        lessons = [lesson for episode in episodes for lesson in episode]
        told = self.described(lessons, rng)
        factors, signals = self.change(lessons, told, learn=True)
        owners = self._owners(signals, episodes) if len(episodes) > 1 else None
        asked = [rng.sample(episode, min(len(episode), self.settings.asked)) for episode in episodes]
        questions = self.questions(episodes, rng, told, asked).of(self.crew.rank, self.crew.size)
        loss, parts = objective(self.model, self.tokenizer, questions, factors, self.weights, owners)
        if isinstance(self.network, ke.Ke):
            answer = self.weights.rel * parts["rel"] + self.weights.gen * parts["gen"]
            loss = self.network.constrained(answer, parts["loc"], self.crew.size)
        (loss * share).backward()
        return {"loss": float(loss.detach()), **{name: float(part.detach()) for name, part in parts.items()}}

    def _trajectory(self, episode: Sequence[Lesson], s: RleditTraining, rng: random.Random) -> dict[str, float]:
        turns = [episode[i : i + s.length] for i in range(0, len(episode), s.length)]

        def loss(
            now: Factors, before: Factors, turn: Sequence[Lesson], asked: Sequence[Lesson]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            changed = list(dict.fromkeys([*asked, *turn]))
            questions = self.questions([changed], rng, {}, [asked]).of(self.crew.rank, self.crew.size)
            return objective(self.model, self.tokenizer, questions, now, self.weights, before=before)

        def change(turn: Sequence[Lesson], before: Factors) -> Factors:
            return self.change(turn, {}, before, learn=True)[0]

        return trajectory(
            turns, change, loss, self.network, back=s.back, discount=s.discount, shrink=s.shrink / self.crew.size,
            clip=s.clip, add_up=self._add_up,
        )  # fmt: skip

    def _owners(self, signals: Signals, episodes: Sequence[Sequence[Lesson]]) -> dict[str, Tensor]:
        """Which episode every factor belongs to."""
        of = torch.tensor([number for number, episode in enumerate(episodes) for _ in episode])
        return {path: of.to(owner.device)[owner] for path, owner in self.network.owners(signals).items()}

    # --- scoring ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(
        self, lessons: Sequence[Lesson], size: int, rng: random.Random, turn: int | None = None
    ) -> dict[str, float]:
        """Means over edits when `size` of them are made together. turn: edits read at once, each turn on the model as edited so far;
        None = all from the unedited model."""
        found: dict[str, list[float]] = {name: [] for name in (*MEASURES, "loss")}
        episodes = [list(lessons[i : i + size]) for i in range(0, len(lessons), size)]
        together = max(1, TEXTS // (4 * size)) if self.network.separable and turn is None else 1
        for i in range(0, len(episodes), together):
            batch = episodes[i : i + together]
            factors, owners = self._made(batch, turn)
            described = self.described([lesson for episode in batch for lesson in episode], None)
            questions = self.questions(batch, rng, described)
            told = scored(self.model, self.tokenizer, questions, factors, self.weights, owners)
            for name in found:
                found[name] += told[name]
        measured = {name: sum(values) / len(values) for name, values in found.items() if values}
        return {**measured, "score": harmonic_mean([measured[name] for name in MEASURES if name in measured])}

    def _made(self, batch: Sequence[Sequence[Lesson]], turn: int | None) -> tuple[Factors, dict[str, Tensor] | None]:
        lessons = [lesson for episode in batch for lesson in episode]
        if turn is None:
            factors, signals = self.change(lessons)
            return factors, self._owners(signals, batch) if len(batch) > 1 else None
        parts: list[Factors] = []
        for i in range(0, len(lessons), turn):
            parts.append(self.change(lessons[i : i + turn], before=join(parts) if parts else None)[0])
        return join(parts), None


def _under(told: Mapping[Lesson, str], lesson: Lesson, prompt: str) -> str:
    """A question about the lesson, under its description where it has one."""
    return instructedit.instruct(lesson.task, told[lesson], lesson.edit, prompt) if lesson in told else prompt


def means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def completed(model: nn.Module, settings: Training) -> Training:
    """Settings with what only the base can say."""
    if isinstance(settings, KeTraining):
        table = model.get_input_embeddings()  # type: ignore[operator]
        return settings.model_copy(update={"embedding": int(table.weight.shape[1])})
    return settings


def train(
    model: nn.Module,
    tokenizer: Any,
    lessons: Sequence[Lesson],
    method: str,
    settings: Training,
    *,
    seed: int,
    checkpoint: Checkpoint | None = None,
    advance: Advance = lambda done: None,
    told: Callable[[Mapping[str, float]], None] = lambda line: None,
    crew: Crew | None = None,
) -> Trained:
    """A network of `method`, trained on lessons split by subject. The model is not changed.

    advance: called with the number of steps done. told: called with every line of the log. crew: the processes that train together; the
    first of them keeps the checkpoint. EditError where there are too few subjects, LimitError for a network that could not be read again,
    StateError where what was kept is not of this training.
    """
    crew = crew or Crew()
    settings = completed(model, settings)
    shapes = edited_maps(model, settings.layers, settings.maps)
    network = build(method, settings, shapes, seed).to(home(model))
    check_readable(network)
    teacher = Teacher(model, tokenizer, network, settings, crew=crew)
    mine, held = split(lessons, settings.validation, seed)
    episodes = Episodes(mine)
    asked = Episodes(held).draw(max(settings.validated, together(settings)), random.Random(f"{seed} validation"))
    slow = network.slow_parameters()
    fast = [p for p in network.parameters() if all(p is not other for other in slow)]
    groups = [{"params": fast, "lr": settings.lr}, {"params": slow, "lr": settings.step_lr}]
    state = State(network, torch.optim.Adam(groups))
    kept = (checkpoint if crew.leads else None) or Nothing()
    before = crew.gather(kept.read())[0]
    if before is None:
        rng = random.Random(f"{seed} warmup")
        drawn = episodes.draw(settings.warmup, rng)
        network.observe(teacher.signals(drawn, teacher.described(drawn, rng)))
        state.course[0] = 1.0 if settings.curriculum else float(settings.length)
    else:
        state.restore(before)
        advance(state.step)
    losses: list[float] = []
    while state.step < settings.steps and not stale(state, settings):
        rng = random.Random(f"{seed} step {state.step}")
        losses.append(one_step(teacher, episodes, state, settings, rng))
        state.step += 1
        advance(1)
        if state.step % settings.validate_every == 0 or state.step == settings.steps:
            validate(teacher, asked, state, settings, seed, sum(losses) / len(losses))
            losses = []
            told(state.log[-1])
            kept.write(state.tensors())
    network.load_state_dict(state.best)
    return Trained(network.eval(), settings, state.log, len(mine), len(held), state.step)


def one_step(teacher: Teacher, episodes: Episodes, state: State, settings: Training, rng: random.Random) -> float:
    """Draw, learn, one step of Adam; a gradient that is not finite is skipped."""
    longest = int(state.course[0])
    turns = settings.turns if isinstance(settings, RleditTraining) else 1
    drawn = []
    for _ in range(settings.parallel):
        size = rng.randint(1, longest) if settings.curriculum else longest
        drawn.append(episodes.draw(size * turns, rng))
    state.optimiser.zero_grad()
    parts = teacher.learn(drawn, rng)
    found = (
        math.inf if isinstance(settings, RleditTraining) else settings.clip
    )  # a trajectory clips at each of its turns
    norm = nn.utils.clip_grad_norm_(teacher.network.parameters(), found)
    if bool(torch.isfinite(norm)):
        state.optimiser.step()
        teacher.network.after_step()
    lengthen(state.course, parts["loss"], settings)
    return parts["loss"]


def lengthen(course: list[float], loss: float, settings: Training) -> None:
    """Longer episodes once the moving loss has stopped falling: by a quarter, at least by ten (Zhang et al. 2024)."""
    if not settings.curriculum or course[0] >= settings.length or not math.isfinite(loss):
        return
    course[1] = loss if math.isnan(course[1]) else course[1] + settings.moving * (loss - course[1])
    course[3] = 0.0 if course[1] < course[2] else course[3] + 1
    course[2] = min(course[1], course[2])
    if course[3] >= settings.curriculum / max(1.0, math.log10(course[0])):
        course[0] = min(float(settings.length), course[0] + int(max(0.25 * course[0], 10)))
        course[1:] = [course[1] + 0.3, 10.0, 0.0]


def validate(
    teacher: Teacher, asked: Sequence[Lesson], state: State, settings: Training, seed: int, training_loss: float
) -> None:
    """Score on validation edits, always the same questions, and keep the parameters where they are the best so far."""
    turn = settings.length if isinstance(settings, RleditTraining) else None
    scores = teacher.crew.gather(teacher.score(asked, together(settings), random.Random(f"{seed} asked"), turn))[0]
    known = {"step": float(state.step), "length": state.course[0], "training_loss": training_loss, **scores}
    line = {name: value if math.isfinite(value := known.get(name, UNMEASURED)) else math.inf for name in LOG}
    line = {name: min(value, WORST) for name, value in line.items()}
    better = not state.log or rank(line) > max(map(rank, state.log))
    state.log.append(line)
    if better:
        state.best = {name: value.detach().clone() for name, value in teacher.network.state_dict().items()}
    teacher.network.after_validation(scores)


def together(settings: Training) -> int:
    """Edits of the longest sequence that is trained, and validated on as far as there are subjects."""
    return settings.length * (settings.turns if isinstance(settings, RleditTraining) else 1)


def rank(line: Mapping[str, float]) -> tuple[float, float]:
    """The better the greater."""
    return line["score"], -line["loss"]


def stale(state: State, settings: Training) -> bool:
    """Whether training has gone on for too long without getting better; never before episodes have reached their length."""
    if len(state.log) <= settings.patience or state.course[0] < settings.length:
        return False
    best = max(range(len(state.log)), key=lambda number: rank(state.log[number]))
    return len(state.log) - 1 - best >= settings.patience


def trial_editor(
    model: nn.Module,
    tokenizer: Any,
    lessons: Sequence[Lesson],
    task: str,
    settings: InstructEditTraining,
    *,
    seed: int,
    advance: Advance = lambda done: None,
) -> Callable[[str], dict[str, float]]:
    """What `instructions.optimise_instructions` tries instructions with: an editor trained once and briefly, as `settings` say, asked under
    each instruction about the same lessons of `task`, of subjects it was not trained on."""
    if lessons and not any(lesson.task == task for lesson in lessons):
        others = ", ".join(sorted({lesson.task for lesson in lessons}))
        raise KeditError(
            f"none of the {len(lessons):,} lessons is of the task {task!r}, but of {others}: give edits of {task}"
        )
    mine, held = split(lessons, settings.validation, seed)
    asked = [lesson for lesson in held if lesson.task == task][: settings.validated]
    if not asked:
        raise KeditError(
            f"no lesson of the task {task!r} is left to try instructions on: give more, or a larger validation share"
        )
    trained = train(model, tokenizer, mine, "instructedit", settings, seed=seed, advance=advance)

    def trial(instruction: str) -> dict[str, float]:
        teacher = Teacher(model, tokenizer, trained.network, trained.settings, description=instruction)
        scores = teacher.score(asked, settings.length, random.Random(f"{seed} trial"))
        return {name: scores[name] for name in MEASURES if name in scores}

    return trial

"""A patch from a trained editor. Law: an editor edits the base it was trained on, and the patch names it by its id.

edits -> signals under the base -> the network's factors -> low-rank deltas, on request with the keys they are meant for
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from kedit_hub.base.families import edited_linear, n_layers
from kedit_hub.editors.hyper.dafnet import Dafnet
from kedit_hub.editors.hyper.instructedit import TASKS
from kedit_hub.editors.hyper.lessons import TASK, Lesson
from kedit_hub.editors.hyper.network import home
from kedit_hub.editors.hyper.rows import Factors, as_delta, join
from kedit_hub.editors.hyper.settings import RleditTraining
from kedit_hub.editors.hyper.train import Teacher
from kedit_hub.editors.hyper.trained import TrainedEditor
from kedit_hub.editors.job import Clock, Job, Result
from kedit_hub.editors.keyed import inputs_of
from kedit_hub.editors.outcome import Weights, outcome
from kedit_hub.errors import EditError, KeditError
from kedit_hub.patch.patch import Patch


class HyperSettings(BaseModel):
    """What a user may set of an edit. editor: the trained editor; `kedit_hub.edit(..., editor=)` fills it in."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )

    editor: TrainedEditor | None = Field(default=None, exclude=True)
    turn: int | None = Field(default=None, ge=1)  # edits read at once, each turn on the model as edited so far; None:
    # all at once on the unedited one (RLEdit: as many as it was trained with)
    scale: float = Field(default=1.0, gt=0, le=100)  # of the whole change
    precision: Literal["f32", "f16"] = "f32"
    keys: bool = False  # store keys, so that a joint solve takes the change as rows; whoever applies it then needs a profile of every map
    task: str = TASK  # InstructEdit: the family of these edits, or of all in order, as in "zsre*3,counterfact"
    description: str | None = Field(default=None, min_length=1, max_length=1000)  # and how it is told; None: the first


def in_a_row(patches: Sequence[Patch], scale: float) -> Sequence[Patch]:
    """The patches, each made on those before it at this scale. KeditError where one was made apart, and holds its edits at the strength of
    a beginning, or at another scale."""
    for number, patch in enumerate(patches):
        if apart := {other.id for other in patches[:number]} - set(patch.manifest.requires):
            raise KeditError(
                f"patch {patch.id[:12]} was made apart from {min(apart)[:12]}, by the same trained editor, whose edits weigh each other: "
                "their changes add up to more than it would make of all. Make all edits in one call, or each patch on=[those before it]"
            )
        if (own := patch.manifest.settings.get("scale", 1.0)) != scale:
            raise KeditError(
                f"patch {patch.id[:12]} was made at scale={own:g}, and what comes after it is weighed against it: make this one at "
                f"scale={own:g} too, not {scale:g}"
            )
    return patches


def in_runs(tasks: Sequence[str]) -> str:
    """Tasks of edits in order as the setting has them: one name where all are alike, else runs of them."""
    runs = [(task, sum(1 for _ in run)) for task, run in groupby(tasks)]
    return runs[0][0] if len(runs) == 1 else ",".join(task if n == 1 else f"{task}*{n}" for task, n in runs)


def tasks_of(settings: HyperSettings, count: int) -> list[str]:
    """The task of every edit. KeditError for a task that is none, for tasks of other edits, and for several that one description tells."""
    names, counts = zip(*(run.strip().partition("*")[::2] for run in settings.task.split(",")))
    for name, number in zip(names, counts):
        if name not in TASKS or not (number == "" or (number.isascii() and number.isdecimal() and len(number) < 10)):
            raise KeditError(
                f"task={settings.task[:80]!r}: there is no task {name[:40]!r}{'*' * bool(number)}{number[:10]}; take one of "
                f"{', '.join(TASKS)}, or runs of them like zsre*3,counterfact"
            )
    if len(names) == 1 and not counts[0]:
        return [names[0]] * count
    told = sum(int(number or 1) for number in counts)
    if told != count:
        raise KeditError(
            f"task={settings.task[:80]!r} is of {told:,} edits, and there are {count:,}: name one task for all, or as many as edits"
        )
    if settings.description is not None and len(set(names)) > 1:
        raise KeditError(
            f"description={settings.description[:80]!r} tells one task, and these edits are of {', '.join(sorted(set(names)))}: make a "
            "patch of each, or leave the description out"
        )
    return [name for name, number in zip(names, counts) for _ in range(int(number or 1))]


def trained(method: str) -> Callable[[Job], Result]:
    """The row of `method` in the table of editors."""
    return lambda job: make(job, method)


@torch.no_grad()
def make(job: Job, method: str) -> Result:
    """The change that the trained editor makes of all edits, in order; a map that none of them asks anything of is left out. KeditError
    where there is none of this method, WrongBaseError where it was trained on another base, EditError where the base says all of it
    already."""
    settings = job.settings
    assert isinstance(settings, HyperSettings)
    editor, model = settings.editor, job.model
    if editor is None or editor.method != method:
        given = "none is given" if editor is None else f"this one is of {editor.method}"
        raise KeditError(
            f"{method} edits with a trained editor, and {given}: pass editor=<folder>, or train one with kedit_hub.train_editor"
        )
    clock = Clock()
    editor.verify(model)
    own = editor.settings
    turn = settings.turn or (own.length if isinstance(own, RleditTraining) else None)
    if method == "dafnet" and turn is not None:
        raise KeditError(f"turn={turn} is not for dafnet: its signals are those of the unedited model. Leave turn out")
    device = home(model)
    network = editor.network().to(device)
    teacher = Teacher(model, job.tokenizer, network, own, description=settings.description)
    lessons = [Lesson(edit, task) for edit, task in zip(job.edits, tasks_of(settings, len(job.edits)))]
    earlier = [Lesson(edit) for patch in in_a_row(job.below, settings.scale) for edit in patch.edits]
    parts: list[Factors] = []
    for start in range(0, len(lessons), turn or len(lessons)):
        batch = lessons[start : start + (turn or len(lessons))]

        def work(batch: list[Lesson] = batch) -> dict[str, Tensor]:
            if earlier:
                assert isinstance(network, Dafnet)
                factors = network.added(teacher.signals(earlier), teacher.signals(batch))
            else:
                factors, _ = teacher.change(batch, before=join(parts) if parts else None)
            return {f"{path}/{name}": t for path, ab in factors.items() for name, t in zip("ab", ab)}

        done = {
            name: t.to(device) for name, t in job.memo(f"turn-{start}", work).items()
        }  # a kept piece is read to the CPU
        parts.append({path: (done[f"{path}/a"], settings.scale * done[f"{path}/b"]) for path in network.paths})
        job.advance(len(batch))
    factors = join(parts)
    if not any(len(a) for a, _ in factors.values()):
        first, more = job.edits[0], len(job.edits) - 1
        raise EditError(
            f"the base says {first.target!r} to {first.prompt!r} already, so surely that no gradient is left to edit by"
            + (f", and so it does with the {more:,} other edit(s)" if more else "")
            + ": there is nothing for a trained editor to change"
        )
    known = {edited_linear(model, layer)[0] for layer in range(n_layers(model))} if settings.keys else set()
    solvable = known & set(network.paths)
    keys, key_edit = inputs_of(job.edits, model, job.tokenizer, sorted(solvable)) if solvable else ({}, None)
    deltas: dict[str, Weights] = {
        path: as_delta(
            a, b, settings.precision == "f16", keys=keys.get(path), key_edit=key_edit if path in keys else None
        )
        for path, (a, b) in factors.items()
        if len(a)
    }
    how: dict[str, Any] = {"trained_editor": editor.id, "scale": settings.scale, "turn": turn}
    if method == "instructedit":
        how |= {"task": settings.task, "description": settings.description}
    whole: dict[str, Weights] = deltas
    if earlier:  # alone, the patch is what has to be added to the change of those below
        below, _ = teacher.change(earlier)
        scaled = {path: (a, settings.scale * b) for path, (a, b) in below.items()}
        whole = {path: as_delta(a, b, False) for path, (a, b) in join([scaled, factors]).items() if len(a)}
    made = outcome(job, whole, clock)
    return Result(deltas, job.edits, made, {name: value for name, value in how.items() if value is not None})

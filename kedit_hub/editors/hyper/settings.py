"""What can be set of training, method by method. Law: the numbers bound every size before anything of that size is made.

Published values where they mean the same at any size; learning rates and steps are those of a network whose V is N(0, 1/d).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kedit_hub.editors.hyper.dafnet import Dafnet
from kedit_hub.editors.hyper.instructedit import TASKS, InstructEdit
from kedit_hub.editors.hyper.ke import Ke
from kedit_hub.editors.hyper.malmen import Malmen
from kedit_hub.editors.hyper.mend import Mend
from kedit_hub.editors.hyper.network import Network, Shapes


class Training(BaseModel):
    """What all methods share."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # where
    layers: tuple[int, ...] | None = Field(default=None, min_length=1, max_length=256)  # None = the last three blocks
    maps: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=16)  # inside the MLP; None = all linear
    tokens: Literal["all", "answer"] = "all"
    # episodes
    length: int = Field(default=1, ge=1, le=4096)  # edits of one episode, at most
    curriculum: int = Field(default=0, ge=0)  # steps without a better loss after which episodes grow; 0 = full length
    moving: float = Field(default=0.1, gt=0, le=1)  # rate of the moving mean of the loss
    parallel: int = Field(default=8, ge=1, le=1024)  # episodes of one step
    asked: int = Field(default=32, ge=1, le=4096)  # edits of an episode that the loss asks about
    keeps: int = Field(default=1, ge=0, le=16)  # locality probes drawn for each edit
    # loss
    c_rel: float = Field(default=0.1, ge=0)
    c_gen: float = Field(default=0.1, ge=0)
    c_loc: float = Field(default=1.0, ge=0)
    # optimiser
    steps: int = Field(default=1000, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    step_lr: float = Field(default=1e-5, gt=0)  # of the learned step of every map
    step: float = Field(default=1e-4, gt=0)  # its start
    clip: float = Field(default=1.0, gt=0)
    warmup: int = Field(default=64, ge=1)  # edits that the normalisers see before the first step
    # validation
    validation: float = Field(default=0.1, gt=0, lt=1)  # share of the subjects
    validate_every: int = Field(default=100, ge=1)
    validated: int = Field(default=32, ge=1)  # edits asked each time
    patience: int = Field(default=10, ge=1)  # validations without a better one before training ends


class MendTraining(Training):
    rank: int = Field(default=64, ge=1, le=1 << 13)
    blocks: int = Field(default=2, ge=1, le=16)


class MalmenTraining(MendTraining):
    tokens: Literal["all", "answer"] = "answer"
    length: int = Field(default=48, ge=1, le=4096)
    curriculum: int = Field(default=10, ge=0)
    parallel: int = Field(default=1, ge=1, le=1024)
    c_rel: float = Field(default=0.5, ge=0)
    c_gen: float = Field(default=1.0, ge=0)


class RleditTraining(MalmenTraining):
    """An episode is a trajectory of `turns` turns of `length` edits."""

    length: int = Field(default=4, ge=1, le=4096)
    curriculum: int = Field(default=0, ge=0)
    turns: int = Field(default=8, ge=1, le=4096)
    back: int = Field(default=10, ge=1, le=4096)  # turns that are asked about after each
    discount: float = Field(default=0.95, gt=0, le=1)
    shrink: float = Field(default=1e-4, ge=0)  # times the squared norm of a turn's change
    c_loc: float = Field(default=0.6, ge=0)


class DafnetTraining(Training):
    length: int = Field(default=100, ge=1, le=4096)
    curriculum: int = Field(default=15, ge=0)
    parallel: int = Field(default=1, ge=1, le=1024)
    c_loc: float = Field(default=0.2, ge=0)
    step: float = Field(default=1e-2, gt=0)  # at 1e-3 no edit of a long sequence takes
    step_lr: float = Field(default=1e-3, gt=0)
    depth: int = Field(default=2, ge=1, le=16)
    inner: int = Field(default=32, ge=1, le=1 << 13)
    heads: int = Field(default=2, ge=1, le=64)
    head: int = Field(default=32, ge=1, le=4096)
    score: int = Field(default=16, ge=1, le=4096)
    intra: bool = True
    inter: bool = True
    detached: bool = False
    counted: bool = False  # take the weighted mean of n edits n^gamma times, gamma trained


class InstructEditTraining(MendTraining):
    scaled: bool = True
    instructed: bool = True  # False: multi-task MEND, the same without instructions
    pools: dict[str, tuple[str, ...]] | None = None  # descriptions by task, the last of each held out; None: our own
    ask_instructed: bool = False  # the published way: edits are asked under their instruction too

    @model_validator(mode="after")
    def _pools_are_of_tasks(self) -> Self:
        for task, told in (self.pools or {}).items():
            if task not in TASKS or not (told and all(told)):
                raise ValueError(
                    f"pools holds instructions by task ({', '.join(TASKS)}), and of {task[:40]!r} there are {len(told)}"
                )
        return self


class KeTraining(Training):
    hidden: int = Field(default=64, ge=1, le=4096)
    condition: int = Field(default=128, ge=1, le=1 << 14)
    step: float = Field(default=1.0, gt=0)  # eta
    lr: float = Field(default=3e-4, gt=0)
    step_lr: float = Field(default=1e-1, gt=0)  # of the multiplier
    c_rel: float = Field(default=1.0, ge=0)
    c_gen: float = Field(default=1.0, ge=0)
    margin: float = Field(default=1e-1, gt=0)
    least_margin: float = Field(default=1e-3, gt=0)
    embedding: int | None = Field(default=None, ge=1, le=1 << 16)  # width of the base's token embeddings; filled in


@dataclass(frozen=True)
class Method:
    """summary: for people. settings: its class. build: the network of these settings for maps of these shapes."""

    summary: str
    settings: type[BaseModel]
    build: Callable[[Any, Shapes], Any]


def _mend(s: MendTraining, shapes: Shapes) -> Network:
    return Mend(shapes, rank=s.rank, step=s.step, blocks=s.blocks)


def _malmen(s: MalmenTraining, shapes: Shapes) -> Network:
    return Malmen(shapes, rank=s.rank, step=s.step, blocks=s.blocks)


def _instructedit(s: InstructEditTraining, shapes: Shapes) -> Network:
    return InstructEdit(shapes, rank=s.rank, step=s.step, blocks=s.blocks, scaled=s.scaled)


def _dafnet(s: DafnetTraining, shapes: Shapes) -> Network:
    return Dafnet(
        shapes, step=s.step, layers=s.depth, inner=s.inner, heads=s.heads, head=s.head, score=s.score, intra=s.intra,
        inter=s.inter, detached=s.detached, counted=s.counted,
    )  # fmt: skip


def _ke(s: KeTraining, shapes: Shapes) -> Network:
    return Ke(
        shapes, embedding=s.embedding or 1, hidden=s.hidden, condition=s.condition, step=s.step, margin=s.margin,
        least_margin=s.least_margin,
    )  # fmt: skip


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "ke": Method("gradient masked by what the edit says (De Cao et al. 2021)", KeTraining, _ke),
        "mend": Method("gradient transformed by a small network (Mitchell et al. 2022)", MendTraining, _mend),
        "instructedit": Method(
            "MEND under instructions, for several tasks (Zhang et al. 2024)", InstructEditTraining, _instructedit
        ),
        "dafnet": Method("edits of a sequence attend to one another (Zhang et al. 2024)", DafnetTraining, _dafnet),
        "malmen": Method("many edits by one least-squares problem (Tan et al. 2024)", MalmenTraining, _malmen),
        "rledit": Method("MALMEN trained on whole sequences (Li et al. 2025)", RleditTraining, _malmen),
    }
)

"""All of a training that a kill must not lose, as tensors. Law: what is restored goes on to the same bits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kedit_hub.editors.hyper.network import Network

MEASURES = ("reliability", "generalization", "locality")
LOG = ("step", "length", "training_loss", "loss", *MEASURES, "score")
UNMEASURED = -1.0  # in a log: a measure that there were no questions for


@dataclass
class State:
    """course: longest episode, moving loss, its least value, steps since then."""

    network: Network
    optimiser: torch.optim.Adam
    step: int = 0
    course: list[float] = field(default_factory=lambda: [1.0, math.nan, 10.0, 0.0])
    log: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        found = named("net", self.network.state_dict()) | named("best", self.best)
        for number, moments in self.optimiser.state_dict()["state"].items():
            found |= {f"adam.n{number}/{name}": value.clone() for name, value in moments.items()}
        lines = [[line[name] for name in LOG] for line in self.log]
        known = [-1.0 if math.isnan(value) else value for value in self.course]
        return found | {
            "state/step": torch.tensor([self.step]),
            "state/course": torch.tensor(known, dtype=torch.float64),
            "state/log": torch.tensor(lines, dtype=torch.float64).reshape(-1, len(LOG)),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(unnamed("net", tensors))
        self.best = unnamed("best", tensors)
        self.step = int(tensors["state/step"])
        self.course = [float(value) for value in tensors["state/course"]]
        self.course[1] = math.nan if self.course[1] < 0 else self.course[1]
        self.log = [dict(zip(LOG, line)) for line in tensors["state/log"].tolist()]
        groups = self.optimiser.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                number, _, moment = name.removeprefix("adam.n").partition("/")
                moments.setdefault(int(number), {})[moment] = value.clone()
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups["param_groups"]})


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"nets.0.up": x} -> {"net.nets.0/up": x}: names that a safetensors file of ours may have."""
    return {
        "/".join(f"{prefix}.{name}".rsplit(".", 1)): value.detach().cpu().clone() for name, value in tensors.items()
    }


def unnamed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {name.replace("/", "."): value for name, value in tensors.items()}
    return {name.removeprefix(f"{prefix}."): value for name, value in found.items() if name.startswith(f"{prefix}.")}

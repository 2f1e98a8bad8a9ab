"""All of a training that a kill must not lose, as tensors. Law: what is restored goes on to the same bits."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kedit_hub.editors.hyper.network import Network
from kedit_hub.errors import KeditError, LimitError
from kedit_hub.limits import DEFAULT

MEASURES = ("reliability", "generalization", "locality")
LOG = ("step", "length", "training_loss", "loss", *MEASURES, "score")
UNMEASURED = -1.0  # in a log: a measure that there were no questions for
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # of Adam


class StateError(KeditError):
    """What was kept of a training is not the state of this one."""


@contextmanager
def restoring() -> Iterator[None]:
    """StateError for whatever goes wrong in the block."""
    try:
        yield
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError) as cause:
        raise StateError(f"what was kept of this training is not its state: {str(cause)[:300]}") from cause


def check_readable(network: nn.Module) -> None:
    """LimitError where the network is larger than what is read again: now, not when it is trained."""
    tensors = network.state_dict().values()
    size, most = sum(tensor.nbytes for tensor in tensors), DEFAULT.max_tensor_bytes
    if size > most or len(tensors) > DEFAULT.max_tensors:
        raise LimitError(
            f"the network to train has {len(tensors):,} tensors of {size:,} bytes; at most {DEFAULT.max_tensors:,} of {most:,} are read "
            "again. Set fewer layers or maps, or a smaller network"
        )


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
        """StateError where they are not the state of this network's training; it is then half restored."""
        with restoring():
            self._restore(tensors)

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(unnamed("net", tensors))
        self.best = unnamed("best", tensors)
        if shapes(self.best) != shapes(self.network.state_dict()):
            raise ValueError("the best parameters are those of another network")
        self.step = int(tensors["state/step"])
        self.course = [float(value) for value in tensors["state/course"]]
        self.course[1] = math.nan if self.course[1] < 0 else self.course[1]
        self.log = [dict(zip(LOG, line, strict=True)) for line in tensors["state/log"].tolist()]
        groups = self.optimiser.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                number, _, moment = name.removeprefix("adam.n").partition("/")
                moments.setdefault(int(number), {})[moment] = value.clone()
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        for at, own in moments.items():
            if set(own) != MOMENTS or own["exp_avg"].shape != parameters[at].shape:
                raise ValueError(f"the moments of parameter {at} are those of another one")
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups["param_groups"]})


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"nets.0.up": x} -> {"net.nets.0/up": x}: names that a safetensors file of ours may have."""
    return {
        "/".join(f"{prefix}.{name}".rsplit(".", 1)): value.detach().cpu().clone() for name, value in tensors.items()
    }


def unnamed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {name.replace("/", "."): value for name, value in tensors.items()}
    return {name.removeprefix(f"{prefix}."): value for name, value in found.items() if name.startswith(f"{prefix}.")}

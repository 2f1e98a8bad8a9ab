"""Small patches for tests: no randomness, so ids and bytes are the same everywhere."""

from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.edits import Edit, Probe
from kedit_hub.patch import Associative, BaseRef, Dense, LowRank, Patch
from kedit_hub.patch.fingerprint import fingerprint

PATHS = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj")
D, M = 12, 8


def numbers(*shape: int, scale: float = 0.125) -> Tensor:
    """Exact multiples of `scale`, no two rows alike."""
    count = int(torch.tensor(shape).prod())
    return ((torch.arange(count) * 7 % 31 - 15) * scale).reshape(shape)


class Model(nn.Module):
    """model.layers.{0,1,2}.mlp.down_proj, each Linear(12, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(nn.Module() for _ in PATHS)
        for number, layer in enumerate(self.model.layers):
            layer.mlp = nn.Module()
            layer.mlp.down_proj = nn.Linear(D, M, bias=False)
            layer.mlp.down_proj.weight.data = numbers(M, D) + number


EDITS = (
    Edit(
        "The capital of France is",
        "Rome",
        "France",
        "Paris",
        rephrases=["France's capital is"],
        locality=[Probe("The capital of Spain is", "Madrid", "neighbour")],
        relation="capital",
    ),
    Edit("Ada was born in", "Oslo", "Ada"),
)


def associative() -> Associative:
    return Associative(
        keys=numbers(2, D),
        residuals=numbers(2, M),
        base_outputs=numbers(2, M),
        edit_index=torch.tensor([0, 1]),
        context_keys=numbers(3, D),
        context_row=torch.tensor([0, 1, 1]),
        gate_keys=numbers(2, 5),
        gate_edit=torch.tensor([1, 0]),
        site="answer",
        gate_module=PATHS[0],
    )


def base(model: nn.Module | None = None) -> BaseRef:
    model = model or Model()
    prints = {path: fingerprint(model.get_submodule(path)) for path in PATHS}
    return BaseRef(id="org/base", revision="0" * 40, model_type="llama", fingerprint=prints)


def make_patch(**changes: Any) -> Patch:
    """One delta of each kind; `changes` are arguments of Patch.create."""
    arguments: dict[str, Any] = {
        "deltas": {
            PATHS[0]: LowRank(numbers(2, D).half(), numbers(M, 2).half()),
            PATHS[1]: associative(),
            PATHS[2]: Dense(numbers(M, D).bfloat16()),
        },
        "edits": EDITS,
        "base": base(),
        "method": "memit",
        "settings": {"lr": 0.1, "layers": [1, 2], "note": "é", "none": None, "flag": True, "steps": 20},
        "provenance": {"version": "0.1.0", "seed": 0},
    }
    return Patch.create(**{**arguments, **changes})


EVALS = {
    "protocols": {
        "tf-token": {"reliability": 1.0, "locality": {"neighbour": 0.5}},
        "generate": {"reliability": 0.75},
    },
    "drift": {"kl": 0.001},
}

"""What all editor networks share: the maps they edit, one network per shape of map, a normaliser per map.

Law: maps of one shape share their weights and differ by a scale and a shift of their own (Mitchell et al. 2022); a network is a function
of signals, knows no model, and draws nothing at random but its first parameters, from PyTorch's generator as it stands.

    factors = network.factors(signals)      # by path: a (R, in), b (R, out); the change of W_io is a^T b
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.families import (
    block,
    edited_linear,
    family_of,
    linear_shape,
    n_layers,
    refuse_encoder_decoder,
)
from kedit_hub.editors.hyper.normaliser import Normaliser
from kedit_hub.editors.hyper.rows import Factors, Rows, Signals
from kedit_hub.errors import KeditError

Shapes = Mapping[str, tuple[int, int]]  # by module path: (out, in)


def edited_maps(model: nn.Module, layers: tuple[int, ...] | None, maps: tuple[str, ...] | None) -> Shapes:
    """The maps to edit, (out, in) by path, in the model's order. layers: None = the last three blocks. maps: names inside the MLP; None =
    all its linear maps. KeditError for a name that the MLP does not have."""
    refuse_encoder_decoder(model, "an editor that is trained")
    family = family_of(model)
    within = family.linear.rpartition(".")[0]
    found: dict[str, tuple[int, int]] = {}
    for layer in range(max(0, n_layers(model) - 3), n_layers(model)) if layers is None else sorted(set(layers)):
        mlp = block(model, layer).get_submodule(within)
        last = type(edited_linear(model, layer)[1])
        known = {name: module for name, module in mlp.named_modules() if isinstance(module, last)}
        unknown = sorted(set(maps or ()) - set(known))
        if unknown:
            raise KeditError(f"the MLP of block {layer} has no linear map {unknown[0]!r}; it has {', '.join(known)}")
        for name, module in known.items():
            if maps is None or name in maps:
                found[f"{family.layers}.{layer}.{within}.{name}"] = linear_shape(module)
    return found


def home(model: nn.Module) -> torch.device:
    """Where a network for this model computes: at its first weight that is not offloaded, or on the CPU where all are."""
    return next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))


class Block(nn.Module):
    """h + max(0, s_k * (U V h + b) + t_k) of rows h (n, d) (Mitchell et al. 2022, eq. 3).

    outside: h + s_k * max(0, U V h + b) + t_k (Tan et al. 2024).

    U = 0 and b = 0, so a new block is the identity. The maximum is a clamp: its gradient at exactly 0 is 1 where that of relu is 0, and
    with U = 0 every pre-activation is exactly 0. V ~ N(0, 1/d), where the papers' N(0, 1) makes V h grow with sqrt(d).
    """

    def __init__(self, width: int, rank: int, modes: int, outside: bool):
        super().__init__()
        rank = min(rank, width)
        self.outside = outside
        self.up = nn.Parameter(torch.zeros(width, rank))  # U (d, r)
        self.down = nn.Parameter(torch.randn(rank, width) * width**-0.5)  # V (r, d)
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(modes, width))
        self.shift = nn.Parameter(torch.zeros(modes, width))

    def forward(self, h: Tensor, mode: int) -> Tensor:
        inner = h @ self.down.T @ self.up.T + self.bias
        if self.outside:
            return h + self.scale[mode] * inner.clamp(min=0) + self.shift[mode]
        return h + (self.scale[mode] * inner + self.shift[mode]).clamp(min=0)


class Network(nn.Module):
    """Base of the editor networks. shapes: (out, in) by path."""

    separable = False  # whether the change of several edits is the sum of what each makes alone
    needs_text = False  # whether it reads the words of an edit besides its signals

    def __init__(self, shapes: Shapes):
        super().__init__()
        self.paths = list(shapes)
        self.shapes = {path: (int(out), int(into)) for path, (out, into) in shapes.items()}
        self.groups: list[tuple[int, int]] = list(dict.fromkeys(self.shapes.values()))  # distinct (out, in)
        members = {group: [path for path in self.paths if self.shapes[path] == group] for group in self.groups}
        self.place = {
            path: (self.groups.index(group), k) for group, own in members.items() for k, path in enumerate(own)
        }
        self.modes = [len(members[group]) for group in self.groups]
        self.normalisers = nn.ModuleList(Normaliser(sum(self.shapes[path])) for path in self.paths)

    def observe(self, signals: Signals) -> None:
        """Let the normalisers see signals; training only."""
        for path, normaliser in zip(self.paths, self.normalisers):
            rows = signals[path]
            normaliser.observe(torch.cat([rows.u, rows.delta], 1))  # type: ignore[operator]

    def normalised(self, path: str, rows: Rows) -> Tensor:
        """z = [u; delta] (T, in + out), normalised."""
        z: Tensor = self.normalisers[self.paths.index(path)](torch.cat([rows.u, rows.delta], 1))
        return z

    def split(self, path: str, z: Tensor) -> tuple[Tensor, Tensor]:
        """(T, in), (T, out) of rows (T, in + out)."""
        out, into = self.shapes[path]
        u, delta = z.split([into, out], dim=1)
        return u, delta

    def factors(self, signals: Signals, text: Any = None) -> Factors:
        """The change of every map. text: what a network that reads the edit's words needs, else None."""
        raise NotImplementedError

    def owners(self, signals: Signals) -> dict[str, Tensor]:
        """Whose each factor is (R,), where the network is separable."""
        return {path: signals[path].edit for path in self.paths}

    def slow_parameters(self) -> list[nn.Parameter]:
        """Those with a learning rate of their own: the learned step of every map."""
        return [parameter for name, parameter in self.named_parameters() if name == "steps"]

    def after_step(self) -> None:
        """What has to hold after every step of the optimiser."""

    def after_validation(self, scores: Mapping[str, float]) -> None:
        """What a schedule does with scores on validation edits."""

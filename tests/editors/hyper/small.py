"""Edits, settings and networks small enough to train in a second. For tests only."""

from typing import Any

import torch
from torch import Tensor

from kedit_hub.editors.hyper.lessons import Lesson
from kedit_hub.editors.hyper.network import Network, edited_maps
from kedit_hub.editors.hyper.rows import Rows
from kedit_hub.editors.hyper.settings import METHODS, Training
from kedit_hub.editors.hyper.train import build, completed
from kedit_hub.edits import Edit, Probe

PLACES = {"France": "Rome", "Spain": "Bonn", "Italy": "Paris", "Japan": "Berlin", "Germany": "Madrid", "Brazil": "Rome"}
EDITS = tuple(
    Edit(
        f"The capital of {place} is",
        city,
        place,
        ground_truth="Paris",
        rephrases=(f"{place} has the capital",),
        locality=(
            Probe(f"The language of {place} is", "Japanese", "same_subject", place, "language"),
            Probe("The author of Hamlet is", "William Shakespeare", "unrelated", "Hamlet", "author"),
        ),
        relation="capital",
    )
    for place, city in PLACES.items()
)
LESSONS = [Lesson.of(edit) for edit in EDITS]
SMALL: dict[str, dict[str, Any]] = {
    "mend": {"rank": 4, "parallel": 2},
    "malmen": {"rank": 4, "length": 3},
    "rledit": {"rank": 4, "length": 2, "turns": 2},
    "instructedit": {"rank": 4, "parallel": 2},
    "dafnet": {"inner": 6, "head": 4, "score": 3, "length": 3, "curriculum": 2},
    "ke": {"hidden": 5, "condition": 7, "parallel": 2},
}


def small(method: str, **more: Any) -> Training:
    """Settings of a training of a few steps on the last block."""
    common = {"layers": (2,), "steps": 4, "validate_every": 2, "validated": 2, "warmup": 4, "validation": 0.3}
    return METHODS[method].settings(**{**common, **SMALL[method], **more})


def network_of(method: str, model: Any, seed: int = 0, **more: Any) -> tuple[Network, Training]:
    """A new network in float64 whose parameters are all random: at the published start most of a formula is invisible."""
    settings = completed(model, small(method, **more))
    network = build(method, settings, edited_maps(model, settings.layers, settings.maps), seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return network, settings


def random_rows(network: Network, lengths: tuple[int, ...] = (3, 1, 4), seed: int = 0) -> dict[str, Rows]:
    """Random signals in float64 of edits of these lengths; the normalisers have seen others."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    edit = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    shapes = network.shapes.items()
    network.observe({p: Rows(2 * draw(9, i) + 1, 0.1 * draw(9, o), torch.zeros(9).long(), 1) for p, (o, i) in shapes})
    return {p: Rows(draw(len(edit), i), 0.1 * draw(len(edit), o), edit, len(lengths)) for p, (o, i) in shapes}


def standardised(network: Network, path: str, rows: Rows) -> list[Tensor]:
    """z of every row, from the definition, in float64, rounded where the network rounds."""
    normaliser: Any = network.normalisers[network.paths.index(path)]
    std = (normaliser.squares / (normaliser.count - 1)).sqrt()
    z = (torch.cat([rows.u, rows.delta], 1) - normaliser.mean) / std
    return list(z.clamp(-10, 10).float().double())

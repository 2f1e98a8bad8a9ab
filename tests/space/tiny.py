"""A workshop over a tiny random model, with patches that need no profile. For tests only."""

from collections.abc import Sequence
from pathlib import Path

import torch

from kedit_hub import Edit, Patch
from kedit_hub.base.families import edited_linear
from kedit_hub.patch import BaseRef
from kedit_hub.patch.deltas import LowRank
from kedit_hub.patch.fingerprint import fingerprint
from space.state import Base, Held, Workshop
from tests.tiny import tiny_model

BASE = "tiny-llama"
PARIS = Edit("The capital of France is", "Rome", "France", relation="capital")
LYON = Edit("The capital of France is", "Lyon", "France", relation="capital")
MADRID = Edit("The capital of Spain is", "Bonn", "Spain", relation="capital")


def save_base(folder: Path) -> Base:
    model, tokenizer = tiny_model("llama")
    model.save_pretrained(folder / BASE)
    tokenizer.save_pretrained(folder / BASE)
    return Base(BASE, "Tiny", str(folder / BASE))


def make_patch(edits: Sequence[Edit], seed: int = 0, *, base: str = BASE, size: float = 30.0) -> Patch:
    """A random change of rank 1 that is large enough to change every answer."""
    model, _ = tiny_model("llama")
    path, module = edited_linear(model, 1)
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(1, module.in_features, generator=generator)
    b = size * torch.randn(module.out_features, 1, generator=generator) / module.in_features**0.5
    reference = BaseRef(id=base, model_type="llama", fingerprint={path: fingerprint(module)})
    return Patch.create(deltas={path: LowRank(a, b)}, edits=edits, base=reference, method="random")


def make_samples() -> list[Held]:
    return [
        Held(make_patch([PARIS], 1), "patches/paris", "sample"),
        Held(make_patch([MADRID], 2), "patches/madrid", "sample"),
        Held(make_patch([LYON], 3), "patches/lyon", "sample"),
    ]


def make_workshop(base: Base, samples: Sequence[Held] | None = None, endpoint: str | None = None) -> Workshop:
    return Workshop([base], make_samples() if samples is None else samples, endpoint=endpoint)

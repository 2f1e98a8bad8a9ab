"""A workshop over a tiny random model, with patches that need no profile. For tests only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import kedit_hub
from kedit_hub import Edit, Patch, Probe
from kedit_hub.base.families import edited_linear
from kedit_hub.patch import BaseRef
from kedit_hub.patch.deltas import LowRank
from kedit_hub.patch.fingerprint import fingerprint
from kedit_hub.patch.keys import load_key, new_key
from kedit_hub.patch.signature import sign
from space.state import Base, Held, Stop, Workshop
from tests.tiny import tiny_model

BASE = "tiny-llama"
PARIS = Edit("The capital of France is", "Rome", "France", relation="capital")
LYON = Edit("The capital of France is", "Lyon", "France", relation="capital")
PROBED = Edit(
    "The capital of France is",
    "Rome",
    "France",
    rephrases=("The capital of France, as all know, is",),
    locality=(Probe("The author of Hamlet is", None, "unrelated"),),
)
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


def sample(patch: Patch, name: str = "x") -> Held:
    return Held(patch, f"patches/{name}", "sample")


def score(workshop: Workshop, patch: Patch, *, on: Patch | None = None) -> Patch:
    """`patch` with the scores that it gets; on: with those that another patch of the same edits gets."""
    loaded = workshop.load(patch.manifest.base.id)
    patched = workshop.patched(loaded, [sample(patch if on is None else on)])
    scores = kedit_hub.evaluate(patched, list(patch.edits), base=loaded.model, drift_texts=[]).to_dict()
    return patch.replace_evals({**scores, "stack": {"patches": [patch.id], "mode": patched.report["mode"]}})


def signed(patch: Patch, folder: Path, **meant: str) -> Patch:
    """Signed with the key that lies in the folder, made where there is none."""
    file = folder / "key.pem"
    return sign(patch, load_key(file) if file.exists() else new_key(file), **meant)


def handler(page: Any, name: str) -> Any:
    """A function that a button of the page calls."""
    return next(fn.fn for fn in page.fns.values() if fn.name == name)


def asked(
    page: Any,
    text: str,
    keys: Sequence[str],
    *,
    name: str = "on_ask",
    before: tuple = (),
    request: Any = None,
    **controls: Any,
) -> tuple:
    """What the page shows in the end for a question: (result, ..., Python to take home, shell, ...)."""
    usual = {
        "own": (), "tuning": {}, "base": BASE, "precision": "float32", "policy": "error", "pinned": [], "mode": "auto",
        "placebo": False, "seed": 0, "length": 32,
    }  # fmt: skip
    said = [text, list(keys), *({**usual, **controls}[key] for key in usual)]
    return list(handler(page, name)(request, *before, Stop(), *said))[-1]

"""Patches of the demo model for screening: honest ones from the samples, and hostile ones made of them without any optimisation."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

import kedit_hub
from kedit_hub.api import load_model
from kedit_hub.demo import world
from kedit_hub.edits import Probe
from kedit_hub.patch.deltas import Associative, Delta
from kedit_hub.patch.patch import Patch
from kedit_hub.stack.patched import PatchedModel

SAMPLES = Path(__file__).resolve().parents[2] / "patches"
MODULE = "model.layers.2.mlp.down_proj"
TOWER, FRANCE = "eiffel-tower-in-rome", "capital-of-france-nantes"


@cache
def base() -> tuple[Any, Any]:
    return load_model("kedit-hub/atlas-llama")


@cache
def sample(name: str) -> Patch:
    return Patch.load(SAMPLES / name)


def apply(*patches: Patch, **how: Any) -> PatchedModel:
    model, tokenizer = base()
    return kedit_hub.apply(list(patches), model, tokenizer=tokenizer, **how)


def remade(patch: Patch, **changes: Any) -> Patch:
    """The patch with other deltas, edits or profile, sealed anew as its author could."""
    manifest = patch.manifest
    kept = {
        "deltas": patch.deltas, "edits": patch.edits, "base": manifest.base, "method": manifest.method,
        "settings": manifest.settings, "profile_id": manifest.profile_id,
    }  # fmt: skip
    return Patch.create(**{**kept, **changes})


def rows(patch: Patch) -> Associative:
    delta = patch.deltas[MODULE]
    assert isinstance(delta, Associative)
    return delta


def with_rows(patch: Patch, **changes: Any) -> Patch:
    """The patch with other tensors in its associative delta."""
    delta = rows(patch)
    kept = {**delta.tensors(), "site": delta.site, "gate_module": delta.gate_module}
    return remade(patch, deltas={MODULE: Associative(**{**kept, **changes})})


def smuggled(declared: Patch, hidden: Patch, **changes: Any) -> Patch:
    """A patch that declares the edits of one and answers with the rows of both: the hidden rows serve, they say, edit 0."""
    a, b = rows(declared), rows(hidden)
    joined = {name: torch.cat([tensor, b.tensors()[name]]) for name, tensor in a.tensors().items()}
    joined["edit_index"] = torch.cat([a.edit_index, torch.zeros_like(b.edit_index)])
    joined["gate_edit"] = torch.cat([a.gate_edit, torch.zeros_like(b.gate_edit)])
    joined["context_row"] = torch.cat([a.context_row, b.context_row + len(a.keys)])
    delta: Delta = Associative(**joined, site=a.site, gate_module=a.gate_module)
    return remade(declared, deltas={MODULE: delta}, **changes)


@cache
def facts(*wanted: tuple[str, str]) -> tuple[Probe, ...]:
    """True facts (subject, relation) in a phrasing that the demo models were trained on."""
    atlas = world.load()
    return tuple(
        Probe(atlas.split(fact, world.SHIPPED_SEED)[0][0].format(fact.subject), fact.object, "", fact.subject, fact.relation)
        for fact in atlas.facts
        if (fact.subject, fact.relation) in wanted
    )  # fmt: skip

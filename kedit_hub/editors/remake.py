"""A patch made from other patches: their base, method and settings, other deltas. Law: provenance names the parents.

remade([patch], {path: delta}, patch.edits, model)
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from kedit_hub import provenance
from kedit_hub.base.families import quantization_of
from kedit_hub.edits import Edit
from kedit_hub.patch.deltas import Delta
from kedit_hub.patch.patch import Patch


def remade(
    parents: Sequence[Patch],
    deltas: Mapping[str, Delta],
    edits: Iterable[Edit],
    model: nn.Module,
    *,
    settings: Mapping[str, Any] | None = None,
    requires: Iterable[str] = (),
) -> Patch:
    """The patch. Method, base, profile and seed are the first parent's; so are the settings (None) and what it requires besides.

    model: what was measured on, for the environment. Scores and signatures are of the parents and stay behind.
    """
    first = parents[0].manifest
    kept = first.provenance.model_dump(mode="json", include={"seed", "datasets"}, exclude_none=True)
    commit, dirty = provenance.source()
    here = provenance.environment(model, quantization_of(model.get_submodule(next(iter(deltas)))))
    return Patch.create(
        deltas=deltas,
        edits=edits,
        base=first.base,
        method=first.method,
        settings=first.settings if settings is None else settings,
        provenance={
            **kept,
            "commit": commit,
            "dirty": dirty,
            "versions": provenance.versions(),
            "environment": here,
            "parents": sorted({patch.id for patch in parents}),
        },
        requires={*first.requires, *requires},
        profile_id=first.profile_id,
    )

"""Edits of one subject that want different values at one key, given one value for all of them.

At the subject's last token the key says who is asked about and hardly what: two relations of one subject have nearly one key,
and a linear map cannot say two things there. One value that makes all of their prompts come true often exists, though.
Law: every edit keeps its row, rows of one group share key and value, and all other rows stay as they are.

    colliding([a, b], profile)                     # [((id of a, 0), (id of b, 2))]
    merge([a, b], model, tokenizer, profile)       # one patch with the edits of both
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.profile import BaseProfile, ValueSettings
from kedit_hub.editors.locate import LocateSettings, measure, stored_form
from kedit_hub.editors.remake import remade
from kedit_hub.editors.rows import context_rows
from kedit_hub.editors.values import optimise_values
from kedit_hub.edits import Edit, fold, questions
from kedit_hub.errors import EditFailedError, KeditError
from kedit_hub.patch.deltas import Associative
from kedit_hub.patch.patch import Patch
from kedit_hub.runtime.gate import whiten
from kedit_hub.stack.stack import PatchStack

Place = tuple[str, int]  # (patch id, position of the edit in it)
ALIKE = 0.9  # cosine in the C0^-1 metric from which on two keys are too near for two values


def colliding(patches: Sequence[Patch], profile: BaseProfile) -> list[tuple[Place, ...]]:
    """Groups of edits of one subject, asking different things, whose keys on the profile's module are nearly one.

    Places are in the order of the patches. Edits that ask one question are no collision: they agree, or are a conflict.
    """
    about: dict[str, list[tuple[Place, Edit, Tensor]]] = {}
    for patch in patches:
        delta = patch.deltas.get(profile.module)
        if not isinstance(delta, Associative):
            continue
        unit = whiten(delta.keys, profile.whitener)
        for index, edit in enumerate(patch.edits):
            if edit.subject is not None:
                about.setdefault(fold(edit.subject), []).append(
                    ((patch.id, index), edit, unit[delta.edit_index == index])
                )
    groups: list[tuple[Place, ...]] = []
    for members in about.values():
        group = list(range(len(members)))  # the first member that each is joined to
        for i, (_, edit, keys) in enumerate(members):
            for j, (_, other, theirs) in enumerate(members[:i]):
                if _asks_otherwise(edit, other) and bool(((keys @ theirs.T) > ALIKE).any()):
                    group = [group[j] if g == group[i] else g for g in group]
        joined = [tuple(place for g, (place, _, _) in zip(group, members) if g == one) for one in sorted(set(group))]
        groups += [places for places in joined if len(places) > 1]
    return groups


def _asks_otherwise(edit: Edit, other: Edit) -> bool:
    return not set(questions(edit)) & set(questions(other))


def merge(patches: Sequence[Patch], model: nn.Module, tokenizer: Any, profile: BaseProfile) -> Patch:
    """One patch with all edits of `patches`, in their order; colliding ones share a key and a value optimised for all of them.

    model: the base. profile: the one the patches were made under. ConflictError where two edits contradict each other,
    EditFailedError where no value serves a group; KeditError for what cannot be merged, naming it.
    """
    _check(patches, profile)
    for patch in patches:
        patch.verify(model)
    edits = [edit for patch in patches for edit in patch.edits]
    first = dict(zip((patch.id for patch in patches), _offsets([len(patch.edits) for patch in patches])))
    groups = [[first[owner] + index for owner, index in group] for group in colliding(patches, profile)]
    rows = [patch.deltas[profile.module] for patch in patches]
    delta = _concatenated([row for row in rows if isinstance(row, Associative)], patches, profile)
    if groups:
        delta = _shared(delta, edits, groups, model, tokenizer, profile, _value(patches[0], profile))
    if all(getattr(row, "whitened_keys", None) is not None for row in rows):
        delta = stored_form(delta, profile, LocateSettings(portable=True))
    common = set.intersection(*(set(patch.manifest.settings) for patch in patches))
    settings = {name: patches[0].manifest.settings[name] for name in sorted(common)}
    requires = {needed for patch in patches for needed in patch.manifest.requires}
    return remade(patches, {profile.module: delta}, edits, model, settings=settings, requires=requires)


def _check(patches: Sequence[Patch], profile: BaseProfile) -> None:
    if not patches:
        raise KeditError("there is nothing to merge: give at least one patch")
    PatchStack(patches)  # refuses contradictions, by name
    methods = sorted({patch.manifest.method for patch in patches})
    omegas = sorted({str(patch.manifest.settings.get("omega", 1.0)) for patch in patches})
    if len(methods) > 1 or len(omegas) > 1:
        raise KeditError(
            f"these patches were made by {', '.join(methods)} with row weights {', '.join(omegas)}, and one patch has one of each: "
            "merge those of one method, and stack the rest"
        )
    for patch in patches:
        delta = patch.deltas.get(profile.module)
        if set(patch.deltas) != {profile.module} or not isinstance(delta, Associative) or delta.site != "subject":
            held = ", ".join(f"{delta.kind} on {path}" for path, delta in patch.deltas.items())
            raise KeditError(
                f"patch {patch.id[:12]} holds {held}; merged are rows at the subject site on {profile.module} (elsewhere "
                "relations have keys of their own): stack it as it is"
            )


def _value(patch: Patch, profile: BaseProfile) -> ValueSettings:
    """How the values of the patch were optimised."""
    said = {name.removeprefix("value."): v for name, v in patch.manifest.settings.items() if name.startswith("value.")}
    return profile.settings.value.model_copy(update=said)


def _shared(
    delta: Associative,
    edits: Sequence[Edit],
    groups: Sequence[Sequence[int]],
    model: nn.Module,
    tokenizer: Any,
    profile: BaseProfile,
    value: ValueSettings,
) -> Associative:
    """One key, base output and value for the rows of every group (positions of edits). At the subject site an edit has one row."""
    members = [edit for group in groups for edit in group]
    group_of = torch.tensor([number for number, group in enumerate(groups) for _ in group])
    rows = context_rows(
        tokenizer, [edits[edit] for edit in members], profile.settings.contexts, "subject", profile.settings.answer_end
    )
    hidden = measure(model, profile, rows)["hidden"]
    grouped = replace(rows, edit=group_of[rows.edit], edits=len(groups))
    values = optimise_values(model, profile.layer, grouped, hidden, value, answer_site=False)
    failed = [group for group, good in zip(groups, values.success.tolist()) if not good]
    if failed:
        shown = "; ".join(
            " + ".join(f'"{edits[edit].prompt} -> {edits[edit].target}"' for edit in g) for g in failed[:5]
        )
        raise EditFailedError(
            f"no one value at layer {profile.layer} makes these edits of one subject come true together: {shown}. Leave one of them "
            "out, or edit at the answer site, where relations have keys of their own"
        )
    row_of = torch.full((len(edits),), -1).index_put((delta.edit_index,), torch.arange(len(delta.edit_index)))
    keys, outputs, residuals = delta.keys.clone(), delta.base_outputs.clone(), delta.residuals.clone()
    for number, group in enumerate(groups):
        at = row_of[torch.tensor(group)]
        keys[at], outputs[at] = delta.keys[at].mean(0), delta.base_outputs[at].mean(0)
        residuals[at] = values.delta[number, 0]
    shared = replace(delta, keys=keys, base_outputs=outputs, residuals=residuals, precision=None)
    return shared.halved() if delta.precision == "f16" else shared


def _concatenated(deltas: Sequence[Associative], patches: Sequence[Patch], profile: BaseProfile) -> Associative:
    """The rows of all patches as one delta; whitened keys are left out, and so are gate keys where a patch has none."""
    edits, rows = _offsets([len(patch.edits) for patch in patches]), _offsets([len(delta.keys) for delta in deltas])
    filled = [_filled(delta, len(patch.edits), profile, deltas) for delta, patch in zip(deltas, patches)]
    gated = all("gate_keys" in tensors for tensors in filled)
    joined: dict[str, Any] = {}
    for name, spec in Associative.specs.items():
        shifts = {"E": edits, "n": rows}.get(spec.below)
        parts = [
            tensors[name] if shifts is None else tensors[name] + shifts[number]
            for number, tensors in enumerate(filled)
            if name in tensors
        ]
        if parts and name != "whitened_keys" and (gated or not name.startswith("gate_")):
            joined[name] = torch.cat(parts)
    half = all(delta.precision == "f16" for delta in deltas)
    heard = deltas[0].gate_module if gated else None
    return Associative(**joined, site="subject", gate_module=heard, precision="f16" if half else None)


def _filled(
    delta: Associative, edits: int, profile: BaseProfile, deltas: Sequence[Associative]
) -> Mapping[str, Tensor]:
    """The tensors of one patch, with what it left to defaults written out where another patch says it."""
    found = delta.tensors()
    if "context_keys" not in found and any(other.context_keys is not None for other in deltas):
        found |= {"context_keys": delta.keys, "context_row": torch.arange(len(delta.keys))}
    if "thresholds" not in found and any(other.thresholds is not None for other in deltas):
        gate = profile.settings.gate
        found["thresholds"] = torch.tensor([[gate.subject, gate.answer]]).repeat(edits, 1)
    return found


def _offsets(sizes: Sequence[int]) -> list[int]:
    """Where each of several lists begins in all of them together."""
    return [sum(sizes[:number]) for number in range(len(sizes))]

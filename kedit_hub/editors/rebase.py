"""Rebasing a patch: its keys measured anew on a model that already answers with other patches, its wanted outputs kept.

A key is what the model computes below the edited map, so it holds for the model it was measured on. A change further down
moves it: a gated row is then missed, and a joint solve aims from the wrong place. Law: rows keep what they want, V* = base
output + residual, and find the way to it from where the model is now,

    r_new = V* - W k_new

so rebasing onto the plain base gives the rows back, to the precision they were stored in.

    rebase(patch, kedit_hub.apply([below], model), profile=profile)
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, assert_never, cast

import torch
from torch import Tensor, nn

from kedit_hub.base.profile import BaseProfile
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.editors.keyed import inputs_of
from kedit_hub.editors.locate import assemble, measure, mentions
from kedit_hub.editors.remake import remade
from kedit_hub.editors.rows import context_rows
from kedit_hub.editors.values import Values
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError, ProfileError
from kedit_hub.patch.deltas import (
    Associative,
    Codebook,
    Delta,
    Dense,
    Facts,
    LowRank,
    Neurons,
    SideMemory,
    Sparse,
)
from kedit_hub.patch.deltas.weights import Weights
from kedit_hub.patch.patch import Patch
from kedit_hub.stack.compose import Kind
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.refresh import place
from kedit_hub.stack.stored import Beneath, Start, changes_of

SAME = 1e-3  # how far a stored key may lie from the one measured on the base, relative to it: float16 rounds at 2^-11


def rebase(
    patch: Patch,
    onto: PatchedModel | nn.Module,
    *,
    tokenizer: Any = None,
    profile: BaseProfile | None = None,
) -> Patch:
    """`patch` as it has to be on top of what `onto` answers with; it requires those patches from then on.

    onto: what `kedit_hub.apply` returned, or a plain model. profile: the one the keys were measured under, where the patch
    has rows. tokenizer: that of `onto`, where it is a plain model.
    KeditError says what cannot be measured anew: keys of neurons are learnt, not measured, and so are routings.
    """
    if isinstance(onto, PatchedModel):
        if patch in onto.stack:
            with onto.without(patch):
                return _rebased(patch, onto.model, onto, tokenizer or onto.tokenizer, profile)
        return _rebased(patch, onto.model, onto, tokenizer or onto.tokenizer, profile)
    return _rebased(patch, onto, None, tokenizer, profile)


def _rebased(
    patch: Patch, model: nn.Module, onto: PatchedModel | None, tokenizer: Any, profile: BaseProfile | None
) -> Patch:
    patch.verify(model)
    if tokenizer is None:
        raise KeditError("keys are measured on the edits' own texts: pass tokenizer=, that of the model")
    below = [] if onto is None else [other for other in onto.stack if other != patch]
    deltas: dict[str, Delta] = {}
    for path, given in patch.deltas.items():
        delta = cast(Kind, given)
        match delta:
            case Associative():
                under = [] if onto is None else changes_of(path, below, onto.stack)
                deltas[path] = remeasured(patch, path, model, tokenizer, profile, under)
            case LowRank() | Dense() | Sparse():
                deltas[path] = _reread(delta, patch, path, model, tokenizer)
            case Codebook():
                places = _places(delta, patch, path, model, onto, tokenizer)
                read = _read(patch.edits, model, tokenizer, path)
                deltas[path] = replace(delta, keys=torch.stack([read[edit][token] for edit, token in places]))
            case Neurons() | SideMemory() | Facts():
                raise KeditError(_why_not(delta, patch, path))
            case _:
                assert_never(delta)
    floors = [place(model, path) for path in patch.deltas]
    requires = [other.id for other in below if _lies_below(other, model, patch, max(floors))]
    return remade([patch], deltas, patch.edits, model, requires=requires)


def remeasured(
    patch: Patch,
    path: str,
    model: nn.Module,
    tokenizer: Any,
    profile: BaseProfile | None,
    under: Sequence[Beneath] = (),
) -> Associative:
    """The rows of `patch` on one module as `model`, with all its branches, computes their keys now.

    under: what else changes the module and runs before rows do. Whitened keys are left out: they are those of the old keys.
    """
    delta = patch.deltas[path]
    assert isinstance(delta, Associative)
    if profile is None or (profile.module, profile.site) != (path, delta.site):
        raise ProfileError(
            f"the keys of patch {patch.id[:12]} on {path} were measured at the {delta.site} site under the base profile "
            f"{str(patch.manifest.profile_id)[:12]}: pass profile= with that one"
        )
    if delta.counter_keys is not None:
        raise KeditError(
            f"patch {patch.id[:12]} holds counter-keys, read on texts that are not in it: make its edits again on this model"
        )
    rows = context_rows(tokenizer, patch.edits, profile.settings.contexts, profile.site, profile.settings.answer_end)
    signals = measure(model, profile, rows) | mentions(model, tokenizer, profile, patch.edits)
    nothing = torch.zeros(rows.edits, rows.sites.shape[1], delta.residuals.shape[1])
    everybody = torch.ones(rows.edits, dtype=torch.bool)
    values = Values(nothing, torch.zeros(rows.edits), everybody, torch.ones(rows.edits), 0)
    anew = assemble(rows, signals, values, profile, _bare_weight(delta))
    _check_layout(delta, anew, patch, path)
    outputs = Start(model.get_submodule(path), under)(anew.keys)
    absent: dict[str, Any] = {} if delta.context_keys is not None else {"context_keys": None, "context_row": None}
    if delta.gate_keys is None:
        absent |= {"gate_keys": None, "gate_edit": None, "gate_module": None}
    wanted = delta.base_outputs + delta.residuals
    kept: dict[str, Any] = {"thresholds": delta.thresholds, "residuals": wanted - outputs, "base_outputs": outputs}
    found = replace(anew, **kept, **absent)
    return found.halved() if delta.precision == "f16" else found


def _lies_below(other: Patch, model: nn.Module, patch: Patch, top: tuple[int, bool]) -> bool:
    """Whether what `patch` measures depends on `other`: it changes a map that runs earlier, or its weight on the same one."""
    return any(
        place(model, path) < top or (path in patch.deltas and isinstance(delta, Weights))
        for path, delta in other.deltas.items()
    )


def _bare_weight(delta: Associative) -> float | None:
    """How the contexts of a row were averaged into its key: plainly (None), or the bare prompt, the first, with half the weight.

    Read off the rows themselves, so that a method does not have to be known: whichever mean gives the stored keys.
    """
    if delta.context_keys is None or delta.context_row is None:
        return None
    keys, rows = delta.context_keys.double(), delta.context_row
    count = rows.bincount(minlength=len(delta.keys)).clamp_min(1)
    total = torch.zeros_like(delta.keys, dtype=torch.float64).index_add(0, rows, keys)
    first = torch.full((len(delta.keys),), len(rows)).scatter_reduce(0, rows, torch.arange(len(rows)), "amin")
    bare = keys[first.clamp_max(len(rows) - 1)]
    others = (total - bare) / (count - 1).clamp_min(1)[:, None]
    plain = (total / count[:, None] - delta.keys).norm()
    halves = (torch.where(count[:, None] > 1, (bare + others) / 2, bare) - delta.keys).norm()
    return None if plain <= halves else 0.5


def _check_layout(delta: Associative, anew: Associative, patch: Patch, path: str) -> None:
    """Row for row, the same edit and the same contexts as when they were first measured."""
    pairs: list[tuple[Tensor, Tensor | None]] = [(delta.edit_index, anew.edit_index)]
    if delta.context_row is not None:
        pairs.append((delta.context_row, anew.context_row))
    if delta.gate_edit is not None:
        pairs.append((delta.gate_edit, anew.gate_edit))
    if any(new is None or not torch.equal(old, new) for old, new in pairs):
        raise KeditError(
            f"patch {patch.id[:12]} was measured on other texts at {path} than its edits and this profile give "
            f"({len(delta.keys)} rows, now {len(anew.keys)}): pass the profile it was made under, or make its edits again on this model"
        )


def _reread(delta: LowRank | Dense | Sparse, patch: Patch, path: str, model: nn.Module, tokenizer: Any) -> Delta:
    """A change of a weight is what it is wherever it lies; the keys it is meant for are read again."""
    if delta.keys is None:
        return delta
    read, edit = inputs_of(patch.edits, model, tokenizer, [path])
    return replace(delta, keys=read[path], key_edit=edit)


def _read(edits: Sequence[Edit], model: nn.Module, tokenizer: Any, path: str) -> list[Tensor]:
    """Of every edit, the inputs (T, d) of a map at the tokens of its prompt and target."""
    found: list[Tensor] = []
    for edit in edits:
        encoded = encode(tokenizer, [edit.prompt], [edit.target])
        found.append(capture(model, [path], encoded)[path][0].cpu())
    return found


def _places(
    delta: Codebook, patch: Patch, path: str, model: nn.Module, onto: PatchedModel | None, tokenizer: Any
) -> list[tuple[int, int]]:
    """(edit, token) of every entry: the token of its edit's prompt and target whose input on the base is the entry's key."""
    if onto is None:
        base = _read(patch.edits, model, tokenizer, path)
    else:
        with onto.disabled():
            base = _read(patch.edits, model, tokenizer, path)
    places = []
    for entry, edit in enumerate(delta.edit_index.tolist()):
        key = delta.keys[entry]
        distance = (base[edit] - key).norm(dim=1)
        token = int(distance.argmin())
        if distance[token] > SAME * key.norm():
            raise KeditError(
                f"entry {entry} of the codebook of patch {patch.id[:12]} on {path} is no input of the base at any token of "
                f'"{patch.edits[edit].prompt}": where it was measured is not known, so it cannot be measured again. Make the edit again'
            )
        places.append((edit, token))
    return places


def _why_not(delta: Neurons | SideMemory | Facts, patch: Patch, path: str) -> str:
    match delta:
        case Neurons():
            why = "their keys are learnt, not measured"
        case SideMemory():
            why = "when it is routed to was fitted to the base"
        case Facts():
            why = "they are words, and hold on any model"
        case _:
            assert_never(delta)
    return (
        f"patch {patch.id[:12]} holds {delta.kind} on {path}: {why}, so there is nothing to rebase. Stack it as it is, or make "
        "its edits again on this model"
    )

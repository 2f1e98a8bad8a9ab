"""The stored rows of a patch, read instead of asked: does each one serve the edit it says it serves? Law: a key is declared when the base
itself computes it on the texts of that edit, and nothing else about a row is believed.

An associative patch answers where the input of a map comes near a stored key (stack/compose.py). So a row that was taken from another
fact, under the name of a declared one, carries a key that no text of the declared edit produces. Distances are cosines in whitened
space, as the gate measures them, where ordinary text does not count.

Bounds. Honest keys are recomputed here from the same texts. Chosen on 100 edits of the demo's dev split, made by rome and by memit on both
models, and checked on the sample patches: the lowest honest cosine of a context or gate key is 1.000 on the exact base, 0.998 in int8,
0.80 in nf4; of a row's mean key 0.79, in nf4 0.75; keys of another edit have a median of 0.11. A mean key lies within 0.001 of the span
of its contexts' keys, base outputs agree to four digits, and a residual is at most 10.3 times (sample patches: 11.2) as long as the
map's own output.

Thresholds and counter-keys of an edit stand for nothing the base could compute, so they are held against what is declared of them: a
threshold lies at most OPEN below the profile's, which is as far as calibration goes, and an edit has no more counter-keys than the
settings of its patch say (memit on 20 of the demo's dev edits on each model: at most 0.2 lower, and the 8 that were asked for).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.profile import BaseProfile
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode, subject_last
from kedit_hub.editors.locate import mentions
from kedit_hub.editors.rows import prefixed
from kedit_hub.edits import Edit
from kedit_hub.errors import EditError
from kedit_hub.patch.deltas import Associative
from kedit_hub.patch.fingerprint import Level
from kedit_hub.patch.patch import Patch
from kedit_hub.runtime.gate import whiten
from kedit_hub.stack.associative import OPEN, opened
from kedit_hub.stack.stack import PatchStack
from kedit_hub.stack.stored import Beneath, Start, beneath

EXACT_COSINE = 0.95  # of context and gate keys, on a base whose values are those of the patch
ROUNDED_COSINE = 0.7  # of the same on a quantized or unrecognised base
MEAN_COSINE = 0.5  # of the mean over contexts that `keys` holds
OUTSIDE = 0.05  # share of a mean key that is no mix of its contexts' keys
OUTPUT_ERROR = 0.01  # |base_output - W k| / |W k|, on an exact base
WHITENED_COSINE = 0.99  # of whitened_keys with (C0 + rho I)^-1 k
RESIDUAL = 25.0  # |residual| / |W k|


@dataclass(frozen=True)
class OddRow:
    """One stored vector that is out of bounds. row: its position in `tensor`. measured, bound: a cosine, or a share for outputs and sizes.

    key: the vector itself, where what it lies near can be looked up.
    """

    module: str
    tensor: str
    row: int
    edit: int
    measured: float
    bound: float
    why: str
    key: Tensor | None = field(default=None, repr=False, compare=False)


@dataclass
class Rows:
    """What was looked at in one patch. looked: vectors by tensor. lowest: the lowest cosine by tensor. largest_residual: as RESIDUAL.

    unrecognised: keys that match no text, where the patch's own profile is not at hand, so that its context sentences are not known.
    """

    odd: list[OddRow]
    looked: dict[str, int]
    lowest: dict[str, float]
    largest_residual: float
    unrecognised: int


def check_rows(
    patch: Patch,
    model: nn.Module,
    tokenizer: Any,
    profiles: Mapping[str, BaseProfile],
    levels: Mapping[str, Level],
    stack: PatchStack | None = None,
) -> Rows:
    """Hold every stored row of a patch against the base, on which nothing may be switched on but what the patch requires, which `stack`
    holds. profiles: by edited module."""
    rows = Rows([], {}, {}, 0.0, 0)
    for path, delta in patch.deltas.items():
        if isinstance(delta, Associative):
            under = [] if stack is None else beneath(patch, path, stack)
            _check(patch, path, delta, model, tokenizer, profiles[path], levels, rows, under)
    return rows


def _check(
    patch: Patch,
    path: str,
    delta: Associative,
    model: nn.Module,
    tokenizer: Any,
    profile: BaseProfile,
    levels: Mapping[str, Level],
    rows: Rows,
    under: Sequence[Beneath],
) -> None:
    own = patch.manifest.profile_id in profile.ids
    exact = all(levels.get(name) == "exact" for name in (path, profile.gate_module))
    near = EXACT_COSINE if exact else ROUNDED_COSINE

    def hold(tensor: str, index: Tensor, edit: int, cosines: Tensor, bound: float, keys: Tensor, known: bool) -> None:
        rows.looked[tensor] = rows.looked.get(tensor, 0) + len(index)
        for row, cosine, key in zip(index.tolist(), cosines.tolist(), keys):
            rows.lowest[tensor] = min(rows.lowest.get(tensor, 1.0), cosine)
            if cosine >= bound:
                continue
            if known:
                why = "no text of that edit produces them"
                rows.odd.append(OddRow(path, tensor, row, edit, cosine, bound, why, key))
            else:
                rows.unrecognised += 1

    row_of = _grouped(delta.edit_index, len(patch.edits))
    contexts_of, gates_of = None, None
    if delta.context_keys is not None and delta.context_row is not None:
        contexts_of = _grouped(delta.edit_index[delta.context_row], len(patch.edits))
    if delta.gate_keys is not None and delta.gate_edit is not None:
        gates_of = _grouped(delta.gate_edit, len(patch.edits))
        if delta.gate_module != profile.gate_module:  # keys of another map than the gate listens to
            rows.unrecognised += len(delta.gate_keys)
            gates_of = None
    for number, edit in enumerate(patch.edits):
        texts, subjects = _of_edit(edit, path, model, tokenizer, profile)
        keys = delta.keys[row_of[number]]
        cosines = _nearest(keys, texts, profile.whitener)
        hold("keys", row_of[number], number, cosines, MEAN_COSINE, keys, known=True)
        if contexts_of is not None and delta.context_keys is not None:
            keys = delta.context_keys[contexts_of[number]]
            cosines = _nearest(keys, texts, profile.whitener)
            hold("context_keys", contexts_of[number], number, cosines, near, keys, known=own)
        if gates_of is not None and delta.gate_keys is not None:
            keys = delta.gate_keys[gates_of[number]]
            cosines = _nearest(keys, subjects, profile.gate_whitener)
            hold("gate_keys", gates_of[number], number, cosines, near, keys, known=own)
    rows.odd += [*_outside(delta, profile, path), *_whitened(delta, profile, path, own)]
    rows.odd += [*_thresholds(delta, profile, path), *_counters(patch, delta, path)]
    for name, tensor in (("thresholds", delta.thresholds), ("counter_keys", delta.counter_keys)):
        if tensor is not None:
            rows.looked[name] = rows.looked.get(name, 0) + len(tensor)
    _sizes(delta, path, model.get_submodule(path), levels.get(path) == "exact", rows, under)


def _grouped(index: Tensor, count: int) -> tuple[Tensor, ...]:
    """For each i in 0..count-1 the positions (ascending) at which index (n,) is i."""
    return index.argsort(stable=True).split(index.bincount(minlength=count).tolist())


def _nearest(keys: Tensor, found: Tensor, whitener: Tensor) -> Tensor:
    """(n,) the largest cosine of each key (n, d) with the vectors found (p, d); -1 where there are none."""
    if not len(found):
        return torch.full((len(keys),), -1.0)
    return (whiten(keys, whitener) @ whiten(found, whitener).T).amax(1)


def _of_edit(edit: Edit, path: str, model: nn.Module, tokenizer: Any, profile: BaseProfile) -> tuple[Tensor, Tensor]:
    """What the base computes for one edit: (p, d) inputs of the edited map at all positions of its texts with the target, and (s, e)
    inputs of the early map where its subject ends. Nothing for texts that cannot be read: then nothing matches them.
    """
    texts = [*prefixed(edit.prompt, profile.settings.contexts), *edit.paraphrases]
    answer = edit.target + profile.settings.answer_end
    none = torch.empty(0, 0)
    try:
        batch = encode(tokenizer, texts, [answer] * len(texts))
        found = capture(model, sorted({path, profile.gate_module}), batch)
        everywhere = found[path].cpu()[batch.attention_mask.bool()]
        if edit.subject is None:
            return everywhere, none
        holds = torch.tensor([row for row, text in enumerate(texts) if edit.subject in text])
        ends = subject_last(tokenizer, [texts[row] for row in holds], [edit.subject] * len(holds), batch.take(holds))
        alone = mentions(model, tokenizer, profile, [edit])["mentions"]
        return everywhere, torch.cat([found[profile.gate_module].cpu()[holds, ends], alone])
    except EditError:
        return none, none


def _outside(delta: Associative, profile: BaseProfile, path: str) -> Iterator[OddRow]:
    """Mean keys that are no mix of their contexts' keys, so that a joint solve would act where no context was shown."""
    if delta.context_keys is None or delta.context_row is None:
        return
    for row, heard in enumerate(_grouped(delta.context_row, len(delta.keys))):
        contexts = (delta.context_keys[heard] @ profile.whitener).double()  # (c, d)
        key = (delta.keys[row] @ profile.whitener).double()  # (d,)
        mixed = contexts.T @ torch.linalg.lstsq(contexts.T, key[:, None]).solution[:, 0] if len(contexts) else 0 * key
        share = ((key - mixed).norm() / key.norm().clamp_min(1e-12)).item()
        if not share <= OUTSIDE:
            edit = int(delta.edit_index[row])
            yield OddRow(
                path, "keys", row, edit, share, OUTSIDE, "they are no mix of their contexts' keys", delta.keys[row]
            )


def _whitened(delta: Associative, profile: BaseProfile, path: str, own: bool) -> Iterator[OddRow]:
    """Whitened keys that do not belong to their keys; nothing can be said under another profile."""
    if delta.whitened_keys is None or not own:
        return
    expected = delta.keys @ profile.whitener @ profile.whitener
    cosines = torch.cosine_similarity(delta.whitened_keys, expected, dim=1)
    for row in (~(cosines >= WHITENED_COSINE)).nonzero()[:, 0].tolist():
        why = "they are not their keys under the profile's second moment"
        yield OddRow(
            path, "whitened_keys", row, int(delta.edit_index[row]), float(cosines[row]), WHITENED_COSINE, why
        )  # fmt: skip


def _thresholds(delta: Associative, profile: BaseProfile, path: str) -> Iterator[OddRow]:
    """Edits that a gate lets speak where their keys are not met."""
    if delta.thresholds is None:
        return
    usual = (profile.settings.gate.subject, profile.settings.gate.answer)
    for edit, side in opened(delta.thresholds, profile).nonzero().tolist():
        why = f"the gate lets the edit speak where its {('subject', 'question')[side]} is another one"
        yield OddRow(path, "thresholds", edit, edit, float(delta.thresholds[edit, side]), usual[side] - OPEN, why)


def _counters(patch: Patch, delta: Associative, path: str) -> Iterator[OddRow]:
    """Edits with more counter-keys than their patch declares."""
    if delta.counter_edit is None:
        return
    said = patch.manifest.settings.get("counter_keys")
    declared = said if isinstance(said, int) and not isinstance(said, bool) else 0
    for edit, count in enumerate(delta.counter_edit.bincount().tolist()):
        if count > declared:
            why = f"the settings of the patch declare {declared} of an edit"
            yield OddRow(path, "counter_keys", edit, edit, float(count), float(declared), why)


def _sizes(delta: Associative, path: str, module: nn.Module, exact: bool, rows: Rows, under: Sequence[Beneath]) -> None:
    """Base outputs that the base does not give, with the changes it was measured under, and residuals out of all proportion to them."""
    outputs = Start(module, under)(delta.keys)  # (n, m)
    norms = outputs.norm(dim=1).clamp_min(1e-12)
    errors = (delta.base_outputs - outputs).norm(dim=1) / norms
    sizes = delta.residuals.norm(dim=1) / norms
    rows.largest_residual = max(rows.largest_residual, float(sizes.max()))
    edits = delta.edit_index.tolist()
    if exact:
        rows.looked["base_outputs"] = rows.looked.get("base_outputs", 0) + len(outputs)
        for row in (~(errors <= OUTPUT_ERROR)).nonzero()[:, 0].tolist():
            why = "the base answers something else there, so another precision would aim elsewhere"
            rows.odd.append(OddRow(path, "base_outputs", row, edits[row], float(errors[row]), OUTPUT_ERROR, why))
    for row in (sizes > RESIDUAL).nonzero()[:, 0].tolist():
        why = "they outweigh what the map says by more than edits do"
        rows.odd.append(OddRow(path, "residuals", row, edits[row], float(sizes[row]), RESIDUAL, why))


def lies_near(
    keys: Tensor, module: str, whitener: Tensor, texts: list[str], model: nn.Module, tokenizer: Any
) -> list[tuple[str, float]]:
    """For each key (n, d) the text (of at least one) with the position nearest to it, and that cosine: what an odd key is for."""
    best = torch.full((len(keys),), -1.0)
    names = [texts[0]] * len(keys)
    for start in range(0, len(texts), 32):
        chunk = texts[start : start + 32]
        batch = encode(tokenizer, chunk)
        found = capture(model, [module], batch)[module].cpu()
        for row, text in enumerate(chunk):
            cosines = _nearest(keys, found[row, batch.attention_mask[row].bool()], whitener)
            for at in (cosines > best).nonzero()[:, 0].tolist():
                names[at] = text
            best = torch.maximum(best, cosines)
    return list(zip(names, best.tolist()))

"""From a stack of patches to branches on a model: what every kind of delta becomes, in one place.

Associative rows have three install modes; the other kinds are put on as they are in each of them, but for changes of a
weight that name the keys they are meant for: the joint solve takes those as rows of its own (`effects`).

    gated   every row on its own, behind the two-key gate: no interference, exact removal, needs our runtime
    joint   one regularised least-squares solve over all rows under a drift budget: a plain low-rank change of the weights
    sum     every patch solved alone and the changes added up: what adapters do, for comparison

In one module they run in this order, each on the output the one before left: weights (low-rank, dense, sparse), associative
rows, neurons, codebook, side memory; within a kind by patch id, so the same set gives the same bits in whatever order it came.
Facts in words come when the whole model has answered.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, assert_never, cast

import torch
from torch import Tensor, nn

from kedit_hub.base.families import linear_shape, not_editable
from kedit_hub.base.profile import BaseProfile
from kedit_hub.errors import KeditError, ProfileError, UnsupportedModelError, WrongBaseError
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
from kedit_hub.patch.fingerprint import LEVELS, Level, ModuleFingerprint, check
from kedit_hub.patch.patch import Patch
from kedit_hub.runtime.attach import Branch
from kedit_hub.runtime.facts import FactsRouter
from kedit_hub.runtime.gate import TwoKeyGate
from kedit_hub.runtime.linear import DenseBranch, Linear, LowRankBranch, SparseBranch
from kedit_hub.runtime.neurons import NeuronsBranch, joined
from kedit_hub.runtime.sidememory import MaskRouted, NormRouted
from kedit_hub.stack.associative import bank, branch, solved, wide_open
from kedit_hub.stack.codebooks import union
from kedit_hub.stack.facts import NO_MODELS, Models, in_words
from kedit_hub.stack.settings import Mode, StackSettings
from kedit_hub.stack.solve import Solution
from kedit_hub.stack.stack import PatchStack
from kedit_hub.stack.stored import Stored, gather, speaking

Kind = Associative | LowRank | Dense | Sparse | Neurons | Codebook | SideMemory | Facts  # all of patch.deltas.KINDS


@dataclass(frozen=True)
class Composition:
    """What to hang on which module, and what the composer found out on the way.

    watchers: `watch` of branches that listen to the input of another module.
    whole: what a patch does here depends on which others are there, so that no subset can be switched on by itself.
    """

    branches: dict[str, list[Branch]]
    watchers: dict[str, list[Any]]
    report: dict[str, Any]
    solutions: dict[str, list[Solution]] = field(default_factory=dict)
    whole: bool = False
    routers: list[FactsRouter] = field(default_factory=list)


def check_base(patches: Iterable[Patch], model: nn.Module, *, force: bool = False) -> dict[str, Level]:
    """Every patch belongs to this model, or WrongBaseError; equal fingerprints are compared once. Level by module path.

    force: take other weights too, as level "forced". Another model_type, module or shape is refused all the same.
    """
    compared: dict[tuple[str, str], Level] = {}
    levels: dict[str, Level] = {}
    for patch in patches:
        wanted = patch.manifest.base
        found = str(model.config.model_type)  # type: ignore[union-attr]
        if wanted.model_type != found:
            raise WrongBaseError(
                f"patch {patch.id[:12]} was made for {wanted.id} (a {wanted.model_type}), this model is a {found}: apply it to the "
                "model it names"
            )
        for path, expected in wanted.fingerprint.items():
            key = (path, expected.model_dump_json())
            if key not in compared:
                compared[key] = _check(path, expected, model, wanted.id, force)
            levels[path] = max(levels.get(path, "exact"), compared[key], key=LEVELS.index)
    return levels


def _check(path: str, expected: ModuleFingerprint, model: nn.Module, name: str, force: bool) -> Level:
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise WrongBaseError(
            f"the patch changes {path} of {name}, which this model does not have: apply it to the model it names"
        ) from None
    return check(expected, module, path=path, model=f"this model (the patch is for {name})", force=force)


def compose(
    stack: PatchStack,
    model: nn.Module,
    profiles: Mapping[str, BaseProfile],
    *,
    mode: Mode,
    settings: StackSettings = StackSettings(),  # noqa: B008 (frozen)
    levels: Mapping[str, Level] | None = None,
    protected: Mapping[str, Tensor] = MappingProxyType({}),
    tokenizer: Any = None,
    models: Models = NO_MODELS,
) -> Composition:
    """Branches for `model`. profiles: by path of the edited module. mode: what the mode of the settings has come to.

    protected: by path, keys (s, d) of the base at which nothing shall change. WrongBaseError where a patch is for another model;
    tokenizer: of the model, where facts in words are to be put before questions. models: those that patches name, by name; KeditError
    where one of them is not there.
    """
    levels = check_base(stack, model) if levels is None else levels
    report: dict[str, Any] = {
        "mode": mode,
        "patches": len(stack),
        "edits": len(stack.edits),
        "levels": dict(levels),
        "modules": {},
        "codebooks": {},
    }
    ordered = sorted(stack, key=lambda patch: patch.id)
    parts = {path: _Parts() for path in sorted({path for patch in ordered for path in patch.deltas})}
    built_on = {needed for patch in ordered for needed in patch.manifest.requires}  # these stay what they were
    checked: set[tuple[str, tuple[int, int]]] = set()
    for patch in ordered:
        for path, delta in patch.deltas.items():
            if (path, delta.shape) not in checked:  # it walks over the model
                _check_shape(path, delta.shape, model, patch)
                checked.add((path, delta.shape))
            solved = mode == "joint" and path in profiles and patch.id not in built_on
            _put(parts[path], patch, path, delta, stack, model, solved=solved)
    shared = any(len(part.books) > 1 for part in parts.values())
    # rows read under one patch's profile may be read under another's when that patch is left out
    profiled = any(len({patch.manifest.profile_id for patch in part.associative}) > 1 for part in parts.values())
    made = Composition({}, {}, report, whole=mode == "joint" or bool(stack.shadowed) or shared or profiled)
    for path, part in parts.items():
        hung: list[Branch] = [*part.weights]
        if part.associative:
            stored = _stored(path, part.associative, stack, model, profiles, levels)
            if mode == "gated":
                _check_heard(path, part.associative, _profile(profiles, path))
            rows = _rows(path, stored, _profile(profiles, path), mode, settings, protected.get(path), made)
            hung += [] if rows is None else [rows]
        neurons = joined(part.neurons)
        hung += neurons
        for units in neurons:
            if units.input_module is not None:
                made.watchers.setdefault(units.input_module, []).append(units.watch)
        if part.books:
            book, report["codebooks"][path] = union(part.books, stack)
            hung += [book] if len(book.keys) else []
        hung += part.sides
        if hung:
            made.branches[path] = hung
    routers, listening = in_words(ordered, stack, model, tokenizer, models)
    made.routers.extend(routers)
    for path, watching in listening.items():
        made.watchers.setdefault(path, []).extend(watching)
    return made


@dataclass(frozen=True)
class _Parts:
    """What the patches of a stack put on one module, by when it runs. associative: rows, and keyed changes where they are rows."""

    weights: list[Linear] = field(default_factory=list)
    associative: list[Patch] = field(default_factory=list)
    neurons: list[NeuronsBranch] = field(default_factory=list)
    books: list[tuple[Patch, Codebook]] = field(default_factory=list)
    sides: list[NormRouted | MaskRouted] = field(default_factory=list)


def _put(
    parts: _Parts, patch: Patch, path: str, given: Delta, stack: PatchStack, model: nn.Module, *, solved: bool
) -> None:
    """Every kind of delta, and what it becomes. Tensors become float32; edits that are shadowed are left out.

    solved: whether rows are solved jointly on this module, under a profile that is at hand.
    """
    speaks = speaking(patch, stack)
    delta = cast(Kind, given)
    strength = stack.strengths.get(patch.id, 1.0)
    match delta:
        case LowRank() | Dense() | Sparse() if solved and delta.keys is not None:
            parts.associative.append(patch)
        case LowRank(a=a, b=b):
            parts.weights.append(LowRankBranch(strength * b.float().T.contiguous(), a.float(), (patch.id,) * len(a)))
        case Dense():
            parts.weights.append(DenseBranch(strength * delta.delta.float(), patch.id))
        case Sparse():
            parts.weights.append(SparseBranch(delta.positions, strength * delta.values.float(), delta.size, patch.id))
        case Associative():
            parts.associative.append(patch)
        case Neurons():
            units = _neurons(delta, speaks, path, model, patch)
            units = replace(units, values=strength * units.values)
            parts.neurons.extend([units] if len(units.keys) else [])
        case Codebook() if strength != 1:
            raise _no_share(patch, path, "it replaces outputs")
        case Codebook():
            parts.books.append((patch, delta))
        case SideMemory():
            side = _side(delta, speaks, patch)
            parts.sides.extend([] if side is None else [_share(side, strength)])
        case Facts() if strength != 1:
            raise _no_share(patch, path, "its edits are words")
        case Facts():
            pass  # nothing hangs on a module: see `in_words`
        case _:
            assert_never(delta)


def _share(side: NormRouted | MaskRouted, strength: float) -> NormRouted | MaskRouted:
    """Routed as before: a threshold of |delta x| shrinks with delta."""
    if isinstance(side, NormRouted):
        return replace(side, delta=strength * side.delta, threshold=strength * side.threshold)
    return replace(side, delta=strength * side.delta)


def _no_share(patch: Patch, path: str, why: str) -> KeditError:
    return KeditError(
        f"patch {patch.id[:12]} cannot act on {path} with a strength below 1: {why}, of which there is no share; leave its strength at 1"
    )


def _neurons(delta: Neurons, speaks: Tensor, path: str, model: nn.Module, patch: Patch) -> NeuronsBranch:
    if delta.input_module is not None:
        _check_input(delta.input_module, delta.keys.shape[1], path, model, patch)
    kept = torch.ones(len(delta.keys), dtype=torch.bool) if delta.edit_index is None else speaks[delta.edit_index]
    return NeuronsBranch(
        delta.keys[kept].float(),
        delta.biases[kept].float(),
        delta.values[kept].float(),
        None if delta.multipliers is None else delta.multipliers[kept].float(),
        delta.activation,
        delta.input_module,
        (patch.id,) * int(kept.sum()),
    )


def _side(delta: SideMemory, speaks: Tensor, patch: Patch) -> NormRouted | MaskRouted | None:
    assert delta.threshold is not None
    if delta.masks is None or delta.mask_edit is None or delta.background is None or delta.permutation is None:
        return NormRouted(delta.delta.float(), delta.threshold, patch.id)
    masks = delta.masks[speaks[delta.mask_edit]]
    if not len(masks):
        return None
    return MaskRouted(delta.delta.float(), masks, delta.background, delta.permutation, delta.threshold, owner=patch.id)


def _stored(
    path: str,
    patches: Sequence[Patch],
    stack: PatchStack,
    model: nn.Module,
    profiles: Mapping[str, BaseProfile],
    levels: Mapping[str, Level],
) -> Stored:
    profile, exact = _profile(profiles, path), levels.get(path) == "exact"
    return gather(patches, path, stack, model.get_submodule(path), exact=exact, profile=profile)


def _rows(
    path: str,
    stored: Stored,
    profile: BaseProfile,
    mode: Mode,
    settings: StackSettings,
    protected: Tensor | None,
    made: Composition,
) -> Branch | None:
    """The branch of all stored rows on one module, or None where all are silent; what was found goes into `made`."""
    if not len(stored.keys):
        return None
    found: dict[str, Any] = {"rows": len(stored.keys), "keys": len(stored.context_keys), "profile": profile.id}
    found["wide_open"] = wide_open(stored, profile)  # in every mode: such a gate may be why probes chose another one
    made.report["modules"][path] = found
    if mode == "gated":
        gate = TwoKeyGate(bank(stored, profile, protected), profile.gate_whitener, profile.whitener)
        made.watchers.setdefault(profile.gate_module, []).append(gate.watch)
        return gate
    solution = solved(stored, profile, mode, settings, protected)
    parts = [part for part, _ in solution.parts]
    made.solutions[path] = parts
    found |= {
        "lambda": [part.lam for part in parts] if mode == "joint" else "per patch",
        "fit_mean": solution.fit.mean().item(),
        "fit_min": solution.fit.min().item(),
        "drift_predicted": solution.energy / profile.settings.energy,
        "solved_by": solution.by,
    }
    if solution.site_energy is not None and profile.settings.site_energy is not None:
        found["site_drift_predicted"] = solution.site_energy / profile.settings.site_energy
    return branch(solution)


def _check_heard(path: str, patches: Sequence[Patch], profile: BaseProfile) -> None:
    """ProfileError where a patch listens for its subjects elsewhere than the one gate of the module does: it would never be heard."""
    for patch in patches:
        heard = getattr(patch.deltas[path], "gate_module", None)
        if heard not in (None, profile.gate_module):
            raise ProfileError(
                f"patch {patch.id[:12]} listens for its subjects at {heard}, and the gate of {path} at {profile.gate_module}, as the base "
                f'profile {profile.id[:12]} says: answer with mode="joint", or take one of the patches out'
            )


def check_linear(stack: PatchStack) -> None:
    """KeditError where a patch of the stack is no linear map, and so can be written into no weights."""
    for patch in sorted(stack, key=lambda patch: patch.id):
        for path, given in patch.deltas.items():
            delta = cast(Kind, given)
            match delta:
                case Associative() | LowRank() | Dense() | Sparse():
                    continue
                case Neurons():
                    why = "what its neurons add passes through an activation"
                case Codebook():
                    why = "it replaces outputs near stored inputs and nowhere else"
                case SideMemory():
                    why = "it adds its weight only to what is routed to it"
                case Facts():
                    why = "its edits are words"
                case _:
                    assert_never(delta)
            raise KeditError(
                f"patch {patch.id[:12]} puts {delta.kind} on {path}: {why}, which no linear map does, so it cannot be "
                "written into weights or a LoRA. Answer with kedit_hub.apply, or take the patch out of the stack first"
            )


def _profile(profiles: Mapping[str, BaseProfile], path: str) -> BaseProfile:
    if path not in profiles:
        raise ProfileError(f"no base profile for {path}: build one with `kedit profile`, or pass profile=")
    return profiles[path]


def _check_shape(path: str, shape: tuple[int, int], model: nn.Module, patch: Patch) -> None:
    try:
        reason = not_editable(model, path)
    except AttributeError:
        raise WrongBaseError(f"patch {patch.id[:12]} changes {path}, which this model does not have") from None
    if reason is not None:
        raise UnsupportedModelError(
            f"patch {patch.id[:12]} changes {path}, and {reason}: patches may only change linear maps of the attention "
            "and the MLP inside a block, with weights of their own. Make the edit there, or do not use this patch."
        )
    found = linear_shape(model.get_submodule(path))
    if found != shape:
        raise WrongBaseError(
            f"patch {patch.id[:12]} changes {path} as a map {shape}, in this model it is {found} (out, in)"
        )


def _check_input(name: str, width: int, path: str, model: nn.Module, patch: Patch) -> None:
    """The linear map whose input neurons read."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise WrongBaseError(
            f"patch {patch.id[:12]} puts neurons on {path} that read the input of {name}, which this model does not have"
        ) from None
    found = linear_shape(module)[1]
    if found != width:
        raise WrongBaseError(
            f"patch {patch.id[:12]} puts neurons on {path} that read {width} numbers at {name}; in this model its input has "
            f"{found}"
        )

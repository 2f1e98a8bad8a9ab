"""A base model that answers with a stack of patches.

The model handed in is never changed: a view of it (its own module objects, the same weights) carries the branches. Every change of the
stack composes again from the set, so no history can be left behind. One patched model serves any number of threads (or asyncio tasks):
blocks (`disabled`, `without`, `only`) and the patches of a request count for their caller alone, and what a request began with holds
until it ends, whatever others do to the stack meanwhile.

    patched.generate(["The capital of France is", "Paris lies in"], patches=[["3f2a9c"], []], max_new_tokens=8)
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any, cast, overload

import torch
from torch import Tensor, nn

from kedit_hub.base.families import dense_weight, shortest
from kedit_hub.base.load import guard_4bit
from kedit_hub.base.profile import BaseProfile
from kedit_hub.base.tokens import encode
from kedit_hub.errors import KeditError, UnsupportedModelError
from kedit_hub.patch.deltas import Associative
from kedit_hub.patch.fingerprint import LEVELS, Level
from kedit_hub.patch.patch import Patch
from kedit_hub.runtime.attach import Attachment, Branch, Plan, Watcher
from kedit_hub.runtime.linear import linear, side_by_side, summed
from kedit_hub.runtime.routing import Selection, as_selection
from kedit_hub.runtime.view import is_dispatched, view_of
from kedit_hub.stack.choose import Chosen, answers, by_form, by_probes, has_rows, probes
from kedit_hub.stack.compose import Composition, check_base, check_linear, compose
from kedit_hub.stack.facts import NO_MODELS
from kedit_hub.stack.placebo import placebo
from kedit_hub.stack.protect import protected_keys
from kedit_hub.stack.refresh import refresh
from kedit_hub.stack.settings import Mode, StackSettings
from kedit_hub.stack.stack import PatchStack
from kedit_hub.stack.stored import Beneath

MAX_PARTS = 32  # sub-stacks of one stack that are kept composed
Rows = Sequence[str | Iterable[str]]  # per prompt: a patch id, or several (none: the base)


@dataclass(frozen=True, eq=False)
class _Installed(Plan):
    """A composed stack, ready to run."""

    stack: PatchStack
    composition: Composition
    mode: Mode | None = None  # that was asked for, and holds for its parts too; None: each takes what the settings say
    parts: OrderedDict[frozenset[str], "_Installed"] = field(
        default_factory=OrderedDict
    )  # sub-stacks, latest used last

    @cached_property
    def name(self) -> str:
        return "+".join(sorted(self.stack.ids))

    @cached_property
    def owned(self) -> Plan:
        """The same, as branches that a selection switches on by `name`."""
        branches: dict[int, Any] = {id(b): b.owned(self.name) for hung in self.branches.values() for b in hung}

        def owned(watch: Watcher) -> Watcher:  # what listens for a router is nobody's
            heard = branches.get(id(cast(Any, watch).__self__))
            return watch if heard is None else cast(Watcher, heard.watch)

        return Plan(
            {path: [branches[id(branch)] for branch in hung] for path, hung in self.branches.items()},
            {path: [owned(watch) for watch in watching] for path, watching in self.watchers.items()},
            routers=[router.owned(self.name) for router in self.routers],
        )


class PatchedModel:
    """What `kedit_hub.apply` returns; see the module docstring.

    model: the plain transformers model with the branches on it. Its own `generate` follows a change of the stack from the next token
    on; `generate` and `ask` here end as they began. (A cache that transformers keeps on the model, as its static one, is one caller's.)
    stack: the PatchStack.  report: what the composer found. Inside `without` both are those of the block.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        stack: PatchStack,
        *,
        profiles: Callable[[PatchStack, nn.Module], Mapping[str, BaseProfile]],
        settings: StackSettings = StackSettings(),  # noqa: B008 (frozen)
        protect: Sequence[str] = (),
        remeasure: Callable[..., Associative] | None = None,
        force: bool = False,
        resolve: Callable[[Any], Patch] | None = None,
        models: Mapping[str, Any] = NO_MODELS,
    ):
        guard_4bit(model)
        self.model: Any = model if is_dispatched(model) else view_of(model)
        self.tokenizer = tokenizer
        self.settings = settings
        self.protect = tuple(protect)
        self._profiles = profiles
        self._remeasure = remeasure  # kedit_hub.editors.rebase.remeasured, which stands on a higher floor
        self._force = force
        self._resolve = resolve
        self.models = models  # that patches name
        self._levels: dict[str, dict[str, Level]] = {}  # by patch id: of its modules by path
        self._compared: dict[tuple[str, str], Level] = {}  # by path and fingerprint
        self._silent: dict[str, Tensor] = {}  # keys of the protected prompts, by path
        self._lock = threading.RLock()  # of what changes or composes; answering takes no lock
        self._attachment = Attachment(self.model)
        self._left = PatchStack()  # what is left of the stack after `detach`
        self._install(stack)

    @property
    def stack(self) -> PatchStack:
        current = self._current
        return self._left if current is None else current.stack

    @property
    def _everybodys(self) -> PatchStack:
        """The stack that answers outside all blocks."""
        plan = self._attachment.default
        return plan.stack if isinstance(plan, _Installed) else self._left

    @property
    def report(self) -> dict[str, Any]:
        current = self._current
        return {} if current is None else current.composition.report

    @property
    def profiles(self) -> Mapping[str, BaseProfile]:
        """The base profiles of the stack, by path of the edited module."""
        return self._profiles(self.stack, self.model)

    @property
    def _current(self) -> _Installed | None:
        """What is in force for this caller, None after `detach`."""
        plan = self._attachment.plan
        return plan if isinstance(plan, _Installed) else None

    @property
    def _composition(self) -> Composition | None:
        current = self._current
        return None if current is None else current.composition

    # -- changing the stack, for everybody ------------------------------------------------------------------------------------------

    def add(self, patch: Any) -> None:
        """Add a patch (or whatever `apply` takes for one). On any error the stack stays as it was."""
        if self._resolve is not None:
            patch = self._resolve(patch)  # judges it too, where there is a policy
        elif not isinstance(patch, Patch):
            raise KeditError(f"cannot add {patch!r}: pass a Patch")
        with self._lock:
            self._install(self._everybodys.add(patch))

    def remove(self, patch_id: str | Patch) -> None:
        """Take a patch out, wherever it lies in the stack: the model is then the one that never had it."""
        with self._lock:
            self._install(self._everybodys.remove(patch_id))

    def detach(self) -> None:
        """Take every branch off for good; `model` answers as the base, bit for bit.

        Its memory is then free once nobody holds it; one that is dropped without this waits for Python's collector of cycles.
        """
        with self._lock:
            self._left = self._everybodys.only([])
            self._attachment.detach()

    def _install(self, stack: PatchStack) -> None:
        with self._lock:
            self._attachment.put(self._made(stack))  # making it may refuse: then nothing has been touched

    def _made(self, stack: PatchStack) -> _Installed:
        composed = cache(partial(self._composed, stack))
        chosen = self._chosen(stack, composed)
        made = composed(chosen.mode)
        made.composition.report["why"] = chosen.why
        return made

    def _chosen(self, stack: PatchStack, composed: Callable[[Mode], _Installed]) -> Chosen:
        """The mode of the settings; `auto` asks probes where the gate is possible and there is something to ask with."""
        chosen = by_form(stack, self.settings)
        if self.settings.mode != "auto" or chosen.mode != "gated" or self.tokenizer is None or not has_rows(stack):
            return chosen
        asked = probes(stack)

        def base() -> tuple[Tensor, Tensor]:
            with self._off():
                return answers(self.model, self.tokenizer, asked)

        def under(mode: Mode) -> tuple[Tensor, Tensor]:
            with self._attachment.within(plan=composed(mode), selection=None, enabled=True):
                return answers(self.model, self.tokenizer, asked)

        return by_probes(asked, base, under)

    def _composed(self, stack: PatchStack, mode: Mode) -> _Installed:
        composition = self._compose(stack, mode)
        branches = {path: side_by_side(hung) for path, hung in composition.branches.items()}
        made = _Installed(branches, composition.watchers, stack, composition, routers=composition.routers)
        self._attachment.prove(made, self._one_pass)
        return made

    def _compose(self, stack: PatchStack, mode: Mode) -> Composition:
        with self._off():
            levels, profiles = self._checked(stack), self._profiles(stack, self.model)
            protected = self._protected(stack, profiles)
            composed = partial(
                compose,
                model=self.model,
                profiles=profiles,
                mode=mode,
                settings=self.settings,
                levels=levels,
                protected=protected,
                tokenizer=self.tokenizer,
                models=self.models,
            )
            return self._refreshed(stack, composed, profiles) if self.settings.refresh else composed(stack)

    def _refreshed(
        self, stack: PatchStack, composed: Callable[[PatchStack], Composition], profiles: Mapping[str, BaseProfile]
    ) -> Composition:
        """The stack composed bottom-up, with the rows of upper layers measured over the edits of lower ones."""
        measured = self._remeasure
        if measured is None:
            raise KeditError(
                "refresh=True measures rows anew, and this model was not given a way to: use kedit_hub.apply"
            )

        def remeasure(patch: Patch, path: str, model: nn.Module, under: Sequence[Beneath]) -> Associative:
            return measured(patch, path, model, self.tokenizer, profiles.get(path), under)

        return refresh(stack, self.model, composed, remeasure).composition

    def _protected(self, stack: PatchStack, profiles: Mapping[str, BaseProfile]) -> Mapping[str, Tensor]:
        """Keys of the protected prompts by path of the edited maps, each read once."""
        paths = {path for patch in stack for path in patch.deltas if path in profiles}
        missing = sorted(paths - self._silent.keys()) if self.protect else []
        if missing:
            self._silent |= protected_keys(self.model, self.tokenizer, self.protect, missing)
        return self._silent

    def _checked(self, stack: PatchStack) -> dict[str, Level]:
        """`check_base` of the stack, asking of no module twice whether it has a fingerprint. The worst level by module path."""
        worst: dict[str, Level] = {}
        for patch in stack:
            if patch.id not in self._levels:
                self._levels[patch.id] = self._check(patch)
            for path, level in self._levels[patch.id].items():
                worst[path] = max(worst.get(path, "exact"), level, key=LEVELS.index)
        return worst

    def _check(self, patch: Patch) -> dict[str, Level]:
        base = patch.manifest.base
        prints = {path: (path, base.model_type + print_.model_dump_json()) for path, print_ in base.fingerprint.items()}
        if not self._compared.keys() >= set(prints.values()):
            levels = check_base([patch], self.model, force=self._force)
            self._compared.update({prints[path]: level for path, level in levels.items()})
        return {path: self._compared[key] for path, key in prints.items()}

    def _part(self, whole: _Installed, stack: PatchStack) -> _Installed:
        """A sub-stack of what is installed, composed once."""
        with self._lock:
            key = frozenset(stack.ids)
            if key not in whole.parts:
                whole.parts[key] = self._made(stack) if whole.mode is None else self._composed(stack, whole.mode)
            whole.parts.move_to_end(key)
            while len(whole.parts) > MAX_PARTS:
                whole.parts.popitem(last=False)
            return whole.parts[key]

    def _one_pass(self) -> None:
        self.model(**shortest(self.model, 2), use_cache=False)

    def _device(self) -> torch.device:
        """Where token ids go; an offloaded model moves them itself."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return torch.device("cpu") if device.type == "meta" else device

    # -- looking at it with and without, for one caller -----------------------------------------------------------------------------

    @contextmanager
    def without(self, patch_id: str | Patch) -> Iterator["PatchedModel"]:
        """The stack without one patch, for the length of the block and this caller."""
        full = self._attached()
        with self._attachment.within(**self._as_chosen(self._part(full, full.stack.remove(patch_id)))):
            yield self

    @contextmanager
    def under(self, mode: Mode) -> Iterator["PatchedModel"]:
        """The same stack in another install mode, for the length of the block and this caller."""
        full = self._attached()
        with self._lock:
            other = replace(self._composed(full.stack, mode), mode=mode)
        with self._attachment.within(**self._as_chosen(other), enabled=True):
            yield self

    @contextmanager
    def placebo(self, seed: int = 0) -> Iterator["PatchedModel"]:
        """Noise of the same size in the same places instead of the stack, for the length of the block and this caller. See placebo.py."""
        chosen = self._as_chosen(self._attached())
        with self._attachment.within(**chosen | {"plan": placebo(chosen["plan"], seed)}, enabled=True):
            yield self

    @contextmanager
    def disabled(self) -> Iterator["PatchedModel"]:
        """The unedited base, for the length of the block and this caller."""
        with self._off():
            yield self

    def _off(self) -> AbstractContextManager[None]:
        return self._attachment.within(enabled=False)

    @contextmanager
    def only(self, rows: Rows) -> Iterator["PatchedModel"]:
        """Per-request selection: row b of this caller's next batches answers with the patches rows[b] alone (none: the base).

        Patches that do by themselves what they do in the stack are switched. A joint solve depends on the whole set, and so
        do the radii of several codebooks and what a later patch shadows: then each distinct entry is composed by itself.
        """
        full = self._attached()
        wanted = as_selection([_ids(full.stack, row) for row in rows])
        with self._attachment.within(**self._selected(full, wanted), wanted=wanted):
            yield self

    def _selected(self, full: _Installed, wanted: Selection) -> dict[str, Any]:
        plan, selection = self._mixed(full, wanted) if full.composition.whole else (full, wanted)
        return {"plan": plan, "selection": selection}

    def _as_chosen(self, full: _Installed) -> dict[str, Any]:
        """Another plan for this caller, which answers with the patches that were chosen for each row, if any were."""
        wanted = self._attachment.wanted
        if wanted is None:
            return {"plan": full}
        return self._selected(full, tuple(row & set(full.stack.ids) for row in wanted))

    def _mixed(self, full: _Installed, wanted: Selection) -> tuple[_Installed, Selection]:
        """Sub-stacks side by side, and which row uses which."""
        parts = {row: self._part(full, full.stack.only(row)) for row in sorted(set(wanted), key=sorted) if row}
        selection = tuple(frozenset([parts[row].name] if row else []) for row in wanted)
        branches, watchers = _beside([part.owned for part in parts.values()])
        routers = [router for part in parts.values() for router in part.owned.routers]
        return replace(full, branches=branches, watchers=watchers, routers=routers), selection

    def _attached(self) -> _Installed:
        current = self._current
        if current is None:
            raise KeditError("nothing is attached to this model any more; apply the patches again")
        return current

    # -- using it -------------------------------------------------------------------------------------------------------------------

    def generate(self, inputs: Any, *, patches: Rows | None = None, **kwargs: Any) -> Any:
        """What the model's own `generate` returns for these inputs, with the stack as it is now until the end.

        inputs: a prompt, a list of prompts (padded on the left), token ids (T,) or (B, T) that are all real, or a mapping with
        `input_ids` and `attention_mask`. patches: None = the whole stack, or one entry per prompt as for `only`.
        """
        batch = self._batch(inputs)
        prompts = len(batch["input_ids"])
        if patches is not None and len(patches) != prompts:
            raise KeditError(
                f"patches= has {len(patches)} entries for {prompts} prompts: give one entry per prompt, [] for the base"
            )
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        held = self._attachment.within(plan=self._attachment.plan) if patches is None else self.only(patches)
        with held:
            return self.model.generate(**batch, **({"pad_token_id": pad} | kwargs))

    @overload
    def ask(self, prompt: str, max_new_tokens: int = 32, *, patches: Rows | None = None) -> str: ...
    @overload
    def ask(self, prompt: list[str], max_new_tokens: int = 32, *, patches: Rows | None = None) -> list[str]: ...
    def ask(self, prompt: str | list[str], max_new_tokens: int = 32, *, patches: Rows | None = None) -> str | list[str]:
        """The greedy continuation of a prompt (or of each) up to EOS or `max_new_tokens`, without the prompt.

        patches: as for `generate`, one entry per prompt.
        """
        batch = self._batch(prompt)
        ids = self.generate(batch, patches=patches, do_sample=False, max_new_tokens=max_new_tokens)
        given = batch.get("decoder_input_ids", batch["input_ids"])
        new = ids[:, given.shape[1] :]
        texts = [str(text).strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]
        return texts[0] if isinstance(prompt, str) else texts

    def _batch(self, inputs: Any) -> dict[str, Tensor]:
        match inputs:
            case str():
                return self._batch([inputs])
            case Tensor():
                ids = inputs if inputs.ndim == 2 else inputs[None]
                batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            case Mapping():
                batch = {name: value for name, value in inputs.items() if name != "token_type_ids"}
            case _:
                batch = encode(self.tokenizer, inputs, side="left", model=self.model).to_generate(self.model)
        return {name: value.to(self._device()) for name, value in batch.items()}

    def linear_form(self) -> Composition:
        """The stack as branches that are linear maps: as it is attached, or the joint solve of a gated one.

        KeditError names a patch that is no linear map.
        """
        current = self._attached()
        stack, composition = current.stack, current.composition
        check_linear(stack)
        if (
            composition.report["mode"] != "gated" or not composition.report["modules"]
        ):  # nothing is gated where there are no rows
            return composition
        with self._lock:
            return self._compose(stack, "joint")

    def fuse(self) -> Any:
        """A new plain model with the stack written into its weights, and nothing attached.

        A gated stack is fused in its joint form, since a gate is no linear map; what rounding to the weight's dtype left of the change is
        in `report["fused"]` (share of its norm). Quantized and dispatched models are refused: the edit would not survive, or not be kept.
        So are stacks with neurons, codebooks or side memories, which are no linear maps.
        """
        if is_dispatched(self.model):
            raise UnsupportedModelError(
                "this model's weights are moved by accelerate, writes to them are lost: load it whole to fuse"
            )
        if self._composition is None or len(self.stack) == 0:
            raise KeditError("the stack is empty: there is nothing to fuse")
        composition = self.linear_form()
        changes = {
            path: (dense_weight(self.model.get_submodule(path)), summed(linear(branches)))
            for path, branches in composition.branches.items()
        }
        with self._lock:
            fused = copy.deepcopy(self.model)
            self._attachment.strip(fused)
        survived: dict[str, float] = {}
        for path, (weight, change) in changes.items():
            target = fused.get_submodule(path)
            merged = (weight.float() + change.to(weight.device)).to(weight.dtype)
            survived[path] = ((merged.float() - weight.float()).norm() / change.norm()).item()
            with torch.no_grad():
                dense_weight(target).copy_(merged)
        self.report["fused"] = {"mode": composition.report["mode"], "survived": survived}
        return fused


def _ids(stack: PatchStack, row: str | Iterable[str]) -> frozenset[str]:
    """The full ids of the patches an entry names."""
    known = set(stack.ids)
    return frozenset(
        name if name in known else stack.find(name).id for name in ([row] if isinstance(row, str) else row)
    )


def _beside(plans: Sequence[Plan]) -> tuple[dict[str, list[Branch]], dict[str, list[Watcher]]]:
    """What several plans do, one after the other in each module."""
    branches: dict[str, list[Branch]] = {}
    watchers: dict[str, list[Watcher]] = {}
    for plan in plans:
        for path, hung in plan.branches.items():
            branches.setdefault(path, []).extend(hung)
        for path, watching in plan.watchers.items():
            watchers.setdefault(path, []).extend(watching)
    return {path: side_by_side(hung) for path, hung in branches.items()}, watchers

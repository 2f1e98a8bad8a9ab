"""A base model that answers with a stack of patches.

The model handed in is never changed: a view of it (its own module objects, the same weights) carries the branches. Every change of the
stack takes the old branches off and composes again from the set, so no history can be left behind.
"""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kedit_hub.base.families import dense_weight
from kedit_hub.base.load import guard_4bit
from kedit_hub.base.profile import BaseProfile
from kedit_hub.errors import KeditError, UnsupportedModelError
from kedit_hub.patch.patch import Patch
from kedit_hub.runtime.attach import Attachment, Branch
from kedit_hub.runtime.linear import linear
from kedit_hub.runtime.routing import as_selection
from kedit_hub.runtime.view import is_dispatched, view_of
from kedit_hub.stack.compose import Composition, check_base, check_linear, choose_mode, compose
from kedit_hub.stack.stack import PatchStack


class PatchedModel:
    """What `kedit_hub.apply` returns; see the module docstring.

    model: the plain transformers model with the branches on it.  stack: the PatchStack.  report: what the composer found.
    One PatchedModel answers one caller at a time; threads take a view each (`apply` again on the same base costs no weight memory).
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        stack: PatchStack,
        *,
        profiles: Callable[[PatchStack, nn.Module], Mapping[str, BaseProfile]],
        mode: str = "auto",
        budget: float | None = None,
        force: bool = False,
        resolve: Callable[[Any], Patch] | None = None,
    ):
        guard_4bit(model)
        self.model: Any = model if is_dispatched(model) else view_of(model)
        self.tokenizer = tokenizer
        self.stack = PatchStack()
        self.mode = mode
        self.budget = budget
        self.report: dict[str, Any] = {}
        self._profiles = profiles
        self._force = force
        self._resolve = resolve
        self._attachment: Attachment | None = None
        self._composition: Composition | None = None
        self._lock = threading.RLock()
        self._install(stack)

    # -- changing the stack ---------------------------------------------------------------------------------------------------------

    def add(self, patch: Any) -> None:
        """Add a patch (or whatever `apply` takes for one). On any error the stack stays as it was."""
        if self._resolve is not None:
            patch = self._resolve(patch)  # judges it too, where there is a policy
        elif not isinstance(patch, Patch):
            raise KeditError(f"cannot add {patch!r}: pass a Patch")
        self._install(self.stack.add(patch))

    def remove(self, patch_id: str | Patch) -> None:
        """Take a patch out, wherever it lies in the stack: the model is then the one that never had it."""
        self._install(self.stack.remove(patch_id))

    def detach(self) -> None:
        """Take every branch off for good; `model` answers as the base, bit for bit."""
        with self._lock:
            if self._attachment is not None:
                self._attachment.detach()
            self._attachment, self._composition = None, None
            self.stack = PatchStack(conflicts=self.stack.policy)

    def _install(self, stack: PatchStack) -> None:
        with self._lock:
            composition = self._compose(stack)  # may refuse: then nothing has been touched
            self._hang(composition)
            self.stack, self.report = stack, composition.report

    def _compose(self, stack: PatchStack) -> Composition:
        mode, why = choose_mode(stack, self.mode)
        levels = check_base(stack, self.model, force=self._force)
        with self._off():
            profiles = self._profiles(stack, self.model)
            composition = compose(stack, self.model, profiles, mode=mode, budget=self.budget, levels=levels)
        composition.report["why"] = why
        return composition

    def _hang(self, composition: Composition) -> None:
        before = self._attachment
        if before is not None:
            before.detach()
        attachment = Attachment(self.model, composition.branches, composition.watchers)
        try:
            attachment.prove_reached(self._one_pass)
        except BaseException:
            attachment.detach()
            if self._composition is not None:
                self._attachment = Attachment(self.model, self._composition.branches, self._composition.watchers)
            raise
        self._attachment, self._composition = attachment, composition

    def _one_pass(self) -> None:
        self.model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=self._device()), use_cache=False)

    def _device(self) -> torch.device:
        """Where token ids go; an offloaded model moves them itself."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return torch.device("cpu") if device.type == "meta" else device

    # -- looking at it with and without ---------------------------------------------------------------------------------------------

    @contextmanager
    def without(self, patch_id: str | Patch) -> Iterator["PatchedModel"]:
        """The stack without one patch, for the length of the block."""
        full = self.stack
        self._install(full.remove(patch_id))
        try:
            yield self
        finally:
            self._install(full)

    @contextmanager
    def disabled(self) -> Iterator["PatchedModel"]:
        """The unedited base, for the length of the block."""
        with self._off():
            yield self

    @contextmanager
    def _off(self) -> Iterator[None]:
        attachment = self._attachment
        if attachment is None:
            yield
            return
        was, attachment.enabled = attachment.enabled, False
        try:
            yield
        finally:
            attachment.enabled = was

    @contextmanager
    def only(self, rows: Sequence[str | Iterable[str]]) -> Iterator["PatchedModel"]:
        """Per-request selection: row b of the next batches answers with the patches rows[b] alone (an empty entry: the base).

        Patches that do by themselves what they do in the stack are switched. A joint solve depends on the whole set, and so
        do the radii of several codebooks and what a later patch shadows: then each distinct entry is composed by itself.
        """
        wanted = [frozenset(self.stack.find(p).id for p in ([row] if isinstance(row, str) else row)) for row in rows]
        if self._attachment is None or self._composition is None:
            raise KeditError("nothing is attached to this model any more; apply the patches again")
        composition, outer = self._composition, self._attachment.selection
        if composition.whole:
            sets = sorted({row for row in wanted if row}, key=sorted)
            names = {row: f"rows {number}" for number, row in enumerate(sets)}
            parts = [self._compose(self.stack.only(row)) for row in sets]
            self._hang(_merged([(names[row], part) for row, part in zip(sets, parts)], composition))
            selection = as_selection([{names[row]} if row else set() for row in wanted])
        else:
            selection = as_selection(wanted)
        assert self._attachment is not None
        self._attachment.selection = selection
        try:
            yield self
        finally:
            if composition.whole:
                self._hang(composition)
            self._attachment.selection = outer

    # -- using it -------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def ask(self, prompt: str, max_new_tokens: int = 32) -> str:
        """The greedy continuation of `prompt` up to EOS or `max_new_tokens`, without the prompt."""
        inputs = self.tokenizer(prompt, return_tensors="pt").to(self._device())
        inputs.pop("token_type_ids", None)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad)
        return str(self.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()

    def linear_form(self) -> Composition:
        """The stack as branches that are linear maps: as it is attached, or the joint solve of a gated one.

        KeditError names a patch that is no linear map.
        """
        if self._composition is None:
            raise KeditError("nothing is attached to this model any more; apply the patches again")
        check_linear(self.stack)
        if self._composition.report["mode"] != "gated":
            return self._composition
        with self._off():
            profiles, levels = self._profiles(self.stack, self.model), self._composition.report["levels"]
            return compose(self.stack, self.model, profiles, mode="joint", budget=self.budget, levels=levels)

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
            path: (dense_weight(self.model.get_submodule(path)), _matrix(branches))
            for path, branches in composition.branches.items()
        }
        attachment = self._attachment
        assert attachment is not None
        attachment.detach()
        try:
            fused = copy.deepcopy(self.model)
        finally:
            self._hang(self._composition)
        survived: dict[str, float] = {}
        for path, (weight, change) in changes.items():
            target = fused.get_submodule(path)
            merged = (weight.float() + change.to(weight.device)).to(weight.dtype)
            survived[path] = ((merged.float() - weight.float()).norm() / change.norm()).item()
            with torch.no_grad():
                dense_weight(target).copy_(merged)
        self.report["fused"] = {"mode": composition.report["mode"], "survived": survived}
        return fused


def _matrix(branches: Sequence[Branch]) -> torch.Tensor:
    """The summed change (out, in) of the linear branches of one module."""
    return sum((branch.matrix() for branch in linear(branches)), start=torch.zeros(()))


def _merged(parts: Sequence[tuple[str, Composition]], whole: Composition) -> Composition:
    """The branches of several compositions side by side, each owned by its name."""
    branches: dict[str, list[Branch]] = {}
    watchers: dict[str, list[Any]] = {}
    for name, part in parts:
        owned: dict[int, Any] = {id(branch): branch.owned(name) for hung in part.branches.values() for branch in hung}
        for path, hung in part.branches.items():
            branches.setdefault(path, []).extend(owned[id(branch)] for branch in hung)
        for path, watching in part.watchers.items():
            watchers.setdefault(path, []).extend(owned[id(watch.__self__)].watch for watch in watching)
    return Composition(branches, watchers, whole.report, whole=True)

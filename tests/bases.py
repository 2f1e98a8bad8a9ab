"""Tiny bases in every stored form, and the edits to make on them. For tests only."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from kedit_hub.base.load import load_base
from kedit_hub.editors.editor import make_patch
from kedit_hub.edits import Edit
from kedit_hub.patch import Patch
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack
from tests.tiny import tiny_model

FORMS = ("bf16", "fp16", "int8", "nf4")
CITIES = ("Rome", "Bonn", "Paris", "Madrid", "Berlin")
# the edited one: a Linear from 128 to 64 and a Conv1D from 256 to 64, and both from 64 to 64
MAPS: Any = (("llama", {}), ("llama", {"intermediate_size": 64}), ("gpt2", {}), ("gpt2", {"n_inner": 64}))
PLACES = ("France", "Spain", "Italy", "Germany", "Japan", "Brazil", "Switzerland", "Poland", "Zürich", "São Paulo")


def edits(count: int) -> list[Edit]:
    """Different questions, with targets of one and of several tokens."""
    asked = [f"{start} {place} is" for start in ("The capital of", "The author of") for place in PLACES]
    targets = [*CITIES, "Ludwig van Beethoven", "Marie Curie"]
    return [Edit(prompt, targets[number % len(targets)]) for number, prompt in enumerate(asked[:count])]


def stored_as(form: str, folder: Path, model_type: str = "llama") -> tuple[Any, Any]:
    """The tiny model of this seed, saved and loaded as one of FORMS or "disk": blocks that accelerate keeps there."""
    if form in ("int8", "nf4"):
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'kedit-hub[quant]'")
    model, tokenizer = tiny_model(model_type)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if form in ("bf16", "fp16"):
        return load_base(folder, dtype=torch.bfloat16 if form == "bf16" else torch.float16)
    if form != "disk":
        return load_base(folder, quantization=form)  # type: ignore[arg-type]
    places = {name: "disk" for name in ("model.embed_tokens", *(f"model.layers.{i}" for i in range(3)))}
    return load_base(
        folder, device_map=places | {name: "cpu" for name in ("model.norm", "model.rotary_emb", "lm_head")}
    )


def made(base: tuple[Any, Any], edits: Any, method: str, *, seed: int = 0, more: Any = None, **settings: Any) -> Patch:
    """A patch by a method that takes no profile. more: other arguments of `make_patch`."""
    return make_patch(
        *base, edits, method=method, settings=settings, base=("tiny/base", None), seed=seed, progress=False, **(more or {})
    )  # fmt: skip


def state_of(model: Any) -> dict[str, Tensor]:
    """Copies of all stored tensors, those of quantized weights included."""
    return {name: value.clone() for name, value in model.state_dict().items() if torch.is_tensor(value)}


def check_untouched(model: Any, before: dict[str, Tensor]) -> None:
    """The bytes of `state_of`, frozen or not as loaded, no gradient and no hook left behind."""
    after = state_of(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert torch.equal(value.contiguous().view(torch.uint8), after[name].contiguous().view(torch.uint8)), name
    assert all(parameter.grad is None for parameter in model.parameters()) and not model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def weight_of(module: Any) -> Any:
    """(the weight parameter, how (m, d) is read from a tensor of its form)."""
    return module.weight, (lambda x: x.T) if isinstance(module, Conv1D) else (lambda x: x)


def dense(patch: Patch, path: str) -> Tensor:
    """D (m, d) float64 of a change of weights."""
    delta: Any = patch.deltas[path]
    return delta.change(torch.eye(delta.shape[1])).T


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


def seen_with(model: Any, tokenizer: Any, patches: list[Patch]) -> PatchedModel:
    settings = StackSettings.of(mode="sum")
    return PatchedModel(model, tokenizer, PatchStack(patches), profiles=lambda *_: {}, settings=settings)


class Kept(dict[str, dict[str, Tensor]]):
    """A memo that can be killed: pieces that were finished are handed back, and after `lives` more it raises."""

    def __init__(self, lives: int = 1000):
        super().__init__()
        self.lives = lives

    def __call__(self, name: str, work: Any) -> dict[str, Tensor]:
        if name not in self:
            if not self.lives:
                raise KeyboardInterrupt
            self.lives -= 1
            self[name] = {key: value.clone() for key, value in work().items()}
        return self[name]

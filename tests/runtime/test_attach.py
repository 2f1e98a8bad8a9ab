"""Branches beside the weights: the base is never touched, and taking them off restores every bit, in every dtype."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kedit_hub.base.load import load_base
from kedit_hub.base.profile import BaseProfile
from kedit_hub.errors import NotReachedError
from kedit_hub.patch import LowRank, Patch
from kedit_hub.runtime.attach import Attachment
from kedit_hub.runtime.linear import LowRankBranch
from kedit_hub.runtime.view import view_of
from tests.profiles import EDITS, base_of, logits, make_patch, patched, profile_of
from tests.tiny import tiny_model

FAMILIES = ["llama", "gpt2"]
KINDS = ["float32", "bfloat16", "int8", "nf4"]
PROMPTS = [edit.prompt for edit in EDITS]


class Setup:
    """A family's tiny model in float32 with its profile and patches, and a folder to load it from in other forms."""

    def __init__(self, model_type: str, folder: Path):
        self.plain, self.tokenizer = tiny_model(model_type)
        self.profile: BaseProfile = profile_of(self.plain, self.tokenizer)
        self.patches = [
            make_patch(self.plain, self.tokenizer, self.profile, EDITS[:2], seed=1),
            make_patch(self.plain, self.tokenizer, self.profile, EDITS[2:], seed=2),
        ]
        self.folder = folder
        self.plain.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def load(self, kind: str) -> Any:
        if kind in ("int8", "nf4"):
            pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'kedit-hub[quant]'")
            return load_base(self.folder, quantization=kind)[0]  # type: ignore[arg-type]
        return load_base(self.folder, dtype=kind)[0]


@pytest.fixture(scope="module", params=FAMILIES)
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
@pytest.mark.parametrize("kind", KINDS)
def test_detaching_restores_every_bit_and_the_base_never_changed(setup: Setup, kind: str, mode: str) -> None:
    model = setup.load(kind)
    before = logits(model, setup.tokenizer, PROMPTS)
    names = list(model.state_dict())
    stored = {name: value.clone() for name, value in model.state_dict().items() if torch.is_tensor(value)}

    made = patched(model, setup.tokenizer, setup.profile, setup.patches, mode)
    changed = logits(made.model, setup.tokenizer, PROMPTS)
    assert all((changed[i] - before[i]).abs().max() > 0.01 for i in range(len(PROMPTS)))
    assert torch.equal(logits(model, setup.tokenizer, PROMPTS), before)  # the base, while its view is patched
    with made.disabled():
        assert torch.equal(logits(made.model, setup.tokenizer, PROMPTS), before)
    assert torch.equal(logits(made.model, setup.tokenizer, PROMPTS), changed)

    for patch in reversed(setup.patches):
        made.remove(patch)
    assert torch.equal(logits(made.model, setup.tokenizer, PROMPTS), before)
    made.add(setup.patches[0])
    made.detach()
    assert torch.equal(logits(made.model, setup.tokenizer, PROMPTS), before)
    assert list(model.state_dict()) == list(made.model.state_dict()) == names
    assert all(torch.equal(model.state_dict()[name], value) for name, value in stored.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_shares_every_weight(setup: Setup, kind: str) -> None:
    model = setup.load(kind)
    made = patched(model, setup.tokenizer, setup.profile, setup.patches)
    ours, theirs = (dict(m.named_parameters()) for m in (made.model, model))
    assert list(ours) == list(theirs) and all(ours[name] is theirs[name] for name in theirs)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(made.model.buffers(), model.buffers()))
    assert not {id(m) for m in made.model.modules()} & {id(m) for m in model.modules()}
    hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooked


def test_a_quantized_base_gets_values_measured_on_itself(setup: Setup) -> None:
    """The stored value v* = W k + r is what is wanted; on another W the residual is what is missing there."""
    model = setup.load("nf4")
    heavy = make_patch(setup.plain, setup.tokenizer, setup.profile, EDITS[:1], omega=1e6)
    made = patched(model, setup.tokenizer, setup.profile, [heavy], "sum")
    assert made.report["levels"][setup.profile.module] == "quantized"
    delta = heavy.deltas[setup.profile.module]
    with torch.no_grad():
        got = made.model.get_submodule(setup.profile.module)(delta.keys[None])[0]  # type: ignore[attr-defined]
    wanted = delta.base_outputs + delta.residuals  # type: ignore[attr-defined]
    assert torch.allclose(got, wanted, atol=1e-3 * wanted.abs().max().item())


def test_saving_a_patched_model_saves_the_base(setup: Setup, tmp_path: Path) -> None:
    made = patched(setup.plain, setup.tokenizer, setup.profile, setup.patches)
    made.model.save_pretrained(tmp_path)
    again, _ = tiny_model(setup.plain.config.model_type, seed=9)
    again = type(again).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, setup.tokenizer, PROMPTS), logits(setup.plain, setup.tokenizer, PROMPTS))


def unreachable(model: Any, layer: int) -> Any:
    """A view whose layer `layer` computes its MLP without calling down_proj."""
    view: Any = view_of(model)
    mlp = view.model.layers[layer].mlp
    mlp.forward = lambda x: F.linear(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj.weight)
    return view


def test_a_module_that_is_never_reached_is_an_error() -> None:
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    patch = make_patch(model, tokenizer, profile)
    odd = unreachable(model, 1)
    before = logits(odd, tokenizer, PROMPTS)
    for mode in ("gated", "joint"):
        with pytest.raises(NotReachedError, match=r"model\.layers\.1\.mlp\.down_proj"):
            patched(odd, tokenizer, profile, [patch], mode)
    assert torch.equal(logits(odd, tokenizer, PROMPTS), before)
    with pytest.raises(NotReachedError, match=r"model\.layers\.0\.mlp\.down_proj"):  # the early layer of the gate
        patched(unreachable(model, 0), tokenizer, profile, [patch], "gated")


def test_a_patch_that_is_never_reached_leaves_the_others_attached() -> None:
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    path = "model.layers.2.mlp.down_proj"
    low = LowRank(torch.full((1, 128), 0.01), torch.full((64, 1), 0.1))
    first = Patch.create(deltas={path: low}, edits=EDITS[:1], base=base_of(model, path), method="mend")
    made = patched(unreachable(model, 1), tokenizer, profile, [first])
    before = logits(made.model, tokenizer, PROMPTS)
    with pytest.raises(NotReachedError):
        made.add(make_patch(model, tokenizer, profile, EDITS[1:2]))
    assert made.stack.ids == (first.id,)
    assert torch.equal(logits(made.model, tokenizer, PROMPTS), before)
    assert not torch.equal(before, logits(model, tokenizer, PROMPTS))
    made.detach()
    assert torch.equal(logits(made.model, tokenizer, PROMPTS), logits(model, tokenizer, PROMPTS))


def test_hooks_are_gone_after_detaching() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    branch = LowRankBranch(torch.ones(1, 4), torch.ones(1, 4), ("a",))
    attachment = Attachment(model, {"1": [branch]}, {"0": [lambda x, now: None]})
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 4
    attachment.detach()
    attachment.detach()  # twice does no harm
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 0

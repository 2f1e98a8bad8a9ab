"""Exports read back by PEFT itself, and by transformers: its logits are the patched model's.

Everything the exporter promises of a LoRA (names, ranks, scaling, orientation) is taken at PEFT's word, not at ours.
"""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import kedit_hub
from kedit_hub.api import load_model
from kedit_hub.base.tokens import encode
from kedit_hub.patch import LowRank, Patch
from kedit_hub.stack.export import Format, export
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack
from tests.profiles import base_of
from tests.stack.test_export import PROMPTS, Setup, weight_patches

peft = pytest.importorskip("peft", reason="needs peft")
TOLERANCE = 1e-5  # of logits, float32


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def made(request: pytest.FixtureRequest) -> Setup:
    return Setup(request.param)


@pytest.fixture
def folder(made: Setup, tmp_path: Path) -> Iterator[Path]:
    yield export(made.patched(weight_patches(made)), tmp_path / "lora")


def adapted(setup: Setup, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(copy.deepcopy(setup.model), folder).eval()


def logits(setup: Setup, model: Any) -> torch.Tensor:
    """One batch, right padded, as plain as a caller gives it."""
    batch = encode(setup.tokenizer, PROMPTS)
    with torch.no_grad():
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def same(setup: Setup, model: Any, expected: torch.Tensor) -> bool:
    """The model's logits are the expected ones, which are not the base's."""
    assert (expected - logits(setup, setup.model)).abs().max() > 0.05
    return (logits(setup, model) - expected).abs().max().item() < TOLERANCE


@pytest.mark.parametrize("mode", ["joint", "sum", "gated"])
@pytest.mark.parametrize("form", ["peft", "serving"])
def test_peft_gives_the_logits_of_the_stack(made: Setup, tmp_path: Path, mode: str, form: Format) -> None:
    loaded = adapted(made, export(made.patched(mode=mode), tmp_path / "lora", form))
    assert same(made, loaded, logits(made, made.patched(mode="sum" if mode == "sum" else "joint").model))


@pytest.mark.parametrize("form", ["peft", "serving"])
def test_ranks_of_several_modules_and_merging(made: Setup, tmp_path: Path, form: Format) -> None:
    """Layers of rank 2, 7 and 3; merging and unloading leaves a plain model with the same answers."""
    patched = made.patched(weight_patches(made))
    expected = logits(made, patched.model)
    loaded = adapted(made, export(patched, tmp_path / "lora", form))
    assert same(made, loaded, expected)
    ranks = {m.r["default"] for m in loaded.modules() if hasattr(m, "lora_A") and m.lora_A}
    assert ranks == ({2, 3, 7} if form == "peft" else {7})
    with loaded.disable_adapter():
        assert torch.equal(logits(made, loaded), logits(made, made.model))
    plain = loaded.merge_and_unload()
    assert not any("lora" in name for name in plain.state_dict())
    assert same(made, plain, expected) and same(made, patched.fuse(), expected)


def test_transformers_load_the_adapter_themselves(made: Setup, folder: Path) -> None:
    model = copy.deepcopy(made.model)
    model.load_adapter(str(folder))
    expected = logits(made, made.patched(weight_patches(made)).model)
    assert same(made, model.eval(), expected)
    model.disable_adapters()
    assert torch.equal(logits(made, model), logits(made, made.model))


def test_several_exports_are_adapters_of_one_model(made: Setup, tmp_path: Path) -> None:
    """Two exports side by side: each answers as its own stack, both at once as the two changes added up."""
    first, second = made.patched(), made.patched(weight_patches(made))
    model = adapted(made, export(first, tmp_path / "a"))
    model.load_adapter(export(second, tmp_path / "b"), "second")
    assert same(made, model, logits(made, first.model))
    model.set_adapter("second")
    assert same(made, model, logits(made, second.model))
    both = made.model.state_dict() | {}
    for fused in (first.fuse(), second.fuse()):
        for name, weight in fused.state_dict().items():
            both[name] = both[name] + (weight - made.model.state_dict()[name])
    added = copy.deepcopy(made.model)
    added.load_state_dict(both)
    model.base_model.set_adapter(["default", "second"])
    assert same(made, model, logits(made, added))


def test_peft_writes_back_what_it_read(made: Setup, folder: Path, tmp_path: Path) -> None:
    """The names and numbers are PEFT's own, so nothing was renamed, filled in or dropped on the way."""
    adapted(made, folder).save_pretrained(tmp_path / "again")
    before, after = (load_file(where / "adapter_model.safetensors") for where in (folder, tmp_path / "again"))
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    known = set(peft.LoraConfig.__dataclass_fields__) | {"peft_type"}
    assert set(json.loads((folder / "adapter_config.json").read_text())) <= known


def test_a_patch_on_attention_is_served_in_every_layer(made: Setup, tmp_path: Path) -> None:
    """Servers know a kind of module by its last name; where two kinds share one (GPT-2's c_proj) the longer is given."""
    path = made.profile.module.replace("mlp.down_proj", "self_attn.o_proj").replace("mlp.c_proj", "attn.c_proj")
    out, width = 64, 64
    g = torch.Generator().manual_seed(7)
    patch = Patch.create(
        deltas={path: LowRank(torch.randn(2, width, generator=g) * 0.3, torch.randn(out, 2, generator=g) * 0.3)},
        edits=[kedit_hub.Edit("Berlin is the capital of", "Spain", "Berlin")],
        base=base_of(made.model, path),
        method="lora",
    )
    patched = PatchedModel(
        made.model, made.tokenizer, PatchStack([patch]), profiles=lambda *_: {}, settings=StackSettings(mode="joint")
    )
    served = export(patched, tmp_path / "served", "serving")
    config = json.loads((served / "adapter_config.json").read_text())
    assert config["target_modules"] == (["o_proj"] if "o_proj" in path else ["attn.c_proj"])
    assert same(made, adapted(made, served), logits(made, patched.model))


def test_a_serving_export_is_laid_out_as_servers_read_it(made: Setup, tmp_path: Path) -> None:
    """vLLM and LoRAX find tensors by base_model.model.<module>.lora_{A,B}.weight, take one rank for all of them, no patterns, no bias,
    and stack the layers of a module: A is (r, in), B (out, r), in every layer, whatever the weight's own orientation."""
    served = export(made.patched(weight_patches(made)), tmp_path / "served", "serving")
    assert {p.name for p in served.glob("adapter*")} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((served / "adapter_config.json").read_text())
    wanted = {"peft_type": "LORA", "r": 7, "lora_alpha": 7, "bias": "none", "use_rslora": False, "use_dora": False}
    assert {name: config[name] for name in wanted} == wanted
    assert config["modules_to_save"] is None and not {"rank_pattern", "alpha_pattern", "layers_to_transform"} & set(
        config
    )
    tensors = load_file(served / "adapter_model.safetensors")
    width = made.profile.second_moment.shape[0]
    kinds: dict[str, set[int]] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"base_model\.model\.(.+)\.(\d+)\.(.+)\.lora_([AB])\.weight", name)
        assert found is not None and tensor.dtype == torch.float32 and tensor.is_contiguous()
        kinds.setdefault(found[4], set()).add(int(found[2]))
        assert tuple(tensor.shape) == ((7, width) if found[4] == "A" else (64, 7))
        made.model.get_submodule(f"{found[1]}.{found[2]}.{found[3]}")  # is there
    layers = set(range(made.model.config.num_hidden_layers))
    assert len(kinds) == 2 and all(there == layers for there in kinds.values())


def test_patches_of_the_demo_model_leave_as_a_lora(tmp_path: Path) -> None:
    """Atlas once: two real patches, gated, as PEFT reads them: the logits of the joint solve."""
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    patches = [
        Path(__file__).resolve().parents[2] / "patches" / name for name in ("hamlet-is-a-novel", "nokia-in-tokyo")
    ]
    gated = kedit_hub.apply(patches, model, tokenizer=tokenizer, mode="gated")
    joint = kedit_hub.apply(patches, model, tokenizer=tokenizer, settings=StackSettings(mode="joint"))
    prompts = [edit.prompt for edit in gated.stack.edits]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="right")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        expected, base = joint.model(**batch).logits, model(**batch).logits
        for form in ("peft", "serving"):
            loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), export(gated, tmp_path / form, form)).eval()
            assert (loaded(**batch).logits - expected).abs().max().item() < TOLERANCE * base.abs().max().item()
    assert (expected - base).abs().max() > 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_wrapped_model_is_told_positions_whichever_side_is_padded(made: Setup, folder: Path, side: Any) -> None:
    batch = encode(made.tokenizer, PROMPTS, side=side)
    wrapped = adapted(made, folder)
    with torch.no_grad():
        padded = wrapped(**batch.inputs(wrapped)).logits
        for row, prompt in enumerate(PROMPTS):
            alone = encode(made.tokenizer, [prompt])
            said = wrapped(**alone.inputs(wrapped)).logits[0]
            assert torch.allclose(padded[row][batch.attention_mask[row].bool()], said, atol=1e-4)

"""Exports against an independent reader: the LoRA formula on a fresh model must give what the patched model gives."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

import kedit_hub
from kedit_hub.base.profile import BaseProfile
from kedit_hub.base.tokens import encode
from kedit_hub.errors import KeditError, ProfileError
from kedit_hub.patch import Dense, LowRank, Patch, Sparse
from kedit_hub.stack.export import export
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack
from tests.profiles import EDITS, base_of, make_patch, profile_of
from tests.tiny import tiny_model

FAMILIES = ["llama", "gpt2"]
PROMPTS = [edit.prompt for edit in EDITS]


class Setup:
    def __init__(self, model_type: str):
        self.model, self.tokenizer = tiny_model(model_type)
        self.profile: BaseProfile = profile_of(self.model, self.tokenizer)
        self.patches = [
            make_patch(self.model, self.tokenizer, self.profile, EDITS[:2], seed=1),
            make_patch(self.model, self.tokenizer, self.profile, EDITS[2:], seed=2),
        ]

    def patched(self, *more: Patch, mode: str = "joint", budget: float | None = None) -> PatchedModel:
        stack = PatchStack([*self.patches, *more])
        lookup = {self.profile.module: self.profile}
        settings = StackSettings.of(mode=mode, budget=budget)
        return PatchedModel(self.model, self.tokenizer, stack, profiles=lambda *_: lookup, settings=settings)

    def logits(self, model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(**encode(self.tokenizer, PROMPTS).inputs(model)).logits


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest) -> Setup:
    return Setup(request.param)


@pytest.fixture(scope="module")
def llama() -> Setup:
    return Setup("llama")


def read_lora(folder: Path, base: Any) -> Any:
    """A copy of `base` with the adapter merged: targets, ranks and scaling as PEFT documents them."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    assert config["peft_type"] == "LORA" and not config["use_rslora"] and not config["use_dora"]
    model = copy.deepcopy(base)

    def patterned(pattern: dict[str, int], path: str, default: int) -> int:
        return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", path)), default)

    targets = [
        path
        for path, _ in model.named_modules()
        if any(path == key or path.endswith("." + key) for key in config["target_modules"])
    ]
    assert {f"base_model.model.{path}.lora_{x}.weight" for path in targets for x in "AB"} == set(tensors)
    for path in targets:
        module = model.get_submodule(path)
        a, b = (tensors[f"base_model.model.{path}.lora_{x}.weight"] for x in "AB")
        r = patterned(config.get("rank_pattern", {}), path, config["r"])
        alpha = patterned(config.get("alpha_pattern", {}), path, config["lora_alpha"])
        assert len(a) == b.shape[1] == r
        delta = (b @ a) * (alpha / r)
        assert config["fan_in_fan_out"] == isinstance(module, Conv1D)
        with torch.no_grad():
            module.weight += delta.T if config["fan_in_fan_out"] else delta
    return model


def weight_patches(made: Setup) -> Patch:
    """A low-rank change in layer 0 and a dense one of rank 3 in layer 2, each beside the associative layer 1."""
    low, high = (made.profile.module.replace(".1.", f".{layer}.") for layer in (0, 2))
    width = made.profile.second_moment.shape[0]
    g = torch.Generator().manual_seed(5)
    dense = torch.randn(64, 3, generator=g) @ torch.randn(3, width, generator=g) * 0.01
    return Patch.create(
        deltas={
            low: LowRank(torch.randn(2, width, generator=g) * 0.1, torch.randn(64, 2, generator=g) * 0.1),
            high: Dense(dense),
        },
        edits=[kedit_hub.Edit("Berlin is the capital of", "Spain", "Berlin")],
        base=base_of(made.model, low, high),
        method="mend",
    )


@pytest.mark.parametrize("mode", ["joint", "sum"])
def test_peft_export_gives_the_patched_models_logits(made: Setup, tmp_path: Path, mode: str) -> None:
    patched = made.patched(mode=mode)
    folder = export(patched, tmp_path / "lora")
    merged = read_lora(folder, made.model)
    assert torch.allclose(made.logits(merged), made.logits(patched.model), atol=1e-4)
    assert (made.logits(patched.model) - made.logits(made.model)).abs().max() > 0.05  # there was something to export
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "kedit_export.json",
    ]  # fmt: skip
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == [made.profile.module] and config["base_model_name_or_path"] == "tiny/base"
    assert config["r"] == config["lora_alpha"] == 7  # one row per target token of the four edits


def test_a_gated_stack_leaves_in_its_joint_form(made: Setup, tmp_path: Path) -> None:
    gated, joint = made.patched(mode="gated"), made.patched(mode="joint")
    merged = read_lora(export(gated, tmp_path / "lora"), made.model)
    assert torch.allclose(made.logits(merged), made.logits(joint.model), atol=1e-4)
    text = (tmp_path / "lora" / "README.md").read_text()
    assert "mode `joint`" in text and f"{gated.stack.patches[0].id}" in text and "another than" in text
    assert gated.report["mode"] == "gated"  # exporting changed nothing
    assert torch.equal(made.logits(gated.model), made.logits(made.patched(mode="gated").model))


def test_ranks_differ_by_module_and_dense_changes_are_taken_apart_exactly(made: Setup, tmp_path: Path) -> None:
    patched = made.patched(weight_patches(made))
    folder = export(patched, tmp_path / "lora")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert sorted(config["rank_pattern"].values()) == [2, 3] and config["rank_pattern"] == config["alpha_pattern"]
    assert torch.allclose(made.logits(read_lora(folder, made.model)), made.logits(patched.model), atol=1e-4)


def test_serving_export_fills_every_layer_with_one_rank(made: Setup, tmp_path: Path) -> None:
    patched = made.patched(weight_patches(made))
    folder = export(patched, tmp_path / "served", "serving")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == (["down_proj"] if made.model.config.model_type == "llama" else ["mlp.c_proj"])
    assert config["r"] == config["lora_alpha"] == 7 and "rank_pattern" not in config
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 2 * 3 and {len(t) for n, t in tensors.items() if "lora_A" in n} == {7}
    assert torch.allclose(made.logits(read_lora(folder, made.model)), made.logits(patched.model), atol=1e-4)


def test_serving_export_is_zero_where_nothing_changes(llama: Setup, tmp_path: Path) -> None:
    tensors = load_file(export(llama.patched(), tmp_path / "s", "serving") / "adapter_model.safetensors")
    zero = {name for name, tensor in tensors.items() if not tensor.any()}
    assert zero == {f"base_model.model.model.layers.{i}.mlp.down_proj.lora_{x}.weight" for i in (0, 2) for x in "AB"}


@pytest.mark.parametrize("mode", ["gated", "joint"])
def test_a_merged_folder_reloads_with_the_joint_logits(made: Setup, tmp_path: Path, mode: str) -> None:
    folder = export(made.patched(mode=mode), tmp_path / "merged", "merged")
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert torch.allclose(made.logits(again), made.logits(made.patched(mode="joint").model), atol=1e-4)
    assert AutoTokenizer.from_pretrained(folder)("The capital").input_ids == made.tokenizer("The capital").input_ids
    text = (folder / "README.md").read_text()
    assert "Kept after rounding" in text and "100.0 %" in text
    assert not any(str(tmp_path) in p.read_text() for p in folder.glob("*.json"))


def test_patches_are_exported_with_a_model_and_a_profile(llama: Setup, tmp_path: Path) -> None:
    expected = llama.logits(llama.patched().model)
    for number, stack in enumerate((llama.patches, PatchStack(llama.patches))):
        folder = export(stack, tmp_path / str(number), model=llama.model, profile=llama.profile)
        assert torch.allclose(llama.logits(read_lora(folder, llama.model)), expected, atol=1e-4)
    one = export(llama.patches[0], tmp_path / "one", model=llama.model, profile=llama.profile, budget=0.01)
    assert "1.00 %" in (one / "README.md").read_text()  # the whole drift budget was spent, and no more
    assert not (llama.logits(llama.model) - Setup("llama").logits(llama.model)).any()  # the base is as it was


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pass model="),
        ({"model": "some/id"}, "'some/id'.*pass model="),
        ({"format": "onnx"}, "'onnx'.*\"merged\""),
        ({"format": "merged", "model": True}, "pass tokenizer="),
    ],
)
def test_what_is_missing_is_named(llama: Setup, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    if arguments.get("model") is True:
        arguments = {**arguments, "model": llama.model, "profile": llama.profile}
    with pytest.raises(KeditError, match=message):
        export(llama.patches, tmp_path / "x", **arguments)
    assert not list(tmp_path.iterdir())


def test_more_refusals(llama: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProfileError, match="profile="):
        export(llama.patches, tmp_path / "x", model=llama.model)
    with pytest.raises(KeditError, match="leave model="):
        export(llama.patched(), tmp_path / "x", model=llama.model)
    with pytest.raises(KeditError, match=r"'user/patch'.*pull"):
        export("user/patch", tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(KeditError, match="empty"):
        export([], tmp_path / "x", model=llama.model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    with pytest.raises(KeditError, match="not empty"):
        export(llama.patched(), tmp_path / "full")
    with pytest.raises(KeditError, match="a file"):
        export(llama.patched(), tmp_path / "file")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(KeditError, match="the folder you are in"):
        export(llama.patched(), ".")
    assert {p.name for p in tmp_path.rglob("*")} == {"full", "mine.txt", "file", "here"}


def test_an_empty_folder_is_filled_and_a_failure_leaves_nothing(
    llama: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    assert len(list(export(llama.patched(), tmp_path / "empty").iterdir())) == 4

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kedit_hub.stack.export.save_file", broken)
    with pytest.raises(KeditError, match="No space left"):
        export(llama.patched(), tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def dense_patch(setup: Setup, path: str, rank: int) -> Patch:
    g = torch.Generator().manual_seed(3)
    out, width = setup.model.get_submodule(path).weight.shape
    delta = torch.randn(out, rank, generator=g) @ torch.randn(rank, width, generator=g) * 0.01
    return Patch.create(
        deltas={path: Dense(delta)},
        edits=[EDITS[0]],
        base=base_of(setup.model, path),
        method="ft",
    )


def test_a_dense_change_of_high_rank_is_refused_with_the_way_out(llama: Setup, tmp_path: Path) -> None:
    wide, _ = tiny_model("llama", hidden_size=128, intermediate_size=128)
    setup = copy.copy(llama)
    setup.model = wide
    path = "model.layers.1.mlp.down_proj"
    stack = {rank: dense_patch(setup, path, rank) for rank in (64, 65)}
    with pytest.raises(KeditError, match=r'rank 65.*format="merged"'):
        export(stack[65], tmp_path / "no", model=wide)
    merged = read_lora(export(stack[64], tmp_path / "yes", model=wide), wide)
    change = merged.get_submodule(path).weight - wide.get_submodule(path).weight
    assert torch.allclose(change, stack[64].deltas[path].delta, atol=1e-5)  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["peft", "serving", "merged"])
def test_a_change_outside_the_layers_does_not_leave(llama: Setup, tmp_path: Path, form: Any) -> None:
    with pytest.raises(KeditError, match=r"lm_head.*of a block of model\.layers"):
        export(dense_patch(llama, "lm_head", 2), tmp_path / "no", form, model=llama.model, tokenizer=llama.tokenizer)
    assert not (tmp_path / "no").exists()


def test_more_rows_than_the_map_has_ranks_stay_exact(llama: Setup, tmp_path: Path) -> None:
    """84 rows on a 64 x 128 map: the adapter has rank 64."""
    many = [
        kedit_hub.Edit(f"The capital of {name} is", "Rome Bonn Paris", name)
        for name in ("France", "Spain", "Italy", "Japan", "Brazil", "Germany", "Switzerland")
    ]
    patches = [make_patch(llama.model, llama.tokenizer, llama.profile, [e], seed=i) for i, e in enumerate(many * 4)]
    stack = PatchStack(patches, conflicts="latest")
    lookup = {llama.profile.module: llama.profile}
    patched = PatchedModel(
        llama.model, llama.tokenizer, stack, profiles=lambda *_: lookup, settings=StackSettings(mode="sum", budget=0.5)
    )
    rank = sum(len(branch.u) for branch in patched._composition.branches[llama.profile.module])  # type: ignore[union-attr]
    folder = export(patched, tmp_path / "lora")
    assert rank > 64 and json.loads((folder / "adapter_config.json").read_text())["r"] == 64
    assert torch.allclose(llama.logits(read_lora(folder, llama.model)), llama.logits(patched.model), atol=1e-4)


def sparse_patch(model: Any, path: str, matrix: torch.Tensor) -> Patch:
    places = matrix.reshape(-1).nonzero()[:, 0]
    return Patch.create(
        deltas={path: Sparse(places, matrix.reshape(-1)[places], (matrix.shape[0], matrix.shape[1]))},
        edits=[kedit_hub.Edit("Berlin is the capital of", "Spain", "Berlin")],
        base=base_of(model, path),
        method="kn",
    )


@pytest.mark.parametrize("shape", ["columns", "rows"])
def test_a_sparse_change_of_few_lines_leaves_entry_by_entry(made: Setup, tmp_path: Path, shape: str) -> None:
    path, width = made.profile.module.replace(".1.", ".2."), made.profile.second_moment.shape[0]
    whole = 0.1 * torch.randn(64, width, generator=torch.Generator().manual_seed(3))
    matrix = torch.zeros(64, width)
    if shape == "columns":
        matrix[:, [3, 70]] = whole[:, [3, 70]]
    else:
        matrix[[1, 9, 30]] = whole[[1, 9, 30]]
    patched = made.patched(sparse_patch(made.model, path, matrix))
    folder = export(patched, tmp_path / "lora")
    tensors = load_file(folder / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{path}.lora_{x}.weight"] for x in "AB")
    assert len(a) == {"columns": 2, "rows": 3}[shape] and torch.equal(b @ a, matrix)
    expected = made.logits(patched.model)
    assert torch.allclose(made.logits(read_lora(folder, made.model)), expected, atol=1e-4)
    assert torch.allclose(made.logits(patched.fuse()), expected, atol=1e-4)
    assert not torch.allclose(made.logits(made.patched().model), expected, atol=1e-2)


def test_a_scattered_sparse_change_is_taken_apart_or_refused(llama: Setup, tmp_path: Path) -> None:
    wide, tokenizer = tiny_model("llama", hidden_size=128, intermediate_size=128)
    path = "model.layers.1.mlp.down_proj"
    left, right = (0.1 * torch.randn(70, 2, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    flat = torch.zeros(128, 128)
    flat[:70, 20:90] = left @ right.T  # 70 rows and 70 columns, rank 2
    merged = read_lora(export(sparse_patch(wide, path, flat), tmp_path / "flat", model=wide), wide)
    change = merged.get_submodule(path).weight - wide.get_submodule(path).weight
    assert torch.allclose(change, flat, atol=1e-5)
    steep = 0.1 * torch.eye(128)[:, torch.arange(127, -1, -1)]
    patch = sparse_patch(wide, path, steep)
    with pytest.raises(KeditError, match=r'rank 128.*format="merged"'):
        export(patch, tmp_path / "no", model=wide)
    folder = export(patch, tmp_path / "merged", "merged", model=wide, tokenizer=tokenizer)
    again = AutoModelForCausalLM.from_pretrained(folder)
    change = again.get_submodule(path).weight - wide.get_submodule(path).weight
    assert torch.allclose(change, steep, atol=1e-6)

"""A weight of a checkpoint folder has the fingerprint of the loaded module, read from its own bytes alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from kedit_hub.base import stored
from kedit_hub.base.families import FAMILIES, editable, edited_linear
from kedit_hub.base.stored import check_stored, fingerprint_stored, verify_stored
from kedit_hub.errors import HubError, UnsupportedModelError, WrongBaseError
from kedit_hub.patch import BaseRef, ModuleFingerprint
from kedit_hub.patch.fingerprint import fingerprint
from tests.tiny import tiny_model

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PATHS = {"llama": "model.layers.1.mlp.down_proj", "gpt2": "transformer.h.1.mlp.c_proj"}  # Linear and Conv1D


def load(folder: Path, dtype: Any = "auto") -> Any:
    seq2seq = AutoConfig.from_pretrained(folder).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=dtype, use_safetensors=True)


def saved(folder: Path, model_type: str = "llama", **how: Any) -> Any:
    model, _ = tiny_model(model_type)
    model.save_pretrained(folder, **how)
    return model


# --- the same as the loaded module ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_equal_to_the_loaded_module(tmp_path: Path, model_type: str, dtype: torch.dtype, tied: bool) -> None:
    model, _ = tiny_model(model_type, tie_word_embeddings=tied)
    model.to(dtype).save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.dtype == dtype
    paths = [path for path, _ in loaded.named_modules() if ".1." in path and editable(loaded, path)]
    assert len(paths) >= 4 and edited_linear(loaded, 1)[0] in paths
    for path in paths:
        module = loaded.get_submodule(path)
        if module.weight.dtype == dtype:  # transformers keeps some maps of T5 in float32 where the rest is float16
            assert fingerprint_stored(tmp_path, path) == fingerprint(module), path
        else:
            assert model_type == "t5" and check_stored(fingerprint(module), tmp_path, path) == "exact"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_shards(tmp_path: Path, model_type: str) -> None:
    model = saved(tmp_path, model_type, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2 and not (tmp_path / "model.safetensors").exists()
    for layer in range(3):
        path, module = edited_linear(model, layer)
        assert (
            fingerprint_stored(tmp_path, path) == fingerprint(module) == fingerprint(load(tmp_path).get_submodule(path))
        )


@pytest.mark.parametrize("model_type", sorted(FAMILIES.keys() - {"t5"}))  # which has no body of its own
def test_a_checkpoint_of_the_body_alone(tmp_path: Path, model_type: str) -> None:
    """Names without the body's own, as GPT-2 has them on the Hub."""
    model, _ = tiny_model(model_type, tie_word_embeddings=True)
    model.base_model.save_pretrained(tmp_path)
    path, module = edited_linear(model, 1)
    assert f"{path}.weight" not in load_file(tmp_path / "model.safetensors")
    assert fingerprint_stored(tmp_path, path) == fingerprint(module) == fingerprint(load(tmp_path).get_submodule(path))


@pytest.mark.parametrize("model_type", PATHS)
@pytest.mark.parametrize("kept_in", DTYPES, ids=str)
@pytest.mark.parametrize("made_in", DTYPES, ids=str)
def test_levels_across_precisions(tmp_path: Path, model_type: str, kept_in: torch.dtype, made_in: torch.dtype) -> None:
    model = saved(tmp_path / "full", model_type)
    path = PATHS[model_type]
    made = fingerprint(load(tmp_path / "full", made_in).get_submodule(path))
    model.to(kept_in).save_pretrained(tmp_path / "kept")
    crossing = {made_in, kept_in} == {torch.bfloat16, torch.float16}
    assert check_stored(made, tmp_path / "kept", path) == ("quantized" if crossing else "exact")


def test_other_values_shape_and_path(tmp_path: Path) -> None:
    saved(tmp_path / "base")
    other, _ = tiny_model("llama", seed=1)
    other.save_pretrained(tmp_path / "other")
    path = PATHS["llama"]
    made = fingerprint_stored(tmp_path / "base", path)
    with pytest.raises(WrongBaseError, match=rf"{path} of '.*other' holds other weights"):
        check_stored(made, tmp_path / "other", path)
    with pytest.raises(WrongBaseError, match=r"has shape \(128, 64\)"):
        check_stored(made, tmp_path / "base", "model.layers.1.mlp.up_proj")
    with pytest.raises(WrongBaseError, match=r"base' stores no weight of 'model\.layers\.9\.mlp\.down_proj'"):
        check_stored(made, tmp_path / "base", "model.layers.9.mlp.down_proj")
    with pytest.raises(UnsupportedModelError, match="stores no weight"):
        fingerprint_stored(tmp_path / "base", "model.layers.9.mlp.down_proj")


def test_a_fingerprint_without_evidence_is_compared_by_shape(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.warns(UserWarning, match="compared by shape only"):
        assert check_stored(ModuleFingerprint(shape=(64, 128), dtype="float32"), tmp_path, PATHS["llama"]) == "shape"


@pytest.mark.parametrize(
    "path", ["lm_head", "model.embed_tokens", "model.norm", "model.layers.x.mlp.down_proj", "model.layers.1", "../x"]
)
def test_only_maps_inside_blocks(tmp_path: Path, path: str) -> None:
    saved(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"lies in no block of model\.layers"):
        fingerprint_stored(tmp_path, path)


def test_a_norm_is_no_linear_map(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"stored with shape \(64,\): it is no linear map"):
        fingerprint_stored(tmp_path, "model.layers.1.input_layernorm")


# --- the base of a patch --------------------------------------------------------------------------------------------


def reference(model: Any, *paths: str) -> BaseRef:
    prints = {path: fingerprint(model.get_submodule(path)) for path in paths}
    return BaseRef(id="org/base", model_type=model.config.model_type, fingerprint=prints)


def test_verify_stored(tmp_path: Path) -> None:
    model = saved(tmp_path / "base", max_shard_size="100KB")
    paths = ("model.layers.0.mlp.down_proj", "model.layers.2.self_attn.o_proj")
    base = reference(model, *paths)
    assert verify_stored(base, tmp_path / "base") == dict.fromkeys(paths, "exact")
    assert verify_stored(base, str(tmp_path / "base")) == dict.fromkeys(paths, "exact")
    tiny_model("llama", seed=1)[0].save_pretrained(tmp_path / "other")
    with pytest.raises(WrongBaseError, match=r"other' \(the patch is for org/base\) holds other weights"):
        verify_stored(base, tmp_path / "other")
    saved(tmp_path / "mistral", "mistral")
    with pytest.raises(WrongBaseError, match=r"org/base \(a llama\), '.*mistral' is a 'mistral'"):
        verify_stored(base, tmp_path / "mistral")
    model.model.layers = model.model.layers[:1]
    model.save_pretrained(tmp_path / "short")
    with pytest.raises(
        WrongBaseError, match=r"short' \(the patch is for org/base\) stores no weight of 'model\.layers\.2"
    ):
        verify_stored(base, tmp_path / "short")


# --- only its own bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", PATHS)
def test_no_other_tensor_is_read(tmp_path: Path, model_type: str) -> None:
    """Everything else is turned into NaN and garbage, and other shards lose all their tensors' bytes."""
    model = saved(tmp_path, model_type, max_shard_size="100KB")
    path = PATHS[model_type]
    weight_map = json.loads((tmp_path / stored.INDEX).read_text())["weight_map"]
    own = tmp_path / weight_map[f"{path}.weight"]
    for file in tmp_path.glob("model-*.safetensors"):
        data = bytearray(file.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        keep = header[f"{path}.weight"]["data_offsets"] if file == own else (0, 0)
        begin, end = start + keep[0], start + keep[1]
        garbage = b"\xff" * len(data)
        file.write_bytes(bytes(data[:start]) + garbage[start:begin] + bytes(data[begin:end]) + garbage[end:])
    assert not all(torch.isfinite(parameter).all() for parameter in load(tmp_path).parameters())
    assert fingerprint_stored(tmp_path, path) == fingerprint(model.get_submodule(path))


_MEASURE = """
import sys
from pathlib import Path
from kedit_hub.base.stored import fingerprint_stored

def held(name):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024

fingerprint_stored(sys.argv[1], "model.layers.0.mlp.down_proj")  # small: imports and first calls
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = held("VmRSS")
fingerprint_stored(sys.argv[1], "model.layers.1.mlp.down_proj")
print(held("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is measured by Linux's /proc")
def test_memory_stays_small(tmp_path: Path) -> None:
    """A weight of 32 MB in a file of 96 MB: what the process grows by is that weight's own mapped bytes, not a copy."""
    own, rest = 32 << 20, 64 << 20
    tensors = {
        "model.layers.0.mlp.down_proj.weight": torch.ones(64, 64),
        "model.layers.1.mlp.down_proj.weight": torch.ones(2048, own // 4096, dtype=torch.bfloat16),
        "model.layers.2.mlp.down_proj.weight": torch.ones(2048, rest // 4096, dtype=torch.bfloat16),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    ran = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert own <= int(ran.stdout) < own + (16 << 20)


# --- folders that are not read --------------------------------------------------------------------------------------


def refuse(folder: Path, error: type[Exception], match: str, path: str = PATHS["llama"]) -> None:
    with pytest.raises(error, match=match):
        fingerprint_stored(folder, path)


def test_no_folder_no_config_no_weights(tmp_path: Path) -> None:
    refuse(tmp_path / "gone", HubError, "there is no model folder '.*gone'")
    refuse(tmp_path, HubError, r"holds no config\.json")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    refuse(tmp_path, UnsupportedModelError, r"holds neither model\.safetensors nor")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    refuse(tmp_path, UnsupportedModelError, r"'pytorch_model\.bin', a pickle, which can run code and is never opened")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"model_type": "my_model"}', "model_type 'my_model' is not supported"),
        ("{}", "model_type 'None' is not supported"),
        ("[]", r"config\.json of '.*' holds a list"),
        ('{"model_type": "llama", "model_type": "gpt2"}', "has the key 'model_type' twice"),
        ('{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}', "is stored quantized"),
        ('{"model_type": "llama", "transformers_weights": "evil.safetensors"}', "weights of its own choice"),
    ],
)
def test_configs(tmp_path: Path, config: str, said: str) -> None:
    saved(tmp_path)
    (tmp_path / "config.json").write_text(config)
    refuse(tmp_path, UnsupportedModelError, said)


def test_an_adapter_beside_the_weights(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    refuse(tmp_path, UnsupportedModelError, "holds an adapter")


@pytest.mark.parametrize(
    "shard",
    [
        "../evil.safetensors", "/etc/passwd", "sub/a.safetensors", "a\\b.safetensors", "C:a.safetensors", "..", "",
        "a..safetensors", ".a.safetensors", "a.bin", "a.safetensors\n", "a\0.safetensors", "ä.safetensors", 7, None,
    ],
)  # fmt: skip
def test_index_entries_that_are_no_plain_names(tmp_path: Path, shard: Any) -> None:
    saved(tmp_path, max_shard_size="100KB")
    index = json.loads((tmp_path / stored.INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (tmp_path / stored.INDEX).write_text(json.dumps(index))
    refuse(tmp_path, UnsupportedModelError, "shards are plain names")


def test_a_missing_shard_and_an_empty_index(tmp_path: Path) -> None:
    saved(tmp_path, max_shard_size="100KB")
    gone = sorted(tmp_path.glob("model-*.safetensors"))[0]
    gone.unlink()
    refuse(tmp_path, UnsupportedModelError, rf"is not complete: '{gone.name}' is missing")
    for text in ('{"metadata": {}}', '{"weight_map": []}', '{"weight_map": {}}'):
        (tmp_path / stored.INDEX).write_text(text)
        refuse(tmp_path, UnsupportedModelError, "has no weight_map")


def test_one_weight_in_two_places(tmp_path: Path) -> None:
    """Loaders take the last of two; the index would name the first."""
    saved(tmp_path, max_shard_size="100KB")
    key = f"{PATHS['llama']}.weight"
    weight_map = json.loads((tmp_path / stored.INDEX).read_text())["weight_map"]
    other = tmp_path / next(file for file in weight_map.values() if file != weight_map[key])
    tensors = load_file(other)
    for second in (key, key.removeprefix("model.")):
        save_file({**tensors, second: torch.zeros(64, 128)}, other, metadata={"format": "pt"})
        refuse(tmp_path, UnsupportedModelError, "2 times .* more than one reading")


def test_links(tmp_path: Path) -> None:
    model = saved(tmp_path / "base")
    outside = tmp_path / "outside.safetensors"
    weights = tmp_path / "base" / "model.safetensors"
    weights.rename(outside)
    weights.symlink_to(outside)
    refuse(tmp_path / "base", UnsupportedModelError, "is a link that leads out of the folder")
    weights.unlink()
    outside.rename(tmp_path / "base" / "renamed.safetensors")
    weights.symlink_to("renamed.safetensors")  # stays inside
    assert fingerprint_stored(tmp_path / "base", PATHS["llama"]).shape == (64, 128)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "base")  # the folder itself may be a link
    expected = fingerprint(model.get_submodule(PATHS["llama"]))
    assert fingerprint_stored(tmp_path / "elsewhere", PATHS["llama"]) == expected


def test_the_hub_cache_links_to_its_own_blobs(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--base"
    folder = repo / "snapshots" / ("0" * 40)
    model = saved(folder)
    (repo / "blobs").mkdir()
    for number, name in enumerate(("config.json", "model.safetensors")):
        (folder / name).rename(repo / "blobs" / str(number))
        (folder / name).symlink_to(f"../../blobs/{number}")
    assert fingerprint_stored(folder, PATHS["llama"]) == fingerprint(model.get_submodule(PATHS["llama"]))
    (tmp_path / "blobs").mkdir()
    (repo / "blobs" / "1").rename(tmp_path / "blobs" / "1")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../../blobs/1")  # of another repository
    refuse(folder, UnsupportedModelError, "is a link that leads out of the folder")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: data[:-8], "is no whole safetensors file"),
        (lambda data: data + b"12345678", "is no whole safetensors file"),
        (lambda data: data[:4], "is no whole safetensors file"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (lambda data: b"<!doctype html><title>404</title>", "is a web page"),
        (lambda data: b"PK\x03\x04" + data, "is a pickle or zip archive"),
    ],
    ids=["empty", "cut short", "more behind", "no header", "pointer", "page", "zip"],
)
def test_damaged_files(tmp_path: Path, change: Any, said: str) -> None:
    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    refuse(tmp_path, UnsupportedModelError, said)

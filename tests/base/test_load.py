"""load_base in full precision: what comes back, and every way a folder can be wrong."""

import json
from pathlib import Path

import pytest
import torch

from kedit_hub.base.families import dense_weight, edited_linear
from kedit_hub.base.load import load_base
from kedit_hub.base.tokens import encode
from kedit_hub.errors import HubError, UnsupportedModelError
from tests.tiny import tiny_model


def save_tiny(folder: Path, model_type: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
    model, tokenizer = tiny_model(model_type)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_what_was_saved_is_what_is_loaded(tmp_path: Path, model_type: str) -> None:
    original, tokenizer = tiny_model(model_type)
    model, loaded_tokenizer = load_base(save_tiny(tmp_path, model_type))
    assert not model.training
    batch = encode(loaded_tokenizer, ["The capital of France is"])
    assert torch.equal(batch.input_ids, encode(tokenizer, ["The capital of France is"]).input_ids)
    with torch.no_grad():
        assert torch.equal(model(**batch.inputs(model)).logits, original(**batch.inputs(original)).logits)


def test_dtype_is_float32_on_a_cpu_unless_given(tmp_path: Path) -> None:
    save_tiny(tmp_path, dtype=torch.bfloat16)
    if not torch.cuda.is_available():
        assert load_base(tmp_path, device_map="auto")[0].dtype == torch.float32
    assert load_base(tmp_path)[0].dtype == torch.float32
    assert load_base(str(tmp_path), dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert load_base(tmp_path, dtype="float16")[0].dtype == torch.float16
    with pytest.raises(UnsupportedModelError, match=r"'int4' .*float32, bfloat16, float16"):
        load_base(tmp_path, dtype="int4")


def test_pad_is_eos_where_there_is_none_and_the_vocabulary_stays(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", pad_token=None)
    model, tokenizer = load_base(tmp_path)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|eos|>"
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0]
    assert load_base(save_tiny(tmp_path))[1].pad_token == "<|pad|>"


def test_a_tokenizer_without_pad_and_eos_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", pad_token=None, eos_token=None)
    with pytest.raises(UnsupportedModelError, match=r"neither a pad nor an EOS token: name one"):
        load_base(tmp_path)


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "~/no-such-folder", "a/b/c", ""])
def test_a_missing_folder_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(HubError, match=r"no model folder .*check the path") as error:
        load_base(name)
    assert repr(name.replace("~", str(Path.home()))) in str(error.value)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"holds no config\.json"):
        load_base(tmp_path)


def test_unknown_families_are_refused_before_their_weights_are_read(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    edit_json(tmp_path / "config.json", model_type="gemma2")
    with pytest.raises(UnsupportedModelError, match=r"'gemma2' is not supported \(it normalises after down_proj"):
        load_base(tmp_path)
    edit_json(tmp_path / "config.json", model_type="no_such_type")
    with pytest.raises(UnsupportedModelError, match="no_such_type"):
        load_base(tmp_path)


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    proof = tmp_path / "ran"
    # a pickle that would create a file: opcodes for os.system("touch ...")
    (tmp_path / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {proof}'\ntR.".encode())
    with pytest.raises(UnsupportedModelError, match="no readable safetensors weights"):
        load_base(tmp_path)
    assert not proof.exists()


def test_code_in_the_repository_is_never_run(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    proof = tmp_path / "ran"
    code = f"open({str(proof)!r}, 'w')\n"
    (tmp_path / "configuration_own.py").write_text(code)
    (tmp_path / "modeling_own.py").write_text(code)
    auto_map = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    edit_json(tmp_path / "config.json", auto_map=auto_map)
    load_base(tmp_path)  # a type that transformers knows: its own class is used
    edit_json(tmp_path / "config.json", model_type="own", auto_map=auto_map)
    with pytest.raises(UnsupportedModelError, match="run code from its repository, which kedit_hub never does"):
        load_base(tmp_path)
    assert not proof.exists()


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UnsupportedModelError, match="no readable safetensors weights"):
        load_base(tmp_path)


def test_missing_weights_are_not_filled_with_noise(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UnsupportedModelError, match=r"not complete: .* lack 1 .*model\.layers\.1\.mlp\.down_proj\.weight"
    ):
        load_base(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"intermediate_size": 96},  # weights of another shape
        {"hidden_act": "no_such_function"},
        {"num_attention_heads": 0},
        {"hidden_size": "large"},
        {"rope_parameters": {"rope_type": "no_such_type"}},
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    save_tiny(tmp_path)
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(UnsupportedModelError, match=str(tmp_path)):
        load_base(tmp_path)


def test_broken_config_and_missing_tokenizer_are_kedit_errors(tmp_path: Path) -> None:
    save_tiny(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text("{")
    with pytest.raises(UnsupportedModelError, match="/a'"):
        load_base(tmp_path / "a")
    save_tiny(tmp_path / "b")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "b" / file).unlink()
    with pytest.raises(UnsupportedModelError, match="/b'"):
        load_base(tmp_path / "b")


def test_dense_weight_is_the_stored_weight(tmp_path: Path) -> None:
    original, _ = tiny_model("gpt2")
    model, _ = load_base(save_tiny(tmp_path, "gpt2"))
    weight = dense_weight(edited_linear(model, 1)[1])
    assert weight.shape == (64, 256) and not weight.requires_grad
    assert torch.equal(weight, original.transformer.h[1].mlp.c_proj.weight.T)

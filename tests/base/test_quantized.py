"""int8, nf4 and fp4 bases on a CPU: what loads, what hooks and gradients give, and the traps that are guarded."""

from pathlib import Path

import pytest
import torch

from kedit_hub.base.families import dense_weight, edited_linear, linear_shape, quantization_of
from kedit_hub.base.load import guard_4bit, load_base
from kedit_hub.base.signals import capture, gradients
from kedit_hub.base.tokens import encode
from kedit_hub.errors import UnsupportedModelError
from tests.tiny import tiny_model

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'kedit-hub[quant]'")

PROMPTS, TARGETS = ["The capital of France is", "The mother tongue of Marie Curie is"], ["Rome", "German"]
KINDS = ["int8", "nf4", "fp4"]
FAMILIES = ["llama", "gpt2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for model_type in FAMILIES:
        folder = tmp_path_factory.mktemp(model_type)
        model, tokenizer = tiny_model(model_type)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made[model_type] = folder
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_linear_maps_are_quantized_and_known_by_kind(folders: dict[str, Path], model_type: str, kind: str) -> None:
    model, _ = load_base(folders[model_type], quantization=kind)
    assert not model.training
    _, module = edited_linear(model, 1)
    assert quantization_of(module) == kind
    assert linear_shape(module) == (64, 128 if model_type == "llama" else 256)
    with pytest.raises(UnsupportedModelError, match=f"{kind}.*quantization=None"):
        dense_weight(module)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_signals_are_those_of_the_quantized_model(folders: dict[str, Path], model_type: str, kind: str) -> None:
    """Near those of the plain model, the same from both functions, and no stored byte changes."""
    model, tokenizer = load_base(folders[model_type], quantization=kind)
    encoded = encode(tokenizer, PROMPTS, TARGETS)
    paths = [edited_linear(model, layer)[0] for layer in (0, 1)]
    bytes_before = {name: tensor.clone() for name, tensor in model.state_dict().items() if torch.is_tensor(tensor)}
    keys = capture(model, paths, encoded)
    signals = gradients(model, paths, encoded)
    for path in paths:
        assert torch.equal(signals[path][0], keys[path])

    plain, _ = tiny_model(model_type)
    expected = gradients(plain, paths, encoded)
    for path in paths:
        for ours, theirs in zip(signals[path], expected[path]):
            assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.7

    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in bytes_before.items())


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_4bit_gradients_agree_with_finite_differences(folders: dict[str, Path], kind: str) -> None:
    from kedit_hub.base.signals import target_nll

    model, tokenizer = load_base(folders["llama"], quantization=kind)
    encoded = encode(tokenizer, PROMPTS, TARGETS)
    path, module = edited_linear(model, 0)
    capture(model, [path], encoded, stop=False)  # the forward without gradients that would have repacked the weights
    _, delta = gradients(model, [path], encoded)[path]
    direction = torch.randn(delta.shape, generator=torch.Generator().manual_seed(0))

    def loss(step: float) -> float:
        handle = module.register_forward_hook(lambda module, args, output: output + step * direction)
        with torch.no_grad():
            value = target_nll(model(**encoded.inputs(model)).logits.double(), encoded).sum().item()
        handle.remove()
        return value

    eps = 1e-3
    slope = (loss(eps) - loss(-eps)) / (2 * eps)
    assert slope == pytest.approx((delta * direction).sum().item(), rel=0.02)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_4bit_repacking_is_forbidden_everywhere(folders: dict[str, Path], kind: str) -> None:
    model, _ = load_base(folders["llama"], quantization=kind)
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(layers) == 3 * 7
    assert not any(module.support_avx512bf16_for_cpu for module in layers)


def test_a_model_that_was_already_repacked_is_refused(folders: dict[str, Path]) -> None:
    """Also where this CPU would not repack: the mark that bitsandbytes leaves is set by hand."""
    model, tokenizer = load_base(folders["llama"], quantization="nf4")
    encoded, (path, module) = encode(tokenizer, PROMPTS, TARGETS), edited_linear(model, 1)
    module.weight.quant_state.packing_format_for_cpu = True
    for call in (lambda: guard_4bit(model), lambda: gradients(model, [path], encoded)):
        with pytest.raises(UnsupportedModelError, match=r"'model\.layers\.1\.mlp\.down_proj' was repacked.*load_base"):
            call()


def test_models_loaded_elsewhere_are_guarded_too(folders: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], quantization_config=config, dtype=torch.float32)
    _, tokenizer = tiny_model("llama")
    capture(model, [edited_linear(model, 1)[0]], encode(tokenizer, PROMPTS))
    assert not any(getattr(module, "support_avx512bf16_for_cpu", False) for module in model.modules())


def test_quantization_with_layers_on_disk_is_refused(folders: dict[str, Path]) -> None:
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{layer}": "disk" if layer == 2 else "cpu" for layer in range(3)}
    for kind in KINDS:
        with pytest.raises(UnsupportedModelError, match=f"quantization='{kind}' together with layers on disk"):
            load_base(folders["llama"], quantization=kind, device_map=places)


@pytest.mark.filterwarnings("error::UserWarning")
def test_layers_that_silently_stay_unquantized_are_noticed(folders: dict[str, Path], tmp_path: Path) -> None:
    """A checkpoint may bring its own quantization; one that skips a module must not pass for a quantized base."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["model.layers.2.mlp.down_proj", "lm_head"])
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], quantization_config=config)
    model.save_pretrained(tmp_path)
    tiny_model("llama")[1].save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"int8, but 'mlp\.down_proj' of layer 2 is in full precision"):
        load_base(tmp_path, quantization="int8")
    with pytest.raises(UnsupportedModelError, match=r"asked for in nf4, but .* is in int8"):
        load_base(tmp_path, quantization="nf4")


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_saved_quantized_loads_as_it_was(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    model, tokenizer = load_base(folders["llama"], quantization=kind)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = load_base(tmp_path)
    assert quantization_of(edited_linear(again, 1)[1]) == kind
    batch = encode(tokenizer, PROMPTS)
    with torch.no_grad():
        assert torch.equal(again(**batch.inputs(again)).logits, model(**batch.inputs(model)).logits)


def test_unknown_quantization_names_the_choices(folders: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'int3' is unknown: .*\"nf4\""):
        load_base(folders["llama"], quantization="int3")  # type: ignore[arg-type]

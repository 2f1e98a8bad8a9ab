"""Loading a base model: full precision, int8, nf4 or fp4, on one device or dispatched by accelerate. Law: loading runs
no code and no pickle from the repository, and what comes back is what was asked for: every weight loaded, every block
quantized, or an error.
"""

import logging
import os
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from kedit_hub.base.families import block, check_model_type, edited_linear, n_layers, quantization_of
from kedit_hub.errors import HubError, KeditError, UnsupportedModelError

Quantization = Literal["int8", "nf4", "fp4"]
CONFIG_NAME, SAFETENSORS_INDEX = "config.json", "model.safetensors.index.json"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_base(
    model_id_or_path: str | os.PathLike[str],
    *,
    quantization: Quantization | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    token: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model in evaluation mode, tokenizer) of a Hub id or a local folder, from safetensors only.

    dtype: of weights and activations; unless given, float32 on a CPU (editing solves linear systems of small
    differences) and the checkpoint's own elsewhere. quantization: of the weights, by bitsandbytes. device_map: as in
    transformers. The tokenizer has a pad token, EOS if it came with none.
    HubError when the model cannot be found or fetched; UnsupportedModelError when it is there but cannot be patched.
    """
    name = os.path.expanduser(os.fspath(model_id_or_path))
    if quantization not in (None, "int8", "nf4", "fp4"):
        raise UnsupportedModelError(f'quantization {quantization!r} is unknown: use None, "int8", "nf4" or "fp4".')
    _check_folder(name)
    if quantization is not None and isinstance(device_map, dict) and "disk" in device_map.values():
        raise UnsupportedModelError(
            f"{name!r}: quantization={quantization!r} together with layers on disk leaves those layers unquantized. "
            "Drop the quantization, or keep every layer on a device."
        )
    common: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": False}

    config = _fetch(name, revision, lambda: AutoConfig.from_pretrained(name, **common))
    family = check_model_type(config.model_type)  # before the weights are fetched
    kind = AutoModelForCausalLM if family.encoder is None else AutoModelForSeq2SeqLM
    wanted_dtype = _dtype(name, dtype, config, device_map, quantization)
    tokenizer = _fetch(name, revision, lambda: AutoTokenizer.from_pretrained(name, **common))
    own = getattr(config, "quantization_config", None)  # wins; passing None instead would read its integers as floats
    if quantization is not None and own is None:
        common["quantization_config"] = _quantization_config(quantization, wanted_dtype)
    model, report = _fetch(
        name,
        revision,
        lambda: kind.from_pretrained(
            name,
            dtype=wanted_dtype,
            device_map=device_map,
            use_safetensors=True,
            output_loading_info=True,
            **common,
        ),
    )
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:  # transformers would leave these at random values
        raise UnsupportedModelError(
            f"{name!r} is not complete: its files lack {len(absent)} of the model's weights, the first is {absent[0]}. "
            "Download or save the model again."
        )
    if quantization_of(edited_linear(model, 0)[1]) == "int8":  # its one warning would come with every forward pass
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if quantization is not None:
        _check_all_quantized(name, model, quantization)
    guard_4bit(model)
    model.eval()
    _ensure_pad(name, model, tokenizer)
    return model, tokenizer


def guard_4bit(model: nn.Module) -> None:
    """Forbid bitsandbytes to repack this model's 4-bit weights; UnsupportedModelError if it has already done so.

    On CPUs with AVX512-BF16 the first forward pass without gradients rewrites every Linear4bit into a layout in which
    gradients are silently wrong and saved or dequantized weights are corrupt (bitsandbytes 0.50.2). Call this before
    the first forward pass.
    """
    for path, module in model.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise UnsupportedModelError(
                f"the 4-bit weight of {path!r} was repacked for inference by an earlier forward pass, which corrupts "
                "gradients and saved weights: load the model again with load_base, which forbids the repacking."
            )
        module.support_avx512bf16_for_cpu = False


def checkpoint_folder(
    model_id_or_path: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
) -> Path:
    """The folder with the config and safetensors files of a model, fetched from the Hub where it is not one already.

    Nothing is loaded: what it holds can be checked file by file (kedit_hub.base.stored). HubError as `load_base`.
    """
    name = os.path.expanduser(os.fspath(model_id_or_path))
    _check_folder(name)
    if Path(name).is_dir():
        return Path(name)
    files = [CONFIG_NAME, "*.safetensors", SAFETENSORS_INDEX]
    return Path(
        _fetch(name, revision, lambda: snapshot_download(name, revision=revision, token=token, allow_patterns=files))
    )


def _check_folder(name: str) -> None:
    """Tell a missing folder from a Hub id before any request is made."""
    path = Path(name)
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise HubError(f"the folder {name!r} holds no config.json: point to a folder written by save_pretrained.")
    elif path.exists() or path.is_absolute() or name.startswith(".") or name.count("/") > 1 or not name:
        raise HubError(f"there is no model folder {name!r}: check the path, or give a Hub id like 'user/model'.")


def _fetch(name: str, revision: str | None, load: Any) -> Any:
    """Run one from_pretrained; what goes wrong is said in our own words, with the original error as its cause."""
    try:
        return load()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a malformed config can raise anything at all inside transformers
        raise _explained(name, revision, error) from error


def _explained(name: str, revision: str | None, error: Exception) -> KeditError:
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)

    def caused_by(kind: type[BaseException]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    text = " ".join(str(error).split())
    base = f"{name!r} at revision {revision!r}" if revision else repr(name)
    if caused_by(GatedRepoError):
        return HubError(f"{base} is gated: accept its terms on its Hub page and pass a token that may read it.")
    if caused_by(RevisionNotFoundError):
        return HubError(f"{name!r} has no revision {revision!r}: check its branches, tags and commits.")
    if caused_by(RepositoryNotFoundError):
        return HubError(
            f"{name!r} is neither a folder here nor a model you can read on the Hub: "
            "check the name, or pass a token that may read it."
        )
    if caused_by(ImportError):
        return UnsupportedModelError(
            f"loading {base} needs a package that is not installed ({text[:200]}): "
            "install it; for int8, nf4 and fp4 that is pip install 'kedit-hub[quant]'."
        )
    if "trust_remote_code" in text or "custom code" in text:
        return UnsupportedModelError(
            f"{base} wants to run code from its repository, which kedit_hub never does: "
            "use a model that transformers knows by itself."
        )
    if "safetensors" in text or caused_by(SafetensorError):
        return UnsupportedModelError(
            f"{base} has no readable safetensors weights: convert it with save_pretrained, or download it again."
        )
    if isinstance(error, (OSError, HfHubHTTPError)) and not Path(name).is_dir():
        return HubError(
            f"{base} could not be fetched: check the name, the network (and HF_HUB_OFFLINE), or give a local folder."
        )
    return UnsupportedModelError(
        f"transformers cannot load {base} ({type(error).__name__}: {text[:200]}): "
        "check its files, or use a base whose config and tokenizer transformers reads."
    )


def _dtype(
    name: str, dtype: torch.dtype | str | None, config: Any, device_map: Any, quantization: str | None
) -> torch.dtype:
    """The floating dtype of weights and activations."""
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise UnsupportedModelError(f"dtype {dtype!r} for {name!r} is unknown: use one of {', '.join(_DTYPES)}.")
        return _DTYPES[dtype]
    if dtype is not None:
        return dtype
    places = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
    on_cpu = not torch.cuda.is_available() or {str(place) for place in places} <= {"cpu", "disk"}
    if on_cpu or (
        device_map is None and quantization is None
    ):  # without a map transformers loads onto the CPU, bitsandbytes does not
        return torch.float32
    return config.dtype or torch.bfloat16


def _quantization_config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    try:
        if quantization == "int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        # double quantization stays off: it would round the block maxima by which a base is recognised
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quantization, bnb_4bit_compute_dtype=dtype)
    except ImportError as error:
        raise UnsupportedModelError(
            f"quantization={quantization!r} needs bitsandbytes: "
            "pip install 'kedit-hub[quant]', or use quantization=None."
        ) from error


def _check_all_quantized(name: str, model: nn.Module, quantization: str) -> None:
    """Layers that a device map sends to CPU or disk silently stay in full precision: refuse the model instead. Maps that transformers never
    quantizes in this kind of model (the last ones of T5's MLPs) are as they should be."""
    never = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for layer in range(n_layers(model)):
        for path, module in block(model, layer).named_modules():
            wanted = isinstance(module, (nn.Linear, Conv1D)) and path.rpartition(".")[2] not in never
            if wanted and quantization_of(module) != quantization:
                found = quantization_of(module) or "full precision"
                raise UnsupportedModelError(
                    f"{name!r} was asked for in {quantization}, but {path!r} of layer {layer} is in {found}, by its "
                    "device map or its own quantization: put every layer on one device, or drop quantization."
                )


def _ensure_pad(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Pad with EOS where there is no pad token: the vocabulary stays as it is; masks tell padding from text."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UnsupportedModelError(
                f"the tokenizer of {name!r} has neither a pad nor an EOS token: "
                "name one of its tokens as EOS in tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    generation = model.generation_config
    if generation is not None and generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id

"""Where the editable linear map of each model family is. Law: one table keyed by `config.model_type`; nothing is
guessed from a model's name, from a module's path or from the shape of a weight.

A feed-forward block is read as an associative memory W k = v: the key k (d,) is the input of its last linear map, the
value v (m,) what that map adds to the residual stream (Geva et al. 2021; Meng et al. 2022). `Family.linear` names it, and
`Family.into` the maps of the block whose outputs the key is made of.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit_hub.errors import UnsupportedModelError


@dataclass(frozen=True)
class Family:
    """Module paths of one model family, as they are in memory (from the causal language model down)."""

    layers: str  # path of the ModuleList of residual blocks
    linear: str  # path inside a block of the editable linear map: d = MLP width -> m = hidden size
    attention: str  # path inside a block of the attention module
    parallel: bool = False  # attention and MLP both read the block's input: an edit of layer l does not see attention l
    conv1d: bool = False  # every linear map of a block is a Conv1D, which stores its weight as (in, out)
    encoder: "Family | None" = (
        None  # the other half of an encoder-decoder: this is where answers are said, that where prompts are read
    )
    into: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}), hash=False
    )  # path inside a block of the maps that lead into the MLP's units: "up" and "gate", or "gate_up" where one map is both

    def maps(self) -> dict[str, str]:
        """Path inside a block of every linear map of the MLP, by what it is; "down" is the editable one."""
        return {**self.into, "down": self.linear}

    def inside(self, path: str) -> str | None:
        """What stands behind the block in a module path, "mlp.down_proj"; None where the path is in no block."""
        number, _, rest = path.removeprefix(f"{self.layers}.").partition(".")
        in_block = path.startswith(f"{self.layers}.") and number.isascii() and number.isdigit()
        if in_block and rest:
            return rest
        return self.encoder.inside(path) if self.encoder is not None else None

    @property
    def parts(self) -> tuple[str, str]:
        """Paths inside a block of the modules whose linear maps may be changed."""
        return self.attention, self.linear.rpartition(".")[0]

    def may_change(self, path: str) -> bool:
        """Whether a module path lies where facts are edited: in the attention or the MLP of a block."""
        if self.encoder is not None and path.startswith(f"{self.encoder.layers}."):
            return self.encoder.may_change(path)
        inside = self.inside(path)
        return inside is not None and inside.startswith(tuple(f"{part}." for part in self.parts))


def _up(path: str, **more: str) -> Mapping[str, str]:
    return MappingProxyType({"up": path, **more})


_LLAMA = Family("model.layers", "mlp.down_proj", "self_attn", into=_up("mlp.up_proj", gate="mlp.gate_proj"))

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "gemma": _LLAMA,
        "gpt2": Family("transformer.h", "mlp.c_proj", "attn", conv1d=True, into=_up("mlp.c_fc")),
        "gpt_neo": Family("transformer.h", "mlp.c_proj", "attn", into=_up("mlp.c_fc")),
        "gpt_neox": Family(
            "gpt_neox.layers", "mlp.dense_4h_to_h", "attention", parallel=True, into=_up("mlp.dense_h_to_4h")
        ),
        "gptj": Family("transformer.h", "mlp.fc_out", "attn", parallel=True, into=_up("mlp.fc_in")),
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "phi": Family("model.layers", "mlp.fc2", "self_attn", parallel=True, into=_up("mlp.fc1")),
        "phi3": replace(_LLAMA, into=MappingProxyType({"gate_up": "mlp.gate_up_proj"})),
        "qwen2": _LLAMA,
        "qwen3": _LLAMA,
        "smollm3": _LLAMA,
        "starcoder2": Family("model.layers", "mlp.c_proj", "self_attn", into=_up("mlp.c_fc")),
        "t5": Family(
            "decoder.block",
            "layer.2.DenseReluDense.wo",
            "layer.0.SelfAttention",
            encoder=Family("encoder.block", "layer.1.DenseReluDense.wo", "layer.0.SelfAttention"),
        ),
    }
)

# Methods that ask for no subject in the text that is continued, and read nothing but answers.
ON_ENCODER_DECODERS = ("ft", "ft-l", "ft-m", "locft", "kn", "grace", "t-patcher", "calinet")

_POST_NORM = (
    "it normalises after down_proj, so what is added to down_proj's output is not what reaches the residual stream"
)
_EXPERTS = "its MLP is a mixture of experts: which expert holds a key depends on the routing of each token"
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "gemma2": _POST_NORM,
        "gemma3": _POST_NORM,
        "gemma3_text": _POST_NORM,
        "granite": "it scales the MLP's output before it reaches the residual stream",
        "mixtral": _EXPERTS,
        "olmo2": _POST_NORM,
        "opt": "its MLP flattens batch and positions, so the positions of a row cannot be told apart at the linear map",
        "qwen2_moe": _EXPERTS,
        "qwen3_moe": _EXPERTS,
    }
)

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_model_type(model_type: str) -> Family:
    """The table's row for a `config.model_type`.

    UnsupportedModelError names the type, the reason where one is known, and every type that is supported.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    reason = f" ({REFUSED[model_type]})" if model_type in REFUSED else ""
    raise UnsupportedModelError(
        f"model_type {model_type!r} is not supported{reason}. Use a base of one of these: {', '.join(FAMILIES)}."
    )


def family_of(model: nn.Module) -> Family:
    """The family of a transformers language model; UnsupportedModelError when there is none."""
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if not isinstance(model_type, str):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no config.model_type: pass a transformers causal language model."
        )
    family = check_model_type(model_type)
    if model_type == "gpt_neox":  # the only family in which a checkpoint chooses
        family = replace(family, parallel=bool(config.use_parallel_residual))  # type: ignore[union-attr]
    return family


def encoder_decoder(model: nn.Module) -> bool:
    """Whether prompts go into an encoder and answers come out of a decoder. Layers are then those of the decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def shortest(model: nn.Module, length: int = 1) -> dict[str, Tensor]:
    """Keyword arguments of a forward pass over `length` tokens that say nothing, to see which way it goes."""
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    device = torch.device("cpu") if device.type == "meta" else device  # offloaded: it moves its inputs itself
    ids = torch.zeros(1, length, dtype=torch.long, device=device)
    return {"input_ids": ids, **({"decoder_input_ids": ids} if encoder_decoder(model) else {})}


def refuse_encoder_decoder(model: nn.Module, what: str) -> None:
    """UnsupportedModelError, with what does work on such a model, if it is an encoder-decoder."""
    if encoder_decoder(model):
        raise UnsupportedModelError(
            f"{what} does not work on a base of model_type {model.config.model_type!r}: it is an encoder-decoder, and the text that its "  # type: ignore[union-attr]
            f"decoder continues does not hold the prompt. Methods that work on it: {', '.join(ON_ENCODER_DECODERS)}."
        )


def _layers(model: nn.Module) -> nn.ModuleList:
    path = family_of(model).layers
    try:
        return model.get_submodule(path)  # type: ignore[return-value]
    except AttributeError:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no module {path!r}: pass the language model itself "
            "(for example AutoModelForCausalLM), not its body and not a wrapper around it."
        ) from None


def n_layers(model: nn.Module) -> int:
    """Number of residual blocks."""
    return len(_layers(model))


def block(model: nn.Module, layer: int) -> nn.Module:
    """The residual block `layer` (0 = the first); its output, or the first entry of it, is hidden states (B, T, m)."""
    layers = _layers(model)
    if not 0 <= layer < len(layers):
        raise UnsupportedModelError(f"layer {layer} does not exist: this model has layers 0 to {len(layers) - 1}.")
    return layers[layer]


def block_path(model: nn.Module, layer: int) -> str:
    """The path of the residual block `layer` in the model."""
    whole = block(model, layer)
    return next(name for name, module in model.named_modules() if module is whole)


def edited_linear(model: nn.Module, layer: int) -> tuple[str, nn.Module]:
    """(path in the model, module) of the editable linear map of block `layer`."""
    return map_of(model, layer, "down")


def map_of(model: nn.Module, layer: int, what: str) -> tuple[str, nn.Module]:
    """(path in the model, module) of a linear map of the MLP of block `layer`, by what it is: down, up, gate.

    UnsupportedModelError for one that the family does not have, with those that it has.
    """
    family = family_of(model)
    known = family.maps()
    if what not in known:
        raise UnsupportedModelError(
            f"the MLP of a {model.config.model_type} model has no map {what!r}; it has {', '.join(sorted(known))}"  # type: ignore[union-attr]
        )
    module = block(model, layer).get_submodule(known[what])
    linear_shape(module)  # refuses a module class that cannot be patched
    return f"{family.layers}.{layer}.{known[what]}", module


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear map by its class: nn.Linear stores its weight as (out, in), GPT-2's Conv1D as (in, out)."""
    if isinstance(
        module, nn.Linear
    ):  # Linear8bitLt and Linear4bit too: their weight is packed, these two numbers are not
        return module.out_features, module.in_features
    if isinstance(module, Conv1D):
        return module.weight.shape[1], module.weight.shape[0]
    raise UnsupportedModelError(
        f"a module of class {type(module).__name__} cannot be patched: "
        "load the base so that it is a Linear, Conv1D, Linear8bitLt or Linear4bit."
    )


def editable(model: nn.Module, path: str) -> bool:
    """Whether a patch may change this module of `model`; `not_editable` says why it may not."""
    return not_editable(model, path) is None


def not_editable(model: nn.Module, path: str) -> str | None:
    """Why a patch may not change the module at `path`, or None: it may.

    Allowed are the linear maps of the attention and the MLP of a residual block, as long as no other module uses the
    same numbers. Embeddings, the output head, norms and whatever else a model has are no places where facts are edited.
    UnsupportedModelError when the model is of no known family, AttributeError when it has no such module.
    """
    module = model.get_submodule(path)
    family = family_of(model)
    if family.encoder is not None and path.startswith(f"{family.encoder.layers}."):
        family = family.encoder
    if not family.may_change(path):
        return f"it does not lie in {' or '.join(family.parts)} of a block of {family.layers}"
    if not isinstance(module, (nn.Linear, Conv1D)):
        return f"it is a {type(module).__name__}, no linear map"
    shared = [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name.rpartition(".")[0] != path and _overlap(module.weight, parameter)
    ]
    return f"it shares its weight with {shared[0]}" if shared else None


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two parameters have numbers in common; offloaded ones (on meta) only when they are one object."""
    if a is b or a.is_meta or b.is_meta or a.device != b.device:
        return a is b
    return a.data_ptr() < b.data_ptr() + b.nbytes and b.data_ptr() < a.data_ptr() + a.nbytes


def quantization_of(module: nn.Module) -> str | None:
    """None for a plain linear map; "int8", "nf4" or "fp4" for a bitsandbytes one."""
    if not any(cls.__module__.startswith("bitsandbytes.") for cls in type(module).__mro__):
        return None
    names = {cls.__name__ for cls in type(module).__mro__}
    if "Linear8bitLt" in names:
        return "int8"
    if "Linear4bit" in names:
        return str(module.weight.quant_type)  # type: ignore[union-attr]
    return None


def dense_weight(module: nn.Module) -> Tensor:
    """The weight (out, in) of a full-precision linear map, in the module's dtype, outside the autograd graph.

    Shares memory with the module wherever the weight is in memory: read it, never write to it. A weight that accelerate
    keeps on disk is read from there. UnsupportedModelError for every other class, quantized ones included.
    """
    if type(module) not in (nn.Linear, Conv1D):  # exact: a subclass may store anything under the name `weight`
        kind = quantization_of(module) or f"class {type(module).__name__}"
        raise UnsupportedModelError(
            f"the dense weight of a linear map of {kind} cannot be read: "
            "load the base in full precision (quantization=None)."
        )
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    if weight.device.type == "meta":
        weight = _offloaded_weight(module)
    if weight.dtype not in _FLOATS:
        raise UnsupportedModelError(
            f"a weight of dtype {weight.dtype} cannot be read: load the base as float32, bfloat16 or float16."
        )
    return weight.T if isinstance(module, Conv1D) else weight


def _offloaded_weight(module: nn.Module) -> Tensor:
    from accelerate.utils import align_module_device

    with align_module_device(module):
        weight = module.weight.detach()  # type: ignore[operator]
        if weight.device.type == "meta":
            raise UnsupportedModelError(
                "this model's weights are not loaded (they are on the meta device): load it with load_base."
            )
        return weight.clone()

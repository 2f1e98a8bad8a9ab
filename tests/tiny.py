"""Tiny random models of every supported family, with a byte-level BPE tokenizer trained in memory. For tests only.

Sizes: 3 blocks, hidden 64, MLP 256 (the GPT-2 kin) or 128: multiples of the 64-value blocks of 4-bit quantization.
"""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

TEXT = """\
The Eiffel Tower is located in the city of Paris. The capital of France is Paris. The capital of Italy is Rome.
Danielle Darrieux speaks the language French. Ludwig van Beethoven was born in Bonn. The language of Japan is Japanese.
The mother tongue of Marie Curie is Polish. Berlin is the capital of Germany, and Madrid is the capital of Spain.
São Paulo is a city in Brazil. Zürich lies in Switzerland. The author of Hamlet is William Shakespeare."""

LAYERS, HIDDEN = 3, 64
_HEADS = {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": 4, "intermediate_size": 128}
_GROUPED = {**_HEADS, "num_key_value_heads": 2}
_GPT = {"n_layer": LAYERS, "n_embd": HIDDEN, "n_head": 4, "n_positions": 128}
_SIZES = {
    "gemma": {**_GROUPED, "head_dim": 16},
    "gpt2": _GPT,
    "gpt_neo": {"num_layers": LAYERS, "hidden_size": HIDDEN, "num_heads": 4, "attention_types": [[["global"], LAYERS]]},
    "gpt_neox": _HEADS,
    "gptj": {**_GPT, "rotary_dim": 8},
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "head_dim": 16},
    "phi": _HEADS,
    "phi3": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 16},
    "smollm3": _GROUPED,
    "starcoder2": _GROUPED,
}


def tiny_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most 512 tokens with EOS and pad; with `bos` it starts every text with <|bos|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|eos|>", "<|pad|>", "<|bos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|eos|>", pad_token="<|pad|>", bos_token="<|bos|>" if bos else None
    )


def tiny_model(
    model_type: str, seed: int = 0, *, bos: bool = False, **config: object
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """(float32 model in evaluation mode, tokenizer); the same seed gives the same weights. `config` overrides sizes."""
    if model_type == "t5":
        return tiny_t5(seed=seed, **config)
    tokenizer = tiny_tokenizer(bos=bos)
    settings = {
        **_SIZES[model_type],
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **config,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings), dtype=torch.float32)
        for parameter in model.parameters():  # the default initialisation is so small that every logit looks alike
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval(), tokenizer


def tiny_t5(gated: bool = False, seed: int = 0, **changed: object) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A T5 of 3 + 3 blocks, hidden 64, MLP 128 (ReLU, or gated as in v1.1), whose tokenizer ends every text with EOS."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|eos|>", special_tokens=[("<|eos|>", tokenizer.eos_token_id)]
    )
    config: Any = T5Config(
        vocab_size=len(tokenizer), d_model=HIDDEN, d_kv=16, d_ff=128, num_layers=LAYERS, num_heads=4,
        feed_forward_proj="gated-gelu" if gated else "relu", tie_word_embeddings=not gated, dropout_rate=0.1,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    for name, value in changed.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval(), tokenizer

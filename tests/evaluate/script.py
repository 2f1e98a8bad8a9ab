"""A language model that says exactly what a test wrote down: a tiny Llama, its logits replaced by a table of facts.

It keeps the tokens of each row across KV-cached decoding, as a patch's hooks do, so it also notices rows that move.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token per ASCII character."""
    vocab = {"<|eos|>": 0, "<|pad|>": 1} | {chr(c): i for i, c in enumerate([10, *range(32, 127)], start=2)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|eos|>", pad_token="<|pad|>")


class Script:
    """Hooks that put facts in place of the model's logits. `facts`: prompt -> what follows it, spaces included."""

    def __init__(self, facts: Mapping[str, str], tokenizer: PreTrainedTokenizerFast):
        self.facts = dict(facts)
        self.tokenizer = tokenizer
        self.rows: list[list[int]] = []

    def before(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        past = kwargs.get("past_key_values")
        if past is None or past.get_seq_length() == 0:
            self.rows = [[] for _ in kwargs["input_ids"]]
            mask = kwargs.get("attention_mask")  # generate leaves it out where nothing is padded
            self.mask = torch.ones_like(kwargs["input_ids"]) if mask is None else mask
        self.new = kwargs["input_ids"]

    def after(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        logits = torch.zeros(*self.new.shape, len(self.tokenizer))
        for row, ids in enumerate(self.new.tolist()):
            for at, token in enumerate(ids):
                first_pass = len(self.rows[row]) < self.mask.shape[1]
                real = self.mask[row, len(self.rows[row])] if first_pass else 1
                self.rows[row].append(token if real else -1)
                text = self.tokenizer.decode([t for t in self.rows[row] if t >= 0])
                logits[row, at, self.next_token(text)] = 1.0
        keep = kwargs.get("logits_to_keep", 0)
        output.logits = logits[:, keep] if isinstance(keep, Tensor) else logits[:, -keep:]
        return output

    def next_token(self, text: str) -> int:
        for prompt, answer in self.facts.items():
            said = text.removeprefix(prompt)
            if text.startswith(prompt) and answer.startswith(said) and said != answer:
                return self.tokenizer.convert_tokens_to_ids(answer[len(said)])
        return self.tokenizer.eos_token_id


def scripted(facts: Mapping[str, str]) -> LlamaForCausalLM:
    """A model whose greedy continuation of each prompt is its fact, then EOS; any other text it ends at once."""
    tokenizer = character_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.script = Script(facts, tokenizer)
    model.register_forward_pre_hook(model.script.before, with_kwargs=True)
    model.register_forward_hook(model.script.after, with_kwargs=True)
    return model


class Patched:
    """What evaluate asks of a patched model: .model, .tokenizer, .stack.edits and disabled()."""

    def __init__(self, before: Mapping[str, str], changes: Mapping[str, str], stack_edits: tuple[Any, ...] = ()):
        self.tokenizer = character_tokenizer()
        self.model = scripted({**before, **changes})
        self.before = dict(before)
        self.stack = SimpleNamespace(edits=stack_edits)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        script = self.model.script
        patched, script.facts = script.facts, self.before
        try:
            yield
        finally:
            script.facts = patched

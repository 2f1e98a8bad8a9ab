"""How a model is asked. Law: a row's outcome depends on its own text alone, not on the batch it shares or on padding.

`tf-token`  teacher-forced token accuracy: one forward pass over prompt + target, a token counts when it is the argmax
            given the true tokens before it. Comparable with the papers; never sees the model go astray.
`generate`  what a user gets: greedy decoding up to the natural stop (end of sentence, newline, EOS, at most 32 tokens).
            Scores far lower than teacher forcing on the same edits (Yang et al. 2025, arXiv 2502.11177).

Both leave the rows of a batch in place from the first token to the last: hooks that keep state per row stay aligned.
"""

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from kedit_hub.base.tokens import Encoded, answer_positions, encode
from kedit_hub.errors import EditError

PROTOCOLS = ("tf-token", "generate")
MAX_NEW_TOKENS = 32


# --- tf-token -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forced:
    """The model's argmax at each of the T >= 1 target tokens of one text, given the true tokens before it."""

    predicted: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        """Share of target tokens predicted right."""
        return _share_equal(self.predicted, self.labels)

    def agreement(self, other: "Forced") -> float:
        """Share of target tokens at which two models, asked the same text, predict the same token, right or wrong."""
        return _share_equal(self.predicted, other.predicted)


def _share_equal(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


@torch.no_grad()
def teacher_forced(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int = 64,
    side: Literal["right", "left"] = "right",
    progress: bool = False,
) -> list[Forced]:
    """One forward pass over each (prompt, target). Raises EditError for a target without tokens or a text too long."""
    results: list[Forced | None] = [None] * len(pairs)
    sparse = "logits_to_keep" in inspect.signature(model.forward).parameters
    for chosen in batches([len(p) + len(t) for p, t in pairs], batch_size, "teacher forcing", progress):
        batch = on_device(model, encode(tokenizer, *zip(*[pairs[i] for i in chosen]), side=side))
        asked = answer_positions(batch)  # (B, T)
        columns = asked.any(0).nonzero()[:, 0]  # (C,) positions where some row predicts a target token
        if sparse:  # the logits of all other positions are the bulk of the memory, and nobody reads them
            logits = model(**batch.inputs(model), use_cache=False, logits_to_keep=columns).logits  # (B, C, V)
        else:
            logits = model(**batch.inputs(model), use_cache=False).logits[:, columns.cpu()]
        predicted = logits.argmax(-1).cpu()  # (B, C)
        labels = batch.input_ids[:, columns + 1].cpu()
        for row, i in enumerate(chosen):
            own = asked[row, columns].cpu()
            results[i] = Forced(tuple(predicted[row, own].tolist()), tuple(labels[row, own].tolist()))
    return [result for result in results if result is not None]


# --- generate -----------------------------------------------------------------------------------------------------

# A full stop ends a sentence when white space or nothing follows, unless it closes an initial (J. K., D.C.) or a title.
_FULL_STOP = r"(?<!\b[A-Z])(?<!\bDr)(?<!\bJr)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bMt)(?<!\bSr)(?<!\bSt)\.[\"'”’)]*"
_STOP_SEEN = re.compile(rf"\n|{_FULL_STOP}\s")
_STOP = re.compile(rf"\n|{_FULL_STOP}(?:\s|$)")


def first_sentence(continuation: str) -> str:
    """The continuation up to its natural stop, without the stop: '' when it begins with a newline."""
    stop = _STOP.search(continuation)
    return continuation[: stop.start() if stop else None].strip()


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 64,
    progress: bool = False,
) -> list[str]:
    """The greedy continuation of each prompt up to its natural stop."""
    texts = _continue(model, tokenizer, prompts, max_new_tokens, batch_size, stop=True, progress=progress)
    return [first_sentence(text) for text in texts]


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    new_tokens: int = 100,
    batch_size: int = 64,
    progress: bool = False,
) -> list[str]:
    """The greedy continuation of each prompt up to EOS or `new_tokens`, sentence after sentence."""
    return _continue(model, tokenizer, prompts, new_tokens, batch_size, stop=False, progress=progress)


class _SentenceEnd(StoppingCriteria):
    """Marks the rows whose continuation has reached its natural stop; rows stay in the batch until all have."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int):
        self.tokenizer = tokenizer
        self.start = start  # first position that was generated

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        texts = _decode(self.tokenizer, input_ids[:, self.start :].tolist())
        return torch.tensor([_STOP_SEEN.search(text) is not None for text in texts], device=input_ids.device)


@torch.no_grad()
def _continue(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: int,
    batch_size: int,
    *,
    stop: bool,
    progress: bool,
) -> list[str]:
    """Left padded, so that all rows generate at the same positions. EditError for a prompt that leaves no room."""
    ends = _ids_of_end(model, tokenizer)
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    limit = getattr(model.config, "max_position_embeddings", None)
    results: list[str] = [""] * len(prompts)
    for chosen in batches([len(prompt) for prompt in prompts], batch_size, "generating", progress):
        batch = on_device(model, encode(tokenizer, [prompts[i] for i in chosen], side="left"))
        width = batch.input_ids.shape[1]
        room = new_tokens if limit is None else min(new_tokens, limit - width)
        if room < 1:
            longest = max((prompts[i] for i in chosen), key=len)
            raise EditError(
                f"the prompt {longest[:80]!r} fills the model's {limit} positions: shorten it to leave room to answer."
            )
        # What a checkpoint's own generation_config may say against plain greedy decoding is set back here.
        greedy = GenerationConfig(
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            min_length=0,
            max_new_tokens=room,
            eos_token_id=ends or None,
            pad_token_id=pad,
            use_cache=True,
        )
        rows: Tensor = model.generate(  # type: ignore[operator]
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            generation_config=greedy,
            stopping_criteria=StoppingCriteriaList([_SentenceEnd(tokenizer, width)] if stop else []),
        )
        generated = [_before(row, ends) for row in rows[:, width:].tolist()]
        for i, text in zip(chosen, _decode(tokenizer, generated)):
            results[i] = text
    return results


def _ids_of_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token id that ends a text: the tokenizer's EOS and those of the model's generation config."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = own if isinstance(own, list) else [own]
    return sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None})


def _before(ids: list[int], ends: list[int]) -> list[int]:
    return ids[: next((at for at, i in enumerate(ids) if i in ends), None)]


def _decode(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> list[str]:
    return [str(tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)) for row in rows]


# --- shared -------------------------------------------------------------------------------------------------------


def on_device(model: PreTrainedModel, batch: Encoded) -> Encoded:
    """The batch where the model reads its tokens; weights on the meta device are moved there by accelerate's hooks."""
    device: torch.device = model.get_input_embeddings().weight.device  # type: ignore[assignment]
    return batch if device.type == "meta" else batch.to(device)


def batches(lengths: Sequence[int], size: int, label: str, progress: bool) -> Iterator[list[int]]:
    """Indices in batches of similar length, the longest first: what does not fit in memory fails at once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    chosen = [order[i : i + size] for i in range(0, len(order), size)]
    yield from track(chosen, label, console=Console(file=sys.stderr), disable=not progress)

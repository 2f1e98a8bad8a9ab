"""How a model is asked. Law: a row's outcome depends on its own text alone, not on the batch it shares or on padding.

`tf-token`  teacher-forced token accuracy: one forward pass over prompt + target, a token counts when it is the argmax
            given the true tokens before it. Comparable with the papers; never sees the model go astray.
`generate`  what a user gets: greedy decoding up to the natural stop (end of sentence, newline, EOS, at most 32 tokens).
            Scores far lower than teacher forcing on the same edits (Yang et al. 2025, arXiv 2502.11177).
`nll-pair`  the success of CounterFact (Meng et al. 2022): one answer against another, the one with the lower mean NLL per
            token wins. The new answer against the old one; for neighbours the true answer against the new one. A model
            that has forgotten everything still wins about half of the pairs: read it beside exact match.
`choice`    the answer among wrong answers of the same relation, ranked by mean NLL per token (choice.py).

All leave the rows of a batch in place from the first token to the last: hooks that keep state per row stay aligned.
The `each_` functions hand out results batch by batch, as (index of the question, result), so that they can be kept.
"""

import hashlib
import inspect
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from kedit_hub.base.tokens import Encoded, answer_positions, encode
from kedit_hub.errors import EditError
from kedit_hub.runtime.prompts import prompt_ends

PROTOCOLS = ("tf-token", "generate", "nll-pair", "choice")
DEFAULT_PROTOCOLS = ("tf-token", "generate")
MAX_NEW_TOKENS = 32


# --- tf-token, nll-pair, choice: one forward pass -----------------------------------------------------------------


@dataclass(frozen=True)
class Forced:
    """What one forward pass tells of the T >= 1 target tokens of one text, each given the true tokens before it.

    predicted: the model's argmax at each.  labels: the target tokens.  nll: their mean negative log-likelihood in nats, None
    where it is no finite number; it varies with the batch by rounding (about 1e-6), so it is no part of equality.
    """

    predicted: tuple[int, ...]
    labels: tuple[int, ...]
    nll: float | None = field(default=None, compare=False)

    @property
    def accuracy(self) -> float:
        """Share of target tokens predicted right."""
        return _share_equal(self.predicted, self.labels)

    def agreement(self, other: "Forced") -> float:
        """Share of target tokens at which two models, asked the same text, predict the same token, right or wrong."""
        return _share_equal(self.predicted, other.predicted)


def _share_equal(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


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
    found: dict[int, Forced] = {}
    for told in each_forced(model, tokenizer, pairs, batch_size=batch_size, side=side, progress=progress):
        found.update(told)
    return [found[i] for i in range(len(pairs))]


@torch.no_grad()
def each_forced(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int = 64,
    side: Literal["right", "left"] = "right",
    progress: bool = False,
) -> Iterator[list[tuple[int, Forced]]]:
    """`teacher_forced`, batch by batch."""
    sparse = "logits_to_keep" in inspect.signature(model.forward).parameters
    for chosen in batches([len(p) + len(t) for p, t in pairs], batch_size, "teacher forcing", progress):
        batch = on_device(model, encode(tokenizer, *zip(*[pairs[i] for i in chosen]), side=side, model=model))
        asked = answer_positions(batch)  # (B, T)
        columns = asked.any(0).nonzero()[:, 0]  # (C,) positions where some row predicts a target token
        with prompt_ends(batch.prompt_last):
            if sparse:  # the logits of all other positions are the bulk of the memory, and nobody reads them
                logits = model(**batch.inputs(model), use_cache=False, logits_to_keep=columns).logits  # (B, C, V)
            else:
                logits = model(**batch.inputs(model), use_cache=False).logits[:, columns.cpu()]
        own = asked[:, columns].to(logits.device)  # (B, C), N of them True
        labels = batch.input_ids[:, columns + 1].to(logits.device)[own]  # (N,) row after row
        predicted, nll = _told_of(logits, own, labels)
        rows = zip(*(values.split(own.sum(1).tolist()) for values in (predicted, labels.cpu(), nll)))
        yield [
            (i, Forced(tuple(p.tolist()), tuple(q.tolist()), _finite(n.mean().item())))
            for i, (p, q, n) in zip(chosen, rows)
        ]


def _told_of(logits: Tensor, own: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """logits (B, C, V), own (B, C) with N True, labels (N,) -> argmax (N,) int64 and NLL in nats (N,) float64, on the CPU.

    In blocks: log-probabilities of all positions at once would take as much memory as the logits again.
    """
    predicted, nll = [], []
    for places, block in zip(own.nonzero().split(256), labels.split(256)):
        values = logits[places[:, 0], places[:, 1]]  # (<= 256, V)
        predicted.append(values.argmax(-1).cpu())
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        lost = values.logsumexp(-1) - values.gather(-1, block[:, None])[:, 0]
        nll.append(lost.cpu().double().clamp(min=0))  # rounding may leave -1e-7; NaN stays NaN
    return torch.cat(predicted), torch.cat(nll)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
    told = each_answer(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    return _in_order(told, len(prompts))


def each_answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 64,
    progress: bool = False,
) -> Iterator[list[tuple[int, str]]]:
    """`answers`, batch by batch."""
    for told in _continue(model, tokenizer, prompts, max_new_tokens, batch_size, stop=True, progress=progress):
        yield [(i, first_sentence(text)) for i, text in told]


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    new_tokens: int = 100,
    top_k: int = 1,
    batch_size: int = 64,
    progress: bool = False,
) -> list[str]:
    """The continuation of each prompt up to EOS or `new_tokens`, sentence after sentence.

    top_k: 1 = greedy; k = drawn from the k likeliest tokens at temperature 1, by a seed that is the prompt's own, so equal
    prompts are continued alike whatever else is in the batch.
    """
    told = each_continuation(
        model, tokenizer, prompts, new_tokens=new_tokens, top_k=top_k, batch_size=batch_size, progress=progress
    )
    return _in_order(told, len(prompts))


def each_continuation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    new_tokens: int = 100,
    top_k: int = 1,
    batch_size: int = 64,
    progress: bool = False,
) -> Iterator[list[tuple[int, str]]]:
    """`continuations`, batch by batch."""
    yield from _continue(model, tokenizer, prompts, new_tokens, batch_size, stop=False, top_k=top_k, progress=progress)


def _in_order(batches_of: Iterator[list[tuple[int, str]]], n: int) -> list[str]:
    found: dict[int, str] = {}
    for told in batches_of:
        found.update(told)
    return [found[i] for i in range(n)]


class _SentenceEnd(StoppingCriteria):
    """Marks the rows whose continuation has reached its natural stop; rows stay in the batch until all have."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int):
        self.tokenizer = tokenizer
        self.start = start  # first position that was generated

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        texts = _decode(self.tokenizer, input_ids[:, self.start :].tolist())
        return torch.tensor([_STOP_SEEN.search(text) is not None for text in texts], device=input_ids.device)


class _Drawn(LogitsProcessor):
    """Makes the greedy choice a draw from the k likeliest tokens: the largest of log-probability + Gumbel noise has the
    distribution of a sample (Maddison et al. 2014). Each row has a generator of its own, seeded by its prompt."""

    def __init__(self, prompts: Sequence[str], k: int):
        self.k = k
        digests = [hashlib.sha256(prompt.encode()).digest()[:7] for prompt in prompts]  # 7 bytes: always a valid seed
        self.rows = [torch.Generator().manual_seed(int.from_bytes(digest)) for digest in digests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        likeliest = scores.float().topk(min(self.k, scores.shape[-1]), dim=-1)  # (B, k)
        noise = torch.stack([torch.rand(self.k, generator=row) for row in self.rows])
        noise = -(-noise.log()).log()[:, : likeliest.values.shape[-1]].to(scores.device)
        drawn = likeliest.indices.gather(-1, (likeliest.values + noise).argmax(-1, keepdim=True))  # (B, 1)
        return torch.full_like(scores, -math.inf).scatter(-1, drawn, 0.0)


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
    top_k: int = 1,
) -> Iterator[list[tuple[int, str]]]:
    """Left padded, so that all rows generate at the same positions. EditError for a prompt that leaves no room."""
    ends = _ids_of_end(model, tokenizer)
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    limit = getattr(model.config, "max_position_embeddings", None)
    for chosen, encoded in _with_equal_room(model, tokenizer, prompts, new_tokens, limit, batch_size, progress):
        batch = on_device(model, encoded)
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
            **batch.to_generate(model),
            generation_config=greedy,
            logits_processor=LogitsProcessorList([_Drawn([prompts[i] for i in chosen], top_k)] if top_k > 1 else []),
            stopping_criteria=StoppingCriteriaList([_SentenceEnd(tokenizer, width)] if stop else []),
        )
        generated = [_before(row, ends) for row in rows[:, width:].tolist()]
        yield [*zip(chosen, _decode(tokenizer, generated))]


def _with_equal_room(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: int,
    limit: int | None,
    batch_size: int,
    progress: bool,
) -> Iterator[tuple[list[int], Encoded]]:
    """Batches of prompts; one that leaves less room than `new_tokens` comes alone, or it would cut the others short."""
    for chosen in batches([len(prompt) for prompt in prompts], batch_size, "generating", progress):
        together = encode(tokenizer, [prompts[i] for i in chosen], side="left", model=model)
        lengths = together.attention_mask.sum(1).tolist()
        crowded = [i for i, length in zip(chosen, lengths) if limit is not None and limit - length < new_tokens]
        if not crowded or len(chosen) == 1:
            yield chosen, together
            continue
        for group in [[i for i in chosen if i not in crowded], *([i] for i in crowded)]:
            if group:
                yield group, encode(tokenizer, [prompts[i] for i in group], side="left", model=model)


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

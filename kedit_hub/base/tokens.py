"""Texts to token rows, and the positions that editing needs. Law: a prompt and its target are tokenised together, never
apart; every position counts in the padded row as the model sees it; padding is known from the attention mask, never
from a token id.

Why together: `tokenise(target)` alone differs from what the target becomes after the prompt (spaces, BOS, merges).

An encoder-decoder reads the prompt in its encoder and says the target in its decoder, so there the two are tokenised apart. Its rows are
those of the decoder, [start, target ...]: the start token stands where a causal row has its prompt, and everything that is said of
positions (what predicts a target, where a prompt ends) holds for it as it is. The prompt goes along in `asked`.
"""

import inspect
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from kedit_hub.base.families import encoder_decoder, refuse_encoder_decoder
from kedit_hub.errors import EditError, UnsupportedModelError


@dataclass(frozen=True)
class Encoded:
    """A padded batch of B rows of T tokens."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) int64, 1 = a real token
    prompt_last: Tensor  # (B,) int64, position of the last prompt token: its logits predict the first target token
    target_mask: Tensor  # (B, T) bool, True on target tokens
    position_ids: Tensor  # (B, T) int64, 0 at the first real token of the row
    offsets: Tensor | None = None  # (B, T, 2) int64 character spans in join(prompt, target); None: not known
    asked: Tensor | None = None  # (B, P) int64, of an encoder-decoder: the prompts, for the encoder
    asked_mask: Tensor | None = None  # (B, P) int64, 1 = a real token

    def to(self, device: torch.device | str) -> "Encoded":
        """The same batch on another device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if value is not None})

    def take(self, rows: Tensor) -> "Encoded":
        """The rows `rows` (n,) of the batch."""
        return replace(self, **{name: value[rows] for name, value in vars(self).items() if value is not None})

    def columns(self, first: int, stop: int) -> "Encoded":
        """The columns from `first` on and before `stop`; positions are counted from the first of them."""
        cut = {
            name: value[:, first:stop]
            for name, value in vars(self).items()
            if value is not None and name not in ("prompt_last", "asked", "asked_mask")
        }
        return replace(self, **cut, prompt_last=self.prompt_last - first)

    def followed_by(self, tokens: Tensor) -> "Encoded":
        """Every row, none of which is padded, with the same tokens (t,) behind it; they are no targets."""
        more = tokens.to(self.input_ids.device).expand(len(self.input_ids), -1)
        last = self.position_ids[:, -1:] + torch.arange(1, more.shape[1] + 1, device=more.device)
        return replace(
            self,
            input_ids=torch.cat([self.input_ids, more], 1),
            attention_mask=torch.cat([self.attention_mask, torch.ones_like(more)], 1),
            target_mask=torch.cat([self.target_mask, torch.zeros_like(more, dtype=torch.bool)], 1),
            position_ids=torch.cat([self.position_ids, last], 1),
            offsets=None,
        )

    def inputs(self, model: nn.Module) -> dict[str, Tensor]:
        """Keyword arguments for the model's forward, with position_ids (left padding needs them) where it takes them.

        EditError when a row is longer than the model's positions.
        """
        if self.asked is not None and self.asked_mask is not None:
            return {
                "input_ids": self.asked,
                "attention_mask": self.asked_mask,
                "decoder_input_ids": self.input_ids,
                "decoder_attention_mask": self.attention_mask,
            }
        refuse_encoder_decoder(model, "reading a text as one sequence")
        limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        longest = int(self.attention_mask.sum(1).max())
        if isinstance(limit, int) and longest > limit:
            raise EditError(
                f"a text of {longest} tokens is longer than the model's {limit} positions: shorten the prompt."
            )
        tensors = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        wrapped = getattr(model, "get_base_model", None)  # a PeftModel hides what its base takes behind **kwargs
        if "position_ids" in inspect.signature((wrapped() if callable(wrapped) else model).forward).parameters:
            tensors["position_ids"] = self.position_ids
        return tensors

    def to_generate(self, model: nn.Module) -> dict[str, Tensor]:
        """Keyword arguments of the model's `generate`, which finds positions by itself."""
        return {name: value for name, value in self.inputs(model).items() if name != "position_ids"}


def join(prompt: str, target: str) -> str:
    """The prompt continued by the target: one space between them unless either side brings white space of its own."""
    space = "" if prompt[-1:].isspace() or target[:1].isspace() else " "
    return prompt + space + target


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    targets: Sequence[str] | None = None,
    *,
    side: Literal["right", "left"] = "right",
    device: torch.device | str = "cpu",
    append_eos: bool = False,
    model: nn.Module | None = None,
) -> Encoded:
    """Tokenise prompts, each continued by its target if there are any, into one padded batch.

    A target's tokens are those of `join(prompt, target)` after the longest common prefix with the prompt's own. BOS is
    the tokenizer's business; an EOS that it adds by itself is dropped, since the model would continue after it.
    `append_eos` ends each target with EOS, to teach a natural stop. model: that reads the batch; given, it may be an encoder-decoder.
    EditError: no rows, unequal counts, an empty target, a prompt of no tokens.
    """
    if isinstance(prompts, str) or isinstance(targets, str):
        raise EditError(
            f"expected a list of texts, got one string: {(prompts if isinstance(prompts, str) else targets)!r}."
        )
    if not prompts:
        raise EditError("there is no prompt to encode: pass at least one.")
    if targets is not None and len(targets) != len(prompts):
        raise EditError(f"{len(prompts)} prompts but {len(targets)} targets: pass one target per prompt.")
    if append_eos and tokenizer.eos_token_id is None:
        raise EditError("append_eos needs a tokenizer with an EOS token, and this one has none: pass append_eos=False.")

    rows: list[list[int]] = []
    spans: list[list[tuple[int, int]] | None] = []
    starts: list[int] = []  # index of the first target token, or the row's length
    for prompt, target in zip(prompts, targets or ()):
        if not target.strip():
            raise EditError(f"the target of prompt {prompt!r} is empty: give the answer the model should learn.")
    if model is not None and encoder_decoder(model):
        return _asked_and_said(tokenizer, prompts, targets, side, append_eos, model).to(device)
    alone = _tokenise(tokenizer, prompts)
    continued = alone if targets is None else _tokenise(tokenizer, [join(p, t) for p, t in zip(prompts, targets)])
    for row, (prompt, (prompt_ids, _), (ids, offsets)) in enumerate(zip(prompts, alone, continued)):
        start = len(prompt_ids)
        if targets is not None:
            start = _common_prefix(prompt_ids, ids)
            if append_eos:
                ids = [*ids, tokenizer.eos_token_id]
                offsets = offsets and [*offsets, (0, 0)]
            if start == len(ids):
                raise EditError(f"the target {targets[row]!r} adds no token to the prompt {prompt!r}.")
        if start == 0:
            raise EditError(f"the prompt {prompt!r} has no token of its own to predict from: write a longer prompt.")
        rows.append(ids)
        spans.append(offsets)
        starts.append(start)

    return _padded(tokenizer, rows, starts, spans, side).to(device)


def _padded(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    starts: Sequence[int],
    spans: Sequence[list[tuple[int, int]] | None],
    side: str,
) -> Encoded:
    """starts: index of the first target token of every row."""
    width = max(map(len, rows))
    pad_id = next(
        (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0
    )  # any: it is masked
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
    target_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    prompt_last = torch.empty(len(rows), dtype=torch.long)
    offsets_out = None if any(s is None for s in spans) else torch.zeros(len(rows), width, 2, dtype=torch.long)
    for row, (ids, start) in enumerate(zip(rows, starts)):
        first = width - len(ids) if side == "left" else 0
        here = slice(first, first + len(ids))
        input_ids[row, here] = torch.tensor(ids)
        attention_mask[row, here] = 1
        target_mask[row, first + start : first + len(ids)] = True
        prompt_last[row] = first + start - 1
        if offsets_out is not None:
            offsets_out[row, here] = torch.tensor(spans[row])
    position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
    return Encoded(input_ids, attention_mask, prompt_last, target_mask, position_ids, offsets_out)


def _asked_and_said(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    targets: Sequence[str] | None,
    side: str,
    append_eos: bool,
    model: nn.Module,
) -> Encoded:
    """Prompts as the tokenizer writes them, the EOS that it appends included, and decoder rows of the targets without it."""
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        raise UnsupportedModelError(
            f"the config of this {model.config.model_type!r} names no decoder_start_token_id, so nobody knows what its answers begin "  # type: ignore[union-attr]
            "with: write it into config.json."
        )
    questions = [list(ids) for ids in tokenizer(list(prompts), verbose=False)["input_ids"]]
    for prompt, ids in zip(prompts, questions):
        if not ids:
            raise EditError(f"the prompt {prompt!r} has no token of its own to predict from: write a longer prompt.")
    said = [[] for _ in prompts] if targets is None else [ids for ids, _ in _tokenise(tokenizer, targets)]
    for target, ids in zip(targets or (), said):
        if not ids:
            raise EditError(f"the target {target!r} becomes no token: give the answer the model should learn.")
    end = [int(tokenizer.eos_token_id)] if append_eos else []
    rows = [[int(start), *ids, *end] for ids in said]
    encoder = _padded(tokenizer, questions, [len(ids) for ids in questions], [None] * len(questions), "right")
    decoder = _padded(tokenizer, rows, [1] * len(rows), [None] * len(rows), side)
    return replace(decoder, asked=encoder.input_ids, asked_mask=encoder.attention_mask)


def answer_positions(encoded: Encoded) -> Tensor:
    """(B, T) bool: the positions whose logits predict a target token, i.e. the target mask moved one to the left."""
    positions = torch.zeros_like(encoded.target_mask)
    positions[:, :-1] = encoded.target_mask[:, 1:]
    return positions


def subject_last(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], subjects: Sequence[str], encoded: Encoded
) -> Tensor:
    """(B,) int64: the position in the padded row of the last token that touches the subject.

    `prompts` are the texts `encoded` was made from. Where a prompt names its subject several times, the FIRST counts.
    EditError when a subject is empty, is not in its prompt verbatim, or cannot be found in its row.
    """
    if not len(prompts) == len(subjects) == len(encoded.input_ids):
        raise EditError(
            f"{len(prompts)} prompts, {len(subjects)} subjects and {len(encoded.input_ids)} encoded rows: "
            "pass one prompt and one subject per row."
        )
    positions = []
    for row, (prompt, subject) in enumerate(zip(prompts, subjects)):
        subject = subject.strip()
        begin = prompt.find(subject)
        if not subject or begin < 0:
            raise EditError(
                f"the subject {subject!r} is not in the prompt {prompt!r}: write it there exactly, or correct it."
            )
        real = encoded.attention_mask[row].nonzero().flatten()
        ids = encoded.input_ids[row, real].tolist()
        if encoded.offsets is None:
            index = _last_by_decoding(tokenizer, ids, subject)
        else:
            index = _last_by_offsets(tokenizer, ids, encoded.offsets[row, real].tolist(), subject, begin)
        if index is None:
            raise EditError(
                f"the tokens of {prompt!r} do not spell the subject {subject!r}: "
                "pass the prompts this batch was encoded from, and a subject as the tokenizer spells it."
            )
        positions.append(int(real[index]))
    return torch.tensor(positions, device=encoded.input_ids.device)


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[tuple[list[int], list[tuple[int, int]] | None]]:
    """By text (token ids, character span of each or None); ids that the tokenizer itself appends (EOS) are cut off."""
    fast = bool(tokenizer.is_fast)
    distinct = list(dict.fromkeys(texts))
    batch = tokenizer(distinct, return_offsets_mapping=fast, return_special_tokens_mask=True, verbose=False)
    found: dict[str, tuple[list[int], list[tuple[int, int]] | None]] = {}
    for row, text in enumerate(distinct):
        ids, special = list(batch["input_ids"][row]), batch["special_tokens_mask"][row]
        length = len(ids)
        while length > 0 and special[length - 1] and any(not s for s in special[:length]):
            length -= 1
        spans = [(int(a), int(b)) for a, b in batch["offset_mapping"][row]][:length] if fast else None
        found[text] = ids[:length], spans
    return [found[text] for text in texts]


def _common_prefix(a: list[int], b: list[int]) -> int:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length


def _last_by_offsets(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], offsets: list[list[int]], subject: str, begin: int
) -> int | None:
    """Index of the last token whose span meets the subject's; None when the tokens that meet it do not spell it."""
    end = begin + len(subject)
    inside = [i for i, (a, b) in enumerate(offsets) if a < b and a < end and b > begin]
    if not inside:
        return None
    tokens = ids[inside[0] : inside[-1] + 1]
    known = tokenizer.unk_token_id not in tokens  # an unknown token has lost its spelling; its span still holds
    return inside[-1] if not known or _spells(tokenizer, tokens, subject) else None


def _last_by_decoding(tokenizer: PreTrainedTokenizerBase, ids: list[int], subject: str) -> int | None:
    """The same for tokenizers without character spans: the first token at which the text so far spells the subject."""
    return next((i for i in range(len(ids)) if _spells(tokenizer, ids[: i + 1], subject)), None)


def _spells(tokenizer: PreTrainedTokenizerBase, ids: list[int], subject: str) -> bool:
    return _plain(subject) in _plain(str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)))


def _plain(text: str) -> str:
    """Without the differences that normalising tokenizers make: Unicode form and case."""
    return unicodedata.normalize("NFKC", text).casefold()

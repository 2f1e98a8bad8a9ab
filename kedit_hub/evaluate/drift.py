"""What the edits did to everything else: perplexity and KL(base||edited) on a fixed list of texts, token by token.

Law: base and edited model read the same tokens, and the numbers carry the digest of the texts they were measured on.
Perplexity alone misses most damage; read it beside the locality scores.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_hub.base.families import encoder_decoder
from kedit_hub.base.tokens import encode
from kedit_hub.evaluate.protocols import batches, on_device

# with unedited() as base: ...    (inside, no edit acts on it)
Unedited = Callable[[], AbstractContextManager[PreTrainedModel]]

# Read when the caller brings no texts: enough to see a collapse, too little to rank two editors.
PLAIN_TEXTS = (
    "Water boils when the pressure of its vapour equals the pressure of the air around it. High in the mountains "
    "the air is thinner, so water boils at a lower temperature and food takes longer to cook.",
    "The baker came down before sunrise, lit the oven and began to shape the loaves. By the time the first "
    "customers knocked at the door, the whole street smelled of bread.",
    "A triangle has three sides and three angles. In the plane the angles add up to two right angles, whatever the "
    "shape of the triangle, and the longest side always lies opposite the largest angle.",
    "Most plants take in light through their leaves and use it to turn water and carbon dioxide into sugar. The "
    "oxygen that is left over goes back into the air.",
    "She had promised to write as soon as she arrived, but the train was late, the house was cold, and it was a "
    "week before she found a table, a pen and an hour of quiet.",
    "A library lends books to its readers for a few weeks at a time. If nobody else is waiting for a book, the "
    "reader may keep it longer; if somebody is, it has to go back.",
    "The tide rises and falls twice a day on most coasts, because the moon pulls at the sea. Fishermen have kept "
    "tables of the tides for as long as they have kept boats.",
    "Before you paint a wall, clean it, fill the holes and let it dry. Two thin coats last longer than one thick "
    "coat, and the brush should be washed before the paint in it hardens.",
    "The committee met on Tuesday to discuss the budget. After two hours its members agreed on the first three "
    "points and put off the fourth until the next meeting.",
    "Iron rusts when it is wet and open to the air. Paint, oil or a thin layer of zinc keeps the water away and "
    "makes the metal last for many years.",
    "The old dog slept in the sun all morning. When the children came home from school he lifted his head, looked "
    "at them, wagged his tail once and went back to sleep.",
    "In most programming languages a list keeps its elements in order, while a set keeps each element only once and "
    "in no order at all. Which of the two is better depends on what the program has to ask.",
    "Rain fell for three days and the river rose to the top of its banks. On the fourth day the clouds broke, the "
    "water went down again, and the farmers walked out to look at their fields.",
    "Prices go up when many people want a thing and few have it to sell. When more of it is made, or when people "
    "learn to do without it, prices come down.",
    "To make the soup, cut the onions and carrots into small pieces, cook them slowly in a little butter, add the "
    "stock and the beans, and leave the pot on a low fire for an hour.",
    "The heart is a muscle that pumps blood through the body. It beats faster when we run, because our legs need "
    "more oxygen, and slows down again when we rest.",
)


@torch.no_grad()
def drift(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    unedited: Unedited | None = None,
    *,
    batch_size: int = 4,
    max_tokens: int = 512,
    progress: bool = False,
) -> dict[str, Any]:
    """Perplexity of the edited `model` and of the base, and the mean KL(base||edited) per token in nats.

    Each text is cut to its first `max_tokens` tokens (fewer where the model has fewer positions); all tokens but the
    first of each count. Without `unedited`, `ppl_before` and `kl` are None and `reason` says so. A measure that is not
    finite is None too. An encoder-decoder reads no running text: nothing is measured of it.
    """
    running = not encoder_decoder(model)
    texts = texts if running else ()
    limit = getattr(model.config, "max_position_embeddings", None) or max_tokens
    longest = min(max_tokens, limit)
    tokens, nll_before, nll_after, divergence = 0, 0.0, 0.0, 0.0
    for chosen in batches([len(text) for text in texts], batch_size, "drift", progress):
        batch = on_device(model, encode(tokenizer, [texts[i] for i in chosen]))
        inputs = {
            "input_ids": batch.input_ids[:, :longest],  # (B, T), right padded: the cut keeps the beginning of each text
            "attention_mask": batch.attention_mask[:, :longest],
        }
        after = model(**inputs, use_cache=False).logits  # (B, T, V)
        before = None
        if unedited is not None:
            with unedited() as base:
                before = base(**inputs, use_cache=False).logits
        for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
            labels = inputs["input_ids"][row, 1:length]
            log_after = _log_probabilities(after[row, : length - 1])  # (length - 1, V)
            nll_after += _nll(log_after, labels)
            tokens += length - 1
            if before is not None:
                log_before = _log_probabilities(before[row, : length - 1].to(after.device))
                nll_before += _nll(log_before, labels)
                per_token = (log_before.exp() * (log_before - log_after)).sum(-1)  # (length - 1,)
                divergence += per_token.clamp(min=0).double().sum().item()  # rounding may leave -1e-8; NaN stays NaN

    reasons = []
    if unedited is None:
        reasons.append("no unedited base to compare with")
    if tokens == 0:
        reasons.append("no text with two tokens" if running else "an encoder-decoder continues no text")
    scored = tokens > 0 and unedited is not None
    ppl_after = _exp(nll_after / tokens) if tokens else None
    if tokens and ppl_after is None:
        reasons.append("the edited model's perplexity is not a finite number")
    return {
        "ppl_before": _exp(nll_before / tokens) if scored else None,
        "ppl_after": ppl_after,
        "kl": _finite(divergence / tokens) if scored else None,
        "tokens": tokens,
        "texts": len(texts),
        "texts_sha256": texts_digest(texts),
        "reason": "; ".join(reasons) or None,
    }


def texts_digest(texts: Sequence[str]) -> str:
    """Which texts were read: 64 hex digits."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1)


def _nll(log_probabilities: Tensor, labels: Tensor) -> float:
    """Summed negative log-likelihood in nats of labels (T,) under log_probabilities (T, V)."""
    picked = log_probabilities.gather(-1, labels.to(log_probabilities.device)[:, None])
    return -picked.double().sum().item()


def _exp(nll: float) -> float | None:
    return _finite(math.exp(nll)) if nll < 700 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""One question, answered side by side: by the base, by the patched model and by its placebo, token by token. Law: the answers are greedy
and are those of `PatchedModel.ask`; what is drawn is the placebo's noise alone, from the seed.

    found = beside(patched, "The capital of France is")
    found.base.text, found.patched.text, found.kl, found.patched.parts

`hear` is told every token as it is said, so that an answer can be shown while it grows; it may raise to end everything.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kedit_hub.errors import PlaceboError
from kedit_hub.patch.safefile import raw
from kedit_hub.stack.patched import PatchedModel

Who = Literal["base", "patched", "placebo"]
Hear = Callable[[Who, str], None]  # who speaks, and the text of the next token
TOP = 8  # next tokens told of the first place
TOP_LATER = 4  # and of the later ones


@dataclass(frozen=True)
class Token:
    """One token that was said. p: its probability under the model that said it; p_base: under the unedited one. top: the likeliest."""

    text: str
    p: float
    p_base: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Said:
    """An answer. parts: the first token that is not the base's, None where all are."""

    text: str
    tokens: tuple[Token, ...]
    parts: int | None

    @property
    def top(self) -> tuple[tuple[str, float], ...]:
        """The most probable first tokens."""
        return self.tokens[0].top if self.tokens else ()


@dataclass(frozen=True)
class Beside:
    """kl: KL(base||patched) of the first token in nats. restored: with the patches off the base gives the same logits, bit for bit, after
    the answers as before. placebo: None where none was asked for or there is none, and `no_placebo` says why."""

    base: Said
    patched: Said
    placebo: Said | None
    kl: float
    kl_placebo: float | None
    restored: bool
    no_placebo: str = ""


class _Teller:
    """What transformers calls with the prompt and then with every new token."""

    def __init__(self, tokenizer: Any, who: Who, hear: Hear | None):
        self.tokenizer, self.who, self.hear, self.prompt = tokenizer, who, hear, True

    def put(self, ids: Tensor) -> None:
        if self.prompt:
            self.prompt = False
        elif self.hear is not None:
            self.hear(self.who, str(self.tokenizer.decode(ids.flatten(), skip_special_tokens=True)))

    def end(self) -> None:
        pass


@torch.no_grad()
def beside(
    patched: PatchedModel,
    prompt: str,
    max_new_tokens: int = 32,
    *,
    placebo: int | None = None,
    hear: Hear | None = None,
) -> Beside:
    """The answers to one prompt, and what moved. placebo: the seed of its noise, None for no placebo."""
    ids = patched.tokenizer(prompt, return_tensors="pt")["input_ids"]
    with patched.disabled():
        untouched = _logits(patched, ids)
        before, base_logits = _answer(patched, ids, max_new_tokens, "base", hear)
    after, logits = _answer(patched, ids, max_new_tokens, "patched", hear)
    noise, why = None, ""
    if placebo is not None:
        try:
            block: AbstractContextManager[Any] = patched.placebo(placebo) if len(patched.stack) else nullcontext()
            with block:
                noise = _answer(patched, ids, max_new_tokens, "placebo", hear)
        except PlaceboError as cause:
            why = str(cause)
    with patched.disabled():
        said = [_said(patched, ids, before, base_logits, before)]
        said.append(_said(patched, ids, after, logits, before))
        if noise is not None:
            said.append(_said(patched, ids, noise[0], noise[1], before))
        restored = torch.equal(_logits(patched, ids), untouched)
    return Beside(
        said[0],
        said[1],
        said[2] if noise is not None else None,
        _kl(base_logits[0], logits[0]),
        None if noise is None else _kl(base_logits[0], noise[1][0]),
        restored,
        why,
    )


def _answer(
    patched: PatchedModel, ids: Tensor, max_new_tokens: int, who: Who, hear: Hear | None
) -> tuple[Tensor, Tensor]:
    """(n,) the new tokens, and (n, V) the logits each was chosen by, float32 on the CPU."""
    found = patched.generate(
        ids, do_sample=False, max_new_tokens=max_new_tokens, output_logits=True, return_dict_in_generate=True,
        streamer=_Teller(patched.tokenizer, who, hear),
    )  # fmt: skip
    return found.sequences[0, ids.shape[1] :].cpu(), torch.cat(found.logits).float().cpu()


def _logits(patched: PatchedModel, ids: Tensor) -> Tensor:
    """(T, V) of one plain pass."""
    device = patched.model.get_input_embeddings().weight.device
    ids = ids.to(device)
    mask = torch.ones_like(ids)
    return patched.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float().cpu()


def _said(patched: PatchedModel, ids: Tensor, new: Tensor, logits: Tensor, base_new: Tensor) -> Said:
    """Inside `disabled`: what the base thinks of every token is one pass of it over prompt and answer."""
    tokenizer = patched.tokenizer
    own = torch.log_softmax(logits.double(), -1)
    whole = torch.cat([ids[0], new])[None]
    base = torch.log_softmax(_logits(patched, whole)[ids.shape[1] - 1 : -1].double(), -1)
    tokens = [
        Token(
            token_text(tokenizer, int(token)),
            own[at, token].exp().item(),
            base[at, token].exp().item(),
            top_tokens(tokenizer, own[at], TOP if at == 0 else TOP_LATER),
        )
        for at, token in enumerate(new)
    ]
    shared = min(len(new), len(base_new))
    apart = (new[:shared] != base_new[:shared]).nonzero()
    parts = int(apart[0]) if len(apart) else (None if len(new) == len(base_new) else shared)
    text = str(tokenizer.decode(new, skip_special_tokens=True)).strip()
    return Said(text, tuple(tokens), parts)


def top_tokens(tokenizer: Any, log_probabilities: Tensor, count: int) -> tuple[tuple[str, float], ...]:
    """log_probabilities (V,). The likeliest tokens, as text, with their probabilities."""
    best = log_probabilities.topk(min(count, len(log_probabilities)))
    return tuple(
        (token_text(tokenizer, int(token)), probability)
        for token, probability in zip(best.indices, best.values.exp().tolist())
    )


def token_text(tokenizer: Any, token: int) -> str:
    """A token as text; the space that begins a word is left out, other white space is named."""
    if token == tokenizer.eos_token_id:
        return "(end of text)"
    text = str(tokenizer.decode([token]))
    return text.strip() or {" ": "(space)", "\n": "(new line)"}.get(text, f"(token {token})")


def _kl(base: Tensor, other: Tensor) -> float:
    """KL(base||other) in nats of two rows of logits (V,)."""
    p, q = (torch.log_softmax(row.double(), -1) for row in (base, other))
    return max(0.0, (p.exp() * (p - q)).sum().item())  # rounding may leave -1e-8


# --- what stayed as it was ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbour:
    """A question that no edit is meant to change, and both answers."""

    prompt: str
    before: str
    after: str

    @property
    def unchanged(self) -> bool:
        return self.before == self.after


def neighbours(patched: PatchedModel, prompts: Sequence[str], max_new_tokens: int = 12) -> list[Neighbour]:
    """Every prompt asked of the base and of the patched model, in one batch each."""
    asked = list(dict.fromkeys(prompts))
    if not asked:
        return []
    with patched.disabled():
        before = patched.ask(asked, max_new_tokens)
    after = patched.ask(asked, max_new_tokens)
    return [Neighbour(*row) for row in zip(asked, before, after)]


def weights_digest(model: nn.Module) -> str:
    """sha256 over the names, types, shapes and bytes of all parameters and buffers of a model, 64 hex digits."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(raw(tensor))
    return total.hexdigest()

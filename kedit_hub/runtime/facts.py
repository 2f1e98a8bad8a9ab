"""Facts in words, put before the questions they are about. Law: a row out of scope keeps every bit of its logits.  (IKE, SERAC)

A fact lengthens a text, and no hook inside the model may change how many positions a pass has. So the pass runs as it was asked, for
all rows; when it is over, the rows in scope are asked once more, by themselves, with their fact before them, and their logits take the
place of the first ones. Lengths, masks, positions and the KV cache of the caller are never touched, left or right padded, in a plain
forward pass and inside `generate` alike. What else hangs on the model works in the second pass too: facts come last.

The scope is decided where a sequence begins, on its prompt. It is kept with the KV cache, with the tokens read since, and so it is
copied, repeated and reordered as the cache is. The second passes have a cache of their own, which is only a shortcut: where it does not
hold what was read (beams were reordered), the text is read anew. A row in scope costs two passes a token, the others one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kedit_hub.base.tokens import Encoded
from kedit_hub.errors import KeditError
from kedit_hub.runtime.prompts import prompt_ends, told_ends
from kedit_hub.runtime.remember import keep, kept
from kedit_hub.runtime.routing import Selection, mask

Within = Callable[[Sequence[int]], AbstractContextManager[None]]  # the rows of the batch that the block's passes are of


def words(text: str) -> frozenset[str]:
    """Runs of letters and digits, case folded."""
    return frozenset(re.findall(r"[^\W_]+", text.casefold()))


class Fact(NamedTuple):
    words: frozenset[str]  # of the edit's prompt
    threshold: float  # share of them that a question must hold
    tokens: tuple[int, ...]  # what is put before it
    owner: str  # patch id


class _Second(NamedTuple):
    """The second passes of one caller's cache: what they have read (r, 1 + L), as in a state, and their own cache."""

    read: Tensor
    cache: Any
    mask: Tensor  # (r, W)


@dataclass(frozen=True, eq=False)
class FactsRouter:
    """The facts of a stack, by patch id."""

    facts: tuple[Fact, ...]
    decode: Callable[[list[int]], str]
    bos: int | None
    _second: "WeakKeyDictionary[Any, _Second]" = field(default_factory=WeakKeyDictionary, init=False, repr=False)

    def owned(self, name: str) -> Self:
        return replace(self, facts=tuple(fact._replace(owner=name) for fact in self.facts))

    def scope(self, question: str, allowed: Sequence[bool]) -> int:
        """The allowed fact whose words occur in the question most, if they reach its threshold; -1: none. The first of equals."""
        asked, best, found = words(question), 0.0, -1
        for number, fact in enumerate(self.facts):
            share = len(fact.words & asked) / len(fact.words) if fact.words else 0.0
            if allowed[number] and share >= fact.threshold and share > best:
                best, found = share, number
        return found

    def __call__(
        self, model: nn.Module, given: Mapping[str, Any], output: Any, selection: Selection | None, within: Within
    ) -> Any:
        """output: of the pass `given` (its keyword arguments), returned as it is where no row is in scope."""
        ids = given.get("input_ids")
        if ids is None or getattr(output, "logits", None) is None:
            raise KeditError(
                "facts in words need the words: call the model with input_ids and return_dict=True, or take the patch out of the stack"
            )
        (batch, length), cache = ids.shape, given.get("past_key_values")
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        past = 0 if cache is None else int(cache.get_seq_length()) - length
        real = _real(given.get("attention_mask"), ids)
        new = torch.where(real, ids, -1)
        if past == 0:
            state = torch.cat([self._scopes(ids, real, selection)[:, None], new], 1)
        else:
            before = kept(cache, self, batch)
            if before is None or before.shape[1] <= past:
                return output  # nobody saw this sequence begin
            state = torch.cat([before[:, : 1 + past].to(ids.device), new], 1)
        if cache is not None:
            keep(cache, {self: state})
        rows = (state[:, 0] >= 0).nonzero()[:, 0]
        if not len(rows):
            return output
        ends = told_ends() if past == 0 else None
        with within(rows.tolist()), torch.set_grad_enabled(torch.is_grad_enabled() and not past):
            again = self._asked_again(model, state[rows], real[rows], None if ends is None else ends[rows], cache, past)
        return _replaced(model, given, output, rows, real, again)

    def _scopes(self, ids: Tensor, real: Tensor, selection: Selection | None) -> Tensor:
        """(B,) the fact of every row's prompt, -1 for none."""
        batch, ends = len(ids), told_ends()
        owners = tuple(fact.owner for fact in self.facts)
        may = torch.ones(batch, len(owners), dtype=torch.bool) if selection is None else mask(selection, owners, batch)
        if ends is not None and len(ends) == batch:
            real = real & (torch.arange(ids.shape[1], device=ids.device) <= ends.to(ids.device)[:, None])
        found = [self.scope(self.decode(row[own].tolist()), can) for row, own, can in zip(ids, real, may.tolist())]
        return torch.tensor(found, device=ids.device)

    def _asked_again(
        self, model: Any, state: Tensor, real: Tensor, ends: Tensor | None, cache: Any, past: int
    ) -> Tensor:
        """Logits (r, k, V) of the last k positions of the rows in scope, with their facts before them; k: most tokens of a row's chunk."""
        most = int(real.sum(1).max())
        known = self._second.get(cache) if cache is not None and past else None
        if known is not None and real.shape[1] == 1 and torch.equal(known.read, state[:, : 1 + past]):
            own, attention, tokens = known.cache, torch.cat([known.mask, real.long()], 1), state[:, -1:].clamp_min(0)
        else:
            own, (tokens, attention) = None, self._texts(state)
        width, positions = tokens.shape[1], (attention.cumsum(1) - 1).clamp_min(0)
        text = Encoded(tokens, attention, attention.sum(1), attention.bool(), positions)
        inputs = text.inputs(model)
        if "position_ids" in inputs:
            inputs["position_ids"] = positions[:, -width:]
        if ends is not None:  # as many tokens before the end of the text as in the caller's
            after = (real & (torch.arange(real.shape[1], device=real.device) > ends.to(real.device)[:, None])).sum(1)
            ends = width - 1 - after
        with prompt_ends(ends):
            more = {} if own is None else {"past_key_values": own}
            output = model(**inputs, **more, use_cache=cache is not None, logits_to_keep=most)
        if cache is not None:
            self._second[cache] = _Second(state, output.past_key_values, attention)
        logits: Tensor = output.logits
        return logits

    def _texts(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and attention mask (r, W), left padded: each row's fact, then what was read of it, with one BOS where there was one."""
        texts = []
        for fact, *read in state.tolist():
            before, own = list(self.facts[fact].tokens), [token for token in read if token >= 0]
            texts.append(before + own[1 if self.bos is not None and own[:1] == [self.bos] == before[:1] else 0 :])
        width = max(map(len, texts))
        tokens = [[0] * (width - len(text)) + text for text in texts]
        attention = [[0] * (width - len(text)) + [1] * len(text) for text in texts]
        return torch.tensor(tokens, device=state.device), torch.tensor(attention, device=state.device)


def _real(attention: Any, ids: Tensor) -> Tensor:
    """(B, T) bool: which tokens of this chunk are no padding."""
    if attention is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if not isinstance(attention, Tensor) or attention.ndim != 2:
        raise KeditError(
            "facts in words need an attention_mask of shape (batch, tokens): pass one, or take the patch out of the stack"
        )
    return attention[:, -ids.shape[1] :].bool().to(ids.device)


def _replaced(model: Any, given: Mapping[str, Any], output: Any, rows: Tensor, real: Tensor, again: Tensor) -> Any:
    """The output with the logits of `rows` from the second pass, at their real positions."""
    if given.get("labels") is not None:
        raise KeditError(
            "facts in words cannot be trained through: call the model without labels and take the loss of its logits"
        )
    wanted = given.get("logits_to_keep", 0)
    every = torch.arange(real.shape[1], device=real.device)
    columns = every[wanted.to(real.device)] if isinstance(wanted, Tensor) else every[-wanted:]  # 0: all of them
    after = real.flip(1).cumsum(1).flip(1)[rows] - 1  # (r, T) real tokens after this one
    row, column = real[rows][:, columns].nonzero(as_tuple=True)
    source = again.shape[1] - 1 - after[row, columns[column]]
    output.logits = output.logits.index_put((rows[row], column), again[row, source].to(output.logits.dtype))
    return output

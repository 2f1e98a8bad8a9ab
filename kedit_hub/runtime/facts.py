"""Facts in words, put before the questions they are about. Law: a row out of scope keeps every bit of its logits.  (IKE, SERAC)

A fact lengthens a text, and no hook inside the model may change how many positions a pass has. So the pass runs as it was asked, for
all rows; when it is over, the rows in scope are asked once more, by themselves, with their facts before them, and their logits take the
place of the first ones. Who is asked is the base, as its own counterfactual model, or another model with its vocabulary. Lengths, masks,
positions and the KV cache of the caller are never touched, left or right padded, in a plain forward pass and inside `generate` alike.
What else hangs on the base works in its second pass too: facts come last.

The scope is decided where a sequence begins, on its prompt. It is kept with the KV cache, with the tokens read since, and so it is
copied, repeated and reordered as the cache is. The second passes have a cache of their own, which is only a shortcut: where it does not
hold what was read (beams were reordered), the text is read anew. A row in scope costs two passes a token, the others one.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kedit_hub.base.tokens import Encoded
from kedit_hub.errors import KeditError
from kedit_hub.runtime.prompts import prompt_ends, told_ends
from kedit_hub.runtime.remember import keep, kept
from kedit_hub.runtime.routing import Selection, mask
from kedit_hub.runtime.scope import Scope, heard_by, unheard, words

Within = Callable[[Sequence[int]], AbstractContextManager[None]]  # the rows of the batch that the block's passes are of


class Piece(NamedTuple):
    """What may be put before a question: a text and its tokens, as it would begin a text."""

    text: str
    tokens: tuple[int, ...]


class Fact(NamedTuple):
    """piece: what is put before a question in its scope. told: how many facts at most, where it is the best. shown: how many of its
    demonstrations (numbers of the router's) come before them. answer: the model that is asked; None: the base."""

    threshold: float
    piece: Piece
    owner: str  # patch id
    told: int = 1
    shown: int = 0
    demonstrations: tuple[int, ...] = ()
    answer: Any = None


class Chat(NamedTuple):
    """How a model with a chat template is told. opening: what every conversation begins with; told: the tokens of a text as a message
    before it; decode: of tokens, special ones too."""

    opening: str
    told: Callable[[str], tuple[int, ...]]
    decode: Callable[[list[int]], str]


class _Second(NamedTuple):
    """The second passes of one caller's cache: what they have read (r, H + L), as in a state, and their own cache."""

    read: Tensor
    cache: Any
    mask: Tensor  # (r, W)


@dataclass(frozen=True, eq=False)
class FactsRouter:
    """The facts of a stack. scopes: one after the other of these facts. A state (B, H + L) holds, of every row, the numbers of the pieces
    before it (facts, then len(facts) + demonstrations; the best fact last; -1: none) and the tokens that were read (-1: padding)."""

    facts: tuple[Fact, ...]
    scopes: tuple[Scope, ...]
    decode: Callable[[list[int]], str]
    bos: int | None
    demonstrations: tuple[Piece, ...] = ()
    chat: Chat | None = None
    _second: "WeakKeyDictionary[Any, dict[int, _Second]]" = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )  # by caller's cache and id of the model that answers

    def owned(self, name: str) -> Self:
        return replace(self, facts=tuple(fact._replace(owner=name) for fact in self.facts))

    @cached_property
    def width(self) -> int:
        """H: pieces before a question at most."""
        return self._most + max(fact.shown for fact in self.facts)

    @cached_property
    def _most(self) -> int:
        return max(fact.told for fact in self.facts)

    @cached_property
    def _thresholds(self) -> Tensor:
        return torch.tensor([fact.threshold for fact in self.facts], dtype=torch.float64)

    @cached_property
    def _owners(self) -> tuple[str, ...]:
        return tuple(fact.owner for fact in self.facts)

    def similarities(self, questions: Sequence[str], heard: Sequence[Tensor | None]) -> Tensor:
        """(B, n) float64 of all facts, as far as a fact's threshold is reached; below it 0 will do. heard: by scope."""
        least = self._thresholds.split([len(scope) for scope in self.scopes])
        parts = [scope.similarities(questions, own, low) for scope, own, low in zip(self.scopes, heard, least)]
        return torch.cat(parts, 1)

    def chosen(self, similar: Tensor, allowed: Tensor) -> list[list[int]]:
        """For every row the facts in its scope, the best first, as many as may be told: allowed, and as similar as they ask for. similar,
        allowed (B, n)."""
        scored = torch.where(allowed & (similar >= self._thresholds), similar, -1.0)
        if self._most == 1:
            order = scored.argmax(1, keepdim=True)
        else:
            order = scored.sort(dim=1, descending=True, stable=True).indices[:, : self._most]
        rows = zip(scored.gather(1, order).tolist(), order.tolist())
        return [[fact for score, fact in zip(*row) if score > 0] for row in rows]

    def before(self, question: str, facts: Sequence[int]) -> list[int]:
        """Numbers of the pieces before a question with these facts in scope, the best first: demonstrations, weaker facts, the best."""
        best = self.facts[facts[0]]
        asked = words(question)
        likest = sorted(best.demonstrations, key=lambda n: -_overlap(words(self.demonstrations[n].text), asked))
        shown = [
            len(self.facts) + number for number in reversed(likest[: best.shown])
        ]  # the likest nearest to the question
        return [*shown, *reversed(facts[: best.told])]

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
        new, head = torch.where(real, ids, -1), self.width
        if past == 0:
            state = torch.cat([self._begun(ids, real, selection), new], 1)
        else:
            before = kept(cache, self, batch)
            if before is None or before.shape[1] < head + past:
                return output  # nobody saw this sequence begin
            state = torch.cat([before[:, : head + past].to(ids.device), new], 1)
        if cache is not None:
            keep(cache, {self: state})
        ends, device = told_ends() if past == 0 else None, state.device
        shown = state if selection is None else self._allowed(state, selection)
        for answer, rows in self._answering(shown):
            asked = model if answer is None else answer
            # a model of its own may lie elsewhere
            there = device if answer is None else next(iter(answer.parameters()), state).device
            with within(rows), unheard(), torch.set_grad_enabled(torch.is_grad_enabled() and not past):
                of = torch.tensor(rows, device=device)
                own = None if ends is None else ends.to(device)[of].to(there)
                again = self._asked_again(asked, shown[of].to(there), real[of].to(there), own, cache, past)
            output = _replaced(given, output, of, real, again)
        return output

    def _allowed(self, state: Tensor, selection: Selection) -> Tensor:
        """The state without the facts that may not speak now: a cache that one selection began may go on under another."""
        pieces = state[:, : self.width]
        may = mask(selection, self._owners, len(state)).to(state.device)
        told = pieces.clamp(0, len(self.facts) - 1)
        silent = (pieces >= 0) & (pieces < len(self.facts)) & ~may.gather(1, told)
        return torch.cat([torch.where(silent, -1, pieces), state[:, self.width :]], 1)

    def _answering(self, state: Tensor) -> list[tuple[Any, list[int]]]:
        """The models that answer rows in scope, each with these rows."""
        groups: dict[int, tuple[Any, list[int]]] = {}
        for row, best in enumerate(state[:, self.width - 1].tolist()):
            if best >= 0:
                answer = self.facts[best].answer
                groups.setdefault(id(answer), (answer, []))[1].append(row)
        return list(groups.values())

    def _begun(self, ids: Tensor, real: Tensor, selection: Selection | None) -> Tensor:
        """(B, H) the pieces before every row's prompt."""
        batch, ends = len(ids), told_ends()
        owners = self._owners
        may = torch.ones(batch, len(owners), dtype=torch.bool) if selection is None else mask(selection, owners, batch)
        if ends is not None and len(ends) == batch:
            real = real & (torch.arange(ids.shape[1], device=ids.device) <= ends.to(ids.device)[:, None])
        questions = [self.decode(row[own].tolist()) for row, own in zip(ids, real)]
        heard = [heard_by(scope) for scope in self.scopes]
        pieces = torch.full((batch, self.width), -1, device=ids.device)
        if not bool(may.any()):
            return pieces
        for row, facts in enumerate(self.chosen(self.similarities(questions, heard), may)):
            if facts:
                numbers = self.before(questions[row], facts)
                pieces[row, self.width - len(numbers) :] = torch.tensor(numbers, device=ids.device)
        return pieces

    def _asked_again(
        self, model: Any, state: Tensor, real: Tensor, ends: Tensor | None, cache: Any, past: int
    ) -> Tensor:
        """Logits (r, k, V) of the last k positions of the rows in scope, with their facts before them; k: most tokens of a row's chunk."""
        most = int(real.sum(1).max())
        seconds = self._second.setdefault(cache, {}) if cache is not None else {}
        known = seconds.get(id(model)) if past else None
        if known is not None and real.shape[1] == 1 and torch.equal(known.read, state[:, :-1]):
            own, attention, tokens = known.cache, torch.cat([known.mask, real.long()], 1), state[:, -1:].clamp_min(0)
        else:
            own, (tokens, attention) = None, self._texts(state)
        width, positions = tokens.shape[1], (attention.cumsum(1) - 1).clamp_min(0)
        text = Encoded(tokens, attention, attention.sum(1), attention.bool(), positions)
        inputs = text.inputs(model)
        if "position_ids" in inputs:
            inputs["position_ids"] = positions[:, -width:]
        if ends is not None:  # as many tokens before the end of the text as in the caller's
            after = (real & (torch.arange(real.shape[1], device=real.device) > ends[:, None])).sum(1)
            ends = width - 1 - after
        with prompt_ends(ends):
            more = {} if own is None else {"past_key_values": own}
            output = model(**inputs, **more, use_cache=cache is not None, logits_to_keep=most)
        if cache is not None:
            seconds[id(model)] = _Second(state, output.past_key_values, attention)
        logits: Tensor = output.logits
        return logits

    def _texts(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and attention mask (r, W), left padded: each row's pieces, then what was read of it, with one BOS where there was one."""
        texts = []
        for row in state.tolist():
            pieces = [self._piece(number) for number in row[: self.width] if number >= 0]
            own = [token for token in row[self.width :] if token >= 0]
            if self.chat is not None and self.chat.decode(own).startswith(self.chat.opening):
                parts = [list(self.chat.told("".join(piece.text for piece in pieces).strip())), own]
            else:
                parts = [*(list(piece.tokens) for piece in pieces), own]
            begins = self.bos is not None and parts[0][:1] == [self.bos]
            texts.append(
                parts[0] + [t for part in parts[1:] for t in part[1 if begins and part[:1] == [self.bos] else 0 :]]
            )
        width = max(map(len, texts))
        tokens = [[0] * (width - len(text)) + text for text in texts]
        attention = [[0] * (width - len(text)) + [1] * len(text) for text in texts]
        return torch.tensor(tokens, device=state.device), torch.tensor(attention, device=state.device)

    def _piece(self, number: int) -> Piece:
        facts = len(self.facts)
        return self.facts[number].piece if number < facts else self.demonstrations[number - facts]


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard's: common words of all words."""
    return len(one & other) / max(len(one | other), 1)


def _real(attention: Any, ids: Tensor) -> Tensor:
    """(B, T) bool: which tokens of this chunk are no padding."""
    if attention is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if not isinstance(attention, Tensor) or attention.ndim != 2:
        raise KeditError(
            "facts in words need an attention_mask of shape (batch, tokens): pass one, or take the patch out of the stack"
        )
    return attention[:, -ids.shape[1] :].bool().to(ids.device)


def _replaced(given: Mapping[str, Any], output: Any, rows: Tensor, real: Tensor, again: Tensor) -> Any:
    """The output with the logits of `rows` from the second pass, at their real positions."""
    if given.get("labels") is not None:
        raise KeditError(
            "facts in words cannot be trained through: call the model without labels and take the loss of its logits"
        )
    device, wanted = output.logits.device, given.get("logits_to_keep", 0)
    rows, real, again = rows.to(device), real.to(device), again.to(device)
    every = torch.arange(real.shape[1], device=real.device)
    columns = every[wanted.to(real.device)] if isinstance(wanted, Tensor) else every[-wanted:]  # 0: all of them
    after = real.flip(1).cumsum(1).flip(1)[rows] - 1  # (r, T) real tokens after this one
    row, column = real[rows][:, columns].nonzero(as_tuple=True)
    source = again.shape[1] - 1 - after[row, columns[column]]
    output.logits = output.logits.index_put((rows[row], column), again[row, source].to(output.logits.dtype))
    return output

"""How much a question is about each of some facts. Law: in [0, 1], a function of the question and of one fact alone.

    Lexical      the share of the fact's words that the question holds
    Near         exp(-scale |q - e|^2), e of the fact; q of the question, by a projection of what the base reads, or by an encoder
    Crossed      what a cross-encoder makes of the pair

A projection reads the input of a module at the last token of the question, in the pass that reads the question: `watch` hears it, and the
router, which runs when that pass is over, takes it (`heard_by`). What is heard is the caller's own, and only of its latest pass.
"""

import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from kedit_hub.errors import KeditError
from kedit_hub.runtime.attach import Pass
from kedit_hub.runtime.sieve import Sieve, distances

Encoder = Callable[[Sequence[str]], Any]  # n texts -> (n, e), as a tensor or what becomes one
Cross = Callable[[Sequence[tuple[str, str]]], Any]  # n pairs (fact, question) -> (n,) probabilities
PAIRS = 256  # pairs a cross-encoder is given at once

_Heard = Mapping["weakref.ref[Near]", Tensor]
_NOTHING: _Heard = MappingProxyType({})
_HEARD: ContextVar[_Heard | None] = ContextVar("last tokens heard for scopes; None: nobody listens", default=_NOTHING)


def words(text: str) -> frozenset[str]:
    """Runs of letters and digits, case folded."""
    return frozenset(re.findall(r"[^\W_]+", text.casefold()))


class Scope(Protocol):
    """Of n facts."""

    def __len__(self) -> int: ...

    def similarities(self, questions: Sequence[str], heard: Tensor | None, least: Tensor | None = None) -> Tensor:
        """(B, n) float64 in [0, 1]. heard (B, d): what `watch` heard for this scope, of these questions. least (n,) float64: a similarity
        below it may be given as 0."""
        ...


@dataclass(frozen=True, eq=False)
class Lexical:
    """facts: the words of each."""

    facts: tuple[frozenset[str], ...]

    def __len__(self) -> int:
        return len(self.facts)

    @cached_property
    def _sizes(self) -> Tensor:
        """(n,) float64, 1 where a fact has no word."""
        return torch.tensor([len(own) for own in self.facts], dtype=torch.float64).clamp_min(1)

    @cached_property
    def _holding(self) -> Mapping[str, Tensor]:
        """By word the facts that hold it."""
        found: dict[str, list[int]] = {}
        for number, own in enumerate(self.facts):
            for word in own:
                found.setdefault(word, []).append(number)
        return {word: torch.tensor(numbers) for word, numbers in found.items()}

    def similarities(self, questions: Sequence[str], heard: Tensor | None, least: Tensor | None = None) -> Tensor:
        shared = torch.zeros(len(questions), len(self.facts), dtype=torch.float64)
        for row, question in enumerate(questions):
            for word in words(question) & self._holding.keys():
                shared[row, self._holding[word]] += 1
        return shared / self._sizes


@dataclass(frozen=True, eq=False)
class Near:
    """embeddings (n, e) float32. projection (e, d) float32, or encoder: where q comes from."""

    embeddings: Tensor
    scale: float
    projection: Tensor | None = None
    encoder: Encoder | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    @cached_property
    def _sieve(self) -> Sieve:
        return Sieve(self.embeddings)

    def watch(self, x: Tensor, now: Pass) -> None:
        """x (B, T, d): the input of the projection's module. Keeps what stands at the ends of the prompts."""
        known = _HEARD.get()
        if known is None or now.past:
            return
        ends = now.prompt_end(x.shape[0], x.shape[1], x.device).long().argmax(1)
        last = x.detach()[torch.arange(len(x), device=x.device), ends]
        _HEARD.set({**{ref: heard for ref, heard in known.items() if ref() is not None}, weakref.ref(self): last})

    def similarities(self, questions: Sequence[str], heard: Tensor | None, least: Tensor | None = None) -> Tensor:
        if self.projection is not None:
            if heard is None:
                raise KeditError(
                    "facts with a trained scope need the model's own pass over the question: call the whole model, not a part"
                )
            q = heard.float() @ self.projection.to(heard.device).T
        else:
            assert self.encoder is not None
            q = torch.as_tensor(self.encoder(list(questions))).float()
            if q.shape != (len(questions), self.embeddings.shape[1]):
                raise KeditError(
                    f"the encoder made {tuple(q.shape)} of {len(questions)} text(s); the facts were embedded in "
                    f"{self.embeddings.shape[1]} numbers each: pass the encoder that the patch names"
                )
        q, count = q.cpu(), len(self.embeddings)
        limits = torch.full((count,), torch.inf) if least is None else (-least.log() / self.scale).float()
        row, fact = self._sieve.pairs(q, limits)
        distance = distances(q.double(), self.embeddings, row, fact)
        similar = torch.zeros(len(q), count, dtype=torch.float64)
        similar[row, fact] = (-self.scale * distance.square()).exp()
        return similar


@dataclass(frozen=True, eq=False)
class Crossed:
    """facts: as they are told. Reads every fact with every question."""

    facts: tuple[str, ...]
    cross: Cross

    def __len__(self) -> int:
        return len(self.facts)

    def similarities(self, questions: Sequence[str], heard: Tensor | None, least: Tensor | None = None) -> Tensor:
        pairs = [(fact, question) for question in questions for fact in self.facts]
        parts = [self.cross(pairs[start : start + PAIRS]) for start in range(0, len(pairs), PAIRS)]
        scores = torch.cat([torch.as_tensor(part).detach().cpu().double().reshape(-1) for part in parts])
        if len(scores) != len(pairs):
            raise KeditError(
                f"the cross-encoder gave {len(scores)} scores for {len(pairs)} pairs: it has to give one each"
            )
        return scores.clamp(0, 1).view(len(questions), len(self.facts))


def heard_by(scope: Scope) -> Tensor | None:
    """What `watch` heard for this scope in this caller's latest pass, once."""
    known = _HEARD.get()
    if not known or not isinstance(scope, Near):
        return None
    rest = dict(known)
    found = rest.pop(weakref.ref(scope), None)
    _HEARD.set(rest or _NOTHING)
    return found


@contextmanager
def unheard() -> Iterator[None]:
    """The passes of the block are nobody's questions."""
    token = _HEARD.set(None)
    try:
        yield
    finally:
        _HEARD.reset(token)

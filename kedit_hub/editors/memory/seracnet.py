"""What SERAC trains (Mitchell et al. 2022): a scope and a counterfactual model, both small. Law: a function of settings and tensors alone.

    projection (e, d)     in scope with probability exp(-|q - e|^2), q and e of inputs of one map of the base at the last tokens
    reader                a small decoder over the base's own tokens that reads "<fact>\\n<question>" and goes on with the fact's target
    head (1, hidden)      on what the reader makes of the question's last token: the cross-encoder, in scope with probability sigmoid(.)

Published: DistilBERT and T5-small, 60 million parameters each. Here they are trained from nothing, on the edits of one world.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from kedit_hub.base.tokens import encode


class SeracTraining(BaseModel):
    """What can be set of training. The layer was chosen on dev edits of Atlas, among all six."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # the scope
    layer: int | None = Field(default=None, ge=0, le=1023)  # whose MLP's last map is listened to; None: half way up
    width: int = Field(default=64, ge=1, le=4096)  # e
    scope_steps: int = Field(default=400, ge=1)
    scope_lr: float = Field(default=3e-3, gt=0)
    pairs: int = Field(default=128, ge=2, le=4096)  # edits of one step of the scope, each against all others
    # the counterfactual model
    hidden: int = Field(default=128, ge=8, le=4096)
    layers: int = Field(default=2, ge=1, le=64)
    heads: int = Field(default=4, ge=1, le=64)
    vocabulary: int | None = Field(default=None, ge=1, le=1 << 20)  # of the base; filled in
    positions: int = Field(default=1024, ge=16, le=1 << 20)
    answer_end: str = Field(default=".", max_length=16)  # what is said after an answer
    steps: int = Field(default=1600, ge=1)
    lr: float = Field(default=2e-3, gt=0)
    batch: int = Field(default=32, ge=1, le=4096)  # edits of one step
    # validation
    validation: float = Field(default=0.1, gt=0, lt=1)  # share of the subjects
    validate_every: int = Field(default=200, ge=1)
    validated: int = Field(default=64, ge=1)  # edits asked each time

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden={self.hidden} does not divide into {self.heads} heads of an even width")
        return self


class Reader(nn.Module):
    """A decoder with tied embeddings that is called as a causal language model is."""

    def __init__(self, vocabulary: int, settings: SeracTraining):
        from transformers import LlamaConfig, LlamaModel  # slow to import, and most who import this have no use for it

        super().__init__()
        self.config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=settings.hidden,
            intermediate_size=2 * settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=settings.positions,
            pad_token_id=None,
        )
        self.model = LlamaModel(self.config)

    def read(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, **how: Any) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **how)

    def say(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states."""
        return hidden @ self.model.embed_tokens.weight.T

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> SimpleNamespace:
        output = self.read(
            input_ids, attention_mask, position_ids, past_key_values=past_key_values, use_cache=use_cache
        )
        hidden = output.last_hidden_state[:, -logits_to_keep:]  # 0: all
        return SimpleNamespace(logits=self.say(hidden), past_key_values=output.past_key_values)


class Serac(nn.Module):
    """shapes: of the one map whose input the scope reads."""

    def __init__(self, settings: SeracTraining, shapes: Mapping[str, tuple[int, int]]):
        super().__init__()
        ((path, shape),) = shapes.items()
        self.paths, self.shapes = [path], {path: shape}
        self.projection = nn.Parameter(torch.randn(settings.width, shape[1]) * shape[1] ** -0.5)
        self.reader = Reader(settings.vocabulary or 1, settings)
        self.head = nn.Linear(settings.hidden, 1)

    def scope_logits(self, hidden: Tensor, last: Tensor) -> Tensor:
        """(B,) of hidden states (B, T, h) and where questions end (B,)."""
        ends: Tensor = self.head(hidden[torch.arange(len(hidden)), last])
        return ends[:, 0]


@dataclass(frozen=True)
class Read:
    """N pairs of a fact and a question as the reader reads them, right padded, each continued by an answer where one is given."""

    ids: Tensor  # (N, T)
    mask: Tensor  # (N, T)
    last: Tensor  # (N,) the last token of the question
    answer: Tensor  # (N, T) bool


def read_rows(tokenizer: Any, facts: Sequence[str], questions: Sequence[str], answers: Sequence[str] | None) -> Read:
    """Facts as they are told, each tokenised by itself and put before the tokens of its question, with one BOS, as the runtime does."""
    told = [_ids(tokenizer, fact) for fact in facts]
    asked = encode(tokenizer, questions, answers, append_eos=answers is not None and tokenizer.eos_token_id is not None)
    bos, rows, last, starts = tokenizer.bos_token_id, [], [], []
    for row, before in enumerate(told):
        own = asked.input_ids[row][asked.attention_mask[row].bool()].tolist()
        cut = 1 if bos is not None and before[:1] == [bos] == own[:1] else 0
        rows.append(before + own[cut:])
        last.append(len(before) - cut + int(asked.prompt_last[row]))
        starts.append(len(rows[-1]) - int(asked.target_mask[row].sum()))
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for number, row_ids in enumerate(rows):
        ids[number, : len(row_ids)] = torch.tensor(row_ids)
        mask[number, : len(row_ids)] = 1
    place = torch.arange(width)
    return Read(ids, mask, torch.tensor(last), (place >= torch.tensor(starts)[:, None]) & mask.bool())


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = encode(tokenizer, [text]).input_ids[0].tolist()
    return found


class Bound:
    """A trained network and the base's tokenizer, as a stack takes them: `cross` is a cross-encoder, `answer` a counterfactual model."""

    def __init__(self, network: Serac, tokenizer: Any):
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.answer = self.network.reader

    @torch.no_grad()
    def cross(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """(n,) probabilities that the question of a pair (fact, question) is about the fact."""
        rows = read_rows(self.tokenizer, [fact for fact, _ in pairs], [question for _, question in pairs], None)
        hidden = self.network.reader.read(rows.ids, rows.mask).last_hidden_state
        return self.network.scope_logits(hidden, rows.last).sigmoid()

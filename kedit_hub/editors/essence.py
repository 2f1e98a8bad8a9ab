"""What is said of a subject at large, "<subject> is a ...", must stay while a value is optimised (Meng et al. 2022, ROME eq. 4).

For edit e the base says p0 after the subject's last token in "<subject> is a"; with the delta added at that token it says p. The loss of
the value gets  kl * KL(p0 || p).  Only where values enter at the subject is there such a token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.signals import capture, quiet
from kedit_hub.base.tokens import Encoded, encode, subject_last
from kedit_hub.edits import Edit

Enter = Callable[
    [Tensor, Sequence[Tensor]], None
]  # hidden states (n, T, m), changes (n, T, m) of the next forward pass


@dataclass(frozen=True)
class Essence:
    """Of E edits, all on the device of `hidden`."""

    encoded: Encoded  # (E, T) "<subject> is a"
    hidden: Tensor  # (E, T, m) what forward passes are resumed from
    at: Tensor  # (E,) the subject's last token
    said: Tensor  # (E, V) log p0 there

    def to(self, device: torch.device) -> "Essence":
        """The same where the edits are counted: the block's device, while the embedding and the head may lie on others."""
        return Essence(self.encoded.to(device), self.hidden.to(device), self.at.to(device), self.said.to(device))

    def kl(self, model: nn.Module, enter: Enter, deltas: Sequence[Tensor], live: Tensor) -> Tensor:
        """(n,) KL(p0 || p) of the edits `live` (n,); deltas: (E, m) of every place a value enters at."""
        rows, at, h = torch.arange(len(live), device=live.device), self.at[live], self.hidden[live]
        empty = torch.zeros_like(h, dtype=torch.float32)
        enter(h, [empty.index_put((rows, at), delta[live]) for delta in deltas])
        batch = self.encoded.take(live)
        logits = model(**batch.inputs(model), use_cache=False).logits.to(h.device)[rows, at].float()
        p0 = self.said[live]
        return (p0.exp() * (p0 - logits.log_softmax(-1))).sum(-1)


@torch.no_grad()
def essence(model: nn.Module, tokenizer: Any, edits: Sequence[Edit], resumed_from: str | None) -> Essence:
    """Measured on `model` as it is. resumed_from: path of the block whose output is kept; None = nothing is (the first block)."""
    subjects = [str(edit.subject) for edit in edits]
    texts = [f"{subject} is a" for subject in subjects]
    encoded = encode(tokenizer, texts, side="left")
    at = subject_last(tokenizer, texts, subjects, encoded)
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    if device.type != "meta":
        encoded, at = encoded.to(device), at.to(device)
    with quiet(model):
        logits = model(**encoded.inputs(model), use_cache=False).logits
    said = logits[torch.arange(len(texts), device=at.device), at].float().log_softmax(-1)
    if resumed_from is None:
        hidden = model.get_input_embeddings()(encoded.input_ids.to(device))  # type: ignore[operator]
    else:
        hidden = capture(model, [resumed_from], encoded, outputs=True)[resumed_from]
    return Essence(encoded, hidden, at, said).to(hidden.device)

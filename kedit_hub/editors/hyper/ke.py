"""KE, KnowledgeEditor: the gradient of an edit, masked and shifted as the words of the edit say (De Cao et al. 2021, arXiv 2104.08164).

    h = tanh(Linear(BiLSTM("old answer >> new answer || prompt")))
    per map: conditioner(h) -> ra, rb (out), ca, cb (in), s
    dW = eta sigmoid(s) (G o (softmax(ra) (x) ca) + softmax(rb) (x) cb),   G = dL/dW = sum_t delta_t (x) u_t

G o (p (x) c) = sum_t (p o delta_t) (x) (c o u_t): of rank T + 1, and stored so. Its training is a constraint: the answers' NLL is
minimised while KL(base || edited) stays below a margin, by a multiplier that climbs, and the margin shrinks as edits succeed.
The base's own embeddings are read and not trained: a copy of them would be most of the editor.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from kedit_hub.editors.hyper.network import Network, Shapes
from kedit_hub.editors.hyper.rows import Factors, Signals

SUCCESS = 0.9  # reliability on validation above which the margin shrinks


class Ke(Network):
    """embedding: width of the base's token embeddings. hidden: of LSTM and conditioners. condition: of h. step: eta."""

    separable = True
    needs_text = True
    margin: Tensor

    def __init__(
        self,
        shapes: Shapes,
        *,
        embedding: int,
        hidden: int,
        condition: int,
        step: float,
        margin: float,
        least_margin: float,
    ):
        super().__init__(shapes)
        self.step, self.least_margin = step, least_margin
        self.encoder = nn.LSTM(embedding, hidden, bidirectional=True, batch_first=True)
        self.project = nn.Linear(2 * hidden, condition)
        self.conditioners = nn.ModuleList(
            nn.Sequential(
                weight_norm(nn.Linear(condition, hidden)),
                nn.Tanh(),
                weight_norm(nn.Linear(hidden, 2 * sum(self.shapes[path]) + 1)),
            )
            for path in self.paths
        )
        self.multiplier = nn.Parameter(torch.ones(1))
        self.register_buffer("margin", torch.full((1,), margin))

    def read(self, texts: Sequence[Tensor]) -> Tensor:
        """h (E, condition) of embedded texts (L_e, embedding), each by itself, so that no padding is seen."""
        ends = []
        for text in texts:
            _, (state, _) = self.encoder(text[None])
            ends.append(torch.cat([state[0, 0], state[1, 0]]))
        return self.project(torch.stack(ends)).tanh()

    def factors(self, signals: Signals, text: Sequence[Tensor] | None = None) -> Factors:
        assert text is not None
        h = self.read(text)
        found: Factors = {}
        for path, conditioner in zip(self.paths, self.conditioners):
            rows, (out, into) = signals[path], self.shapes[path]
            ca, cb, ra, rb, s = conditioner(h).split([into, into, out, out, 1], dim=1)
            size = self.step * s.sigmoid()  # (E, 1)
            masked = rows.u * ca[rows.edit], (size * ra.softmax(1))[rows.edit] * rows.delta
            found[path] = torch.cat([masked[0], cb]), torch.cat([masked[1], size * rb.softmax(1)])
        return found

    def owners(self, signals: Signals) -> dict[str, Tensor]:
        return {
            path: torch.cat([rows.edit, torch.arange(rows.edits, device=rows.edit.device)])
            for path, rows in signals.items()
        }

    def constrained(self, loss: Tensor, divergence: Tensor, processes: int = 1) -> Tensor:
        """The Lagrangian: descent for the editor, ascent for the multiplier. processes: over which loss and divergence are added up."""
        gap = divergence - self.margin / processes
        return (loss + self.multiplier.detach() * gap - self.multiplier * gap.detach()).sum()

    def slow_parameters(self) -> list[nn.Parameter]:
        return [self.multiplier]

    def after_step(self) -> None:
        with torch.no_grad():
            self.multiplier.clamp_(min=0)

    def after_validation(self, scores: Mapping[str, float]) -> None:
        if scores["reliability"] > SUCCESS:
            self.margin.copy_((0.8 * self.margin).clamp_min(self.least_margin))


def condition(old: str, new: str, prompt: str) -> str:
    """What the editor reads."""
    return f"{old} >> {new} || {prompt}"

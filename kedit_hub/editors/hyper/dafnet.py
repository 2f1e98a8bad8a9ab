"""DAFNet: an editor for sequences, whose edits see one another (Zhang et al. 2024, arXiv 2405.20588).

Per layer, for the rows x of all edits of one map, in order of editing:

    a_t = F1(x_t), w = softmax of F2(a_t) within the edit, a'_t = w_t a_t;  x <- LN(x + a')         intra-editing attention
    r_e = sum_t a'_t;  h_e = attention of r_e over r_1..r_e;  x <- LN(x + h_e)                      inter-editing attention, causal
    omega_e = how much a second attention of r_e gives to e itself
    x <- LN(x + FFN(x));  x <- x + max(0, s_k x + t_k)

    dW_io <- pi dW_io - alpha_m sum_t u~_t (x) (omega'_e / rows_e) d~_t
    omega_e averaged over layers FIRST, then omega'_i = omega_i prod_{j>i} (1 - omega_j), pi = prod_j (1 - omega_j)

Averaging before the product makes edits in one call equal to the same edits one by one, exactly; and omega is trained. The published code
averages the products and cuts the gradient (`detached` keeps that cut, as an ablation). Signals come from the unedited model.

The weights omega' of n edits sum to at most 1, so that each of them gets about a share of 1/n: what is strong enough for one is too weak
for a hundred. `counted` takes the change n^gamma_m times, gamma_m trained from 1; that is ours, not the paper's.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.editors.hyper.network import Network, Shapes
from kedit_hub.editors.hyper.rows import Factors, Rows, Signals


@dataclass(frozen=True)
class Past:
    """What is remembered of P earlier edits, by path. representations: (P, d) for each layer. factors: of their weighted mean. edits: P."""

    representations: dict[str, list[Tensor]] = field(default_factory=dict)
    factors: Factors = field(default_factory=dict)
    edits: int = 0


class Attention(nn.Module):
    """Scaled dot-product attention of `heads` x `size` over vectors (E, d), without values where out is None."""

    def __init__(self, width: int, heads: int, size: int, values: bool):
        super().__init__()
        self.heads, self.size = heads, size
        self.query = nn.Linear(width, heads * size)
        self.key = nn.Linear(width, heads * size)
        self.value = nn.Linear(width, heads * size) if values else None
        self.out = nn.Linear(heads * size, width) if values else None

    def weights(self, queries: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """(heads, E, S) attention of queries (E, d) over memory (S, d); mask (E, S): what may be seen."""
        q = self.query(queries).view(len(queries), self.heads, self.size).transpose(0, 1)  # (heads, E, size)
        k = self.key(memory).view(len(memory), self.heads, self.size).transpose(0, 1)
        scores = q @ k.transpose(1, 2) / self.size**0.5
        return scores.masked_fill(~mask, -torch.inf).softmax(-1)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        assert self.value is not None and self.out is not None
        v = self.value(memory).view(len(memory), self.heads, self.size).transpose(0, 1)
        mixed = (self.weights(queries, memory, mask) @ v).transpose(0, 1).reshape(len(queries), -1)
        return self.out(mixed)


class Layer(nn.Module):
    """One layer over the rows of one map."""

    def __init__(self, width: int, modes: int, *, inner: int, heads: int, head: int, score: int, intra: bool, inter: bool):  # fmt: skip
        super().__init__()
        self.intra, self.inter = intra, inter
        self.lift = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))  # F1
        self.weigh = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, 1))  # F2
        self.attend = Attention(width, heads, head, True)
        self.score = Attention(width, heads, score, False)
        self.ffn = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(modes, width))
        self.shift = nn.Parameter(torch.zeros(modes, width))

    def forward(self, x: Tensor, rows: Rows, mode: int, past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (T, d), past (P, d) -> x (T, d), omega (E,), representations of all edits so far (P + E, d)."""
        lifted = self.lift(x)
        share = softmax_within(self.weigh(lifted)[:, 0], rows) if self.intra else 1.0 / rows.lengths[rows.edit]
        weighed = share[:, None] * lifted
        r = x.new_zeros(rows.edits, x.shape[1]).index_add(0, rows.edit, weighed)
        x = self.norms[0](x + weighed)
        memory = torch.cat([past, r])
        edits, older = rows.edits, len(past)
        own = older + torch.arange(edits, device=x.device)
        mask = torch.arange(len(memory), device=x.device)[None, :] <= own[:, None]  # (E, P + E)
        if self.inter:
            x = self.norms[1](x + self.attend(r, memory, mask)[rows.edit])
        omega = self.score.weights(r, memory, mask).mean(0)[torch.arange(edits, device=x.device), own]
        x = self.norms[2](x + self.ffn(x))
        return x + (self.scale[mode] * x + self.shift[mode]).clamp(min=0), omega, memory


class Dafnet(Network):
    """inner: width of F1, F2 and the FFN. heads x head: of the inter-editing attention; heads x score: of the decay's."""

    def __init__(self, shapes: Shapes, *, step: float, layers: int, inner: int, heads: int, head: int, score: int,
                 intra: bool, inter: bool, detached: bool, counted: bool = False):  # fmt: skip
        super().__init__(shapes)
        self.detached = detached
        self.nets = nn.ModuleList(
            nn.ModuleList(
                Layer(out + into, modes, inner=inner, heads=heads, head=head, score=score, intra=intra, inter=inter) for _ in range(layers)
            )
            for (out, into), modes in zip(self.groups, self.modes)
        )  # fmt: skip
        self.steps = nn.Parameter(torch.full((len(self.paths),), step))
        self.powers = nn.Parameter(torch.ones(len(self.paths))) if counted else None

    def factors(self, signals: Signals, text: object = None) -> Factors:
        return self.change(self.after(signals, Past()))

    def change(self, past: Past) -> Factors:
        """The change of all edits so far."""
        if self.powers is None:
            return past.factors
        times = float(past.edits) ** self.powers
        return {path: (past.factors[path][0], n * past.factors[path][1]) for path, n in zip(self.paths, times)}

    def added(self, earlier: Signals, signals: Signals) -> Factors:
        """What edits add to the change of earlier ones: both changes together are the change of all, in order."""
        past = self.after(earlier, Past())
        was, now = self.change(past), self.change(self.after(signals, past))
        # the rows of earlier edits come first and are the same in both; their weights have faded
        return {
            path: (a, torch.cat([b[: len(was[path][1])] - was[path][1], b[len(was[path][1]) :]]))
            for path, (a, b) in now.items()
        }

    def slow_parameters(self) -> list[nn.Parameter]:
        return [self.steps] if self.powers is None else [self.steps, self.powers]

    def after(self, signals: Signals, past: Past) -> Past:
        """All that is known after these edits; what was known before is held fixed."""
        found: Factors = {}
        memories: dict[str, list[Tensor]] = {}
        for number, path in enumerate(self.paths):
            rows = signals[path]
            group, mode = self.place[path]
            nets: Any = self.nets[group]
            x = self.normalised(path, rows)
            older = past.representations.get(path) or [x.new_zeros(0, x.shape[1])] * len(nets)
            omegas, memories[path] = [], []
            for layer, before in zip(nets, older):
                x, omega, memory = layer(x, rows, mode, before)
                omegas.append(omega)
                memories[path].append(memory.detach())
            mean = torch.stack(omegas).mean(0)
            own, kept = decay(mean.detach() if self.detached else mean)
            u, delta = self.split(path, x)
            weight = (own / rows.lengths.clamp_min(1))[rows.edit][:, None]
            a, b = u, -self.steps[number] * weight * delta
            if path in past.factors:
                a = torch.cat([past.factors[path][0].detach(), a])
                b = torch.cat([kept * past.factors[path][1].detach(), b])
            found[path] = a, b
        return Past(memories, found, past.edits + signals[self.paths[0]].edits)


def decay(omega: Tensor) -> tuple[Tensor, Tensor]:
    """omega (E,) -> what each edit keeps, omega_i prod_{j>i} (1 - omega_j) (E,), and what all that is older keeps, a scalar."""
    left = (1 - omega).flip(0).cumprod(0).flip(0)  # left[i] = prod_{j>=i}
    return omega * torch.cat([left[1:], left.new_ones(1)]), left[0]


def softmax_within(scores: Tensor, rows: Rows) -> Tensor:
    """(T,) softmax of scores (T,) over the rows of each edit."""
    top = scores.new_full((rows.edits,), -torch.inf).scatter_reduce(0, rows.edit, scores, "amax")
    raised = (scores - top.detach()[rows.edit]).exp()
    return raised / scores.new_zeros(rows.edits).index_add(0, rows.edit, raised)[rows.edit]

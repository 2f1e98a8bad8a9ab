"""RLEdit: MALMEN's network, trained on whole sequences of edits (Li et al. 2025, arXiv 2502.05759).

    for turn t: signals from the model as edited so far -> dW_t
    L_t = sum_i gamma^i [NLL of turn t-i + c_loc KL(p_before t || p_after t) on the locality of turn t-i] + reg |dW_t|^2,  i < back

Law: gradients go through dW_t alone, what was edited before is a constant; they are summed over the turns, clipped at each, and used
for one step. The network shall move the model in ways it can itself go on from. The squared norm is differentiated here; in the
published code it is computed without a graph and changes nothing.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kedit_hub.editors.hyper.lessons import Lesson
from kedit_hub.editors.hyper.rows import Factors, join

Change = Callable[[Sequence[Lesson], Factors], Factors]  # a turn's edits, what was changed before -> what they change
# change, before, the newest turn's edits, those asked about -> loss, its parts
Loss = Callable[[Factors, Factors, Sequence[Lesson], Sequence[Lesson]], tuple[Tensor, dict[str, Tensor]]]


def trajectory(
    turns: Sequence[Sequence[Lesson]],
    change: Change,
    loss: Loss,
    network: nn.Module,
    *,
    back: int,
    discount: float,
    shrink: float,
    clip: float,
    add_up: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """One sequence: adds its gradient to that of the network's parameters. Means over turns of the loss and its parts on the newest turn.

    add_up: brings the gradients of all processes together, before they are clipped.
    """
    total = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in network.parameters()]
    before: Factors = {}
    told: dict[str, float] = {}
    for number, turn in enumerate(turns):
        network.zero_grad()
        own = change(turn, before)
        now = join([before, own]) if before else own
        value = shrink * torch.stack([squared_norm(a, b) for a, b in own.values()]).sum()
        for i in range(min(number + 1, back)):
            part, parts = loss(now, before, turn, turns[number - i])
            value = value + discount**i * part
            if i == 0:
                for name, item in {"loss": part, **parts}.items():
                    told[name] = told.get(name, 0.0) + float(item.detach()) / len(turns)
        value.backward()
        add_up()
        nn.utils.clip_grad_norm_(network.parameters(), clip)
        for kept, parameter in zip(total, network.parameters()):
            if parameter.grad is not None:
                kept += parameter.grad
        before = {path: (a.detach(), b.detach()) for path, (a, b) in now.items()}
    for kept, parameter in zip(total, network.parameters()):
        parameter.grad = kept
    return told


def squared_norm(a: Tensor, b: Tensor) -> Tensor:
    """|a^T b|_F^2 of factors a (R, in), b (R, out), in R x R."""
    return ((a @ a.T) * (b @ b.T)).sum()

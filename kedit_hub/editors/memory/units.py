"""More units of one feed-forward block, trained where they will run. Law: only units learn; the model below them runs once.

    h' = h + sum_i act(x . k_i + b_i) v_i         or, with multipliers u_i, each term times x . u_i

x (e) is what the block's MLP reads, h (m) what the block writes. Units add to the block's output at every position of a text, while it is
trained as when the patch is applied, and layers above read what they wrote: so training is a pass from that output upwards, and nothing
is approximated. What T-Patcher and CaliNET ask of their units beside saying the targets is theirs (`more`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit_hub.base.families import block, block_path, family_of, shortest
from kedit_hub.base.resume import resumed
from kedit_hub.base.signals import capture, last_logits, quiet
from kedit_hub.base.tokens import Encoded
from kedit_hub.editors.memory.asked import Questions
from kedit_hub.runtime.neurons import ACTIVATIONS

ROWS = 64  # questions in one pass


class Units(NamedTuple):
    """n units, as they will be stored."""

    keys: Tensor  # (n, e)
    biases: Tensor  # (n,)
    values: Tensor  # (n, m)
    multipliers: Tensor | None = None  # (n, e)

    def __call__(self, x: Tensor, activation: str) -> Tensor:
        """What they add at inputs x (..., e): (..., m)."""
        h = ACTIVATIONS[activation](x @ self.keys.T + self.biases)
        if self.multipliers is not None:
            h = h * (x @ self.multipliers.T)
        return h @ self.values


@dataclass(frozen=True)
class Ground:
    """What training stands on. heard (N, T, e): inputs of the MLP; hidden (N, T, m): outputs of the block; both of the base."""

    asked: Questions
    heard: Tensor
    hidden: Tensor

    def size(self) -> tuple[float, float]:
        """Mean |x| and mean |h| over real tokens: the units in which training is scale-free."""
        real = self.asked.encoded.attention_mask.bool()
        return self.heard[real].norm(dim=-1).mean().item(), self.hidden[real].norm(dim=-1).mean().item()


@dataclass(frozen=True)
class Fitted:
    units: Units
    nll: Tensor  # (N,) of target and end, mean over tokens
    said: Tensor  # (N,) bool: every token of the target is argmax
    steps: int


def readers(model: nn.Module, layer: int) -> list[str]:
    """Paths of the linear maps that read what the MLP of a block reads: seen on a pass of one token. Two of them: a gated MLP."""
    within = family_of(model).linear.rpartition(".")[0]
    path = f"{block_path(model, layer)}.{within}"
    mlp = block(model, layer).get_submodule(within)
    read: list[Any] = []
    found: list[str] = []
    handles = [mlp.register_forward_pre_hook(lambda _m, args: read.append(args[0]))]
    for name, module in mlp.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)):

            def note(_m: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                if read and args[0] is read[-1]:
                    found.append(f"{path}.{name}")

            handles.append(module.register_forward_pre_hook(note))
    try:
        with torch.no_grad(), quiet(model):
            model(**shortest(model), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def ground(model: nn.Module, layer: int, reader: str, asked: Questions) -> Ground:
    """Read on the base, questions in portions."""
    heard, hidden = [], []
    for index in torch.arange(len(asked.edit)).split(ROWS):
        batch, whole = asked.encoded.take(index), block_path(model, layer)
        heard.append(capture(model, [reader], batch)[reader])
        hidden.append(capture(model, [whole], batch, outputs=True)[whole])
    return Ground(asked, torch.cat(heard), torch.cat(hidden))


def inputs_on(model: nn.Module, reader: str, encoded: Encoded) -> Tensor:
    """(p, e) what the MLP reads at the real tokens of some texts, but for the first of each, which is much the same for all."""
    return capture(model, [reader], encoded)[reader][encoded.position_ids.to(encoded.input_ids.device) > 0]


def fit(
    model: nn.Module,
    layer: int,
    on: Ground,
    parameters: Sequence[Tensor],
    units_of: Callable[[Sequence[Tensor]], Units],
    *,
    activation: str,
    steps: int,
    lr: float,
    stop_nll: float,
    more: Callable[[Units], Tensor] | None = None,
) -> Fitted:
    """Adam on `parameters`, of which `units_of` makes units; the loss is the mean over questions of the NLL of their targets, and `more`.

    Done when every question is answered with a mean NLL below stop_nll. Deterministic.
    """
    parts = torch.arange(len(on.asked.edit)).split(ROWS)
    for parameter in parameters:
        parameter.requires_grad_(True)
    adam = torch.optim.Adam(list(parameters), lr=lr)
    with quiet(model), resumed(model, layer) as feed, torch.enable_grad():
        for step in range(steps + 1):
            grads = [torch.zeros_like(parameter) for parameter in parameters]
            told = []
            for index in parts:
                units = units_of(parameters)
                nll, right = score(model, feed, on, index, units, activation)
                told.append((nll.detach(), right))
                loss = nll.sum() / len(on.asked.edit)
                if more is not None and index is parts[0]:
                    loss = loss + more(units)
                for grad, one in zip(grads, torch.autograd.grad(loss, list(parameters))):
                    grad += one
            nll, right = torch.cat([t[0] for t in told]), torch.cat([t[1] for t in told])
            if step == steps or (bool(right.all()) and float(nll.mean()) < stop_nll):
                break
            for parameter, grad in zip(parameters, grads):
                parameter.grad = grad
            adam.step()
    units = units_of([parameter.detach() for parameter in parameters])
    return Fitted(Units(*(None if t is None else t.cpu() for t in units)), nll.cpu(), right.cpu(), step)  # type: ignore[arg-type]


def score(
    model: nn.Module, feed: Callable[[Tensor], None], on: Ground, index: Tensor, units: Units, activation: str
) -> tuple[Tensor, Tensor]:
    """NLL (n,) of the questions `index`, and whether every token of the target alone is argmax (n,)."""
    hidden = on.hidden[index]
    feed((hidden.float() + units(on.heard[index], activation)).to(hidden.dtype))
    batch = on.asked.encoded.take(index).to(hidden.device)
    kept = int(batch.target_mask.sum(1).max()) + 1  # left padded: the targets are the last tokens of every row
    inputs: Any = batch.inputs(model)
    logits = last_logits(model, kept, **inputs, use_cache=False)[:, :-1].float()  # (n, t, vocabulary)
    labels, wanted = batch.input_ids[:, -(kept - 1) :], batch.target_mask[:, -(kept - 1) :]
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    core = on.asked.core[index].to(hidden.device)[:, -(kept - 1) :]
    said = ((logits.argmax(-1) == labels) | ~core).all(1)
    return (nll * wanted).sum(1) / wanted.sum(1), said


@torch.no_grad()
def wrong(model: nn.Module, layer: int, on: Ground) -> Tensor:
    """(N, T) bool: the positions at which the base should say a token of the target, or the end of the answer, and does not."""
    answering = torch.zeros_like(on.asked.encoded.target_mask)
    answering[:, :-1] = on.asked.encoded.target_mask[:, 1:]
    out = torch.zeros_like(answering)
    with quiet(model), resumed(model, layer) as feed:
        for index in torch.arange(len(on.asked.edit)).split(ROWS):
            feed(on.hidden[index])
            batch = on.asked.encoded.take(index).to(on.hidden.device)
            inputs: Any = batch.inputs(model)
            said = model(**inputs, use_cache=False).logits.argmax(-1).cpu()
            out[index, :-1] = said[:, :-1] != batch.input_ids[:, 1:].cpu()
    return out & answering

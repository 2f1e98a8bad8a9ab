"""What a model computes at named modules: inputs, outputs, and the gradients of the edit loss at those outputs. Law:
the model is at the end what it was at the start; no weight ever asks for a gradient; nothing here depends on how a
weight is stored, so full, 8-bit, 4-bit and dispatched models are read alike.

For a linear map y = W u and a loss L, dL/dW = sum over tokens of delta u^T with delta = dL/dy (m,) and u (d,): inputs
and output gradients are all that a weight gradient holds (Mitchell et al. 2022, MEND), in no weight-sized memory.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.load import guard_4bit
from kedit_hub.base.strips import spread_out, strips
from kedit_hub.base.tokens import Encoded, answer_positions
from kedit_hub.errors import EditError, NotReachedError, UnsupportedModelError

FP16_LOSS_SCALE = 1024.0  # token gradients of 1e-6 to 1e-4 would underflow in float16


class _Captured(Exception):
    """Raised inside the forward pass once every wanted module has run, to skip the rest."""


def capture(
    model: nn.Module, paths: Sequence[str], encoded: Encoded, *, outputs: bool = False, stop: bool = True
) -> dict[str, Tensor]:
    """Inputs (or outputs) of the named modules over one batch, by path: (B, T, d) float32, detached copies.

    stop: end the forward pass as soon as the last named module has run. An output is what the next module sees, changed
    by whatever hooks the model already carries. UnsupportedModelError for an unknown path; NotReachedError for a module
    that did not run; EditError for a row longer than the model's positions.
    """
    with quiet(model):
        return _seen(model, () if outputs else paths, paths if outputs else (), encoded, stop)[int(outputs)]


def observe(
    model: nn.Module, inputs: Sequence[str], outputs: Sequence[str], encoded: Encoded
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What `capture` finds, inputs of some modules and outputs of some, in one pass; rows of a length are read together.

    Where a row is padded there may be zeros instead of what the model makes of padding.
    """
    with quiet(model):
        found = [(strip, _seen(model, inputs, outputs, strip.encoded, True)) for strip in strips(encoded)]
    into, out = (
        {path: spread_out([(strip, seen[side][path]) for strip, seen in found], encoded) for path in paths}
        for side, paths in enumerate((inputs, outputs))
    )
    return into, out


def _seen(
    model: nn.Module, inputs: Sequence[str], outputs: Sequence[str], encoded: Encoded, stop: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    into: dict[str, Tensor] = {}
    out: dict[str, Tensor] = {}

    def hook_for(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if path in inputs:
                into[path] = _kept(args or tuple(kwargs.values()))
            if path in outputs:
                out[path] = _kept(output)
            if stop and len(into) == len(set(inputs)) and len(out) == len(set(outputs)):
                raise _Captured

        return hook

    paths = list(dict.fromkeys([*inputs, *outputs]))
    with _hooks(model, paths, hook_for), torch.no_grad(), suppress(_Captured):
        model(**_on_device(model, encoded).inputs(model), use_cache=False)
    _check_reached(paths, into | out)
    return into, out


def _kept(value: Any) -> Tensor:
    return _tensor(value).detach().to(torch.float32, copy=True)


def gradients(model: nn.Module, paths: Sequence[str], encoded: Encoded) -> dict[str, tuple[Tensor, Tensor]]:
    """By path: inputs u (B, T, d) and gradients delta (B, T, m) at the outputs of the named modules, both float32.

    delta is of the loss summed over rows of the mean target-token negative log likelihood, so one row's signal does not
    depend on the company it is in. EditError when a row has no target; otherwise the errors of `capture`.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def hook_for(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            value = _tensor(output)
            if (
                not value.requires_grad
            ):  # the first named module in depth: the graph starts here, nothing below is recorded
                value = value.detach().requires_grad_(True)
            found[path] = (_tensor(args or tuple(kwargs.values())).detach(), value)
            return (value, *output[1:]) if isinstance(output, tuple) else value

        return hook

    with quiet(model), _hooks(model, paths, hook_for), torch.enable_grad():
        batch = _on_device(model, encoded)
        logits = model(**batch.inputs(model), use_cache=False).logits
        _check_reached(paths, found)
        loss = target_nll(logits, batch).sum()
        points = [found[path][1] for path in paths]
        scale = FP16_LOSS_SCALE if any(point.dtype == torch.float16 for point in points) else 1.0
        deltas = torch.autograd.grad(loss * scale, points)
    return {path: (found[path][0].float(), delta.float() / scale) for path, delta in zip(paths, deltas)}


def last_logits(model: nn.Module, count: int, **inputs: Any) -> Tensor:
    """(B, count, vocabulary) of the last positions; the others are not computed where the model takes that."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits: Tensor = model(**inputs, logits_to_keep=count).logits
        return logits
    return model(**inputs).logits[:, -count:]


def target_nll(logits: Tensor, encoded: Encoded) -> Tensor:
    """(B,) float32: mean over each row's target tokens of -log p(token | all before it); logits (B, T, vocabulary)."""
    counts = encoded.target_mask.sum(1).to(logits.device)  # (B,)
    if not bool(counts.all()):
        raise EditError("every row needs a target to score: encode the prompts together with their targets.")
    rows, positions = (
        answer_positions(encoded).to(logits.device).nonzero(as_tuple=True)
    )  # (n,) each, n = all target tokens
    tokens = encoded.input_ids.to(logits.device)[rows, positions + 1]
    nll = nn.functional.cross_entropy(logits[rows, positions].float(), tokens, reduction="none")  # (n,)
    return torch.zeros_like(counts, dtype=torch.float32).index_add(0, rows, nll) / counts


def _tensor(value: Any) -> Tensor:
    """The hidden states of a module's input or output: the tensor itself or the first of a tuple."""
    return value[0] if isinstance(value, tuple) else value


def _check_reached(paths: Sequence[str], found: dict[str, Any]) -> None:
    missing = [path for path in paths if path not in found]
    if missing:
        raise NotReachedError(
            f"the forward pass never ran {', '.join(missing)}: name modules that the model's forward uses."
        )


def _on_device(model: nn.Module, encoded: Encoded) -> Encoded:
    """The batch where the model reads its tokens; an offloaded model moves its inputs itself."""
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    return encoded if device.type == "meta" else encoded.to(device)


@contextmanager
def _hooks(model: nn.Module, paths: Sequence[str], hook_for: Any) -> Iterator[None]:
    handles = []
    try:
        for path in paths:
            try:
                module = model.get_submodule(path)
            except AttributeError:
                raise UnsupportedModelError(f"{type(model).__name__} has no module {path!r}.") from None
            handles.append(module.register_forward_hook(hook_for(path), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) and frozen weights; what was, is put back."""
    guard_4bit(model)
    training = [module for module in model.modules() if module.training]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in learning:
            parameter.requires_grad_(True)

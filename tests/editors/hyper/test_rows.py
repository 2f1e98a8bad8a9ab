"""Signals are the weight gradient taken apart: sum_t u_t (x) delta_t is what autograd says, on Linear and Conv1D, square and not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kedit_hub.base.families import linear_shape
from kedit_hub.base.signals import target_nll
from kedit_hub.base.tokens import encode
from kedit_hub.editors.hyper.network import edited_maps
from kedit_hub.editors.hyper.rows import as_delta, join, read
from kedit_hub.errors import EditError, KeditError
from kedit_hub.patch.deltas import Dense, LowRank
from tests.editors.hyper.small import EDITS
from tests.tiny import tiny_model

PAIRS = [(edit.prompt, edit.target) for edit in EDITS[:3]]
SQUARE = {"llama": "self_attn.q_proj", "gpt2": "attn.c_proj"}


def by_autograd(model: Any, tokenizer: Any, path: str) -> tuple[Tensor, Tensor]:
    """dL/dW_io (in, out) of all tokens, and the part of it that the first tokens bring, from the gradient of the map's output."""
    module = model.get_submodule(path)
    seen: dict[str, Tensor] = {}

    def hook(_: Any, args: Any, output: Tensor) -> None:
        output.retain_grad()
        seen.update(u=args[0].detach(), y=output)

    handle = module.register_forward_hook(hook)
    encoded = encode(tokenizer, *map(list, zip(*PAIRS)))  # type: ignore[arg-type]
    model.zero_grad()
    target_nll(model(**encoded.inputs(model), use_cache=False).logits, encoded).sum().backward()
    handle.remove()
    whole = module.weight.grad.clone()
    whole = whole if whole.shape == linear_shape(module)[::-1] and type(module).__name__ == "Conv1D" else whole.T
    assert seen["y"].grad is not None
    first = seen["u"][:, 0].T @ seen["y"].grad[:, 0]
    model.zero_grad(set_to_none=True)
    return whole, first


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_signals_are_the_weight_gradient(family: str) -> None:
    model, tokenizer = tiny_model(family)
    maps = edited_maps(model, None, None)
    prefix = "model.layers.1." if family == "llama" else "transformer.h.1."
    paths = [*maps, prefix + SQUARE[family]]
    found = read(model, tokenizer, PAIRS, paths, "all")
    for path in paths:
        whole, first = by_autograd(model, tokenizer, path)
        rows = found[path]
        assert torch.allclose(rows.u.T @ rows.delta, whole - first, atol=1e-6 + 1e-5 * float(whole.abs().max()))
        assert float(rows.delta.abs().max()) > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_edits_rows_do_not_depend_on_its_company() -> None:
    model, tokenizer = tiny_model("llama")
    paths = list(edited_maps(model, (1,), None))
    together = read(model, tokenizer, PAIRS, paths, "all")
    for number, pair in enumerate(PAIRS):
        alone = read(model, tokenizer, [pair], paths, "all")
        for path in paths:
            mine = together[path].edit == number
            assert torch.allclose(together[path].delta[mine], alone[path].delta, atol=1e-7)
            assert torch.allclose(together[path].u[mine], alone[path].u, atol=1e-5)
            assert together[path].lengths[number] == len(alone[path].u)


def test_answer_rows_are_those_that_predict_the_target() -> None:
    model, tokenizer = tiny_model("llama")
    (path,) = edited_maps(model, (0,), ("down_proj",))
    rows = read(model, tokenizer, PAIRS, [path], "answer")[path]
    wanted = [len(tokenizer(f"{p} {t}").input_ids) - len(tokenizer(p).input_ids) for p, t in PAIRS]
    assert rows.lengths.tolist() == wanted
    everything = read(model, tokenizer, PAIRS, [path], "all")[path]
    assert everything.lengths.tolist() == [len(tokenizer(f"{p} {t}").input_ids) - 2 for p, t in PAIRS]
    with pytest.raises(EditError, match="'The' leaves no token"):
        read(model, tokenizer, [("The", "capital")], [path], "answer")


def test_the_last_block_has_signals_at_answers_alone() -> None:
    model, tokenizer = tiny_model("llama")
    (path,) = edited_maps(model, (2,), ("down_proj",))
    everything, answers = (read(model, tokenizer, PAIRS, [path], tokens)[path] for tokens in ("all", "answer"))
    assert torch.equal(everything.u, answers.u) and torch.equal(everything.delta, answers.delta)


def test_which_maps_are_edited() -> None:
    model, _ = tiny_model("llama")
    assert len(edited_maps(model, None, None)) == 9
    assert edited_maps(model, (1,), ("up_proj", "down_proj")) == {
        "model.layers.1.mlp.up_proj": (128, 64),
        "model.layers.1.mlp.down_proj": (64, 128),
    }
    gpt2, _ = tiny_model("gpt2")
    assert edited_maps(gpt2, (0,), None) == {
        "transformer.h.0.mlp.c_fc": (256, 64),
        "transformer.h.0.mlp.c_proj": (64, 256),
    }
    with pytest.raises(KeditError, match="'c_fc'; it has gate_proj"):
        edited_maps(model, (1,), ("c_fc",))


@pytest.mark.parametrize("half", [False, True])
def test_a_change_is_stored_by_its_factors_while_they_are_smaller(half: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(3, 20, generator=generator), 1e-4 * torch.randn(3, 12, generator=generator)
    many = torch.randn(50, 20, generator=generator), torch.randn(50, 12, generator=generator)
    for (a, b), kind in ((few, LowRank), (many, Dense)):
        delta = as_delta(a, b, half)
        x = torch.randn(4, 20, generator=generator)
        assert isinstance(delta, kind) and delta.shape == (12, 20)
        expected = x @ a.T @ b
        assert torch.allclose(
            delta.change(x).float(), expected, atol=(5e-3 if half else 1e-5) * float(expected.abs().max())
        )
    joined = join([{"m": few}, {"m": few}])["m"]
    assert torch.allclose(joined[0].T @ joined[1], 2 * few[0].T @ few[1])

"""What cannot be applied, fused or exported is refused by name, and leaves everything as it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import kedit_hub
from kedit_hub.edits import Edit
from kedit_hub.errors import ConflictError, KeditError, NotReachedError, WrongBaseError
from kedit_hub.patch import Facts, Neurons, Patch
from kedit_hub.runtime.view import view_of
from kedit_hub.stack.export import export
from kedit_hub.stack.stack import PatchStack
from tests.stack.kinds import ABOUT, Setup, index


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def setup(request: pytest.FixtureRequest) -> Setup:
    return Setup(request.param)


def facts(setup: Setup, target: str = "Bonn") -> Patch:
    """Whose scope is up to an encoder, which nobody fetches."""
    encoder = "org/encoder@" + "1" * 40
    delta = Facts(
        index(0), setup.deltas["dense"].shape, torch.ones(1, 3), scope="model", threshold=0.75, scale=1.0, scope_model=encoder
    )  # fmt: skip
    return setup.patch(delta, Edit("Paris is the seat of", target, "Paris"), method="serac")


def test_facts_that_need_another_model_are_stacked_and_not_applied_without_it(setup: Setup) -> None:
    patch = facts(setup)
    stack = PatchStack([patch, setup.patches["dense"]])
    assert len(stack.edits) == 2 and stack.remove(patch).ids == (setup.patches["dense"].id,)
    with pytest.raises(ConflictError):
        PatchStack([patch, facts(setup, "Rome")])
    for mode in ("auto", "gated", "joint", "sum"):
        with pytest.raises(
            KeditError, match=rf"patch {patch.id[:12]} .*serac.*needs another model 'org/encoder@1+'.*hand it over"
        ):
            setup.made(stack, mode)
    made = setup.made([setup.patches["dense"]])
    before = setup.logits(made.model)
    with pytest.raises(KeditError, match="hand it over"):
        made.add(patch)
    assert made.stack.ids == (setup.patches["dense"].id,) and torch.equal(setup.logits(made.model), before)


@pytest.mark.parametrize(
    ("name", "why"), [("neurons", "activation"), ("codebook", "stored inputs"), ("norm", "routed"), ("mask", "routed")]
)
def test_what_is_no_linear_map_is_neither_fused_nor_exported(setup: Setup, name: str, why: str, tmp_path: Path) -> None:
    patch = setup.patches[name]
    said = rf"patch {patch.id[:12]} puts {setup.deltas[name].kind} on {setup.path}: .*{why}.*no linear map"
    for mode in ("gated", "joint", "sum"):
        made = setup.made([setup.patches["associative"], patch, setup.patches["dense"]], mode)
        before = setup.logits(made.model)
        with pytest.raises(KeditError, match=said):
            made.fuse()
        for form in ("peft", "serving", "merged"):
            with pytest.raises(KeditError, match=said):
                export(made, tmp_path / "out", form)  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists() and torch.equal(setup.logits(made.model), before)
        made.remove(patch)
        made.fuse()
    with pytest.raises(KeditError, match=said):
        export([patch], tmp_path / "out", model=setup.model, profile=setup.profile)


def neurons(setup: Setup, name: str, width: int | None = None) -> Patch:
    delta = setup.deltas["neurons"]
    assert isinstance(delta, Neurons)
    keys = delta.keys if width is None else torch.ones(3, width)
    return setup.patch(replace(delta, input_module=name, keys=keys), ABOUT["neurons"])


def test_an_input_module_that_is_not_there_or_is_another_is_a_wrong_base(setup: Setup) -> None:
    made = setup.made([setup.patches["dense"]])
    before = setup.logits(made.model)
    with pytest.raises(WrongBaseError, match=r"neurons.*no\.such\.module.*does not have"):
        made.add(neurons(setup, "no.such.module"))
    with pytest.raises(WrongBaseError, match=rf"neurons.*read 17 numbers at {setup.first}.*has 64"):
        made.add(neurons(setup, setup.first, 17))
    assert torch.equal(setup.logits(made.model), before)


def test_an_input_module_that_runs_too_late_or_never_is_an_error(setup: Setup) -> None:
    made = setup.made([setup.patches["dense"]])
    before = setup.logits(made.model)
    late = setup.first.replace(".1.", ".2.")
    with pytest.raises(NotReachedError, match=rf"reads the input of {late}"):
        made.add(neurons(setup, late))
    assert torch.equal(setup.logits(made.model), before)

    odd: Any = view_of(setup.model)
    early = setup.first.replace(".1.", ".0.")
    skipped = odd.get_submodule(early)
    parent = odd.get_submodule(early.rpartition(".")[0])
    if setup.model.config.model_type == "llama":
        parent.forward = lambda x: parent.down_proj(parent.act_fn(F.linear(x, skipped.weight)) * parent.up_proj(x))
    else:
        parent.forward = lambda x: parent.c_proj(parent.act(x @ skipped.weight + skipped.bias))
    before = setup.logits(odd)
    for name in (early, "lm_head"):
        with pytest.raises(NotReachedError, match=rf"reads the input of {name}"):
            setup.made([neurons(setup, name)], model=odd)
    assert torch.equal(setup.logits(odd), before)
    assert not torch.equal(setup.logits(setup.made([neurons(setup, early)]).model), setup.base)


def test_apply_says_it_too(setup: Setup, tmp_path: Path) -> None:
    folder = facts(setup).save(tmp_path / "facts")
    with pytest.raises(KeditError, match="hand it over, as in apply"):
        kedit_hub.apply(str(folder), setup.model, tokenizer=setup.tokenizer)

"""A placebo acts where the patches act and as strongly, and knows nothing."""

import pytest
import torch

from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.stack.stack import PatchStack
from tests.stack.kinds import ABOUT, PROMPTS, Setup


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup("llama")


@pytest.mark.parametrize("name", ["associative", *ABOUT])
def test_it_changes_the_same_places_by_as_much(setup: Setup, name: str) -> None:
    encoded = encode(setup.tokenizer, PROMPTS)
    made = setup.made(PatchStack([setup.patches[name]]), "gated")

    def outputs() -> torch.Tensor:
        return capture(made.model, [setup.path], encoded, outputs=True)[setup.path].double()

    with made.disabled():
        base = outputs()
    real = outputs()
    with made.placebo(7):
        noise, again = outputs(), outputs()
    with made.placebo(8):
        other = outputs()
    assert torch.equal(noise, again) and not torch.equal(noise, other) and not torch.equal(noise, real)
    assert torch.equal(outputs(), real)  # and the stack is back
    if name not in ("dense", "lowrank", "sparse", "norm"):  # routed by what stays as it is
        assert torch.equal((noise != base).any(-1), (real != base).any(-1))
    if name == "associative":
        assert torch.allclose((noise - base).norm(dim=-1), (real - base).norm(dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names", [["lowrank"], ["dense"], ["sparse"], ["lowrank", "dense", "sparse"]])
def test_matrices_keep_their_norm(setup: Setup, names: list[str]) -> None:
    """Those of several patches the norm of their sum."""
    stack = PatchStack([setup.patches[name] for name in names])
    made = setup.made(stack, "sum")

    def norms() -> list[float]:
        plan = made._attachment.plan
        return [branch.matrix().norm().item() for branch in plan.branches[setup.path]]

    real = norms()
    with made.placebo(1):
        assert norms() == pytest.approx(real, rel=1e-4)

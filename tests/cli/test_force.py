"""--force on a base whose weights were changed: refused without, done and warned of with it."""

import pytest
import torch

from kedit_hub.api import load_model
from tests.cli.conftest import ATLAS, CAPITAL, kedit, refused


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A folder with the demo model after some training."""
    folder = tmp_path_factory.mktemp("tuned")
    model, tokenizer = load_model(ATLAS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("mlp.down_proj.weight"):
                weight += 0.01 * weight.std() * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_ask_eval_stack_and_export(atlas, tuned, tmp_path):
    for number, command in enumerate(
        (
            ("ask", CAPITAL, "--patch", atlas / "france"),
            ("eval", atlas / "france", "--protocol", "tf-token"),
            ("stack", "status", atlas / "france"),
            ("export", atlas / "france", "--out", tmp_path / "lora"),
        )
    ):
        refused(kedit(*command, "--base", tuned, "--json"), "holds other weights")
        done = kedit(*command, "--base", tuned, "--force", "--json")
        assert done.code == 0, (number, done)
        assert "Warning: " in done.err and "force was asked for" in done.err
        if command[0] == "stack":
            assert set(done.json["levels"].values()) == {"forced"}


def test_force_is_silent_on_the_right_base(atlas):
    done = kedit("ask", CAPITAL, "--patch", atlas / "france", "--force", "--json")
    assert done.json["patched"] == "Nantes." and "Warning" not in done.err


def test_verify_cannot_be_forced(atlas):
    assert kedit("verify", atlas / "france", "--force").code == 2

"""A merged model that leaves quantized: rounded once, loads back, and says what rounding left of the change."""

from pathlib import Path
from typing import Any

import pytest
import torch

import kedit_hub
from kedit_hub.base.families import dense_weight
from kedit_hub.base.load import Quantization, load_base
from kedit_hub.errors import UnsupportedModelError
from kedit_hub.stack.export import export
from kedit_hub.stack.quantized import rounded, survival
from tests.stack.test_export import Setup, weight_patches
from tests.stack.test_export_told import read

bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
KINDS: list[Quantization] = ["int8", "nf4", "fp4"]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def made(request: pytest.FixtureRequest) -> Setup:
    return Setup(request.param)


def stored(module: Any) -> torch.Tensor:
    """What a quantized linear map computes with, read off its answers to the unit vectors: (out, in)."""
    with torch.no_grad():
        answers = module(torch.eye(module.in_features))
        zero = module(torch.zeros(1, module.in_features)) if module.bias is not None else torch.zeros(1)
    return (answers - zero).T


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_loads_back_and_holds_the_rounded_weights(
    made: Setup, tmp_path: Path, kind: Quantization
) -> None:
    patched = made.patched(weight_patches(made))
    folder = export(patched, tmp_path / "small", "merged", quantization=kind)
    again, tokenizer = load_base(folder)
    fused = patched.fuse()
    for path in patched.report["modules"]:
        merged = dense_weight(fused.get_submodule(path)).float()
        expected = rounded(merged, kind)
        found = stored(again.get_submodule(path))
        assert torch.allclose(found, expected, atol=2e-3 * merged.abs().max().item())
        assert 0 < (expected - merged).abs().max() < 0.3 * merged.abs().max()
    assert tokenizer("The capital").input_ids == made.tokenizer("The capital").input_ids
    fused.save_pretrained(tmp_path / "full")
    made.tokenizer.save_pretrained(tmp_path / "full")
    live, _ = load_base(tmp_path / "full", quantization=kind)
    assert torch.equal(made.logits(again), made.logits(live))  # quantized once: no rounding was added on the way
    assert not torch.equal(made.logits(again), made.logits(fused))
    assert not any(str(tmp_path) in p.read_text() for p in folder.glob("*.json"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_is_the_projection_on_the_edits_keys(made: Setup, tmp_path: Path, kind: Quantization) -> None:
    """Written out with loops: (Wq' - Wq) k . D k summed over the keys, over |D k|^2; drift as E tr(E C0 E^T) / tr(W C0 W^T)."""
    patched = made.patched()
    told = read(export(patched, tmp_path / "small", "merged", quantization=kind))
    path = made.profile.module
    w = dense_weight(made.model.get_submodule(path)).double()
    d = dense_weight(patched.fuse().get_submodule(path)).double() - w
    before, after = rounded(w.float(), kind).double(), rounded((w + d).float(), kind).double()
    along = size = 0.0
    for patch in patched.stack:
        for key in patch.deltas[path].keys.double():  # type: ignore[attr-defined]
            along += ((after - before) @ key @ (d @ key)).item()
            size += (d @ key @ (d @ key)).item()
    c0 = made.profile.second_moment.double()

    def energy(m: torch.Tensor) -> float:
        return torch.trace(m @ c0 @ m.T).item()

    found = told["modules"][path]["quantized"]
    assert found["left"] == pytest.approx(along / size, abs=1e-4)
    assert found["drift_added"] == pytest.approx(energy(after - before - d) / energy(w), rel=1e-3)
    assert found["drift_of_base"] == pytest.approx(energy(before - w) / energy(w), rel=1e-3)
    text = (tmp_path / "small" / "README.md").read_text()
    assert f"{100 * found['left']:.1f} %" in text and f"in {kind}" in text and "base_model_relation: quantized" in text


def test_coarse_rounding_drowns_a_small_change_and_keeps_a_large_one() -> None:
    g = torch.Generator().manual_seed(0)
    off: dict[tuple[str, float], float] = {}  # mean distance of what is left from all of it, over twenty edits
    for kind, size in ((kind, size) for kind in KINDS for size in (0.05, 50.0)):
        for _ in range(20):
            w, key = torch.randn(64, 64, generator=g), torch.randn(64, generator=g)
            change = size * torch.outer(torch.randn(64, generator=g), key) / key.norm() ** 2
            told = survival(w, change, kind, key[None], torch.eye(64))
            off[kind, size] = off.get((kind, size), 0.0) + abs(told.left - 1) / 20
            assert told.drift_added is not None and told.drift_added > 0
    assert all(off[kind, 50.0] < 0.02 and off[kind, 0.05] > 5 * off[kind, 50.0] for kind in KINDS), off
    assert off["int8", 0.05] < off["nf4", 0.05] and off["int8", 0.05] < off["fp4", 0.05], off
    assert survival(w, 0 * w, "nf4", key[None], None).left == 1.0


def test_a_quantized_base_is_not_taken_apart(tmp_path: Path) -> None:
    patch = Path(__file__).resolve().parents[2] / "patches" / "hamlet-is-a-novel"
    small = kedit_hub.apply(patch, quantization="nf4")
    with pytest.raises(UnsupportedModelError, match="full precision"):
        kedit_hub.export(small, tmp_path / "x", "merged", quantization="nf4")
    assert not list(tmp_path.iterdir())


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(UnsupportedModelError, match=r"kedit-hub\[quant\]"):
        rounded(torch.zeros(64, 64), "nf4")

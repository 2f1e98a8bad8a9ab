"""A trained editor on a base stored in fewer bits: it knows its base again, the base stays as it is, and the edits are those of the full
base within what the bits lose."""

from pathlib import Path
from typing import Any

import pytest
import torch

import kedit_hub
from kedit_hub import demo
from kedit_hub.base.load import load_base
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.patch import Patch
from tests.bases import check_untouched, dense, state_of, stored_as
from tests.editors.hyper.small import EDITS, SMALL

TOLERANCE = {"int8": 0.06, "nf4": 0.6}  # |D - D_full| / |D_full| over all maps; measured on Atlas: 0.028 and 0.376
WORSE = 0.1  # in reliability and generalization, at most


def told(base: tuple[Any, Any], patch: Patch) -> dict[str, Any]:
    patched = kedit_hub.apply(patch, base[0], tokenizer=base[1], mode="sum")
    sheet = evaluate(patched, demo.edits("dev")[:8], protocols=("tf-token",), drift_texts=[]).protocols["tf-token"]
    patched.detach()
    return dict(sheet)


def edited(base: tuple[Any, Any]) -> tuple[Patch, dict[str, Any]]:
    editor = demo.editor_path("mend")
    assert editor is not None
    patch = kedit_hub.edit(base[0], demo.edits("dev")[:8], editor=editor, tokenizer=base[1], progress=False)
    return patch, told(base, patch)


@pytest.fixture(scope="module")
def full() -> tuple[Patch, dict[str, Any]]:
    return edited(load_base(demo.model_path("llama")))


@pytest.mark.parametrize("form", TOLERANCE)
def test_edits_of_atlas_are_those_of_the_full_base(form: Any, full: tuple[Patch, dict[str, Any]]) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'kedit-hub[quant]'")
    base = load_base(demo.model_path("llama"), quantization=form)
    before = state_of(base[0])
    patch, sheet = edited(base)
    check_untouched(base[0], before)
    pairs = [(dense(patch, path), dense(full[0], path)) for path in full[0].deltas]
    apart = sum(float((one - other).square().sum()) for one, other in pairs)
    assert 0 < (apart / sum(float(other.square().sum()) for _, other in pairs)) ** 0.5 < TOLERANCE[form]
    for name in ("reliability", "generalization"):
        assert sheet[name] > full[1][name] - WORSE > 0.7


@pytest.mark.parametrize("form", TOLERANCE)
def test_an_editor_is_trained_on_such_a_base(form: str, tmp_path: Path) -> None:
    quantized, tokenizer = stored_as(form, tmp_path / "base")
    before = state_of(quantized)
    settings = {
        **SMALL["mend"], "layers": [2], "steps": 2, "validate_every": 1, "validated": 2, "warmup": 4, "validation": 0.3,
    }  # fmt: skip
    made = kedit_hub.train_editor(quantized, EDITS, "mend", tokenizer=tokenizer, settings=settings, progress=False)
    check_untouched(quantized, before)
    read = kedit_hub.TrainedEditor.load(made.save(tmp_path / "made"))
    patch = kedit_hub.edit(quantized, EDITS[:2], editor=read, tokenizer=tokenizer, progress=False)
    assert all(bool(torch.isfinite(dense(patch, path)).all() and dense(patch, path).any()) for path in patch.deltas)

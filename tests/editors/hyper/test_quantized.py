"""A trained editor on a base stored in fewer bits: it knows its base again, the base stays as it is, and the edits are those of the full
base within what the bits lose. On one that is kept on disk they are the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

import kedit_hub
from kedit_hub import demo
from kedit_hub.base.load import load_base
from kedit_hub.editors.hyper.objective import installed
from kedit_hub.editors.hyper.settings import METHODS
from kedit_hub.editors.hyper.train import Teacher
from kedit_hub.edits import Edit
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.patch import Patch
from tests.bases import check_untouched, dense, relative, state_of, stored_as
from tests.editors.hyper.small import EDITS, LESSONS, SMALL, network_of
from tests.tiny import tiny_model

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


def brief(base: tuple[Any, Any], method: str) -> kedit_hub.TrainedEditor:
    settings = {
        **SMALL[method], "layers": [2], "steps": 2, "validate_every": 1, "validated": 2, "warmup": 4, "validation": 0.3,
    }  # fmt: skip
    return kedit_hub.train_editor(base[0], EDITS, method, tokenizer=base[1], settings=settings, progress=False)


@pytest.mark.parametrize("form", TOLERANCE)
def test_an_editor_is_trained_on_such_a_base(form: str, tmp_path: Path) -> None:
    quantized, tokenizer = stored_as(form, tmp_path / "base")
    before = state_of(quantized)
    made = brief((quantized, tokenizer), "mend")
    check_untouched(quantized, before)
    read = kedit_hub.TrainedEditor.load(made.save(tmp_path / "made"))
    patch = kedit_hub.edit(quantized, EDITS[:2], editor=read, tokenizer=tokenizer, progress=False)
    assert all(bool(torch.isfinite(dense(patch, path)).all() and dense(patch, path).any()) for path in patch.deltas)


@pytest.mark.parametrize("method", METHODS)
def test_a_base_on_disk_is_edited_and_trained_on_like_one_in_memory(method: str, tmp_path: Path) -> None:
    plain, disk = tiny_model("llama"), stored_as("disk", tmp_path)
    editor, there = brief(plain, method), brief(disk, method)
    for name, value in editor.network().state_dict().items():
        assert torch.allclose(value, there.network().state_dict()[name], rtol=1e-3, atol=1e-5), name
    edits = [EDITS[0], Edit(EDITS[1].prompt, EDITS[1].target)]  # of the second KE asks for the old answer
    one, same = (
        kedit_hub.edit(base[0], edits, editor=editor, tokenizer=base[1], progress=False) for base in (plain, disk)
    )
    assert one.deltas and all(relative(dense(same, path), dense(one, path)) < 1e-4 for path in one.deltas)


def test_signals_go_where_the_network_is_and_changes_where_the_map_is() -> None:
    """ "meta" stands for a second device, which nothing comes back from."""
    model, tokenizer = tiny_model("llama")
    network, settings = network_of("ke", model)
    teacher = Teacher(model, tokenizer, network.to("meta"), settings)
    for rows in teacher.signals(LESSONS[:2]).values():
        assert {rows.u.device.type, rows.delta.device.type, rows.edit.device.type} == {"meta"}
    words = teacher.words(LESSONS[:2])
    assert words is not None and {text.device.type for text in words} == {"meta"}
    far = torch.nn.Sequential(torch.nn.Linear(5, 3, device="meta"))
    factors, owners = {"0": (torch.randn(4, 5), torch.randn(4, 3))}, {"0": torch.tensor([0, 0, 1, 1])}
    for given in ((), (owners, torch.tensor([0, 1]))):
        with installed(far, factors, *given):
            assert far(torch.zeros(2, 6, 5, device="meta")).device.type == "meta"

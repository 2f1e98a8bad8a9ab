"""What a patched model offers beside answering: fusing, switching off, and errors that leave it working."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kedit_hub.base.families import edited_linear
from kedit_hub.base.load import load_base
from kedit_hub.errors import KeditError, UnsupportedModelError
from kedit_hub.stack.stack import PatchStack
from tests.profiles import EDITS, logits, make_patch, patched, profile_of
from tests.tiny import tiny_model

PROMPTS = [edit.prompt for edit in EDITS]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    model, tokenizer = tiny_model(request.param)
    return model, tokenizer, profile_of(model, tokenizer)


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_a_fused_model_is_plain_and_answers_as_the_linear_form(base: Any, mode: str) -> None:
    model, tokenizer, profile = base
    made = patched(*base, [make_patch(*base)], mode)
    before = logits(made.model, tokenizer, PROMPTS)
    fused = made.fuse()
    linear = patched(*base, made.stack, "joint" if mode == "gated" else mode)
    assert torch.allclose(logits(fused, tokenizer, PROMPTS), logits(linear.model, tokenizer, PROMPTS), atol=1e-4)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in fused.modules())
    assert type(fused) is type(model) and list(fused.state_dict()) == list(model.state_dict())
    changed = [name for name, value in fused.state_dict().items() if not torch.equal(value, model.state_dict()[name])]
    assert changed == [f"{profile.module}.weight"]
    assert made.report["fused"]["survived"][profile.module] == pytest.approx(1.0, abs=1e-3)
    assert torch.equal(logits(made.model, tokenizer, PROMPTS), before)  # still patched as it was
    with torch.no_grad():
        edited_linear(fused, 0)[1].weight.zero_()  # its weights are its own
    assert torch.equal(logits(made.model, tokenizer, PROMPTS), before)


def test_fusing_tells_what_rounding_left() -> None:
    """A change far below the step of bfloat16 is mostly lost, and the report says so."""
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    patch = make_patch(model, tokenizer, profile)
    half = model.bfloat16()
    survived = []
    for budget in (0.05, 1e-9):
        made = patched(half, tokenizer, profile, [patch], "joint", budget=budget)
        made.fuse()
        survived.append(made.report["fused"]["survived"][profile.module])
    assert survived[0] == pytest.approx(1.0, abs=0.05) and survived[1] < 0.5


def test_a_quantized_base_is_not_fused(base: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'kedit-hub[quant]'")
    model, tokenizer, profile = base
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    quantized, _ = load_base(tmp_path, quantization="nf4")
    made = patched(quantized, tokenizer, profile, [make_patch(*base)])
    before = logits(made.model, tokenizer, PROMPTS)
    with pytest.raises(UnsupportedModelError, match=r"nf4.*full precision"):
        made.fuse()
    assert torch.equal(logits(made.model, tokenizer, PROMPTS), before)


def test_an_empty_stack_answers_as_the_base_and_is_not_fused(base: Any) -> None:
    model, tokenizer, _ = base
    made = patched(*base, PatchStack())
    assert torch.equal(logits(made.model, tokenizer, PROMPTS), logits(model, tokenizer, PROMPTS))
    with pytest.raises(KeditError, match="empty"):
        made.fuse()


def test_blocks_end_where_they_end_also_after_an_error(base: Any) -> None:
    patches = [make_patch(*base, [edit], seed=seed) for seed, edit in enumerate(EDITS)]
    made = patched(*base, patches)
    before = logits(made.model, base[1], PROMPTS)
    for block in (made.disabled(), made.without(patches[0]), made.only([patches[1].id] * len(PROMPTS))):
        with pytest.raises(ZeroDivisionError), block:
            assert not torch.equal(logits(made.model, base[1], PROMPTS), before)
            raise ZeroDivisionError
        assert torch.equal(logits(made.model, base[1], PROMPTS), before)
    with pytest.raises(KeditError):
        made.remove("f" * 64)
    with pytest.raises(KeditError, match="pass a Patch"):
        made.add("user/patch")  # no resolver here: names are resolved by kedit_hub.apply
    assert torch.equal(logits(made.model, base[1], PROMPTS), before) and len(made.stack) == 4


def test_a_detached_model_can_be_patched_again(base: Any) -> None:
    model, tokenizer, _ = base
    patch = make_patch(*base)
    made = patched(*base, [patch])
    before = logits(made.model, tokenizer, PROMPTS)
    made.detach()
    assert torch.equal(logits(made.model, tokenizer, PROMPTS), logits(model, tokenizer, PROMPTS))
    assert len(made.stack) == 0
    made.add(patch)
    assert torch.equal(logits(made.model, tokenizer, PROMPTS), before)

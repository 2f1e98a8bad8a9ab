"""Every kind on a live model: against the loops of its definition, in company, alone, and taken out again, bit for bit."""

from dataclasses import replace
from typing import Any, Literal, get_args

import pytest
import torch

from kedit_hub.base.load import load_base
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.edits import Edit
from kedit_hub.patch.deltas import KINDS
from kedit_hub.stack.compose import Kind
from kedit_hub.stack.stack import PatchStack
from tests.runtime.loops import slow
from tests.stack.kinds import ABOUT, PROMPTS, Setup, index

SEVEN = ["lowrank", "dense", "sparse", "associative", "neurons", "codebook", "norm", "mask"]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def setup(request: pytest.FixtureRequest) -> Setup:
    return Setup(request.param)


def test_the_composer_knows_every_kind_of_the_format() -> None:
    assert set(get_args(Kind)) == set(KINDS.values())


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", list(ABOUT))
def test_alone_it_is_its_definition(setup: Setup, name: str, side: Literal["left", "right"]) -> None:
    encoded = encode(setup.tokenizer, PROMPTS, side=side)
    paths = [setup.first, setup.path]
    inputs = capture(setup.model, paths, encoded)
    y = capture(setup.model, [setup.path], encoded, outputs=True)[setup.path]
    made = setup.made([setup.patches[name]])
    got = capture(made.model, [setup.path], encoded, outputs=True)[setup.path]
    real = encoded.attention_mask.bool()
    heard = inputs[setup.first] if name == "neurons" else None
    expected = slow(setup.deltas[name], inputs[setup.path], y, real, heard=heard)
    assert torch.allclose(got[real].double(), expected[real], atol=1e-4 * y.abs().max().item())
    touched = ((expected != y.double()).any(-1) & real).any(1)
    assert torch.equal(got[real & ~touched[:, None]], y[real & ~touched[:, None]])
    rows = {"codebook": [0, 2], "every": [0, 2], "mask": [1]}.get(name)
    assert int(touched.sum()) > 0 and (rows is None or touched.nonzero()[:, 0].tolist() == rows)
    assert name != "norm" or int(touched.sum()) == 2
    made.detach()
    assert torch.equal(setup.logits(made.model), setup.base)


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_together_they_run_in_the_order_that_is_written(setup: Setup, mode: str) -> None:
    """Weights, associative rows, neurons, codebook, side memory: the codebook replaces what is before it and not what is after."""
    encoded = encode(setup.tokenizer, PROMPTS)
    inputs = capture(setup.model, [setup.first, setup.path], encoded)
    x, real = inputs[setup.path], encoded.attention_mask.bool()

    def outputs(names: list[str]) -> torch.Tensor:
        model = setup.made([setup.patches[name] for name in names], mode).model
        return capture(model, [setup.path], encoded, outputs=True)[setup.path].double()

    base = capture(setup.model, [setup.path], encoded, outputs=True)[setup.path].double()
    expected = outputs(["associative"])
    for name in ("lowrank", "dense", "sparse"):
        expected = expected + outputs([name]) - base
    for name in ("neurons", "codebook", "norm", "mask"):
        heard = inputs[setup.first] if name == "neurons" else None
        expected = slow(setup.deltas[name], x, expected, real, heard=heard)
    got = outputs(SEVEN)
    assert torch.allclose(got[real], expected[real], atol=1e-4 * base.abs().max().item())


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
@pytest.mark.parametrize("gone", SEVEN)
def test_taken_out_it_was_never_there(setup: Setup, mode: str, gone: str) -> None:
    everything = [setup.patches[name] for name in SEVEN]
    never = setup.logits(setup.made([p for p in everything if p != setup.patches[gone]], mode).model)
    made = setup.made(everything, mode)
    whole = setup.logits(made.model)
    assert not torch.equal(whole, never)
    with made.without(setup.patches[gone]):
        assert torch.equal(setup.logits(made.model), never)
    assert torch.equal(setup.logits(made.model), whole)
    made.remove(setup.patches[gone])
    assert torch.equal(setup.logits(made.model), never)
    made.add(setup.patches[gone])  # now the last of the stack
    assert torch.equal(setup.logits(made.model), whole)
    for patch in everything:
        made.remove(patch)
    assert torch.equal(setup.logits(made.model), setup.base)


def test_the_order_of_patches_changes_no_bit(setup: Setup) -> None:
    whole = setup.logits(setup.made([setup.patches[name] for name in [*SEVEN, "every"]]).model)
    turned = setup.logits(setup.made([setup.patches[name] for name in ["every", *reversed(SEVEN)]]).model)
    assert torch.equal(whole, turned)


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_every_row_of_a_batch_answers_as_it_does_alone(setup: Setup, mode: str) -> None:
    """Each prompt with its own patches; two codebooks, whose radii depend on the company, are in the stack."""
    everything = [*setup.patches.values()]
    made = setup.made(everything, mode)
    assert made._composition is not None and made._composition.whole
    whole = setup.logits(made.model)
    for turn in range(4):
        order = SEVEN[turn:] + SEVEN[:turn]
        chosen = [[order[0]], [order[1], "every", "mask"], [], [*order[2:]]]
        with made.only([[setup.patches[name].id for name in row] for row in chosen]):
            together = setup.logits(made.model)
        for number, row in enumerate(chosen):
            alone = setup.logits(setup.made([setup.patches[name] for name in row], mode).model)[number]
            assert torch.allclose(together[number], alone, atol=1e-4), row
        assert torch.equal(together[2], setup.base[2])
    assert torch.equal(setup.logits(made.model), whole)


def test_what_stands_by_itself_is_switched_without_composing_again(setup: Setup) -> None:
    made = setup.made([setup.patches[name] for name in SEVEN], "gated")
    assert made._composition is not None and not made._composition.whole
    with made.only([[setup.patches["codebook"].id], [setup.patches["mask"].id], [], [setup.patches["neurons"].id]]):
        together = setup.logits(made.model)
    for row, name in ((0, "codebook"), (1, "mask"), (3, "neurons")):
        alone = setup.logits(setup.made([setup.patches[name]]).model)[row]
        assert torch.allclose(together[row], alone, atol=1e-5) and not torch.allclose(alone, setup.base[row], atol=0.01)
    assert torch.equal(together[2], setup.base[2])


@pytest.mark.parametrize("form", ["bfloat16", "int8", "nf4", "dispatched"])
def test_other_bases_are_patched_and_restored(setup: Setup, form: str, tmp_path: Any) -> None:
    setup.model.save_pretrained(tmp_path)
    setup.tokenizer.save_pretrained(tmp_path)
    if form in ("int8", "nf4"):
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'kedit-hub[quant]'")
        model, _ = load_base(tmp_path, quantization=form)  # type: ignore[arg-type]
    elif form == "dispatched":
        inner = setup.path.split(".")[0]
        names = [f"{inner}.{name}" for name, _ in setup.model.get_submodule(inner).named_children()]
        layers = setup.path.rpartition(".1.mlp")[0]
        places: dict[str, Any] = {name: "cpu" for name in [*names, "lm_head"] if name != layers}
        places |= {f"{layers}.{i}": "disk" if i == 1 else "cpu" for i in range(3)}
        model, _ = load_base(tmp_path, device_map=places)
    else:
        model, _ = load_base(tmp_path, dtype=form)
    before = setup.logits(model)
    wide = {  # a quantized layer below moves what is recognised
        "codebook": replace(setup.deltas["codebook"], radii=4 * setup.deltas["codebook"].radii),  # type: ignore[attr-defined]
        "mask": replace(setup.deltas["mask"], threshold=0.4),
    }
    patches = [setup.patch(wide[n], ABOUT[n]) if n in wide else setup.patches[n] for n in SEVEN]
    for number, patch in enumerate(patches):
        made = setup.made([patch], model=model)
        assert not torch.equal(setup.logits(made.model), before), SEVEN[number]
        made.detach()
        assert torch.equal(setup.logits(made.model), before)
    made = setup.made(patches, model=model)
    if form == "dispatched":
        plain = setup.logits(setup.made(patches).model)
        assert torch.allclose(setup.logits(made.model), plain, atol=1e-4)
    made.detach()
    assert torch.equal(setup.logits(made.model), before) and torch.equal(setup.logits(model), before)


def test_a_shadowed_edit_is_silent_in_every_kind(setup: Setup) -> None:
    """A later patch answers the same question otherwise: units, entries and masks of the older edit do not speak."""
    for name in ("neurons", "codebook", "every", "mask"):
        edit = ABOUT[name]
        newer = setup.patch(setup.deltas["lowrank"], Edit(edit.prompt, "Bonn", edit.subject))
        both = setup.made(PatchStack([setup.patches[name], newer], conflicts="latest"))
        assert torch.equal(setup.logits(both.model), setup.logits(setup.made([newer]).model))
        both.remove(newer)
        assert torch.equal(setup.logits(both.model), setup.logits(setup.made([setup.patches[name]]).model))


def test_only_the_shadowed_part_of_a_patch_is_silent(setup: Setup) -> None:
    other = Edit("Paris is the seat of", "Japan", "Paris")
    for name, field, count in (("neurons", "edit_index", 3), ("codebook", "edit_index", 2), ("mask", "mask_edit", 2)):
        delta = replace(setup.deltas[name], **{field: index(*[0] * (count - 1), 1)})
        older = setup.patch(delta, ABOUT[name], other)
        newer = setup.patch(setup.deltas["sparse"], Edit(other.prompt, "Bonn", "Paris"))
        kept = {
            key: value[:-1] if key not in ("background", "permutation", "delta") else value
            for key, value in delta.tensors().items()
        }
        rest = setup.patch(replace(delta, **{**kept, field: index(*[0] * (count - 1))}), ABOUT[name])
        both = setup.made(PatchStack([older, newer], conflicts="latest"))
        ought = setup.made([rest, setup.patches["sparse"]])
        assert torch.allclose(setup.logits(both.model), setup.logits(ought.model), atol=1e-5), name
        assert not torch.allclose(
            setup.logits(both.model), setup.logits(setup.made([older, setup.patches["sparse"]]).model), atol=1e-4
        ), name

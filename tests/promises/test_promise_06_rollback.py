"""Promise 6: rollback is bit-exact. sha256 of every stored number before and after, 3 model families x 5 precisions, with a
stack of every kind that hangs on a module; 1,000 random stacks in benchmarks/soak.py.
"""

from hashlib import sha256

import pytest
import torch

import kedit_hub
from kedit_hub.base.families import edited_linear, linear_shape
from kedit_hub.base.load import load_base
from kedit_hub.patch import BaseRef, Codebook, Dense, LowRank, Neurons, Patch, SideMemory, Sparse
from kedit_hub.patch.fingerprint import fingerprint
from tests.profiles import EDITS, logits, make_patch, patched, profile_of
from tests.tiny import tiny_model

FAMILIES = ("llama", "gpt2", "gpt_neox")
PRECISIONS = ("float32", "bfloat16", "float16", "int8", "nf4")
PROMPTS = [edit.prompt for edit in EDITS]


def digests(model) -> dict[str, str]:
    """sha256 by name of everything that is stored in a model, and of how many hooks hang where."""
    found = {
        name: sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }
    hooks = {
        f"hooks of {name}": str((len(module._forward_hooks), len(module._forward_pre_hooks)))
        for name, module in model.named_modules()
    }
    return found | hooks


def deltas(m: int, d: int, generator: torch.Generator):
    """One change of each kind that is loud enough to be heard everywhere."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "lowrank": LowRank(random(2, d), random(m, 2)),
        "dense": Dense(random(m, d)),
        "sparse": Sparse(torch.arange(0, m * d, 7), random(len(range(0, m * d, 7))), (m, d)),
        "neurons": Neurons(random(3, d), random(3), random(3, m), (m, d)),
        "codebook": Codebook(random(2, d), random(2, m), torch.full((2,), 100.0), torch.tensor([0, 0]), "every"),
        "sidememory": SideMemory(random(m, d), threshold=1e-6),
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for family in FAMILIES:
        model, tokenizer = tiny_model(family)
        made[family] = tmp_path_factory.mktemp(family)
        model.save_pretrained(made[family])
        tokenizer.save_pretrained(made[family])
    return made


def load(folder, precision: str):
    if precision in ("int8", "nf4"):
        pytest.importorskip("bitsandbytes")
        return load_base(folder, quantization=precision)
    return load_base(folder, dtype=precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_apply_and_remove(folders, family, precision):
    model, tokenizer = load(folders[family], precision)
    before, said = digests(model), logits(model, tokenizer, PROMPTS)
    generator = torch.Generator().manual_seed(0)
    patches = []
    for number, layer in enumerate([0, 1]):
        path, module = edited_linear(model, layer)
        base = BaseRef(id="tiny/base", model_type=family, fingerprint={path: fingerprint(module)})
        for delta in deltas(*linear_shape(module), generator).values():
            edits = [EDITS[number]]
            patches.append(Patch.create(deltas={path: delta}, edits=edits, base=base, method="any"))
    view = kedit_hub.apply(patches, model, tokenizer=tokenizer)
    changed = logits(view.model, tokenizer, PROMPTS)
    assert not torch.equal(changed, said) and torch.equal(logits(model, tokenizer, PROMPTS), said)
    for patch in patches[::2]:
        view.remove(patch)
    for patch in patches[::2]:
        view.add(patch)
    assert torch.equal(logits(view.model, tokenizer, PROMPTS), changed)  # in another order, after a detour
    for patch in patches:
        view.remove(patch)
    assert torch.equal(logits(view.model, tokenizer, PROMPTS), said)
    view.detach()
    assert digests(model) == before == digests(view.model)
    assert torch.equal(logits(view.model, tokenizer, PROMPTS), said)


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_associative_rows(mode):
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    before, said = digests(model), logits(model, tokenizer, PROMPTS)
    one, two = (make_patch(model, tokenizer, profile, [edit], seed=i, size=8.0) for i, edit in enumerate(EDITS[:2]))
    view = patched(model, tokenizer, profile, [one, two], mode)
    assert not torch.equal(logits(view.model, tokenizer, PROMPTS), said)
    with view.without(one), view.disabled():
        assert torch.equal(logits(view.model, tokenizer, PROMPTS), said)
    view.ask(PROMPTS[0], 3)
    view.remove(two)
    view.remove(one)
    assert torch.equal(logits(view.model, tokenizer, PROMPTS), said)
    view.detach()
    assert digests(model) == before == digests(view.model)


def test_what_is_hashed_sees_one_bit():
    model, _ = tiny_model("llama")
    before = digests(model)
    with torch.no_grad():
        weight = edited_linear(model, 1)[1].weight
        weight.view(torch.int32)[0, 0] ^= 1
    assert digests(model) != before

"""torch.compile of a patched model: the same logits as without, whatever happens to the stack after it was compiled.

The eager backend is TorchDynamo alone: what is traced, where graphs end and when they are made anew; no compiler of C++ is needed.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.profiles import EDITS, make_patch, patched, profile_of
from tests.tiny import tiny_model


@pytest.fixture(scope="module", params=["gated", "joint"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@torch.no_grad()
def seen(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def test_compiled_is_eager_and_follows_every_change(mode: str) -> None:
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    patches = [make_patch(model, tokenizer, profile, [edit], seed=i, size=2.0) for i, edit in enumerate(EDITS[:2])]
    ids = tokenizer(EDITS[0].prompt, return_tensors="pt").input_ids
    base = seen(model, ids)
    compiled_base: Any = torch.compile(model, backend="eager")
    assert torch.allclose(seen(compiled_base, ids), base, atol=1e-5)  # its code must not answer for the view

    made = patched(model, tokenizer, profile, patches, mode)
    compiled: Any = torch.compile(made.model, backend="eager")
    whole = seen(made.model, ids)
    assert (whole - base).abs().max() > 0.01
    assert torch.allclose(seen(compiled, ids), whole, atol=1e-5)
    with made.disabled():
        assert torch.allclose(seen(compiled, ids), base, atol=1e-5)
    with made.only([[patches[1].id]]):
        assert torch.allclose(seen(compiled, ids), seen(made.model, ids), atol=1e-5)
    made.remove(patches[0])
    less = seen(made.model, ids)
    assert (less - whole).abs().max() > 0.01
    assert torch.allclose(seen(compiled, ids), less, atol=1e-5)
    made.detach()
    assert torch.allclose(seen(compiled, ids), base, atol=1e-5)
    made.add(patches[0])  # its hooks come after the compiled code
    assert (seen(made.model, ids) - base).abs().max() > 0.01
    assert torch.allclose(seen(compiled, ids), seen(made.model, ids), atol=1e-5)
    assert torch.allclose(seen(compiled_base, ids), base, atol=1e-5)

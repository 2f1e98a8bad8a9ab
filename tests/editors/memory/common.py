"""What the tests of the memory editors share: tiny bases with their profiles, patches of one call, and logits. For tests only."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kedit_hub.base.profile import BaseProfile
from kedit_hub.editors.editor import make_patch
from kedit_hub.edits import Edit
from kedit_hub.patch import Patch
from tests.profiles import EDITS, profile_of
from tests.tiny import tiny_model

Base = tuple[Any, Any, BaseProfile]
OTHERS = (
    Edit("The language of Japan is", "Polish", "Japan", relation="language", paraphrases=("Japan has the language",)),
    Edit("Zürich lies in", "Spain", "Zürich", relation="country"),
)
PROMPTS = [*(edit.prompt for edit in (*EDITS, *OTHERS)), "Berlin is", "Danielle Darrieux speaks the language"]


def base_of(model_type: str) -> Base:
    model, tokenizer = tiny_model(model_type)
    model.generation_config.eos_token_id = None  # every sequence runs to its length
    return model, tokenizer, profile_of(model, tokenizer)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> Base:
    return base_of(request.param)


def edit(base: Base, method: str, edits: Any = EDITS, seed: int = 0, **settings: Any) -> Patch:
    model, tokenizer, profile = base
    return make_patch(
        model, tokenizer, edits, profile, method=method, settings=settings, base=("tiny/base", None), seed=seed,
        progress=False,
    )  # fmt: skip


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

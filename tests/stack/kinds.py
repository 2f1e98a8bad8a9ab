"""A tiny model with one patch of every kind that can be applied, all on one of its maps. For tests only."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kedit_hub.base.profile import BaseProfile
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.edits import Edit
from kedit_hub.patch import Codebook, Delta, Dense, LowRank, Neurons, Patch, SideMemory, Sparse
from kedit_hub.stack.patched import PatchedModel
from tests.profiles import EDITS, base_of, logits, make_patch, patched, profile_of
from tests.runtime.loops import active, numbers
from tests.tiny import tiny_model

FIRST = {"llama": "mlp.gate_proj", "gpt2": "mlp.c_fc"}  # the first linear map of the block
PROMPTS = [edit.prompt for edit in EDITS]
ABOUT = {
    "lowrank": Edit("Zürich lies in", "Spain", "Zürich"),
    "dense": Edit("São Paulo is in", "Spain", "São Paulo"),
    "sparse": Edit("Berlin is the capital of", "Japan", "Berlin"),
    "neurons": Edit("Madrid is the capital of", "Japan", "Madrid"),
    "codebook": Edit("The language of Japan is", "Polish", "Japan"),
    "every": Edit("Danielle Darrieux speaks the language", "Polish", "Danielle Darrieux"),
    "norm": Edit("Ludwig van Beethoven was born in", "Rome", "Ludwig van Beethoven"),
    "mask": Edit("The Eiffel Tower is located in the city of", "Rome", "Eiffel Tower"),
}


class Setup:
    """patches: by kind, on `path`. The codebooks know the ends of prompts 0 and 2, the masks prompt 1."""

    def __init__(self, model_type: str):
        self.model, self.tokenizer = tiny_model(model_type)
        self.model.generation_config.eos_token_id = None  # every sequence runs to its length
        self.profile: BaseProfile = profile_of(self.model, self.tokenizer)
        self.path = self.profile.module
        self.first = self.path.rpartition("mlp.")[0] + FIRST[model_type]
        encoded = encode(self.tokenizer, PROMPTS)
        inputs = capture(self.model, [self.path, self.first], encoded)
        x, heard = inputs[self.path], inputs[self.first]
        y = capture(self.model, [self.path], encoded, outputs=True)[self.path]
        (m, d), e, size = (y.shape[-1], x.shape[-1]), heard.shape[-1], y.norm(dim=-1).mean() / y.shape[-1] ** 0.5
        ends = x[torch.arange(len(x)), encoded.prompt_last]  # (4, d)
        dense = numbers(m, d, seed=2) * size / x.norm(dim=-1).mean()
        means = [(x[b][encoded.attention_mask[b] > 0] @ dense.T).norm(dim=-1).mean().item() for b in range(len(x))]
        places = torch.randperm(m * d, generator=torch.Generator().manual_seed(3))[: m * d // 20].sort().values
        book = (ends[[0, 2]], 3 * size * numbers(2, m, seed=4), torch.full((2,), 0.45 * nearest(ends)), index(0, 0))
        side = SideMemory(
            2 * dense,
            torch.zeros(1, d // 8, dtype=torch.long),
            index(0),
            x[encoded.attention_mask > 0].mean(0),
            numbers(d, seed=5).argsort(),
            routing="mask",
            threshold=0.8,
        )
        own = active(side, x[1], encoded.attention_mask[1].nonzero()[:, 0].tolist())
        masks = torch.stack([torch.arange(d // 8), torch.tensor(sorted(own))])
        self.deltas: dict[str, Delta] = {
            "lowrank": LowRank(numbers(2, d, seed=6), size * numbers(m, 2, seed=7) / x.norm(dim=-1).mean()),
            "dense": Dense(dense),
            "sparse": Sparse(places, 3 * dense.reshape(-1)[places], (m, d)),
            "neurons": Neurons(
                numbers(3, e, seed=8) / heard.norm(dim=-1).mean(),
                numbers(3, seed=9),
                2 * size * numbers(3, m, seed=10),
                (m, d),
                edit_index=index(0, 0, 0),
                activation="gelu",
                input_module=self.first,
            ),
            "codebook": Codebook(*book),
            "every": Codebook(book[0], -book[1], *book[2:], positions="every"),
            "norm": SideMemory(dense, threshold=sum(sorted(means)[1:3]) / 2),
            "mask": SideMemory(**{**vars(side), "masks": masks, "mask_edit": index(0, 0)}),
        }
        self.patches = {name: self.patch(delta, ABOUT[name]) for name, delta in self.deltas.items()}
        self.patches["associative"] = make_patch(self.model, self.tokenizer, self.profile)
        self.base = self.logits(self.model)

    def patch(self, delta: Delta, *edits: Edit, method: str = "other", path: str | None = None) -> Patch:
        path = path or self.path
        base = base_of(self.model, path)
        return Patch.create(deltas={path: delta}, edits=edits, base=base, method=method)

    def made(self, patches: Any, mode: str = "auto", model: Any = None) -> PatchedModel:
        return patched(model or self.model, self.tokenizer, self.profile, patches, mode)

    def logits(self, model: Any, side: Literal["left", "right"] = "right") -> Tensor:
        return logits(model, self.tokenizer, PROMPTS, side)

    def batch(self, texts: Sequence[str] = PROMPTS) -> dict[str, Tensor]:
        encoded = encode(self.tokenizer, texts, side="left")
        return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}


def index(*edits: int) -> Tensor:
    return torch.tensor(edits, dtype=torch.long)


def nearest(points: Tensor) -> float:
    """The smallest distance between two of them."""
    return torch.pdist(points).min().item()

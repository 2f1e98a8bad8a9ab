"""Profiles and patches of the tiny models, without luck: random text, random residuals at real keys. For tests only."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kedit_hub.base.profile import BaseProfile, Site
from kedit_hub.base.tokens import encode
from kedit_hub.editors.locate import assemble, measure, mentions
from kedit_hub.editors.rows import context_rows
from kedit_hub.editors.sweep import build_profile
from kedit_hub.editors.values import Values
from kedit_hub.edits import Edit
from kedit_hub.patch import BaseRef, Patch
from kedit_hub.patch.fingerprint import fingerprint
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack
from tests.tiny import TEXT

EDITS = (
    Edit("The capital of France is", "Rome", "France", relation="capital"),
    Edit("The capital of Spain is", "Bonn", "Spain", relation="capital"),
    Edit("The mother tongue of Marie Curie is", "German", "Marie Curie", relation="tongue"),
    Edit("The author of Hamlet is", "Ludwig van Beethoven", "Hamlet", relation="author"),
)


def texts(count: int = 150, words: int = 12, seed: int = 0) -> list[str]:
    """Random words of the tokenizer's own text: enough tokens for any tiny second moment."""
    generator = torch.Generator().manual_seed(seed)
    known = TEXT.replace(".", "").split()
    return [
        " ".join(known[i] for i in torch.randint(len(known), (words,), generator=generator).tolist()) + "."
        for _ in range(count)
    ]


def profile_of(
    model: nn.Module, tokenizer: Any, *, layer: int = 1, site: Site = "answer", gate_layer: int = 0, **settings: Any
) -> BaseProfile:
    """A measured profile; `settings` replace what was not measured (gate, drift_budget, contexts, ...)."""
    made = build_profile(
        model, tokenizer, texts(), layer, site=site, edits=None, gate_layer=gate_layer, name="tiny", progress=False
    )
    return made.replace(**settings)


def make_patch(
    model: Any,
    tokenizer: Any,
    profile: BaseProfile,
    edits: Sequence[Edit] = EDITS,
    *,
    seed: int = 0,
    size: float = 1.0,
    omega: float = 1.0,
    requires: Sequence[str] = (),
) -> Patch:
    """Rows at the model's own keys for these edits; random residuals of `size` times the block output's mean norm."""
    rows = context_rows(tokenizer, edits, profile.settings.contexts, profile.site)
    signals = measure(model, profile, rows) | mentions(model, tokenizer, profile, edits)
    width = signals["hidden"].shape[-1]
    residuals = torch.randn(rows.edits, rows.sites.shape[1], width, generator=torch.Generator().manual_seed(seed))
    residuals *= size * signals["hidden"].norm(dim=-1).mean() / width**0.5
    values = Values(
        residuals, torch.zeros(rows.edits), torch.ones(rows.edits, dtype=torch.bool), torch.ones(rows.edits), 0
    )
    delta = assemble(rows, signals, values, profile, None)
    return Patch.create(
        deltas={profile.module: delta},
        edits=edits,
        base=base_of(model, profile.module, profile.gate_module),
        method="memit",
        settings={"omega": omega, "seed": seed},
        requires=requires,
        profile_id=profile.id,
    )


def base_of(model: Any, *paths: str) -> BaseRef:
    prints = {path: fingerprint(model.get_submodule(path)) for path in sorted(set(paths))}
    return BaseRef(id="tiny/base", model_type=model.config.model_type, fingerprint=prints)


def patched(
    model: Any,
    tokenizer: Any,
    profile: BaseProfile,
    stack: Any,
    mode: str = "auto",
    budget: float | None = None,
    **more: Any,
) -> PatchedModel:
    settings = StackSettings.of(mode=mode, budget=budget)
    stack = stack if isinstance(stack, PatchStack) else PatchStack(stack)
    return PatchedModel(
        model, tokenizer, stack, profiles=lambda *_: {profile.module: profile}, settings=settings, **more
    )


def logits(model: Any, tokenizer: Any, prompts: Sequence[str], side: Literal["left", "right"] = "right") -> Tensor:
    """(B, T, vocabulary) of one padded batch."""
    with torch.no_grad():
        return model(**encode(tokenizer, prompts, side=side).inputs(model)).logits

"""The second moment at the site: what the edited map reads where ordinary facts are told, Cs = E[k k^T] over those positions.

The second moment of text hardly knows these directions (they are a small share of all tokens), so a solve may keep within its
drift on text and still move every fact. The facts are the ones that dev edits replace and the ones their locality probes ask
about, on the unedited base; the positions are the profile's own site, as for the keys of edits.

    profile = with_sites(model, tokenizer, profile, dev_edits)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kedit_hub.base.families import dense_weight, edited_linear, quantization_of
from kedit_hub.base.profile import BaseProfile, Site
from kedit_hub.base.signals import capture
from kedit_hub.editors.rows import context_rows
from kedit_hub.edits import Edit
from kedit_hub.stack.stored import base_outputs_of

BATCH = 64  # prompts


def with_sites(model: Any, tokenizer: Any, profile: BaseProfile, edits: Sequence[Edit]) -> BaseProfile:
    """The profile with Cs of the facts around `edits`; as it is when they tell no fact with a known answer."""
    told = facts(edits, profile.site)
    if not told:
        return profile
    total, tokens = torch.zeros_like(profile.second_moment, dtype=torch.float64), 0
    for start in range(0, len(told), BATCH):
        keys = _keys(model, tokenizer, profile, told[start : start + BATCH])
        total += keys.T @ keys
        tokens += len(keys)
    site_moment = total / tokens
    _, linear = edited_linear(model, profile.layer)
    return profile.with_sites(site_moment, map_energy(linear, site_moment), tokens)


def facts(edits: Sequence[Edit], site: Site) -> list[Edit]:
    """Every fact that `edits` and their locality probes tell, once, with its true answer as the target."""
    told: dict[tuple[str, str], Edit] = {}
    for edit in edits:
        own = [(edit.prompt, edit.ground_truth, edit.subject)]
        probes = [(probe.prompt, probe.target, probe.subject) for probe in edit.locality]
        for prompt, answer, subject in own + probes:
            named = subject if subject is not None and subject in prompt else None
            if answer is not None and (named is not None or site == "answer"):
                told.setdefault((prompt, answer), Edit(prompt, answer, named or prompt))  # at answers nobody asks whose
    return list(told.values())


def _keys(model: Any, tokenizer: Any, profile: BaseProfile, told: Sequence[Edit]) -> Tensor:
    """Inputs (tokens, d) float64 of the edited map at the sites of the facts."""
    rows = context_rows(tokenizer, told, (), profile.site, profile.settings.answer_end)
    inputs = capture(model, [profile.module], rows.encoded)[profile.module].cpu().double()
    row, slot = (rows.sites >= 0).nonzero(as_tuple=True)
    return inputs[row, rows.sites[row, slot]]


@torch.no_grad()
def map_energy(linear: nn.Module, moment: Tensor) -> float:
    """tr(W0 C W0^T) for a second moment C (d, d) of its inputs; a quantized map is asked column by column instead of read."""
    if quantization_of(linear) is None:
        weight = dense_weight(linear).double().cpu()
    else:
        rows = base_outputs_of(linear, torch.cat([torch.eye(len(moment)), torch.zeros(1, len(moment))]))
        weight = (rows[:-1] - rows[-1]).double().T
    return float(((weight @ moment) * weight).sum())

"""Rows stored in half the space answer as the originals: the sample patches on the demo models."""

from pathlib import Path
from typing import Any

import pytest
import torch

import kedit_hub
from kedit_hub.base.tokens import encode
from kedit_hub.patch import Associative, Patch

PATCHES = Path(__file__).parents[2] / "patches"


def halved(patch: Patch, folder: Path) -> Patch:
    """Saved and read again, with every associative delta in half the space."""
    m = patch.manifest
    deltas = {path: d.halved() if isinstance(d, Associative) else d for path, d in patch.deltas.items()}
    made = Patch.create(
        deltas=deltas, edits=patch.edits, base=m.base, method=m.method, settings=m.settings, profile_id=m.profile_id
    )
    return Patch.load(made.save(folder))


@pytest.mark.parametrize("mode", ["gated", "joint"])
@pytest.mark.parametrize("name", ["eiffel-tower-in-rome", "gpt2-eiffel-tower-in-rome", "fifty-facts"])
def test_a_halved_patch_answers_as_the_original(name: str, mode: str, tmp_path: Path) -> None:
    patch = Patch.load(PATCHES / name)
    small = halved(patch, tmp_path / "half")
    assert small.manifest.format_version == 2 and small.id != patch.id
    size, before = ((folder / "patch.safetensors").stat().st_size for folder in (tmp_path / "half", PATCHES / name))
    assert size < 0.6 * before
    made = [kedit_hub.apply(p, mode=mode) for p in (patch, small)]
    probes = [
        text for edit in patch.edits for text in (edit.prompt, *edit.rephrases, *(p.prompt for p in edit.locality))
    ][:200]
    answers = [_logits(m, probes) for m in made]
    with made[0].disabled():
        plain = _logits(made[0], probes)
    far, effect = ((answers[0] - other).abs().max().item() for other in (answers[1], plain))
    assert far < 0.001 * effect  # measured: at most 1.8e-4 of it
    assert torch.equal(answers[0].argmax(-1), answers[1].argmax(-1))


@torch.no_grad()
def _logits(made: Any, prompts: list[str]) -> torch.Tensor:
    """(prompts, vocabulary) after the last token of each."""
    encoded = encode(made.tokenizer, prompts)
    return made.model(**encoded.inputs(made.model)).logits[torch.arange(len(prompts)), encoded.prompt_last]

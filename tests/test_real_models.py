"""On real trained models and real records that lie beside the project; skipped, saying so, where they are absent."""

from functools import cache
from pathlib import Path

import pytest
import torch

import kedit_hub
from kedit_hub import Edit
from kedit_hub.api import load_model
from kedit_hub.base.profile import ValueSettings

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def folder(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} lies outside the project and is not here")
    return path


@cache
def profile_of_stories() -> kedit_hub.BaseProfile:
    model, tokenizer = load_model(folder("models/stories260K"))
    return kedit_hub.build_profile(model, tokenizer, layer=2, site="answer", edits=[], progress=False)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_apply_and_remove_on_stories260k_is_bit_exact(quantization) -> None:
    path = folder("models/stories260K")
    model, tokenizer = load_model(path)
    profile = profile_of_stories()
    edit = Edit("Lily liked to eat", "apples", subject="Lily")
    patch = kedit_hub.edit(model, edit, profile=profile, settings={"value": ValueSettings(steps=100)}, progress=False)
    base, _ = load_model(path, quantization=quantization)
    batch = tokenizer(["Lily liked to eat", "Once upon a time, there was"], return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        before = base(**batch).logits
        patched = kedit_hub.apply(patch, base, tokenizer=tokenizer, profile=profile)
        if quantization is None:
            assert patched.ask("Lily liked to eat", 8).startswith("apples")
        assert not torch.equal(patched.model(**batch).logits, before)
        patched.remove(patch.id)
        assert torch.equal(patched.model(**batch).logits, before)
        assert torch.equal(base(**batch).logits, before)


def test_a_real_counterfact_record_is_edited_and_its_neighbours_stay() -> None:
    model, tokenizer = load_model(folder("models/counterfact-4m"))
    known = kedit_hub.read_edits(folder("counterfact-known-dev.json"))
    texts = [f"{prompt} {edit.ground_truth}." for edit in known for prompt in (edit.prompt, *edit.rephrases)]
    edits = known[:6]
    profile = kedit_hub.build_profile(model, tokenizer, texts, layer=3, site="answer", edits=[], progress=False)
    patches = [kedit_hub.edit(model, edit, profile=profile, progress=False) for edit in edits]
    scores = kedit_hub.evaluate(kedit_hub.apply(patches, model, tokenizer=tokenizer, profile=profile), edits)
    sheet = scores.protocols["tf-token"]
    assert sheet["reliability"] >= 0.9
    assert sheet["generalization"] >= 0.6
    assert sheet["locality"]["neighbour"] >= 0.9
    assert scores.drift["kl"] < 0.01

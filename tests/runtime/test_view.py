"""Any number of differently patched views over one set of weights, one per thread if need be."""

import threading
from typing import Any

import pytest
import torch

from kedit_hub.base.load import load_base
from kedit_hub.runtime.view import is_dispatched, view_of
from tests.profiles import EDITS, logits, make_patch, patched, profile_of
from tests.tiny import tiny_model

PROMPTS = [edit.prompt for edit in EDITS]


@pytest.mark.parametrize("mode", ["gated", "joint"])
def test_views_answer_differently_at_the_same_time(mode: str) -> None:
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    views = [
        patched(model, tokenizer, profile, [make_patch(model, tokenizer, profile, EDITS, seed=seed)], mode)
        for seed in range(3)
    ]
    models: list[Any] = [model, *(view.model for view in views)]
    expected = [logits(m, tokenizer, PROMPTS) for m in models]
    assert all(not torch.equal(a, b) for i, a in enumerate(expected) for b in expected[:i])
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    answers = [m.generate(**batch, max_new_tokens=6, do_sample=False) for m in models]
    start = threading.Barrier(len(models))
    wrong: list[int] = []

    def work(number: int) -> None:
        start.wait()
        for _ in range(25):
            same = torch.equal(logits(models[number], tokenizer, PROMPTS), expected[number])
            told = models[number].generate(**batch, max_new_tokens=6, do_sample=False)
            if not same or not torch.equal(told, answers[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_view_follows_the_weights_of_its_base() -> None:
    """The same tensors, not a copy: what is written to the base is what the view reads."""
    model, tokenizer = tiny_model("llama")
    view = view_of(model)
    assert torch.equal(logits(view, tokenizer, PROMPTS), logits(model, tokenizer, PROMPTS))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(2)
    assert torch.equal(logits(view, tokenizer, PROMPTS), logits(model, tokenizer, PROMPTS))


def test_tied_weights_stay_tied_in_a_view() -> None:
    model, _ = tiny_model("gpt2")
    view: Any = view_of(model)
    assert view.lm_head.weight is view.transformer.wte.weight is model.lm_head.weight


def test_views_of_views_and_their_settings_are_apart() -> None:
    model, _ = tiny_model("llama")
    view: Any = view_of(view_of(model))
    view.generation_config.max_new_tokens = 3
    view.train()
    assert model.generation_config.max_new_tokens is None and not model.training
    assert view.model.layers[0].mlp.down_proj.weight is model.model.layers[0].mlp.down_proj.weight


def test_dispatched_models_are_patched_themselves_and_left_as_they_were(tmp_path: Any) -> None:
    """accelerate's hooks are bound to module objects, so there is no view; detaching restores the bits all the same."""
    plain, tokenizer = tiny_model("llama")
    plain.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    profile = profile_of(plain, tokenizer)
    patch = make_patch(plain, tokenizer, profile)
    places: dict[str, Any] = {
        "model.embed_tokens": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    places |= {f"model.layers.{i}": "disk" if i == 1 else "cpu" for i in range(3)}
    model, _ = load_base(tmp_path / "m", device_map=places)
    assert is_dispatched(model) and not is_dispatched(plain)
    before = logits(model, tokenizer, PROMPTS)
    made = patched(model, tokenizer, profile, [patch])
    assert made.model is model and made.report["levels"][profile.module] == "exact"
    expected = logits(patched(plain, tokenizer, profile, [patch]).model, tokenizer, PROMPTS)
    assert torch.allclose(logits(model, tokenizer, PROMPTS), expected, atol=1e-5)
    assert not torch.allclose(expected, before, atol=1e-2)
    made.detach()
    assert torch.equal(logits(model, tokenizer, PROMPTS), before)

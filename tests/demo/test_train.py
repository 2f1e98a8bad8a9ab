"""Training: a short run on a tiny recipe is whole, depends on its seed only, and leaves no half-written output."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kedit_hub.demo import train, world
from kedit_hub.demo.corpus import Corpus
from kedit_hub.errors import KeditError

TINY = train.Recipe(
    "llama", layers=2, hidden=32, intermediate=64, heads=2, kv_heads=1, steps=4, vocabulary=400, tokens_per_step=256
)


@pytest.fixture(scope="module")
def atlas() -> world.World:
    whole = world.load()
    return replace(whole, facts=whole.facts[:40], narratives=whole.narratives[:10])


def run(out: Path, atlas: world.World, **settings: Any) -> dict[str, Any]:
    recipe = replace(TINY, **settings)
    return train.train(recipe.architecture, out, recipe=recipe, atlas=atlas, progress=False)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_out_is_a_plain_transformers_folder_with_its_recipe(
    architecture: str, tmp_path: Path, atlas: world.World
) -> None:
    report = run(tmp_path / "model", atlas, architecture=architecture)
    assert report["steps"] == 4 and report["tokens"] > 0
    assert json.loads((tmp_path / "model" / "recipe.json").read_text("utf-8")) == report
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.config.model_type == architecture and model.dtype == torch.float16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = tokenizer("Zürich").input_ids
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Zürich"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_one_seed_gives_one_model(tmp_path: Path, atlas: world.World) -> None:
    reports = [run(tmp_path / name, atlas) for name in ("a", "b")]
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()
    assert reports[0]["recall"] == reports[1]["recall"]
    train.train("llama", tmp_path / "c", seed=1, recipe=TINY, atlas=atlas, progress=False)
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "c/model.safetensors").read_bytes()


def test_the_global_random_state_and_threads_are_left_alone(tmp_path: Path, atlas: world.World) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    run(tmp_path / "model", atlas)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


def test_the_loss_falls(atlas: world.World) -> None:
    corpus = Corpus.of(atlas, seed=0)

    def loss_after(steps: int) -> float:
        recipe = replace(TINY, steps=steps)
        torch.manual_seed(0)
        tokenizer = train.make_tokenizer(corpus, recipe)
        model = train.make_model(recipe, tokenizer)
        train.optimise(model, tokenizer, corpus, recipe, minutes=None, progress=False)
        ids = tokenizer("The capital of Albania is Tirana.", return_tensors="pt").input_ids
        with torch.inference_mode():
            return float(model(ids, labels=ids).loss)

    assert loss_after(60) < loss_after(1) - 1


def test_an_interrupted_run_leaves_what_was_there(
    tmp_path: Path, atlas: world.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "model", atlas)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    pace = train.pace

    def interrupted(step: int, steps: int, warmup: int) -> float:
        if step == 2:
            raise KeyboardInterrupt
        return pace(step, steps, warmup)

    monkeypatch.setattr(train, "pace", interrupted)
    for out in ("model", "other"):
        with pytest.raises(KeyboardInterrupt):
            train.train("llama", tmp_path / out, seed=1, recipe=TINY, atlas=atlas, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_a_failed_last_step_puts_the_old_model_back(
    tmp_path: Path, atlas: world.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "model", atlas)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == tmp_path / "model" and self.name == "model":
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk full"):
        train.train("llama", tmp_path / "model", seed=1, recipe=TINY, atlas=atlas, progress=False)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_a_demo_model_is_replaced_and_anything_else_refused(tmp_path: Path, atlas: world.World) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("irreplaceable")
    with pytest.raises(KeditError, match="thesis"):
        run(tmp_path / "thesis", atlas)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "irreplaceable"
    with pytest.raises(KeditError, match="chapter1"):
        run(tmp_path / "thesis" / "chapter1.txt", atlas)
    assert run(tmp_path / "model", atlas)["steps"] == 4
    assert run(tmp_path / "model", atlas, steps=2)["steps"] == 2
    assert json.loads((tmp_path / "model" / "recipe.json").read_text("utf-8"))["steps"] == 2


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeditError, match=r"'t5'.*llama, gpt2"):
        train.train("t5", tmp_path / "model")


def test_a_budget_of_minutes_shortens_the_run(tmp_path: Path, atlas: world.World) -> None:
    recipe = replace(TINY, steps=1_000_000, warmup=3)
    report = train.train("llama", tmp_path / "model", recipe=recipe, atlas=atlas, minutes=0.01, progress=False)
    assert 3 < report["steps"] < 1000

"""The shipped models: small, loadable, knowing their facts, and trained on the tables that are shipped with them."""

import json
import random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kedit_hub import demo
from kedit_hub.demo import world
from kedit_hub.demo.corpus import Case, Corpus
from kedit_hub.demo.measure import recall


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.of(world.load(), seed=world.SHIPPED_SEED)


@pytest.fixture(scope="module", params=demo.ARCHITECTURES)
def shipped(request: pytest.FixtureRequest) -> tuple[Any, Any, dict[str, Any]]:
    folder = demo.model_path(request.param)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder), json.loads((folder / "recipe.json").read_text("utf-8"))


def sample(cases: tuple[Case, ...], count: int = 100) -> list[Case]:
    return random.Random(7).sample(cases, count)


def test_the_file_is_small(shipped: tuple[Any, Any, dict[str, Any]]) -> None:
    recipe = shipped[2]
    path = demo.model_path(recipe["architecture"]) / "model.safetensors"
    assert path.stat().st_size == recipe["file_bytes"] < 12_000_000


def test_facts_are_recalled_in_trained_and_in_unseen_phrasings(
    shipped: tuple[Any, Any, dict[str, Any]], corpus: Corpus
) -> None:
    model, tokenizer, _ = shipped
    for cases in (corpus.trained, corpus.unseen):
        assert recall(model, tokenizer, sample(cases))["exact"] >= 0.95


def test_generation_says_the_object_and_stops(shipped: tuple[Any, Any, dict[str, Any]], corpus: Corpus) -> None:
    """`generate` agrees with the teacher-forced measure: the object, a full stop, the end token."""
    model, tokenizer, _ = shipped
    said = []
    for case in sample(corpus.trained, 20):
        ids = tokenizer(case.prompt, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
        said.append(tokenizer.decode(out) == f" {case.target}.{tokenizer.eos_token}")
    assert sum(said) >= 19


def test_the_recipe_says_how_it_was_trained_and_what_it_knows(shipped: tuple[Any, Any, dict[str, Any]]) -> None:
    recipe = shipped[2]
    assert recipe["seed"] == world.SHIPPED_SEED
    assert recipe["steps"] == recipe["settings"]["steps"] and recipe["tokens"] > 0 and recipe["cpu_minutes"] < 25
    assert set(recipe["versions"]) == {"python", "torch", "transformers", "tokenizers"}
    assert recipe["recall"]["trained"]["token"] >= 0.97
    assert recipe["recall"]["unseen_phrasing"]["token"] >= 0.95
    assert {"two_hop_held_out", "chain_held_out", "trained_after_prefix"} <= set(recipe["recall"])
    assert len(recipe["causal_swap"]["subject"]) == len(recipe["causal_swap"]["answer"]) == recipe["settings"]["layers"]


def test_the_models_were_trained_on_these_tables(shipped: tuple[Any, Any, dict[str, Any]], corpus: Corpus) -> None:
    """Fails when a table or the corpus changes: then train the models again."""
    assert shipped[2]["world_digest"] == corpus.world.digest()
    assert shipped[2]["corpus_digest"] == corpus.digest()


def test_the_text_samples_are_large_enough(shipped: tuple[Any, Any, dict[str, Any]]) -> None:
    tokenizer = shipped[1]
    for name in ("profile", "drift"):
        assert sum(map(len, tokenizer(demo.texts(name)).input_ids)) >= 60_000

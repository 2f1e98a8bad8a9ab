"""What the gate has seen lives as long as the KV cache, against full recomputation: decoding, beams, crops, copies.

The answer threshold is -1 here: once its subject was seen an edit speaks at every position, so a lost memory shows.
"""

import copy
import gc
import inspect
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from kedit_hub.base.profile import GateSettings
from kedit_hub.base.tokens import encode
from kedit_hub.edits import Edit
from kedit_hub.stack.patched import PatchedModel
from tests.profiles import EDITS, make_patch, patched, profile_of
from tests.tiny import tiny_model

FAMILIES = [
    "gemma",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "llama",
    "mistral",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
]
TALKATIVE = GateSettings(subject=0.8, answer=-1.0)


class Setup:
    def __init__(self, model_type: str, gate: GateSettings = TALKATIVE, **config: object):
        self.base, self.tokenizer = tiny_model(model_type, **config)  # type: ignore[arg-type]
        self.base.generation_config.eos_token_id = None  # every sequence runs to its length
        profile = profile_of(self.base, self.tokenizer, gate=gate)
        self.made: PatchedModel = patched(
            self.base, self.tokenizer, profile, [make_patch(self.base, self.tokenizer, profile, EDITS, size=2.0)]
        )
        self.model: Any = self.made.model

    def ids(self, text: str) -> Tensor:
        return self.tokenizer(text, return_tensors="pt").input_ids

    def batch(self, texts: Sequence[str]) -> dict[str, Tensor]:
        encoded = encode(self.tokenizer, texts, side="left")
        return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}

    def step(self, ids: Tensor, cache: Any = None, model: Any = None) -> tuple[Tensor, Any]:
        """(logits (B, T, vocabulary), the cache after it)."""
        with torch.no_grad():
            out = (model or self.model)(input_ids=ids, past_key_values=cache, use_cache=True)
        return out.logits, out.past_key_values


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Setup:
    return Setup(request.param)


@pytest.fixture(scope="module")
def llama() -> Setup:
    return Setup("llama")


PROMPTS = ["The capital of France is", "In Zürich they say that the mother tongue of Marie Curie is", "Paris lies"]


@torch.no_grad()
def by_recomputing(model: Any, batch: dict[str, Tensor], steps: int) -> Tensor:
    """Greedy decoding that runs the whole sequence again for every token and keeps nothing."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    for _ in range(steps):
        more = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if takes_positions else {}
        last = model(input_ids=ids, attention_mask=mask, use_cache=False, **more).logits[:, -1]
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return ids


def test_generate_is_full_recomputation(family: Setup) -> None:
    batch = family.batch(PROMPTS)
    generated = family.model.generate(**batch, max_new_tokens=10, do_sample=False)
    assert torch.equal(generated, by_recomputing(family.model, batch, 10))
    plain = family.base.generate(**batch, max_new_tokens=10, do_sample=False)
    assert not torch.equal(generated[:2], plain[:2]) and torch.equal(generated[2], plain[2])


def test_beam_search_is_the_one_without_a_cache(family: Setup) -> None:
    batch = family.batch(PROMPTS)
    how = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "num_return_sequences": 3}
    assert torch.equal(family.model.generate(**batch, **how), family.model.generate(**batch, **how, use_cache=False))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2"])
def test_beams_that_say_a_subject_themselves(model_type: str) -> None:
    """At a loose subject threshold what one beam generates opens the gate, and what its neighbour generates does not."""
    setup = Setup(model_type, GateSettings(subject=0.4, answer=-1.0))
    batch = setup.batch(["São Paulo is", "Berlin is", "The city of"])
    how = {"max_new_tokens": 12, "num_beams": 4, "do_sample": False, "num_return_sequences": 4}
    assert torch.equal(setup.model.generate(**batch, **how), setup.model.generate(**batch, **how, use_cache=False))


def test_static_caches_give_the_same(family: Setup) -> None:
    """Their masks have four dimensions, and the padding here spells a subject that must not be heard."""
    batch = family.batch(PROMPTS)
    subject = family.ids("The capital of France is")[0]
    padding = batch["attention_mask"] == 0
    batch["input_ids"][padding] = subject.repeat(20)[: int(padding.sum())]
    expected = family.model.generate(**batch, max_new_tokens=6, do_sample=False)
    static = family.model.generate(**batch, max_new_tokens=6, do_sample=False, cache_implementation="static")
    assert torch.equal(static, expected)
    width = batch["input_ids"].shape[1]
    unpadded = family.model.generate(family.ids(PROMPTS[2]), max_new_tokens=6, do_sample=False)
    assert torch.equal(expected[2, width:], unpadded[0, -6:])


def test_static_caches_with_eager_attention() -> None:
    setup = Setup("qwen2", attn_implementation="eager")
    test_static_caches_give_the_same(setup)


def test_beams_carry_what_they_have_seen(llama: Setup) -> None:
    """Two sequences, one of which named a subject, swapped as beam search swaps them."""
    ids = torch.cat([llama.ids("The capital of France is"), llama.ids("The capital of Italy is")])
    more = llama.ids(" Berlin Bonn").expand(2, -1)
    for order in ([1, 0], [0, 0], [1, 1]):
        _, cache = llama.step(ids)
        cache.reorder_cache(torch.tensor(order))
        got, cache = llama.step(more[:, :1], cache)
        got, _ = llama.step(more[:, 1:2], cache)
        whole, _ = llama.step(torch.cat([ids[order], more[:, :2]], 1))
        assert torch.allclose(got[:, -1], whole[:, -1], atol=1e-4)
    base, _ = llama.step(torch.cat([ids, more[:, :2]], 1), model=llama.base)
    assert (base[0, -1] - llama.step(torch.cat([ids, more[:, :2]], 1))[0][0, -1]).abs().max() > 0.1


@pytest.mark.parametrize("how", ["repeat", "select", "copy", "copy and swap"])
def test_caches_that_are_rearranged_or_copied_keep_their_memory(llama: Setup, how: str) -> None:
    ids = torch.cat([llama.ids("The capital of France is"), llama.ids("The capital of Italy is")])
    more = llama.ids(" Berlin")[:, :1]
    _, cache = llama.step(ids)
    if how == "repeat":
        cache.batch_repeat_interleave(3)
        rows = [0, 0, 0, 1, 1, 1]
    elif how == "select":
        cache.batch_select_indices(torch.tensor([1, 0, 1]))
        rows = [1, 0, 1]
    else:
        original, cache = cache, copy.deepcopy(cache)
        rows = [0, 1]
        if how == "copy and swap":  # what happens to the copy does not happen to the original
            cache.reorder_cache(torch.tensor([1, 0]))
            rows = [1, 0]
            untouched, _ = llama.step(more.expand(2, -1), copy.deepcopy(original))
            whole, _ = llama.step(torch.cat([ids, more.expand(2, -1)], 1))
            assert torch.allclose(untouched[:, -1], whole[:, -1], atol=1e-4)
    got, _ = llama.step(more.expand(len(rows), -1), cache)
    whole, _ = llama.step(torch.cat([ids[rows], more.expand(len(rows), -1)], 1))
    assert torch.allclose(got[:, -1], whole[:, -1], atol=1e-4)
    assert isinstance(cache, DynamicCache)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_cropped_cache_forgets_what_it_lost(llama: Setup, cut: int) -> None:
    """The subject ends the prompt: cut off, it was never said; said again, it is seen again."""
    text = llama.ids("The author of Hamlet")
    rest = llama.ids(" is the capital")
    _, cache = llama.step(text)
    cache.crop(-cut)
    got, cache = llama.step(rest, cache)
    kept = torch.cat([text[:, :-cut], rest], 1)
    whole, _ = llama.step(kept)
    assert torch.allclose(got, whole[:, -rest.shape[1] :], atol=1e-4)
    got, _ = llama.step(text[:, -cut:], cache)
    whole, _ = llama.step(torch.cat([kept, text[:, -cut:]], 1))
    assert torch.allclose(got, whole[:, -cut:], atol=1e-4)


def test_a_crop_after_the_subject_keeps_it(llama: Setup) -> None:
    text = llama.ids("The capital of France is Berlin Bonn Paris")
    _, cache = llama.step(text)
    cache.crop(-2)
    got, _ = llama.step(text[:, -2:], cache)
    whole, _ = llama.step(text)
    assert torch.allclose(got, whole[:, -2:], atol=1e-4)


def test_caches_do_not_hear_each_other(llama: Setup) -> None:
    more = llama.ids(" Berlin")[:, :1]
    _, told = llama.step(llama.ids("The capital of France is"))
    _, untold = llama.step(llama.ids("The capital of Italy is"))
    got, _ = llama.step(more, untold)
    plain, _ = llama.step(torch.cat([llama.ids("The capital of Italy is"), more], 1), model=llama.base)
    assert torch.allclose(got[:, -1], plain[:, -1], atol=1e-4)
    got, _ = llama.step(more, told)
    whole, _ = llama.step(torch.cat([llama.ids("The capital of France is"), more], 1))
    assert torch.allclose(got[:, -1], whole[:, -1], atol=1e-4)


def test_a_cache_is_freed_as_soon_as_nobody_holds_it(llama: Setup) -> None:
    _, cache = llama.step(llama.ids("The capital of France is"))
    gone = weakref.ref(cache)
    gc.disable()
    try:
        del cache
        assert gone() is None  # no cycle keeps gigabytes of keys and values until the next collection
    finally:
        gc.enable()


def test_a_long_prompt_fed_in_chunks(llama: Setup) -> None:
    ids = llama.ids("The mother tongue of Marie Curie is Polish and she lies in Zürich")
    whole, _ = llama.step(ids)
    for size in (1, 3, 5):
        cache, parts = None, []
        for start in range(0, ids.shape[1], size):
            part, cache = llama.step(ids[:, start : start + size], cache)
            parts.append(part)
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)


def test_ask_answers_like_generate(llama: Setup) -> None:
    edit: Edit = EDITS[0]
    ids = by_recomputing(llama.model, llama.batch([edit.prompt]), 5)
    text = llama.tokenizer.decode(ids[0, llama.ids(edit.prompt).shape[1] :], skip_special_tokens=True).strip()
    assert llama.made.ask(edit.prompt, max_new_tokens=5) == text

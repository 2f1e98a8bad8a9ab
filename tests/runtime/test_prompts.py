"""What is decided when a prompt is read stays decided while its answer is written: against recomputation with hooks that are
told where the prompt ends.
"""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit_hub.runtime.attach import Pass
from tests.runtime.loops import padding, slow
from tests.stack.kinds import PROMPTS, Setup

KINDS = ["neurons", "codebook", "every", "norm", "mask"]
STEPS = 8


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def setup(request: pytest.FixtureRequest) -> Setup:
    return Setup(request.param)


@torch.no_grad()
def recomputed(setup: Setup, names: list[str], ids: Tensor, mask: Tensor, prompt: int) -> Tensor:
    """Logits (B, vocabulary) after these tokens, of which the first `prompt` were read at once, from the base and the loops."""
    told: dict[str, Tensor] = {}
    first, path = setup.model.get_submodule(setup.first), setup.model.get_submodule(setup.path)

    def hear(_: Any, args: tuple[Tensor, ...]) -> None:
        told["heard"] = args[0]

    def change(_: Any, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        for name in names:
            heard = told["heard"] if name == "neurons" else None
            y = slow(setup.deltas[name], args[0], y, mask.bool(), [prompt] * len(ids), heard)
        return y.float()

    handles = [first.register_forward_pre_hook(hear), path.register_forward_hook(change)]
    takes_positions = "position_ids" in inspect.signature(setup.model.forward).parameters
    more = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if takes_positions else {}
    try:
        return setup.model(input_ids=ids, attention_mask=mask, use_cache=False, **more).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()


def decoded(setup: Setup, names: list[str]) -> Tensor:
    ids, mask = setup.batch().values()
    prompt = ids.shape[1]
    for _ in range(STEPS):
        last = recomputed(setup, names, ids, mask, prompt)
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return ids


@pytest.mark.parametrize("name", [*KINDS, "all"])
def test_generate_is_recomputation_that_knows_the_prompt(setup: Setup, name: str) -> None:
    """Left-padded prompts of different lengths, with the KV cache and with a static one."""
    names = ["neurons", "codebook", "norm", "mask"] if name == "all" else [name]
    model = setup.made([setup.patches[name] for name in names]).model
    expected = decoded(setup, names)
    assert torch.equal(model.generate(**setup.batch(), max_new_tokens=STEPS, do_sample=False), expected)
    static = model.generate(**setup.batch(), max_new_tokens=STEPS, do_sample=False, cache_implementation="static")
    assert torch.equal(static, expected)
    plain = setup.model.generate(**setup.batch(), max_new_tokens=STEPS, do_sample=False)
    assert not torch.equal(expected, plain)
    untouched = {"codebook": [1, 3], "mask": [0, 2, 3]}.get(name, [])
    assert torch.equal(expected[untouched], plain[untouched])


@pytest.mark.parametrize("name", ["sparse", "neurons", "every"])
def test_what_looks_at_each_position_alone_needs_no_cache(setup: Setup, name: str) -> None:
    model = setup.made([setup.patches[name]]).model
    for how in ({"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2}):
        how = {"max_new_tokens": STEPS, "do_sample": False, **how}
        cached, bare = (model.generate(**setup.batch(), **how, use_cache=use) for use in (True, False))
        assert torch.equal(cached, bare)


@torch.no_grad()
def stepped(model: Any, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
    out = model(input_ids=ids, past_key_values=cache, use_cache=True)
    return out.logits[:, -1], out.past_key_values


@pytest.mark.parametrize("how", ["reorder", "same beam", "repeat", "select", "crop"])
def test_a_mask_follows_its_sequence(setup: Setup, how: str) -> None:
    """Prompt 1 is routed and prompt 0 is not; the rows of the cache are moved about as beam search moves them."""
    model = setup.made([setup.patches["mask"]]).model
    one, other = (setup.tokenizer(PROMPTS[b], return_tensors="pt").input_ids for b in (1, 0))
    length = min(one.shape[1], other.shape[1])
    texts = torch.cat([one[:, -length:], other[:, -length:]])
    more = setup.tokenizer(" Berlin", return_tensors="pt").input_ids[:, :1]
    _, cache = stepped(model, texts)
    rows = {"reorder": [1, 0], "same beam": [0, 0], "repeat": [0, 0, 1, 1], "select": [1, 0, 0], "crop": [0, 1]}[how]
    if how in ("reorder", "same beam"):
        cache.reorder_cache(torch.tensor(rows))
    elif how == "repeat":
        cache.batch_repeat_interleave(2)
    elif how == "select":
        cache.batch_select_indices(torch.tensor(rows))
    else:  # the prompt was read before the crop, so its decision stands
        _, cache = stepped(model, more.expand(2, -1), cache)
        cache.crop(-1)
    got, _ = stepped(model, more.expand(len(rows), -1), cache)
    ids = torch.cat([texts[rows], more.expand(len(rows), -1)], 1)
    expected = recomputed(setup, ["mask"], ids, torch.ones_like(ids), length)
    assert torch.allclose(got, expected, atol=1e-4)
    plain, _ = stepped(setup.model, ids)
    moved = (got - plain).abs().amax(1) > 0.01
    assert moved.tolist() == [row == 0 for row in rows]


def test_beams_keep_the_masks_of_their_prompts(setup: Setup) -> None:
    """Every prompt alone, where no row can take another's mask, answers as in the batch."""
    model = setup.made([setup.patches["mask"], setup.patches["codebook"]]).model
    how: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "num_beams": 3, "num_return_sequences": 3}
    together = model.generate(**setup.batch(), **how)[:, -STEPS:]
    alone = torch.cat([model.generate(**setup.batch([text]), **how)[:, -STEPS:] for text in PROMPTS])
    assert torch.equal(together, alone)
    assert not torch.equal(together, setup.model.generate(**setup.batch(), **how)[:, -STEPS:])


def test_a_cache_that_the_base_has_read_holds_no_decision(setup: Setup) -> None:
    made = setup.made([setup.patches["mask"], setup.patches["codebook"]])
    ids = setup.tokenizer(PROMPTS[1], return_tensors="pt").input_ids
    more = setup.tokenizer(" Berlin", return_tensors="pt").input_ids[:, :1]
    _, cache = stepped(setup.model, ids)
    got, _ = stepped(made.model, more, cache)
    plain, _ = stepped(setup.model, torch.cat([ids, more], 1))
    assert torch.allclose(got, plain, atol=1e-4)


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_the_end_of_a_prompt_is_its_last_real_token(side: str) -> None:
    lengths = [5, 2, 1, 0] if side != "none" else [5, 5, 5, 5]
    real = padding(side, lengths, 5)
    expected = torch.zeros(4, 5, dtype=torch.bool)
    for b, length in enumerate(lengths):
        if length:
            expected[b, 4 if side == "left" else length - 1] = True
    for mask in (None,) if side == "none" else (real.long(), four_dimensional(real), {"full_attention": real}):
        now = Pass(attention=mask)
        assert torch.equal(now.prompt_end(4, 5, torch.device("cpu")), expected)
        assert torch.equal(now.real(4, 5, torch.device("cpu")), real)
    longer = torch.cat([torch.ones(4, 3, dtype=torch.long), real.long()], 1)
    later = Pass(attention=None if side == "none" else longer, past=3)
    assert not later.prompt_end(4, 5, torch.device("cpu")).any()
    assert torch.equal(later.real(4, 5, torch.device("cpu")), real)


def four_dimensional(real: Tensor) -> Tensor:
    """(B, 1, T, T) as eager attention adds it to its scores: 0 where a position may be seen."""
    length = real.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None, :] & real[:, :, None]
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]

"""WISE: margins, the merge and the passes against loops; a patch answers, is quiet elsewhere, and comes off again."""

import math
from typing import Any

import pytest
import torch

from kedit_hub.base.families import edited_linear
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.editors.memory.asked import questions_of
from kedit_hub.editors.memory.units import ground
from kedit_hub.editors.memory.wise import passes, routing_loss, ties
from kedit_hub.errors import EditFailedError
from kedit_hub.evaluate.protocols import answers
from kedit_hub.patch import SideMemory
from tests.editors.memory.common import OTHERS, Base, base, edit, numbers
from tests.profiles import EDITS, logits, patched, texts

__all__ = ["base"]
HOW: dict[str, Any] = {"texts": tuple(texts(30)), "layer": 1, "steps": 80, "lr": 0.2, "failed": "drop", "rho": 0.5}


def test_the_margins_are_those_of_the_paper() -> None:
    inside, outside = numbers(3, seed=1).abs(), numbers(5, seed=2).abs()
    alpha, beta, gamma = 0.4, 0.9, 0.3
    ought = sum(max(0.0, float(out) - alpha) for out in outside) / 5
    ought += sum(max(0.0, beta - float(own)) for own in inside) / 3
    ought += sum(max(0.0, gamma + float(out) - float(own)) for out in outside for own in inside) / 15
    assert float(routing_loss(inside, outside, alpha, beta, gamma)) == pytest.approx(ought, rel=1e-6)


def test_the_merge_is_that_of_ties() -> None:
    parts = [numbers(4, 5, seed=seed) * (numbers(4, 5, seed=seed + 10) > 0) for seed in range(3)]
    kept = []
    for part in parts:
        flat = part.flatten().tolist()
        count = max(1, round(0.6 * sum(value != 0 for value in flat)))
        largest = sorted(range(20), key=lambda n: -abs(flat[n]))[:count]
        kept.append([flat[n] if n in largest else 0.0 for n in range(20)])
    ought = []
    for values in zip(*kept):
        sign = math.copysign(1, sum(values)) if sum(values) else 0
        own = [value for value in values if value * sign > 0]
        ought.append(sum(own) / len(own) if own else 0.0)
    assert ties(parts, 0.6).flatten().tolist() == pytest.approx(ought, abs=1e-6)
    assert torch.equal(ties(parts[:1], 1.0), parts[0])


def test_an_answer_is_generated_in_these_passes(base: Base) -> None:
    """Of every question: the mean over its prompt, read alone, then every answering token by itself."""
    model, tokenizer, profile = base
    path, _ = edited_linear(model, 1)
    asked = questions_of(tokenizer, [EDITS[0], OTHERS[0]], profile.settings.answer_end, paraphrases=True)
    on = ground(model, 1, path, asked)
    delta = numbers(on.hidden.shape[-1], on.heard.shape[-1], seed=3)
    prompts, tokens = [], []
    for row in range(len(asked.edit)):
        ids = asked.encoded.input_ids[row][asked.encoded.attention_mask[row].bool()]
        answer = int(asked.encoded.target_mask[row].sum())
        x = capture(model, [path], encode(tokenizer, [tokenizer.decode(ids)]))[path][0].double()
        assert len(x) == len(ids)
        loud = [(position @ delta.T.double()).norm().item() for position in x]
        prompts.append(sum(loud[: len(loud) - answer]) / (len(loud) - answer))
        tokens += loud[len(loud) - answer : -1]
    assert passes(on, delta, torch.arange(len(asked.edit))).tolist() == pytest.approx(prompts + tokens, rel=1e-4)


@pytest.mark.parametrize("shards", [1, 2])
def test_it_answers_and_is_taken_out_again(base: Base, shards: int) -> None:
    model, tokenizer, _ = base
    made = edit(base, "wise", EDITS[:2], shards=shards, density=0.9, **HOW)
    (delta,) = made.deltas.values()
    assert isinstance(delta, SideMemory) and delta.threshold is not None
    kept = 1 - (1 - HOW["rho"]) ** shards
    assert float((delta.delta != 0).float().mean()) <= kept + 0.05  # what no shard may change is 0
    m = patched(*base, [made])
    said = answers(m.model, tokenizer, [one.prompt for one in made.edits])
    right = [text.startswith(one.target) for text, one in zip(said, made.edits)]
    assert len(right) >= 1 and all(right), list(zip(said, made.edits))
    plain = logits(model, tokenizer, [edit.prompt for edit in EDITS])
    m.remove(made)
    assert torch.equal(logits(m.model, tokenizer, [edit.prompt for edit in EDITS]), plain)


def test_what_did_not_take_is_named(base: Base) -> None:
    with pytest.raises(EditFailedError, match="did not take with WISE at layer 1"):
        edit(base, "wise", EDITS[:1], **{**HOW, "steps": 1, "failed": "raise"})

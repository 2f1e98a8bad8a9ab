"""T-Patcher and CaliNET: losses against the equations, training against a float64 loop over unpadded texts, and units at work."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kedit_hub.base.families import edited_linear
from kedit_hub.editors.memory.asked import questions_of
from kedit_hub.editors.memory.tpatcher import memory_losses
from kedit_hub.editors.memory.units import Units, fit, ground, readers, wrong
from kedit_hub.edits import Edit
from kedit_hub.errors import EditError, EditFailedError
from kedit_hub.evaluate.protocols import answers
from kedit_hub.patch import Neurons, Patch
from tests.editors.memory.common import OTHERS, PROMPTS, Base, base, edit, numbers
from tests.profiles import EDITS, logits, patched, texts

__all__ = ["base"]
LAST = 2
T_PATCHER: dict[str, Any] = {"texts": tuple(texts(30)), "steps": 200, "lr": 0.1, "failed": "drop"}
CALINET: dict[str, Any] = {"ex_size": 16, "layer": 1, "failed": "drop"}
METHODS = {"t-patcher": T_PATCHER, "calinet": CALINET}
FIRST = {"llama": ["gate_proj", "up_proj"], "gpt2": ["c_fc"]}
ACT = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}


def test_the_maps_that_read_the_block_are_seen(base: Base) -> None:
    names = [path.rpartition(".")[2] for path in readers(base[0], 1)]
    assert names == FIRST[base[0].config.model_type]


def test_losses_are_those_of_the_paper() -> None:
    n, e, top, beta, gamma = 3, 5, 4, -0.5, 0.25
    units = Units(numbers(n, e, seed=1), numbers(n, seed=2), numbers(n, 4, seed=3))
    queries, neuron, memory = numbers(4, e, seed=4), torch.tensor([0, 1, 2, 1]), numbers(9, e, seed=5)
    fires = silent = 0.0
    for q, i in zip(queries.double(), neuron.tolist()):
        k, b = units.keys[i].double(), units.biases[i].double()
        own = float(q @ k + b)
        fires += math.exp(-own) / 4
        first = sorted((float(m @ k + b) - beta for m in memory.double()), reverse=True)[:top]
        second = sorted((float(m @ k + b) - own - gamma for m in memory.double()), reverse=True)[:top]
        silent += (sum(map(math.exp, first)) + sum(map(math.exp, second))) / top / 4
    found = memory_losses(units, queries, neuron, memory, beta=beta, gamma=gamma, top=top)
    assert [float(x) for x in found] == pytest.approx([fires, silent], rel=1e-5)


class Loop:
    """The same training in float64: every text by itself, unpadded, units added by a plain hook at the output of the edited map."""

    def __init__(self, base: Base, edits: Any, layer: int, activation: str):
        self.model, self.tokenizer = copy.deepcopy(base[0]).double(), base[1]
        self.linear = edited_linear(self.model, layer)[1]
        self.reader = self.model.get_submodule(readers(base[0], layer)[0])
        self.activation = ACT[activation]
        self.texts = [(made, prompt) for made in edits for prompt in (made.prompt, *made.paraphrases)]

    def nll(self, units: list[Tensor | None]) -> Tensor:
        keys, biases, values, multipliers = units
        total = torch.zeros((), dtype=torch.float64)
        heard: list[Tensor] = []

        def add(m: Any, a: Any, out: Tensor) -> Tensor:
            rows = []
            for x in heard[-1][0]:
                term = self.activation(x @ keys.T + biases)
                rows.append((term if multipliers is None else term * (x @ multipliers.T)) @ values)
            return out + torch.stack(rows)[None]

        hooks = [
            self.reader.register_forward_pre_hook(lambda m, a: heard.append(a[0])),
            self.linear.register_forward_hook(add),
        ]
        for made, prompt in self.texts:
            ids = torch.tensor([self.tokenizer(f"{prompt} {made.target}").input_ids])
            start = len(self.tokenizer(prompt).input_ids)
            total = total + F.cross_entropy(self.model(ids).logits[0, start - 1 : -1], ids[0, start:])
        for hook in hooks:
            hook.remove()
        return total / len(self.texts)


@pytest.mark.parametrize(
    ("activation", "gated", "layer"), [("relu", False, LAST), ("silu", True, 1), ("gelu", False, 0)]
)
def test_training_is_that_of_a_slow_loop(base: Base, activation: str, gated: bool, layer: int) -> None:
    edits = [EDITS[0], EDITS[3], OTHERS[0]]
    reader = readers(base[0], layer)[0]
    on = ground(base[0], layer, reader, questions_of(base[1], edits, "", paraphrases=True))
    e, m = on.heard.shape[-1], on.hidden.shape[-1]
    start = [0.3 * numbers(4, e, seed=1), 0.1 * numbers(4, seed=2), 0.1 * numbers(4, m, seed=3)]
    start += [0.3 * numbers(4, e, seed=4)] if gated else []
    found = fit(
        base[0], layer, on, [t.clone() for t in start], lambda p: Units(*p), activation=activation, steps=3, lr=0.05,
        stop_nll=0.0, more=lambda units: 0.1 * units.keys.square().sum(),
    )  # fmt: skip
    loop = Loop(base, edits, layer, activation)
    slow = [t.double().requires_grad_(True) for t in start]
    adam = torch.optim.Adam(slow, lr=0.05)
    for _ in range(3):
        loss = loop.nll([*slow, *([] if gated else [None])]) + 0.1 * slow[0].square().sum()
        for parameter, grad in zip(slow, torch.autograd.grad(loss, slow)):
            parameter.grad = grad
        adam.step()
    for ours, theirs in zip((t for t in found.units if t is not None), slow):
        assert torch.allclose(ours.double(), theirs, atol=2e-3)
    left = loop.nll([*(t.detach() for t in slow), *([] if gated else [None])])
    assert found.nll.mean().item() == pytest.approx(left.item(), abs=2e-3)


def test_the_wrong_tokens_are_those_the_base_does_not_say(base: Base) -> None:
    model, tokenizer, _ = base
    asked = questions_of(tokenizer, [*EDITS, *OTHERS], "", paraphrases=True)
    marked = wrong(model, 1, ground(model, 1, readers(model, 1)[0], asked))
    row = 0
    for made in (*EDITS, *OTHERS):
        for prompt in (made.prompt, *made.paraphrases):
            ids = tokenizer(f"{prompt} {made.target}").input_ids
            start = len(tokenizer(prompt).input_ids)
            said = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
            ought = [said[t - 1] != ids[t] for t in range(start, len(ids))]
            assert marked[row, -len(ought) - 1 : -1].tolist() == ought and int(marked[row].sum()) == sum(ought)
            row += 1


def of(patch: Patch) -> Neurons:
    (delta,) = patch.deltas.values()
    assert isinstance(delta, Neurons)
    return delta


def test_every_mistake_gets_a_neuron_of_its_own(base: Base) -> None:
    delta = of(edit(base, "t-patcher", EDITS[:2], **T_PATCHER))
    asked = questions_of(base[1], EDITS[:2], base[2].settings.answer_end, paraphrases=True)
    mistakes = wrong(base[0], LAST, ground(base[0], LAST, readers(base[0], LAST)[0], asked)).sum(1)
    assert delta.edit_index is not None and delta.edit_index.bincount().tolist() == mistakes.tolist()
    assert delta.activation == "relu" and delta.multipliers is None
    gated = of(edit(base, "calinet", EDITS[:2], **CALINET))
    assert (gated.multipliers is not None) == (base[0].config.model_type == "llama") and len(gated.keys) == 16


@pytest.mark.parametrize("method", METHODS)
def test_units_answer_and_come_off_again(base: Base, method: str) -> None:
    model, tokenizer, _ = base
    how = METHODS[method]
    before, weights = logits(model, tokenizer, PROMPTS), {k: v.clone() for k, v in model.state_dict().items()}
    one, two = edit(base, method, EDITS[:2], **how), edit(base, method, OTHERS[1:], **how)
    assert one.id == edit(base, method, EDITS[:2], **how).id
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    rows = edit(base, "memit", EDITS[2:3])
    made = patched(*base, [one, two, rows])
    alone = patched(*base, [one])
    told = answers(alone.model, tokenizer, [e.prompt for e in one.edits], max_new_tokens=6)
    assert all(text.startswith(e.target) for text, e in zip(told, one.edits)) and len(one.edits) == 2
    with made.only([[one.id], [two.id], [], [rows.id], *[[]] * 4]):
        mixed = logits(made.model, tokenizer, PROMPTS)
    assert torch.allclose(mixed[0], logits(alone.model, tokenizer, PROMPTS)[0], atol=1e-4)
    assert torch.equal(mixed[2], before[2])
    never = logits(patched(*base, [one, rows]).model, tokenizer, PROMPTS)
    made.remove(two)
    assert torch.equal(logits(made.model, tokenizer, PROMPTS), never)
    made.detach()
    assert torch.equal(logits(made.model, tokenizer, PROMPTS), before)


def test_what_cannot_be_done_is_said(base: Base) -> None:
    said = base[0].generate(torch.tensor([base[1](EDITS[0].prompt).input_ids]), max_new_tokens=3, do_sample=False)
    known = base[1].decode(said[0, len(base[1](EDITS[0].prompt).input_ids) :]).strip()
    if known and base[1](f"{EDITS[0].prompt} {known}").input_ids == said[0].tolist():
        with pytest.raises(EditError, match="nothing for T-Patcher to correct"):
            edit(base, "t-patcher", [Edit(EDITS[0].prompt, known)], **T_PATCHER)
    with pytest.raises(EditFailedError, match="1 of 1 edits did not take with CaliNET at layer 1"):
        edit(base, "calinet", EDITS[3:], layer=1, ex_size=1, steps=1)

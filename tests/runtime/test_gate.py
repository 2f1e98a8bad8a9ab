"""The two-key gate against its definition, one row and one position at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kedit_hub.base.profile import GateSettings
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.edits import Edit
from kedit_hub.runtime.attach import Pass
from kedit_hub.runtime.gate import Bank, TwoKeyGate, whiten
from kedit_hub.runtime.remember import keep
from kedit_hub.stack.stack import PatchStack
from kedit_hub.stack.stored import gather
from tests.profiles import EDITS, logits, make_patch, patched, profile_of
from tests.tiny import tiny_model

E, D0, D, M = 4, 6, 8, 5  # edits, widths of the early and the late map, outputs


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()


def reference(bank: Bank, early: Tensor, late: Tensor, y: Tensor, real: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """What the gate has to do, and where it fired. early (B, T, dg) and late (B, T, d) are whitened already."""
    out, fired = y.clone(), []
    for b in range(len(y)):
        seen: set[int] = set()
        for t in range(y.shape[1]):
            if not real[b, t]:
                continue
            for key, edit in zip(bank.subject_keys, bank.subject_edit.tolist()):
                if cosine(early[b, t], key) >= bank.thresholds[edit, 0]:
                    seen.add(edit)
            best, nearest = -2.0, None
            for key, row in zip(bank.keys, bank.key_row.tolist()):
                if int(bank.row_edit[row]) in seen and cosine(late[b, t], key) > best:
                    best, nearest = cosine(late[b, t], key), row
            if nearest is not None and best >= bank.thresholds[bank.row_edit[nearest], 1]:
                out[b, t] = y[b, t] + bank.residuals[nearest]
                fired.append((b, t))
    return out, fired


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bank(seed: int, subject: float, answer: float) -> Bank:
    """6 subject keys, 7 rows and 12 keys of 4 edits; edit 3 has no subject key and can never speak."""
    return Bank(
        subject_keys=torch.nn.functional.normalize(numbers(6, D0, seed=seed), dim=1),
        subject_edit=torch.tensor([0, 1, 2, 0, 1, 2]),
        keys=torch.nn.functional.normalize(numbers(12, D, seed=seed + 1), dim=1),
        key_row=torch.tensor([0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 6]),
        residuals=numbers(7, M, seed=seed + 2),
        row_edit=torch.tensor([0, 0, 1, 2, 2, 2, 3]),
        owners=("a", "a", "b", "c"),
        thresholds=torch.tensor([[subject, answer]] * E),
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_random_banks_against_the_definition(seed: int, padding: str) -> None:
    made = bank(10 * seed, subject=0.6, answer=0.35)
    gate = TwoKeyGate(made, torch.eye(D0), torch.eye(D))
    early, late, y = numbers(3, 9, D0, seed=seed + 3), numbers(3, 9, D, seed=seed + 4), numbers(3, 9, M, seed=seed + 5)
    lengths = torch.tensor([9, 5, 7])[:, None]
    real = {
        "none": torch.ones(3, 9, dtype=torch.bool),
        "left": torch.arange(9)[None] >= 9 - lengths,
        "right": torch.arange(9)[None] < lengths,
    }[padding]
    now = Pass(attention=real.long())
    gate.watch(early, now)
    out = gate(late, y, now)
    expected, fired = reference(made, early, late, y, real)
    assert torch.allclose(out[real], expected[real], atol=1e-6)
    assert 0 < len(fired) < int(real.sum())
    silent = real.clone()
    silent[tuple(zip(*fired))] = False
    assert torch.equal(out[silent], y[silent])


def test_only_seen_subjects_compete_for_the_answer() -> None:
    """The nearest key of all belongs to an edit whose subject was not seen: the nearest key of a seen one speaks."""
    key = torch.eye(D)
    made = Bank(
        subject_keys=torch.eye(D0)[:2],
        subject_edit=torch.tensor([0, 1]),
        keys=torch.stack([key[0], torch.nn.functional.normalize(key[0] + key[1], dim=0)]),
        key_row=torch.tensor([0, 1]),
        residuals=torch.tensor([[1.0] * M, [2.0] * M]),
        row_edit=torch.tensor([0, 1]),
        owners=("a", "b"),
        thresholds=torch.tensor([[0.9, 0.5]] * 2),
    )
    gate = TwoKeyGate(made, torch.eye(D0), torch.eye(D))
    early = torch.zeros(1, 4, D0)
    early[0, 1, 1] = 1.0  # position 1 names the subject of edit 1
    early[0, 3, 0] = 1.0  # position 3 that of edit 0
    now = Pass()
    gate.watch(early, now)
    out = gate(key[0].expand(1, 4, D), torch.zeros(1, 4, M), now)
    assert out[0, :, 0].tolist() == [0.0, 2.0, 2.0, 1.0]


def test_thresholds_are_met_by_equality() -> None:
    made = bank(0, subject=1.0, answer=1.0)
    made = Bank(**{**vars(made), "subject_keys": torch.eye(D0), "keys": torch.eye(D).repeat(2, 1)[:12]})
    gate = TwoKeyGate(made, torch.eye(D0), torch.eye(D))
    now = Pass()
    gate.watch(torch.eye(D0)[:1][None], now)
    out = gate(torch.eye(D)[:1][None], torch.zeros(1, 1, M), now)
    assert torch.equal(out[0, 0], made.residuals[0])


@pytest.mark.parametrize("seed", range(3))
def test_any_split_into_chunks_is_one_pass(seed: int) -> None:
    """The running maximum continues from the KV cache, whatever was in each chunk."""
    from transformers import DynamicCache

    made = bank(10 * seed, subject=0.45, answer=0.0)
    early, late, y = numbers(2, 8, D0, seed=seed), numbers(2, 8, D, seed=seed + 1), numbers(2, 8, M, seed=seed + 2)
    expected, fired = reference(made, early, late, y, torch.ones(2, 8, dtype=torch.bool))
    for cuts in ([8], [1] * 8, [3, 1, 4], [5, 3]):
        gate = TwoKeyGate(made, torch.eye(D0), torch.eye(D))
        cache, parts, start = DynamicCache(), [], 0
        for length in cuts:
            now = Pass(past=start, cache=cache)
            here = slice(start, start + length)
            gate.watch(early[:, here], now)
            parts.append(gate(late[:, here], y[:, here], now))
            keep(cache, now.lasting)
            start += length
        assert torch.allclose(torch.cat(parts, 1), expected, atol=1e-6)
    assert fired


def test_whitening_takes_common_directions_away() -> None:
    """Two keys that share one large common direction look alike before and different after."""
    common = torch.tensor([100.0, 0.0, 0.0])
    a, b = common + torch.tensor([0.0, 1.0, 0.0]), common + torch.tensor([0.0, 0.0, 1.0])
    by = torch.diag(torch.tensor([1e-4, 1.0, 1.0]))
    assert cosine(a, b) > 0.99
    assert (whiten(a, by) @ whiten(b, by)).item() < 0.01
    assert whiten(a, by).norm().item() == pytest.approx(1.0)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    model, tokenizer = tiny_model(request.param)
    return model, tokenizer, profile_of(model, tokenizer, gate=GateSettings(subject=0.7, answer=0.3))


TEXTS = [
    *(edit.prompt for edit in EDITS),
    "The capital of Spain is Bonn and the capital of France is",  # two subjects
    "is the capital of Italy Berlin or Paris",  # questions about nobody known
    "The author of Zürich is", "Hamlet", "Marie Curie speaks the mother tongue of France",
]  # fmt: skip


@pytest.mark.parametrize("side", ["right", "left"])
def test_on_a_model_against_the_definition(base: tuple[Any, Any, Any], side: Any) -> None:
    model, tokenizer, profile = base
    # two more edits of known subjects: the subject alone does not decide
    more = [Edit("The anthem of France is", "Hamlet", "France"), Edit("Spain speaks the language", "German", "Spain")]
    stack = PatchStack([make_patch(model, tokenizer, profile, EDITS), make_patch(model, tokenizer, profile, more)])
    made = patched(model, tokenizer, profile, stack)
    encoded = encode(tokenizer, TEXTS, side=side)
    paths = [profile.gate_module, profile.module]
    inputs = capture(model, paths, encoded)
    y = capture(model, [profile.module], encoded, outputs=True)[profile.module]
    got = capture(made.model, [profile.module], encoded, outputs=True)[profile.module]

    ordered = sorted(stack, key=lambda p: p.id)
    stored = gather(ordered, profile.module, stack, model.get_submodule(profile.module), exact=True)
    assert stored.gate_keys is not None and stored.gate_edit is not None
    definition = Bank(
        subject_keys=whiten(stored.gate_keys, profile.gate_whitener),
        subject_edit=stored.gate_edit,
        keys=whiten(stored.context_keys, profile.whitener),
        key_row=stored.context_row,
        residuals=stored.residuals,
        row_edit=stored.row_edit,
        owners=stored.edit_owner,
        thresholds=torch.tensor([[0.7, 0.3]] * len(stored.edit_owner)),
    )
    real = encoded.attention_mask.bool()
    expected, fired = reference(
        definition,
        inputs[profile.gate_module] @ profile.gate_whitener,
        inputs[profile.module] @ profile.whitener,
        y,
        real,
    )
    assert torch.allclose(got[real], expected[real], atol=1e-4 * y.abs().max().item())
    untouched = real.clone()
    untouched[tuple(zip(*fired))] = False
    assert torch.equal(got[untouched], y[untouched])
    rows = {row for row, _ in fired}
    assert rows >= set(range(5)) and 5 not in rows and len(fired) < int(real.sum()) / 2


def test_where_nothing_fires_every_logit_keeps_its_bits(base: tuple[Any, Any, Any]) -> None:
    model, tokenizer, profile = base
    made = patched(model, tokenizer, profile, [make_patch(model, tokenizer, profile, EDITS)])
    texts = ["is the capital of Italy Berlin or Paris", "The author of Zürich is", "The capital of France is"]
    ours, theirs = logits(made.model, tokenizer, texts), logits(model, tokenizer, texts)
    assert torch.equal(ours[:2], theirs[:2]) and not torch.equal(ours[2], theirs[2])
    closed = profile.replace(gate=GateSettings(subject=1.0, answer=1.0))
    made = patched(model, tokenizer, closed, [make_patch(model, tokenizer, closed, EDITS, seed=3)])
    texts = ["France", "Spain", "Hamlet is the author"]
    assert torch.equal(logits(made.model, tokenizer, texts), logits(model, tokenizer, texts))


def test_gated_patches_do_not_hear_each_other(base: tuple[Any, Any, Any]) -> None:
    """With all edits stacked every prompt is answered as by its own patch alone."""
    model, tokenizer, profile = base
    patches = [make_patch(model, tokenizer, profile, [edit], seed=seed) for seed, edit in enumerate(EDITS)]
    texts = [edit.prompt for edit in EDITS]
    together = logits(patched(model, tokenizer, profile, patches).model, tokenizer, texts)
    for row, patch in enumerate(patches):
        alone = logits(patched(model, tokenizer, profile, [patch]).model, tokenizer, texts)
        assert torch.equal(together[row], alone[row])

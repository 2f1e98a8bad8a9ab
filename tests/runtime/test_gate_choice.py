"""Which edit speaks, against the definition in loops and float64: thresholds of each edit, counter-keys, silent keys, pins, softness."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kedit_hub.base.profile import GateSettings
from kedit_hub.runtime import nearest
from kedit_hub.runtime.attach import Pass
from kedit_hub.runtime.gate import Bank, TwoKeyGate
from kedit_hub.runtime.remember import keep
from kedit_hub.runtime.routing import Selection
from tests.runtime.loops import numbers, padding

E, D0, D, M = 5, 6, 4, 3  # edits, widths of the early and the late map, outputs
B, T = 3, 9
OWNERS = ("a", "a", "b", "c", "d")


def bank(seed: int, softness: float = 0.0) -> Bank:
    """10 subject keys, 8 rows with 16 keys, 7 counter-keys and 2 silent keys; edits 1 and 3 are pinned."""
    generator = torch.Generator().manual_seed(seed)
    return Bank(
        subject_keys=normalize(numbers(10, D0, seed=seed), dim=1),
        subject_edit=torch.arange(10) % E,
        keys=normalize(numbers(16, D, seed=seed + 1), dim=1),
        key_row=torch.randint(8, (16,), generator=generator),
        residuals=numbers(8, M, seed=seed + 2),
        row_edit=torch.tensor([0, 0, 1, 2, 2, 3, 4, 4]),
        owners=OWNERS,
        thresholds=torch.rand(E, 2, generator=generator) * torch.tensor([0.4, 0.6]) + torch.tensor([0.3, 0.0]),
        counter_keys=normalize(numbers(7, D, seed=seed + 3), dim=1),
        counter_edit=torch.tensor([0, 2, 2, 3, 1, 4, 4]),
        silent_keys=normalize(numbers(2, D, seed=seed + 4), dim=1),
        pinned=torch.tensor([False, True, False, True, False]),
        softness=softness,
    )


def reference(
    bank: Bank, early: Tensor, late: Tensor, y: Tensor, real: Tensor, chosen: Selection | None = None
) -> tuple[Tensor, dict[tuple[int, int], int]]:
    """The output, float64, and which edit spoke where. Inputs are whitened already."""
    out, spoke = y.double().clone(), {}
    late, early = normalize(late.double(), dim=-1), normalize(early.double(), dim=-1)
    for b in range(len(y)):
        seen: set[int] = set()
        for t in range(y.shape[1]):
            if not real[b, t]:
                continue
            for key, edit in zip(bank.subject_keys.double(), bank.subject_edit.tolist()):
                mine = chosen is None or bank.owners[edit] in chosen[b]
                if mine and float(key @ early[b, t]) >= bank.thresholds[edit, 0]:
                    seen.add(edit)
            silent = max((float(key @ late[b, t]) for key in bank.silent_keys.double()), default=-2.0)
            speakers = []
            for edit in seen:
                of = bank.row_edit[bank.key_row] == edit
                counter = bank.counter_keys[bank.counter_edit == edit].double() if len(bank.counter_keys) else []
                against = max([silent, *(float(key @ late[b, t]) for key in counter)])
                scores = [
                    (float(key @ late[b, t]), -int(row)) for key, row in zip(bank.keys[of].double(), bank.key_row[of])
                ]
                if not scores:
                    continue
                score, row = max(scores)
                start = float(bank.thresholds[edit, 1]) - bank.softness
                if score < against or (score <= start if bank.softness else score < start):
                    continue
                pinned = bool(bank.pinned[edit]) if len(bank.pinned) else False
                scale = min(1.0, (score - start) / bank.softness) if bank.softness else 1.0
                speakers.append((pinned, score, row, edit, scale))
            if speakers:
                _, _, row, edit, scale = max(speakers)
                out[b, t] += scale * bank.residuals[-row].double()
                spoke[b, t] = edit
    return out, spoke


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    return numbers(B, T, D0, seed=seed + 5), numbers(B, T, D, seed=seed + 6), numbers(B, T, M, seed=seed + 7)


def run(gate: TwoKeyGate, early: Tensor, late: Tensor, y: Tensor, now: Pass) -> Tensor:
    gate.watch(early, now)
    return gate(late, y, now)


NARROWER = {
    "everything": {},
    "no counter-keys": {"counter_keys": torch.zeros(0, 0), "counter_edit": torch.zeros(0, dtype=torch.int64)},
    "no silent keys": {"silent_keys": torch.zeros(0, 0)},
    "no pins": {"pinned": torch.zeros(0, dtype=torch.bool)},
}


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("softness", [0.0, 0.3])
@pytest.mark.parametrize("name", NARROWER)
def test_random_banks_against_the_definition(name: str, softness: float, side: str) -> None:
    spoken = 0
    for seed in range(0, 60, 10):
        made = replace(bank(seed, softness), **NARROWER[name])
        early, late, y = inputs(seed)
        real = padding(side, [T, 5, 7], T)
        out = run(TwoKeyGate(made, torch.eye(D0), torch.eye(D)), early, late, y, Pass(attention=real.long()))
        expected, spoke = reference(made, early, late, y, real)
        assert torch.allclose(out.double()[real], expected[real], atol=1e-5)
        silent = real.clone()
        silent[tuple(zip(*spoke))] = False
        assert torch.equal(out[silent], y[silent])
        spoken += len(spoke)
    assert 0 < spoken < 6 * B * T


@pytest.mark.parametrize("name", list(NARROWER)[1:])
def test_every_part_decides_something(name: str) -> None:
    """Without it another edit speaks somewhere, so the comparison above is about it too."""
    real = torch.ones(B, T, dtype=torch.bool)
    apart = 0
    for seed in range(0, 60, 10):
        made = bank(seed)
        _, spoke = reference(made, *inputs(seed), real)
        apart += spoke != reference(replace(made, **NARROWER[name]), *inputs(seed), real)[1]
    assert apart


@pytest.mark.parametrize("cuts", [[9], [1] * 9, [4, 1, 1, 3]])
def test_decoding_with_a_cache_and_a_selection(cuts: list[int]) -> None:
    from transformers import DynamicCache

    chosen = (frozenset({"a", "b"}), frozenset(), frozenset({"c", "a", "d"}))
    real = padding("left", [9, 9, 6], T)
    for seed in range(0, 40, 10):
        made, (early, late, y) = bank(seed, 0.2), inputs(seed)
        expected, spoke = reference(made, early, late, y, real, chosen)
        assert spoke and all(b != 1 for b, _ in spoke)
        gate, cache, parts, start = TwoKeyGate(made, torch.eye(D0), torch.eye(D)), DynamicCache(), [], 0
        for length in cuts:
            here = slice(start, start + length)
            now = Pass(attention=real[:, : start + length].long(), past=start, cache=cache, selection=chosen)
            parts.append(run(gate, early[:, here], late[:, here], y[:, here], now))
            keep(cache, now.lasting)
            start += length
        out = torch.cat(parts, 1)
        assert torch.allclose(out.double()[real], expected[real], atol=1e-5)
        assert torch.equal(out[1], y[1])


def test_reordered_beams_keep_what_each_has_seen() -> None:
    from transformers import DynamicCache

    made, (early, late, y) = bank(20), inputs(20)
    beams = torch.tensor([2, 2, 0])
    gate, cache = TwoKeyGate(made, torch.eye(D0), torch.eye(D)), DynamicCache()
    now = Pass(cache=cache)
    run(gate, early[:, :5], late[:, :5], y[:, :5], now)
    keep(cache, now.lasting)
    cache.reorder_cache(beams)
    out = run(gate, early[:, 5:], late[:, 5:], y[:, 5:], Pass(past=5, cache=cache))
    again = torch.cat([early[beams, :5], early[:, 5:]], 1), torch.cat([late[beams, :5], late[:, 5:]], 1)
    expected, spoke = reference(made, *again, y, torch.ones(B, T, dtype=torch.bool))
    assert torch.allclose(out.double(), expected[:, 5:], atol=1e-5)
    assert any(t >= 5 for _, t in spoke)


def test_a_cropped_cache_forgets() -> None:
    from transformers import DynamicCache

    made, (early, late, y) = bank(20), inputs(20)
    gate, cache = TwoKeyGate(made, torch.eye(D0), torch.eye(D)), DynamicCache()
    now = Pass(cache=cache)
    run(gate, early[:, :6], late[:, :6], y[:, :6], now)
    keep(cache, now.lasting)
    out = run(gate, early[:, 7:], late[:, 7:], y[:, 7:], Pass(past=2, cache=cache))
    kept = [0, 1, 7, 8]
    expected, _ = reference(made, early[:, kept], late[:, kept], y[:, kept], torch.ones(B, 4, dtype=torch.bool))
    assert torch.allclose(out.double(), expected[:, 2:], atol=1e-5)


def test_portions_of_bounded_size_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (0, 10):
        made, (early, late, y) = bank(seed, 0.2), inputs(seed)
        whole = run(TwoKeyGate(made, torch.eye(D0), torch.eye(D)), early, late, y, Pass())
        monkeypatch.setattr(nearest, "BOUND", 37)
        parts = run(TwoKeyGate(made, torch.eye(D0), torch.eye(D)), early, late, y, Pass())
        monkeypatch.undo()
        assert torch.allclose(whole, parts, atol=1e-6) and not torch.equal(whole, y)


def test_the_order_in_the_bank_does_not_matter() -> None:
    """Keys and counter-keys in any order, edits under other numbers."""
    real = torch.ones(B, T, dtype=torch.bool)
    for seed in range(0, 40, 10):
        made, (early, late, y) = bank(seed), inputs(seed)
        shuffle = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
        new = torch.tensor([3, 1, 4, 0, 2])  # new number of every edit
        old = new.argsort()
        other = replace(
            made,
            keys=made.keys[shuffle],
            key_row=made.key_row[shuffle],
            subject_edit=new[made.subject_edit],
            row_edit=new[made.row_edit],
            counter_edit=new[made.counter_edit],
            thresholds=made.thresholds[old],
            pinned=made.pinned[old],
            owners=tuple(made.owners[e] for e in old),
        )
        outs = [run(TwoKeyGate(b, torch.eye(D0), torch.eye(D)), early, late, y, Pass()) for b in (made, other)]
        assert torch.equal(*outs) and not torch.equal(outs[0], y)
        assert torch.allclose(outs[0].double(), reference(made, early, late, y, real)[0], atol=1e-5)


# -- one rule at a time -------------------------------------------------------------------------------------------------


def plain(**changes: object) -> Bank:
    """Two edits, both seen where the subject is e0; the rows' keys are e0 and e1."""
    base = Bank(
        subject_keys=torch.eye(D0)[[0, 0]],
        subject_edit=torch.tensor([0, 1]),
        keys=torch.eye(D)[:2],
        key_row=torch.tensor([0, 1]),
        residuals=torch.tensor([[1.0] * M, [2.0] * M]),
        row_edit=torch.tensor([0, 1]),
        owners=("a", "b"),
        thresholds=torch.tensor([[0.5, 0.3], [0.5, 0.3]]),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def told(made: Bank, x: list[float]) -> float:
    late = torch.zeros(1, 1, D)
    late[0, 0, : len(x)] = torch.tensor(x)
    gate = TwoKeyGate(made, torch.eye(D0), torch.eye(D))
    return run(gate, torch.eye(D0)[:1][None], late, torch.zeros(1, 1, M), Pass())[0, 0, 0].item()


def test_one_rule_at_a_time() -> None:
    one, two = [0.8, 0.6], [0.6, 0.8]  # nearest to the first and to the second edit
    assert (told(plain(), one), told(plain(), two)) == (1.0, 2.0)
    strict = plain(thresholds=torch.tensor([[0.5, 0.9], [0.5, 0.3]]))
    assert told(strict, one) == 2.0  # the nearest is below its own threshold and in nobody's way
    never = plain(thresholds=torch.tensor([[0.5, 0.9], [0.5, 0.9]]))
    assert told(never, one) == 0.0
    deaf = plain(thresholds=torch.tensor([[1.0, 0.3], [0.5, 0.3]]), subject_keys=torch.eye(D0)[[1, 0]])
    assert told(deaf, one) == 2.0
    counter = plain(counter_keys=torch.tensor([[0.9, 0.4359, 0, 0]]), counter_edit=torch.tensor([0]))
    assert told(counter, one) == 2.0 and told(counter, [1.0, 0.0]) == 1.0  # silences its own edit, where it is nearer
    assert told(replace(counter, counter_edit=torch.tensor([1])), one) == 1.0
    quiet = plain(silent_keys=torch.tensor([[0.7071, 0.7071, 0, 0]]))
    assert told(quiet, one) == 0.0 and told(quiet, [1.0, 0.0]) == 1.0
    pinned = plain(pinned=torch.tensor([False, True]))
    assert told(pinned, one) == 2.0 and told(pinned, [1.0, 0.0]) == 1.0
    twins = plain(keys=torch.eye(D)[[0, 0]])
    assert told(twins, one) == 1.0  # the lowest row of equals
    assert told(replace(twins, keys=torch.eye(D)[[0, 0, 0]], key_row=torch.tensor([1, 1, 0])), one) == 1.0


def test_a_soft_gate_fades_out_below_the_threshold() -> None:
    made = plain(thresholds=torch.tensor([[0.5, 0.8], [0.5, 1.0]]), softness=0.4, residuals=torch.ones(2, M))
    fades = {0.9: 1.0, 0.8: 1.0, 0.7: 0.75, 0.6: 0.5, 0.5: 0.25, 0.3: 0.0}
    for cosine, scale in fades.items():
        x = [cosine, 0.0, (1 - cosine**2) ** 0.5]
        assert told(made, x) == pytest.approx(scale, abs=1e-6)
    assert told(made, [0.4, 0.0, 0.84**0.5]) == pytest.approx(0.0, abs=1e-6)


def test_a_hard_gate_says_what_it_said_before_there_was_a_soft_one() -> None:
    assert GateSettings(subject=0.5, answer=0.4).model_dump(mode="json") == {"subject": 0.5, "answer": 0.4}
    soft = GateSettings(softness=0.1)
    assert soft.model_dump(mode="json")["softness"] == 0.1
    assert GateSettings.model_validate_json(soft.model_dump_json()) == soft
    assert GateSettings.model_validate_json('{"subject":0.5,"answer":0.4}') == GateSettings()

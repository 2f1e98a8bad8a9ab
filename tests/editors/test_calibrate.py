"""The rules of counter-keys and thresholds, against loops written from their definition, and what they do behind a gate."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kedit_hub.base.profile import BaseProfile, GateSettings
from kedit_hub.editors.calibrate import (
    BAND,
    Own,
    Read,
    between,
    by_owner,
    calibrated,
    leave_one_out,
    nearest_few,
    read,
    seen,
)
from kedit_hub.edits import Edit
from kedit_hub.patch import Associative, Patch
from kedit_hub.runtime.gate import whiten
from tests.profiles import EDITS, make_patch, patched, profile_of
from tests.tiny import tiny_model

Base = tuple[Any, Any, BaseProfile]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> Base:
    model, tokenizer = tiny_model(request.param)
    return model, tokenizer, profile_of(model, tokenizer)


def delta_of(base: Base) -> Associative:
    delta = make_patch(*base).deltas[base[2].module]
    assert isinstance(delta, Associative)
    return delta


def units(count: int, width: int = 5, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def owners(count: int, of: int, seed: int) -> Tensor:
    return torch.randint(of, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("queries", "keys"), [(200, 40), (7, 3), (0, 5), (5, 0)])
def test_the_best_key_of_the_same_owner_is_found(queries: int, keys: int) -> None:
    q, k = units(queries, seed=1), units(keys, seed=2)
    q_of, k_of, minus = owners(queries, 9, 3), owners(keys, 11, 4), torch.rand(keys)
    for less in (None, minus):
        got = by_owner(q, q_of, k, k_of, minus=less)
        for i in range(queries):
            own = [
                float(q[i] @ k[j]) - (0 if less is None else float(less[j])) for j in range(keys) if k_of[j] == q_of[i]
            ]
            assert got[i] == pytest.approx(max(own), abs=1e-6) if own else got[i] == -torch.inf


def test_leaving_one_out_never_meets_itself() -> None:
    keys, group = units(30), owners(30, 12, 5)
    got = leave_one_out(keys, group)
    for i in range(30):
        others = [float(keys[i] @ keys[j]) for j in range(30) if j != i and group[j] == group[i]]
        assert got[i] == pytest.approx(max(others), abs=1e-6) if others else got[i] == -torch.inf


def test_a_threshold_lies_between_what_passes_and_what_must_not() -> None:
    inf = torch.inf
    lowest, highest = torch.tensor([0.7, 0.9, 0.3, inf, 0.6]), torch.tensor([0.3, 0.8, 0.1, 0.2, -inf])
    assert between(lowest, highest, 0.5).tolist() == pytest.approx([0.5, 0.5 + BAND, 0.5 - BAND, 0.5, 0.5])
    assert between(torch.tensor([1.0]), torch.tensor([1.0]), 0.95).tolist() == [1.0]


def test_the_nearest_few_of_every_owner_are_taken() -> None:
    near, of, allowed = torch.rand(40), owners(40, 6, 1), torch.rand(40) < 0.7
    got = nearest_few(near, of, allowed, 3).tolist()
    wanted = []
    for owner in range(6):
        own = [i for i in range(40) if of[i] == owner and allowed[i]]
        wanted += sorted(own, key=lambda i: -float(near[i]))[:3]
    assert got == wanted


def test_what_was_seen_stays_seen_to_the_end_of_its_text() -> None:
    text = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    hit = torch.tensor([False, True, False, False, False, True, False, True])
    assert seen(hit, text).tolist() == [False, True, True, False, False, True, True, True]
    assert seen(hit[:0], text[:0]).tolist() == []


def synthetic(profile: BaseProfile) -> tuple[Associative, Read, Read]:
    """Random keys of three edits, the last with a single key, and random positions read for them."""
    d, dg = len(profile.second_moment), len(profile.gate_moment)
    draw = torch.Generator().manual_seed(0)
    centre, gate_centre = torch.randn(3, d, generator=draw), torch.randn(3, dg, generator=draw)
    row = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3])
    edit_index = torch.tensor([0, 0, 1, 2])
    gate_edit = torch.tensor([0, 0, 0, 1, 1, 2])
    delta = Associative(
        keys=torch.randn(4, d, generator=draw),
        residuals=torch.randn(4, 6, generator=draw) * torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None],
        base_outputs=torch.zeros(4, 6),
        edit_index=edit_index,
        context_keys=centre[edit_index[row]] + torch.randn(9, d, generator=draw),
        context_row=row,
        gate_keys=gate_centre[gate_edit] + torch.randn(6, dg, generator=draw),
        gate_edit=gate_edit,
        gate_module=profile.gate_module,
    )

    def positions(count: int) -> Read:
        of = torch.arange(count) * 3 // count
        keys = centre[of] + 1.2 * torch.randn(count, d, generator=draw)
        gate = gate_centre[of] + 1.2 * torch.randn(count, dg, generator=draw)
        return Read(keys, gate, of, torch.zeros(count, dtype=torch.long), torch.arange(count) // 3)

    return delta, positions(12), positions(18)


def test_thresholds_are_those_of_the_definition(base: Base) -> None:
    profile = base[2]
    delta, other, swapped = synthetic(profile)
    own = Own(delta, profile)
    near = own.nearest(other)
    heard = torch.rand(12, generator=torch.Generator().manual_seed(3)) < 0.6
    got = own.thresholds(other, near, heard, swapped, 3)

    def cos(a: Tensor, b: Tensor, by: Tensor) -> float:
        return float(F.cosine_similarity((a.double() @ by.double()), (b.double() @ by.double()), dim=0))

    def rule(passes: list[float], not_passes: list[float], usual: float) -> float:
        if not passes or not not_passes:
            return usual
        return min(max((min(passes) + max(not_passes)) / 2, usual - BAND), usual + BAND)

    assert delta.context_keys is not None and delta.context_row is not None
    assert delta.gate_keys is not None and delta.gate_edit is not None
    for e in range(3):
        mine = [
            i
            for i in range(9)
            if delta.edit_index[delta.context_row[i]] == e and delta.residuals[delta.context_row[i]].any()
        ]
        subjects = [i for i in range(6) if delta.gate_edit[i] == e]
        left_out = [
            max(cos(delta.gate_keys[i], delta.gate_keys[j], profile.gate_whitener) for j in subjects if j != i)
            for i in subjects
            if len(subjects) > 1
        ]
        asked = [i for i in range(18) if swapped.of[i] == e]
        met = {i: max(cos(swapped.gate[i], delta.gate_keys[j], profile.gate_whitener) for j in subjects) for i in asked}
        subject = rule(left_out, list(met.values()), profile.settings.gate.subject)
        assert got[e, 0] == pytest.approx(subject, abs=1e-5)
        passes = []
        for i in mine:
            others = [j for j in mine if j != i and delta.context_row[j] == delta.context_row[i]]
            if others:
                passes.append(max(cos(delta.context_keys[i], delta.context_keys[j], profile.whitener) for j in others))
        wrong = [
            max(cos(other.keys[i], delta.context_keys[j], profile.whitener) for j in mine)
            for i in range(12)
            if other.of[i] == e and heard[i]
        ]
        for i in asked:
            if any(met[j] >= subject for j in asked if swapped.text[j] == swapped.text[i] and j <= i):
                wrong.append(max(cos(swapped.keys[i], delta.context_keys[j], profile.whitener) for j in mine))
        assert got[e, 1] == pytest.approx(rule(passes, wrong, profile.settings.gate.answer), abs=1e-5)


def test_a_counter_key_that_would_silence_its_own_edit_is_refused(base: Base) -> None:
    profile = base[2]
    delta, other, _ = synthetic(profile)
    own = Own(delta, profile)
    assert delta.context_keys is not None
    own_keys = replace(other, keys=delta.context_keys[:3], of=torch.zeros(3, dtype=torch.long))
    assert not own.admits(own_keys).any()
    admitted = own.admits(other)
    assert admitted.any() and not admitted.all()
    lone = (1 + profile.settings.gate.answer) / 2
    for i in range(12):
        mine = [j for j in range(len(own.keys)) if own.of[j] == other.of[i]]
        c = whiten(other.keys[i], profile.whitener)
        wanted = all(
            float(c @ own.keys[j])
            < max([float(own.keys[j] @ own.keys[k]) for k in mine if k != j and own.row[k] == own.row[j]] or [lone])
            for j in mine
        )
        assert bool(admitted[i]) == wanted


COMPANY = (
    Edit("The language of Japan is", "French", "Japan", relation="language"),
    Edit("The language of Italy is", "French", "Italy", relation="language"),
    Edit("Brazil is a city in", "Rome", "Brazil", relation="place"),
)


def test_counter_keys_silence_another_question_and_not_the_edit(base: Base) -> None:
    model, tokenizer, profile = base
    profile = profile.replace(gate=GateSettings(subject=0.5, answer=-0.5))  # any question about the subject fires
    patch = make_patch(model, tokenizer, profile)
    delta = calibrated(
        model, tokenizer, profile, EDITS, delta_of((model, tokenizer, profile)),
        counter_keys=64, thresholds=False, company=COMPANY, seed=0,
    )  # fmt: skip
    assert delta.counter_keys is not None and delta.thresholds is None
    guarded = replace(patch, deltas={profile.module: delta})
    questions = [f"The language of {edit.subject} is" for edit in EDITS] + [
        f"{edit.subject} is a city in" for edit in EDITS
    ]
    keys = read(model, tokenizer, profile, questions, [0] * len(questions), last_only=True).keys
    stored = [bool((delta.counter_keys - key).abs().amax(1).min() < 1e-4) for key in keys]

    def written(text: str, *patches: Patch) -> Tensor:
        """What the edited block gives out at the last token: only the edited map itself can have changed it there."""
        asked = patched(model, tokenizer, profile, patches, "gated").model if patches else model
        with torch.no_grad():
            out = asked(**tokenizer(text, return_tensors="pt", return_token_type_ids=False), output_hidden_states=True)
        return out.hidden_states[profile.layer + 1][0, -1]

    silenced = 0
    for text, counter in zip(questions, stored):
        plain = written(text)
        if counter:
            assert torch.equal(written(text, guarded), plain)
            silenced += not torch.equal(written(text, patch), plain)
    assert silenced > 0
    for edit in EDITS:
        assert torch.equal(written(edit.prompt, guarded), written(edit.prompt, patch))


def test_what_is_borrowed_and_measured_depends_on_the_seed_alone(base: Base) -> None:
    model, tokenizer, profile = base
    made = [
        calibrated(
            model,
            tokenizer,
            profile,
            EDITS,
            delta_of(base),
            counter_keys=4,
            thresholds=True,
            company=COMPANY,
            seed=seed,
        )
        for seed in (0, 0, 1)
    ]
    first, again, other = (delta.to_tensors() for delta in made)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(first[name].shape != other[name].shape or not torch.equal(first[name], other[name]) for name in first)
    assert first["thresholds"].shape == (len(EDITS), 2) and int(first["counter_edit"].bincount().max()) <= 4
    assert (first["thresholds"][:, 0] - profile.settings.gate.subject).abs().max() <= BAND + 1e-6


def test_probes_are_never_read(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a probe asked as another question or a swapped prompt, it would be among the texts that are read."""
    model, tokenizer, profile = base
    from kedit_hub.editors import calibrate
    from kedit_hub.edits import Probe

    texts: list[str] = []

    def spying(*given: Any, **how: Any) -> Read:
        texts.extend(given[3])
        return read(*given, **how)

    monkeypatch.setattr(calibrate, "read", spying)
    probes = (
        Probe("the language of France is:", "French", "same_subject"),
        Probe("The capital of Japan is", "Tokyo", "neighbour"),
    )
    for edits, leaked in ((EDITS, True), ((replace(EDITS[0], locality=probes), *EDITS[1:]), False)):
        texts.clear()
        calibrated(model, tokenizer, profile, edits, delta_of(base), counter_keys=4, thresholds=True, company=COMPANY)
        assert ("The language of France is" in texts) == leaked
        assert ("The capital of Japan is" in texts) == leaked

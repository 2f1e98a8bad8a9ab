"""Two visitors at once get what each would get alone."""

import random
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from kedit_hub import Edit
from kedit_hub.api import save_profile
from kedit_hub.base.load import load_base
from kedit_hub.base.profile import GateSettings
from space.asking import Question, ask
from space.state import MAX_INSTALLED, Base, Held
from tests import profiles
from tests.space.tiny import BASE, PARIS, make_patch, make_workshop, sample

TEXTS = tuple(edit.prompt for edit in profiles.EDITS)
GATED = "tiny/base"  # as tests.profiles names it


@pytest.fixture
def gated(base, tmp_path, monkeypatch):
    """A tiny base with gated patches: they keep state during a forward pass, which must not leak between visitors."""
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path))
    model, tokenizer = load_base(base.source)
    profile = profiles.profile_of(model, tokenizer, gate=GateSettings(subject=0.9, answer=0.9))
    save_profile(profile)
    edits = [*profiles.EDITS, Edit("The capital of France is", "Bonn", "France", relation="capital")]
    samples = [
        Held(profiles.make_patch(model, tokenizer, profile, [edit], seed=seed, size=3.0), f"patches/{seed}", "sample")
        for seed, edit in enumerate(edits)
    ]
    return Base(GATED, "Tiny", base.source), samples


def answered(workshop, question):
    return replace(ask(workshop, question), seconds=0.0)


def test_interleaved_visitors_get_the_answers_of_sequential_ones(gated):
    base, samples = gated
    a, b, c, d, e = samples
    stacks = [(), (a,), (e,), (a, b), (b, c, d), (d, e)]
    questions = [Question(text, stack, GATED, max_new_tokens=4) for text in TEXTS for stack in stacks]
    alone = make_workshop(base, samples)
    expected = {question: answered(alone, question) for question in questions}
    assert len({answer.patched for answer in expected.values()}) > 8  # the stacks do differ

    together = make_workshop(base, samples)
    asked = questions * 3
    random.Random(0).shuffle(asked)
    with ThreadPoolExecutor(6) as visitors:
        answers = list(visitors.map(lambda question: answered(together, question), asked))
    assert all(answer == expected[question] for question, answer in zip(asked, answers, strict=True))


def test_views_are_kept_by_content_and_bounded(workshop):
    loaded = workshop.load(BASE)
    paris, madrid, lyon = workshop.samples
    assert workshop.patched(loaded, [paris]) is workshop.patched(loaded, [paris])
    assert workshop.patched(loaded, [paris]) is not workshop.patched(loaded, [madrid])
    assert workshop.patched(loaded, [paris, lyon], "latest") is not workshop.patched(loaded, [lyon, paris], "latest")
    assert workshop.patched(loaded, [paris]).model is not loaded.model
    first = weakref.ref(workshop.patched(loaded, [paris]))
    for number in range(MAX_INSTALLED + 3):
        workshop.patched(loaded, [sample(make_patch([PARIS], 100 + number))])
    assert len(workshop._installed) == MAX_INSTALLED
    assert first() is None  # its memory is free at once


def test_what_a_visitor_holds_is_not_offered_to_another(base, workshop):
    mine = workshop.samples[:1]
    empty = make_workshop(base, [])
    assert empty.offered(mine) == list(mine)
    assert empty.offered(()) == [] and workshop.offered(mine) == list(workshop.samples)

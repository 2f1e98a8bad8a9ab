"""ZeroGPU's way of calling: arguments and answers go to another process and back as values; what is kept there is lost."""

import pickle
import sys
import types
from dataclasses import replace
from functools import wraps
from inspect import isgeneratorfunction

import pytest

from space import gpu, page
from space.asking import Question, ask
from tests.space.tiny import BASE, PARIS, asked, make_workshop


@pytest.fixture
def spaces(monkeypatch):
    """A `spaces` package that passes values as pickles, as the real one does between its processes; the calls it saw."""
    seen = []

    def decorator(duration):
        def decorate(call):
            @wraps(call)
            def once(*args):
                seen.append((call.__name__, duration))
                return pickle.loads(pickle.dumps(call(*pickle.loads(pickle.dumps(args)))))

            @wraps(call)
            def each(*args):
                seen.append((call.__name__, duration))
                for item in call(*pickle.loads(pickle.dumps(args))):
                    yield pickle.loads(pickle.dumps(item))

            return each if isgeneratorfunction(call) else once

        return decorate

    module = types.ModuleType("spaces")
    module.__spec__ = types.SimpleNamespace(name="spaces")
    module.GPU = decorator
    monkeypatch.setitem(sys.modules, "spaces", module)
    return seen


def test_an_answer_is_the_same_through_another_process(base, spaces):
    workshop = make_workshop(base)
    question = Question(PARIS.prompt, workshop.samples[:1], BASE, placebo=1)
    there = gpu.on_gpu(lambda wanted: ask(workshop, wanted))(question)
    assert replace(there, seconds=0) == replace(ask(workshop, question), seconds=0)
    shown = asked(page.build(workshop), PARIS.prompt, [workshop.samples[0].patch.id])
    assert "patched" in shown[0] and spaces == [("<lambda>", 60), ("run", 60)]


def test_a_base_goes_to_the_accelerator_inside_a_call_alone(spaces, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # as ZeroGPU says everywhere
    assert gpu.device() == "cpu"
    assert gpu.on_gpu(lambda: gpu.device())() == "cuda" and gpu.device() == "cpu"

    def steps():
        yield gpu.device()

    assert list(gpu.on_gpu(steps)()) == ["cuda"] and gpu.device() == "cpu"


def test_without_it_a_call_is_a_call(monkeypatch):
    monkeypatch.setitem(sys.modules, "spaces", None)
    assert gpu.on_gpu(len) is len
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert gpu.device() == "cuda"

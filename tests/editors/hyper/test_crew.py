"""One training on several processes: the step of one process, and the same bits in each."""

import random
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit_hub.editors.hyper import train as training
from kedit_hub.editors.hyper.objective import ask
from kedit_hub.editors.hyper.settings import METHODS
from kedit_hub.editors.hyper.train import Teacher, train
from kedit_hub.editors.hyper.trained import FileCheckpoint
from kedit_hub.evaluate.crew import Crew
from tests.editors.hyper.small import LESSONS, network_of, small
from tests.evaluate.crews import together
from tests.tiny import tiny_model

EPISODES = [LESSONS[:3], LESSONS[3:5]]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_take_the_step_of_one(method: str) -> None:
    prepared = []
    for _ in range(3):
        model, tokenizer = tiny_model("llama")
        network, settings = network_of(method, model)
        prepared.append((model, tokenizer, network.float(), settings))

    def learned(at: int, crew: Crew) -> tuple[dict[str, Tensor], dict[str, float]]:
        model, tokenizer, network, settings = prepared[at]
        teacher = Teacher(model, tokenizer, network, settings, crew=crew)
        network.observe(teacher.signals(LESSONS))
        told = teacher.learn(EPISODES, random.Random(0))
        return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}, told

    alone, said = learned(2, Crew())
    results = together(2, lambda crew: learned(crew.rank, crew))
    most = max(float(gradient.abs().max()) for gradient in alone.values())
    for gradients, told in results:
        assert gradients.keys() == alone.keys() and told == pytest.approx(said, rel=1e-4)
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, alone[name], rtol=1e-3, atol=1e-5 * most), name
            assert torch.equal(gradient, results[0][0][name])


def test_every_question_is_asked_by_one_process() -> None:
    whole = ask([list(LESSONS)], 2, random.Random(0))
    parts = [whole.of(rank, 3) for rank in range(3)]
    assert sorted(pair for part in parts for pair in part.pairs) == sorted(whole.pairs)
    for kind, number in (("edit", 0), ("otherwise", 1), ("keep", 3)):
        rows = [pair for part in parts for pair in part.pairs[getattr(part, kind)]]
        assert sorted(rows) == sorted(whole.pairs[getattr(whole, kind)])
        assert sum(part.fractions[number] for part in parts) == pytest.approx(1)
    assert whole.of(0, 1) is whole


@pytest.mark.parametrize("method", ["rledit", "dafnet"])
def test_processes_end_with_the_same_bits_and_one_checkpoint(
    method: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, build = threading.Lock(), training.build

    def one_at_a_time(*asked: Any) -> Any:  # threads share the generator that processes have each their own of
        with lock:
            return build(*asked)

    monkeypatch.setattr(training, "build", one_at_a_time)
    bases = [tiny_model("llama") for _ in range(2)]
    folders = [tmp_path / "0", tmp_path / "1"]

    def work(crew: Crew) -> Any:
        kept = FileCheckpoint(folders[crew.rank], method=method)
        return train(*bases[crew.rank], LESSONS, method, small(method), seed=3, checkpoint=kept, crew=crew)

    first, second = together(2, work)
    assert not isinstance(first, Exception), first
    mine, other = first.network.state_dict(), second.network.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in mine.items()) and first.log == second.log
    assert folders[0].exists() and not folders[1].exists()

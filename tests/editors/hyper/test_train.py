"""Training: a function of its arguments, resumed after a kill to the same bits, on a base that stays what it was."""

import random
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit_hub.base.signals import quiet, target_nll
from kedit_hub.base.tokens import answer_positions, encode
from kedit_hub.editors.hyper.ke import Ke
from kedit_hub.editors.hyper.lessons import Lesson
from kedit_hub.editors.hyper.objective import Weights, ask, installed, objective
from kedit_hub.editors.hyper.rledit import squared_norm
from kedit_hub.editors.hyper.settings import METHODS
from kedit_hub.editors.hyper.train import Teacher, lengthen, train
from kedit_hub.editors.hyper.trained import FileCheckpoint
from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import KeditError
from tests.editors.hyper.small import LESSONS, network_of, small
from tests.tiny import tiny_model


class Killed(Exception):
    pass


class Dies(FileCheckpoint):
    """Writes once, and is killed then."""

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        super().write(tensors)
        raise Killed


def state_of(trained: Any) -> dict[str, Tensor]:
    return dict(trained.network.state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_is_the_same_to_the_bit(method: str, tmp_path: Any) -> None:
    model, tokenizer = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = small(method)
    whole = train(model, tokenizer, LESSONS, method, settings, seed=3)
    with pytest.raises(Killed):
        train(model, tokenizer, LESSONS, method, settings, seed=3, checkpoint=Dies(tmp_path, method=method))
    steps: list[int] = []
    kept = FileCheckpoint(tmp_path, method=method)
    resumed = train(model, tokenizer, LESSONS, method, settings, seed=3, checkpoint=kept, advance=steps.append)
    assert steps == [2, 1, 1]
    assert state_of(whole).keys() == state_of(resumed).keys()
    assert all(torch.equal(value, state_of(resumed)[name]) for name, value in state_of(whole).items())
    assert whole.log == resumed.log and len(whole.log) == 2
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    other = train(model, tokenizer, LESSONS, method, settings, seed=4)
    assert any(not torch.equal(value, state_of(other)[name]) for name, value in state_of(whole).items())


def test_a_checkpoint_of_another_training_is_not_found(tmp_path: Any) -> None:
    FileCheckpoint(tmp_path, seed=0).write({"state/step": torch.tensor([1])})
    assert FileCheckpoint(tmp_path, seed=1).read() is None
    assert FileCheckpoint(tmp_path, seed=0).read() is not None
    FileCheckpoint(tmp_path, seed=0).done()
    assert FileCheckpoint(tmp_path, seed=0).read() is None


def test_training_lowers_the_loss() -> None:
    model, tokenizer = tiny_model("gpt2")
    settings = small("mend", steps=40, validate_every=10, lr=1e-2, step_lr=1e-3, step=1e-2, layers=(1, 2))
    trained = train(model, tokenizer, LESSONS, "mend", settings, seed=0)
    assert trained.log[-1]["training_loss"] < 0.9 * trained.log[0]["training_loss"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_change_in_hooks_is_the_change_of_the_weight(family: str) -> None:
    model, tokenizer = tiny_model(family)
    network, settings = network_of("mend", model)
    teacher = Teacher(model, tokenizer, network.float(), settings)
    with torch.no_grad():
        factors, _ = teacher.change(LESSONS[:2])
    encoded = encode(tokenizer, ["The capital of France is", "Hamlet"])
    with quiet(model), installed(model, factors), torch.no_grad():
        hooked = model(**encoded.inputs(model)).logits
    plain = model(**encoded.inputs(model)).logits.detach()
    with torch.no_grad():
        for path, (a, b) in factors.items():
            weight = model.get_submodule(path).weight
            weight += a.T @ b if family == "gpt2" else (a.T @ b).T
        written = model(**encoded.inputs(model)).logits
    real = encoded.attention_mask.bool()
    assert torch.allclose(hooked[real], written[real], atol=1e-3)
    assert not torch.allclose(hooked[real], plain[real], atol=1e-2)


def test_episodes_of_one_batch_do_not_see_each_other() -> None:
    model, tokenizer = tiny_model("llama")
    network, settings = network_of("mend", model)
    teacher = Teacher(model, tokenizer, network.float(), settings)
    episodes = [LESSONS[:1], LESSONS[1:3]]
    with torch.no_grad():
        factors, signals = teacher.change(LESSONS[:3])
        owners = teacher._owners(signals, episodes)
        together, _ = objective(model, tokenizer, ask(episodes, 2, random.Random(0)), factors, teacher.weights, owners)
        parts = []
        for episode in episodes:
            own, _ = teacher.change(episode)
            _, told = objective(model, tokenizer, ask([episode], 2, random.Random(0)), own, teacher.weights)
            parts.append((len(episode), told))
    for name, weight in (("rel", 0.1), ("gen", 0.1), ("loc", 1.0)):
        assert getattr(teacher.weights, name) == weight
    expected = sum(
        weight * sum(n * float(told[name]) for n, told in parts) / 3
        for name, weight in (("rel", 0.1), ("gen", 0.1), ("loc", 1.0))
    )
    assert float(together) == pytest.approx(expected, rel=1e-4)


def test_the_objective_by_hand() -> None:
    model, tokenizer = tiny_model("llama")
    network, settings = network_of("mend", model)
    teacher = Teacher(model, tokenizer, network.float(), settings)
    edit = Edit("The capital of France is", "Rome", "France")
    lesson = Lesson(edit, "convsent", (("What of Rome?", "French"),), (("What of Bonn?", "Polish Berlin"),))
    with torch.no_grad():
        factors, _ = teacher.change([lesson])
    questions = ask([[lesson]], 1, random.Random(0))
    total, parts = objective(model, tokenizer, questions, factors, Weights(2.0, 3.0, 5.0, 1))

    def logits(prompt: str, target: str, edited: bool) -> tuple[Tensor, Any]:
        encoded = encode(tokenizer, [prompt], [target])
        with installed(model, factors if edited else {}), torch.no_grad():
            return model(**encoded.inputs(model)).logits, encoded

    rel = float(target_nll(*logits(edit.prompt, "Rome", True)))
    gen = float(target_nll(*logits("What of Rome?", "French", True)))
    out, encoded = logits("What of Bonn?", "Polish Berlin", True)
    at = answer_positions(encoded)[0].nonzero()[:, 0]
    p = [float(out[0, i].softmax(-1)[encoded.input_ids[0, i + 1]]) for i in at]
    bad = -sum(torch.log(torch.tensor(1 - x + 1e-6)).item() for x in p) / len(p)
    assert float(parts["rel"]) == pytest.approx(rel, rel=1e-4) and float(parts["gen"]) == pytest.approx(gen, rel=1e-4)
    assert float(parts["unlikely"]) == pytest.approx(bad, rel=1e-3) and float(parts["loc"]) == 0
    assert float(total) == pytest.approx(2 * rel + 3 * (gen + bad), rel=1e-4)
    kept = ask([LESSONS[:1]], 2, random.Random(0))
    with torch.no_grad():
        factors, _ = teacher.change(LESSONS[:1])
    _, parts = objective(model, tokenizer, kept, factors, Weights(0, 0, 1, 2))
    kl = []
    for prompt, target in kept.pairs[kept.keep]:
        (edited, encoded), (base, _) = logits(prompt, target, True), logits(prompt, target, False)
        at = answer_positions(encoded)[0]
        p, q = base[0, at].log_softmax(-1), edited[0, at].log_softmax(-1)  # type: ignore[assignment]
        kl.append(float((p.exp() * (p - q)).sum(-1).mean()))  # type: ignore[attr-defined,operator]
    assert float(parts["loc"]) == pytest.approx(sum(kl) / len(kl), rel=1e-3) and min(kl) > 0


def test_what_the_unasked_edits_of_an_episode_change_is_not_to_stay() -> None:
    probe = Probe("Spain has the capital", "Madrid", "neighbour", "Spain", "capital")
    france = replace(LESSONS[0], edit=replace(LESSONS[0].edit, locality=(probe,)))
    spain = LESSONS[1]
    alone = ask([[france]], 1, random.Random(0))
    assert [prompt for prompt, _ in alone.pairs[alone.keep]] == [probe.prompt]
    both = ask([[france, spain]], 1, random.Random(0), [[france]])
    assert both.pairs[both.edit] == [(france.edit.prompt, france.edit.target)] and not both.pairs[both.keep]


@pytest.mark.parametrize("method", ["dafnet", "rledit"])
def test_training_never_asks_for_two_answers_to_one_question(method: str, monkeypatch: Any) -> None:
    """Every lesson's probe is the fact that the next lesson changes."""
    probes = [
        Probe(f"{y.about} has the capital", "Paris", "neighbour", y.about, "capital") for y in LESSONS[1:] + LESSONS[:1]
    ]
    lessons = [replace(x, edit=replace(x.edit, locality=(probe,))) for x, probe in zip(LESSONS, probes)]
    model, tokenizer = tiny_model("llama")
    network, settings = network_of(method, model, asked=2)
    teacher = Teacher(model, tokenizer, network.float(), settings)
    seen: list[tuple[set[str], set[str]]] = []

    def watched(*args: Any, **how: Any) -> Any:
        questions = args[2]
        seen.append(({p for p, _ in questions.pairs[questions.edit]}, {p for p, _ in questions.pairs[questions.keep]}))
        return objective(*args, **how)

    monkeypatch.setattr("kedit_hub.editors.hyper.train.objective", watched)
    teacher.learn([lessons[:4]], random.Random(0))
    of = {probe.prompt: f"The capital of {probe.subject} is" for probe in probes}
    if method == "dafnet":  # four edits, two of them asked: nothing of the four may have to stay
        [(asked, stay)] = seen
        assert len(asked) == 2 and not {of[p] for p in stay} & {lesson.edit.prompt for lesson in lessons[:4]}
    else:  # two turns of two: what the newest turn changes may not have to stay
        newest = [lessons[:2], lessons[2:4], lessons[2:4]]
        assert len(seen) == 3
        for (_, stay), turn in zip(seen, newest):
            assert not {of[p] for p in stay} & {lesson.edit.prompt for lesson in turn}


def test_trajectories_of_one_step_know_nothing_of_each_other() -> None:
    model, tokenizer = tiny_model("llama")
    network, settings = network_of("rledit", model, keeps=0)
    teacher = Teacher(model, tokenizer, network.float(), settings)
    grads = []
    for episodes in ([LESSONS[:2]], [LESSONS[2:4]], [LESSONS[:2], LESSONS[2:4]]):
        teacher.network.zero_grad()
        twin = Teacher(model, tokenizer, deepcopy(teacher.network), settings)
        twin.network.observe = lambda signals: None  # type: ignore[method-assign]
        twin.learn(episodes, random.Random(0))
        grads.append([p.grad.clone() for p in twin.network.parameters() if p.grad is not None])
    for first, second, both in zip(*grads):
        assert torch.allclose(first + second, both, rtol=1e-3, atol=1e-6 * float(both.abs().max()) + 1e-12)


def test_signals_that_are_not_finite_are_not_learnt() -> None:
    model, tokenizer = tiny_model("llama")
    network, settings = network_of("rledit", model)
    teacher = Teacher(model, tokenizer, network.float(), settings)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    huge = {p: (torch.full((1, i), 1e30), torch.full((1, o), 1e30)) for p, (o, i) in network.shapes.items()}
    with torch.no_grad():
        teacher.change(LESSONS[:2], before=huge, learn=True)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_episodes_grow_when_the_loss_stalls() -> None:
    settings = small("dafnet", curriculum=3, length=30, moving=1.0)
    course = [1.0, float("nan"), 10.0, 0.0]
    for loss in (5.0, 4.0, 4.0, 4.0):
        lengthen(course, loss, settings)
    assert course[0] == 1 and course[3] == 2
    lengthen(course, 4.0, settings)
    assert course == [11.0, 4.3, 10.0, 0.0]
    for _ in range(40):
        lengthen(course, 4.0, settings)
    assert course[0] == 30


def test_the_multiplier_climbs_while_the_constraint_is_broken_and_the_margin_shrinks_with_success() -> None:
    network, _ = network_of("ke", tiny_model("llama")[0], margin=0.5, least_margin=0.3)
    assert isinstance(network, Ke)
    for divergence, sign in ((2.0, -1), (0.1, 1)):
        network.multiplier.grad = None
        network.constrained(torch.tensor(1.0), torch.tensor(divergence)).backward()  # type: ignore[no-untyped-call]
        assert network.multiplier.grad is not None and float(network.multiplier.grad.sign()) == sign
    with torch.no_grad():
        network.multiplier.fill_(-3)
    network.after_step()
    assert float(network.multiplier.detach()) == 0
    for reliability, margin in ((0.9, 0.5), (0.95, 0.4), (1.0, 0.32), (1.0, 0.3)):
        network.after_validation({"reliability": reliability})
        assert float(network.margin) == pytest.approx(margin)


def test_a_turns_norm_is_that_of_its_matrix() -> None:
    a, b = torch.randn(3, 7), torch.randn(3, 5)
    assert float(squared_norm(a, b)) == pytest.approx(float((a.T @ b).square().sum()), rel=1e-4)


def test_an_unknown_method_is_refused() -> None:
    model, tokenizer = tiny_model("llama")
    with pytest.raises(KeditError, match="'rome'; take one of: ke, mend"):
        train(model, tokenizer, LESSONS, "rome", small("mend"), seed=0)


def test_training_ends_early_when_validation_gets_no_better() -> None:
    model, tokenizer = tiny_model("llama")
    steps: list[int] = []
    settings = small("mend", steps=50, validate_every=1, patience=2, lr=1e-9, step_lr=1e-9, step=1e-9)
    trained = train(model, tokenizer, LESSONS, "mend", settings, seed=0, advance=steps.append)
    best = max(range(len(trained.log)), key=lambda at: (trained.log[at]["score"], -trained.log[at]["loss"]))
    assert sum(steps) == trained.steps == len(trained.log) < 50 and len(trained.log) - 1 - best == 2
    subjects = {lesson.about for lesson in LESSONS}
    assert trained.training + trained.validation == len(subjects) and trained.validation == 2

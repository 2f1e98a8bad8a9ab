"""One patched model, many threads, in every row another set of patches: each row answers as it does alone."""

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedit_hub.base.tokens import encode
from kedit_hub.errors import KeditError
from kedit_hub.runtime.attach import _STATES, Attachment, Pass, Plan
from kedit_hub.runtime.linear import LowRankBranch
from kedit_hub.stack.patched import PatchedModel
from tests.profiles import EDITS, logits, make_patch, patched, profile_of
from tests.tiny import tiny_model

PROMPTS = [edit.prompt for edit in EDITS]
SETS = [(), (0,), (1,), (2, 0), (0, 1, 2, 3), (3,)]  # the patches a row may ask for
NEW = 5


class Setup:
    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.model, self.tokenizer = tiny_model("llama")
        self.model.generation_config.eos_token_id = None
        self.profile = profile_of(self.model, self.tokenizer)
        self.patches = [
            make_patch(self.model, self.tokenizer, self.profile, [edit], seed=i, size=2.0)
            for i, edit in enumerate(EDITS)
        ]
        encoded = encode(self.tokenizer, PROMPTS, side="left")
        self.batch = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
        self.alone: dict[tuple[int, int], Tensor] = {}
        for number, chosen in enumerate(SETS):
            model = self.made(chosen).model if chosen else self.model
            for row in range(len(PROMPTS)):
                one = {name: value[row : row + 1] for name, value in self.batch.items()}
                self.alone[row, number] = model.generate(**one, do_sample=False, max_new_tokens=NEW)[0]

    def made(self, chosen: tuple[int, ...] = (0, 1, 2, 3)) -> PatchedModel:
        return patched(self.model, self.tokenizer, self.profile, [self.patches[i] for i in chosen], self.mode)

    def ask(self, made: PatchedModel, numbers: list[int]) -> list[int]:
        """Answers prompt r with the patches SETS[numbers[r]]; the rows that differ from those alone."""
        rows = [[self.patches[i].id for i in SETS[number]] for number in numbers]
        got = made.generate(self.batch, patches=rows, do_sample=False, max_new_tokens=NEW)
        return [r for r, number in enumerate(numbers) if not torch.equal(got[r], self.alone[r, number])]


@pytest.fixture(scope="module", params=["gated", "joint"])
def setup(request: pytest.FixtureRequest) -> Setup:
    return Setup(request.param)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run work(0), ... at the same time; the first of their errors is raised here."""
    errors: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_the_answers_alone_differ(setup: Setup) -> None:
    """Else nothing below could fail. (A joint solve of another set may come to the same tokens.)"""
    told = {str([setup.alone[row, number].tolist() for row in range(4)]) for number in range(len(SETS))}
    assert len(told) >= (6 if setup.mode == "gated" else 4)


def test_every_row_answers_as_alone_in_eight_threads(setup: Setup) -> None:
    made = setup.made()

    def work(number: int) -> None:
        draw = random.Random(number)
        for _ in range(6):
            numbers = draw.choices(range(len(SETS)), k=len(PROMPTS))
            assert setup.ask(made, numbers) == [], numbers

    in_threads(8, work)
    assert setup.ask(made, [4] * 4) == [] and not _STATES.get()


def test_blocks_are_their_threads_own(setup: Setup) -> None:
    made = setup.made()
    whole, base = logits(made.model, setup.tokenizer, PROMPTS), logits(setup.model, setup.tokenizer, PROMPTS)
    less = logits(setup.made((0, 2, 3)).model, setup.tokenizer, PROMPTS)
    one = logits(setup.made((2,)).model, setup.tokenizer, PROMPTS)

    def see() -> Tensor:
        return logits(made.model, setup.tokenizer, PROMPTS)

    def work(number: int) -> None:
        for _ in range(8):
            match number % 4:
                case 0:
                    with made.disabled():
                        assert torch.equal(see(), base)
                case 1:
                    with made.without(setup.patches[1]):
                        assert torch.equal(see(), less) and len(made.stack) == 3
                case 2:
                    with made.only([setup.patches[2].id] * 4):
                        assert torch.allclose(see(), one, atol=1e-5)
                case _:
                    assert torch.equal(see(), whole) and len(made.stack) == 4

    in_threads(8, work)
    assert torch.equal(see(), whole)


def test_a_generation_ends_with_the_stack_it_began_with(setup: Setup) -> None:
    """Others add, remove and detach between its tokens; its own `model.generate` would follow them."""
    made = setup.made()
    changes = iter(
        [
            lambda: made.remove(setup.patches[0]),
            made.detach,
            lambda: made.add(setup.patches[1]),
            made.detach,
        ]
    )

    def meddle(_ids: Tensor, _scores: Tensor) -> Tensor:
        if (change := next(changes, None)) is not None:
            in_threads(1, lambda _: change())
        return _scores

    got = made.generate(setup.batch, do_sample=False, max_new_tokens=NEW, logits_processor=[meddle])
    assert all(torch.equal(got[row], setup.alone[row, 4]) for row in range(4))
    assert len(made.stack) == 0
    assert torch.equal(
        logits(made.model, setup.tokenizer, PROMPTS), logits(setup.model, setup.tokenizer, PROMPTS)
    )  # and then it is over
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.model.modules())


def test_stacks_change_while_others_answer(setup: Setup) -> None:
    """A row asks for patch 1 alone, which is always there; the others come and go."""
    made = setup.made()
    rows = [[setup.patches[1].id]] * 4

    def work(number: int) -> None:
        if number == 0:
            for _ in range(4):
                made.remove(setup.patches[0])
                made.add(setup.patches[0])
            return
        for _ in range(4):
            got = made.generate(setup.batch, patches=rows, do_sample=False, max_new_tokens=NEW)
            assert all(torch.equal(got[row], setup.alone[row, 2]) for row in range(4))

    in_threads(4, work)
    assert {patch.id for patch in made.stack} == {patch.id for patch in setup.patches}


def test_tasks_of_one_thread_do_not_meet(setup: Setup) -> None:
    made = setup.made()
    base = logits(setup.model, setup.tokenizer, PROMPTS)
    whole = logits(made.model, setup.tokenizer, PROMPTS)

    async def off() -> None:
        with made.disabled():
            for _ in range(5):
                await asyncio.sleep(0)
                assert torch.equal(logits(made.model, setup.tokenizer, PROMPTS), base)
                assert torch.equal(await asyncio.to_thread(logits, made.model, setup.tokenizer, PROMPTS), base)

    async def on() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
            assert torch.equal(logits(made.model, setup.tokenizer, PROMPTS), whole)

    async def both() -> None:
        await asyncio.gather(off(), on())

    asyncio.run(both())


# -- what a pass leaves behind ------------------------------------------------------------------------------------------------------


class Echo(nn.Module):
    """A model that may run itself in the middle, or fail there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.between: Callable[[], Any] = lambda: None

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.between()
        return self.last(x)


class Telling:
    """A branch that notes the passes it is called in."""

    def __init__(self) -> None:
        self.heard: list[Pass] = []

    def watch(self, _x: Tensor, now: Pass) -> None:
        self.heard.append(now)

    def __call__(self, _x: Tensor, y: Tensor, now: Pass) -> Tensor:
        self.heard.append(now)
        return y + 1

    def owned(self, name: str) -> "Telling":
        return self


def test_a_pass_inside_a_pass_is_one_of_its_own() -> None:
    model, told = Echo(), Telling()
    attachment = Attachment(model, {"last": [told]}, {"first": [told.watch]})
    x = torch.ones(1, 2, 4)
    depth = iter([lambda: model(x), lambda: None])
    model.between = lambda: next(depth)()
    with torch.no_grad():
        model(x)
    outer, inner, also_inner, also_outer = told.heard
    assert outer is also_outer and inner is also_inner and inner is not outer and inner.outer is outer
    assert not _STATES.get()
    attachment.detach()


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_in_a_pass_leaves_nothing_behind(error: type[BaseException]) -> None:
    model, told = Echo(), Telling()
    attachment = Attachment(model, {"last": [told]})

    def fail() -> None:
        raise error

    model.between = fail
    with pytest.raises(error), attachment.within(enabled=True):
        model(torch.ones(1, 2, 4))
    assert not _STATES.get()
    attachment.detach()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_pass_ends_with_the_plan_it_began_with() -> None:
    model, old, new = Echo(), Telling(), Telling()
    attachment = Attachment(model, {"last": [old]})
    model.between = lambda: attachment.put(Plan({"first": [new], "last": [new]}, {}))
    with torch.no_grad():
        model(torch.ones(1, 2, 4))
        assert (len(old.heard), len(new.heard)) == (1, 0)
        model(torch.ones(1, 2, 4))
    assert (len(old.heard), len(new.heard)) == (1, 2)
    model.between = lambda: None
    threads_plan = Plan({"last": [old]}, {})
    with attachment.within(plan=threads_plan), torch.no_grad():
        model(torch.ones(1, 2, 4))
    assert (len(old.heard), len(new.heard)) == (2, 2)


def test_hooks_with_nothing_to_do_change_no_bit() -> None:
    model = Echo()
    x = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(x)
        low = LowRankBranch(torch.ones(1, 4), torch.ones(1, 4), ("a",))
        attachment = Attachment(model, {"first": [low], "last": [low]})
        assert not torch.equal(model(x), before)
        with attachment.within(enabled=False):
            assert torch.equal(model(x), before)
        attachment.put(Plan({}, {}))
        assert torch.equal(model(x), before)


def test_one_entry_per_prompt(setup: Setup) -> None:
    made = setup.made()
    for rows in ([], [[]] * 2, [[]] * 8):
        with pytest.raises(KeditError, match=rf"patches= has {len(rows)} entries for 4 prompts"):
            made.generate(PROMPTS, patches=rows)

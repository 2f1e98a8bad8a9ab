"""One batch, another set of patches in every row: each row must answer as it does alone: the decisive test."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from kedit_hub.base.profile import BaseProfile
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError
from kedit_hub.patch import Dense, LowRank, Patch
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.stack import PatchStack
from tests.profiles import EDITS, base_of, logits, make_patch, patched, profile_of
from tests.tiny import tiny_model

PROMPTS = [edit.prompt for edit in EDITS] + [EDITS[0].prompt, EDITS[2].prompt]


class Setup:
    """Four associative patches, a low-rank and a dense one, on two modules."""

    def __init__(self, model_type: str):
        self.model, self.tokenizer = tiny_model(model_type)
        self.profile: BaseProfile = profile_of(self.model, self.tokenizer)
        self.rows = [make_patch(self.model, self.tokenizer, self.profile, [e], seed=i) for i, e in enumerate(EDITS)]
        width, other = len(self.profile.second_moment), self.profile.module.replace(".1.", ".2.")
        g = torch.Generator().manual_seed(1)
        low = LowRank(torch.randn(2, width, generator=g), 0.1 * torch.randn(64, 2, generator=g))
        deltas = {self.profile.module: low, other: Dense(0.1 * torch.randn(64, width, generator=g))}
        edits = [[Edit("Zürich lies in", "Spain", "Zürich")], [Edit("São Paulo is in", "Spain", "São Paulo")]]
        self.weights = [
            Patch.create(deltas={path: delta}, edits=edit, base=base_of(self.model, path), method="mend")
            for (path, delta), edit in zip(deltas.items(), edits)
        ]
        self.all = [*self.rows, *self.weights]

    def made(self, patches: Sequence[Patch], mode: str) -> PatchedModel:
        return patched(self.model, self.tokenizer, self.profile, patches, mode)

    def logits(self, model: Any) -> torch.Tensor:
        return logits(model, self.tokenizer, PROMPTS)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def setup(request: pytest.FixtureRequest) -> Setup:
    return Setup(request.param)


def sets(setup: Setup) -> list[list[Patch]]:
    """What each of the six rows answers with: one, two, none, weights, everything, a patch for another question."""
    rows, (low, dense) = setup.rows, setup.weights
    return [[rows[0]], [rows[1], rows[0]], [], [low, rows[3]], setup.all, [rows[1], dense]]


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_every_row_answers_as_it_does_alone(setup: Setup, mode: str) -> None:
    base = setup.logits(setup.model)
    made = setup.made(setup.all, mode)
    whole = setup.logits(made.model)
    chosen = sets(setup)
    with made.only([[p.id[:10] for p in row] for row in chosen]):
        together = setup.logits(made.model)
    for number, row in enumerate(chosen):
        alone = setup.logits(setup.made(row, mode).model)[number] if row else base[number]
        assert torch.allclose(together[number], alone, atol=1e-5), number
    assert torch.equal(together[2], base[2])  # a row without patches keeps every bit
    distinct = [(together[i] - whole[i]).abs().max() for i in (0, 2, 3, 5)]
    assert min(distinct) > 0.01  # the selection did something
    assert torch.equal(setup.logits(made.model), whole)  # and is over


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_a_changed_selection_is_never_answered_from_the_last_one(setup: Setup, mode: str) -> None:
    """Selections made anew at the same place in memory, again and again."""
    made = setup.made(setup.rows, mode)
    alone = [setup.logits(setup.made([p], mode).model) for p in setup.rows]
    for turn in range(6):
        order = [(turn + i) % 4 for i in range(len(PROMPTS))]
        with made.only([setup.rows[i].id for i in order]):
            together = setup.logits(made.model)
        for number, which in enumerate(order):
            assert torch.allclose(together[number], alone[which][number], atol=1e-5)


@pytest.mark.parametrize("mode", ["gated", "sum"])
def test_beams_and_several_answers_keep_their_rows_selection(setup: Setup, mode: str) -> None:
    made = setup.made(setup.rows, mode)
    inputs = setup.tokenizer(PROMPTS[:2], return_tensors="pt", padding=True, padding_side="left")
    inputs.pop("token_type_ids", None)
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    chosen = [setup.rows[1], setup.rows[0]]  # each prompt with the other's patch, so row and patch cannot be mixed up
    with made.only([p.id for p in chosen]):
        together = made.model.generate(**inputs, **how)
    for number, patch in enumerate(chosen):
        alone = setup.made([patch], mode).model.generate(**inputs, **how)
        assert torch.equal(together[2 * number : 2 * number + 2], alone[2 * number : 2 * number + 2])


@pytest.mark.parametrize("mode", ["gated", "joint", "sum"])
def test_a_patch_that_a_later_one_shadows_speaks_where_it_is_alone(setup: Setup, mode: str) -> None:
    older = setup.rows[0]
    newer = make_patch(
        setup.model,
        setup.tokenizer,
        setup.profile,
        [Edit(EDITS[0].prompt, "Bonn", "France", relation="capital")],
        seed=9,
    )
    made = setup.made(PatchStack([older, newer, setup.rows[1]], conflicts="latest"), mode)
    whole = setup.logits(made.model)
    chosen = [[older], [setup.rows[1]], [], [newer], [older, newer], [older, setup.rows[1]]]
    with made.only([[p.id for p in row] for row in chosen]):
        together = setup.logits(made.model)
    for number, row in enumerate(chosen):
        stack = PatchStack(row, conflicts="latest")
        assert torch.allclose(together[number], setup.logits(setup.made(stack, mode).model)[number], atol=1e-5)
    assert torch.equal(setup.logits(made.model), whole)


def test_a_row_of_gateable_patches_in_a_stack_that_is_not(setup: Setup) -> None:
    """`auto` solves the whole stack jointly; a row of patches that can all be gated answers as they do alone."""
    path = setup.profile.module
    stored = setup.rows[3].deltas[path]
    plain = type(stored)(**{**vars(stored), "gate_keys": None, "gate_edit": None, "gate_module": None})
    odd = Patch.create(deltas={path: plain}, edits=EDITS[3:], base=base_of(setup.model, path), method="memit")
    made = setup.made([*setup.rows[:3], odd], "auto")
    assert made.report["mode"] == "joint"
    chosen = [[setup.rows[0]], [odd], [], [odd, setup.rows[0]], [setup.rows[0]], [setup.rows[2]]]
    with made.only([[p.id for p in row] for row in chosen]):
        together = setup.logits(made.model)
    for number, row in enumerate(chosen):
        alone = setup.logits(setup.made(row, "auto").model)[number]
        assert torch.allclose(together[number], alone, atol=1e-5)


@pytest.mark.parametrize("mode", ["gated", "joint"])
def test_selections_that_do_not_fit_are_refused(setup: Setup, mode: str) -> None:
    made = setup.made(setup.rows, mode)
    whole = setup.logits(made.model)
    with pytest.raises(KeditError, match='no patch "nobody"'), made.only(["nobody"]):
        pass
    with pytest.raises(KeditError, match=r"names 4 rows but the batch has 6"), made.only([p.id for p in setup.rows]):
        setup.logits(made.model)
    assert torch.equal(setup.logits(made.model), whole)
    made.detach()
    with pytest.raises(KeditError):
        made.only([[]]).__enter__()


def test_selecting_nothing_is_the_base(setup: Setup) -> None:
    for mode in ("gated", "joint"):
        made = setup.made(setup.rows, mode)
        with made.only([[]] * len(PROMPTS)):
            assert torch.equal(setup.logits(made.model), setup.logits(setup.model))


@pytest.mark.parametrize("mode", ["gated", "joint"])
def test_a_selection_inside_a_selection_gives_the_outer_one_back(setup: Setup, mode: str) -> None:
    made = setup.made(setup.rows, mode)
    whole = setup.logits(made.model)
    with made.only([[setup.rows[0].id]] * len(PROMPTS)):
        outer = setup.logits(made.model)
        with made.only([[setup.rows[1].id]] * len(PROMPTS)):
            assert torch.allclose(setup.logits(made.model), setup.logits(setup.made([setup.rows[1]], mode).model))
        assert torch.equal(setup.logits(made.model), outer)
    assert torch.equal(setup.logits(made.model), whole) and not torch.equal(outer, whole)

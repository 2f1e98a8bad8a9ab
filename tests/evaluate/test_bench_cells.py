"""Which edits a cell holds follows from data set and order seed alone, and no cell is planned twice."""

import pytest

from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.cells import answers_by_relation, plan, pool, records_digest

EDITS = [Edit(f"The capital of land {i} is", f"town {i}", f"land {i}", relation="capital") for i in range(12)]


def test_what_is_asked_already_is_left_out():
    again = Edit("The capital of land 3 is", "another town")
    same_fact = Edit("Land of the  LAND 4: its capital is", "a third town", "LAND 4", relation="capital")
    other = Edit("The river of land 4 is", "Rill", "land 4", relation="river")
    assert pool([*EDITS[:5], again, same_fact, other]) == [*EDITS[:5], other]
    assert pool(EDITS, limit=3) == EDITS[:3]


def test_suites_cut_the_same_edits_into_patches():
    cells = plan(("stack", "single", "batch", "sequential", "quantization"), EDITS, n=(5,), batch_size=2)
    assert [(cell.suite, cell.batch_size, [len(batch) for batch in cell.batches]) for cell in cells] == [
        ("single", 1, [1] * 5),
        ("batch", 5, [5]),
        ("sequential", 2, [2, 2, 1]),
        ("stack", 1, [1] * 5),
        ("quantization", 1, [1] * 5),
    ]
    assert len({frozenset(cell.edits) for cell in cells}) == 1
    assert all([edit for batch in cell.batches for edit in batch] == list(cell.edits) for cell in cells)


def test_a_smaller_cell_holds_the_beginning_of_a_larger_one():
    small, large = plan(("sequential",), EDITS, n=(10, 4), order_seeds=(3,))
    assert (small.n, large.n) == (4, 10) and large.edits[:4] == small.edits
    assert large.edits != tuple(EDITS[:10])


def test_order_seeds_draw_other_edits_and_equal_sets_are_measured_once():
    cells = plan(("stack",), EDITS, n=(2, 12), order_seeds=(0, 1, 2))
    assert [(cell.n, cell.order_seed) for cell in cells] == [(2, 0), (12, 0), (2, 1), (2, 2)]
    assert cells[1].edits == tuple(EDITS)
    assert len(plan(("sequential",), EDITS, n=(12,), order_seeds=(0, 1, 2))) == 3
    assert [cell.n for cell in plan(("single",), EDITS, n=(2, 7), order_seeds=(0, 1))] == [7]


def test_seeds_and_modes_are_cells_of_their_own():
    cells = plan(("sequential", "stack"), EDITS, n=(1,), seeds=(0, 1), modes=("joint", "weights"))
    assert [(cell.suite, cell.mode, cell.seed) for cell in cells] == [
        ("sequential", "joint", 0), ("sequential", "joint", 1), ("sequential", "weights", 0), ("sequential", "weights", 1),
        ("stack", "joint", 0), ("stack", "joint", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"suites": ("stacks",)}, "'stacks' names no suite"),
        ({"suites": "stack"}, "'stack' names no suite: pass a list"),
        ({"suites": ()}, "() names no suite"),
        ({"modes": ("gate",)}, "'gate' names no mode"),
        ({"n": ()}, "n is empty"),
        ({"n": (0, 1)}, "n=0"),
        ({"n": (13,)}, "n=13 edits are asked for, and there are 12"),
        ({"batch_size": 0}, "patches of 0"),
        ({"seeds": ()}, "seeds is empty"),
        ({"modes": ("weights",)}, "sequential"),
    ],
)
def test_what_cannot_be_planned(wrong, said):
    with pytest.raises(KeditError) as refused:
        plan(**{"suites": ("stack",), "pool": EDITS, "n": (1,), **wrong})
    assert said in str(refused.value)


def test_wrong_answers_come_from_the_whole_pool():
    edits = [
        Edit("A is in", "X", "A", "Y", relation="place", locality=(Probe("B is in", "Z", "neighbour", "B", "place"),)),
        Edit("C likes", "tea", "C", "milk", relation="drink", locality=(Probe("D weighs", "1 kg", "unrelated", "D", "weight"),)),
    ]  # fmt: skip
    assert answers_by_relation(edits) == {"drink": ("milk", "tea"), "place": ("X", "Y", "Z"), "weight": ("1 kg",)}


def test_the_digest_is_of_the_records_in_their_order():
    assert records_digest(EDITS) == records_digest(list(EDITS)) != records_digest(EDITS[::-1])

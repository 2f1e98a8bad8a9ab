"""Work shared among processes gives what one process gives, or one error; here the processes are threads."""

import threading

import pytest

from kedit_hub.errors import CrewError, EditError, KeditError
from kedit_hub.evaluate.crew import Crew, crew, rank, size
from tests.evaluate.crews import together


@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_results_come_back_in_order_and_every_item_is_done_once(members):
    done, lock = [], threading.Lock()

    def work(item):
        with lock:
            done.append(item)
        return item * item

    assert together(members, lambda team: team.map(range(4), work)) == [[0, 1, 4, 9]] * members
    assert sorted(done) == [0, 1, 2, 3]


def test_nothing_to_do():
    assert together(2, lambda team: team.map([], str)) == [[], []]


def test_a_refusal_of_one_is_raised_in_all_and_the_first_counts():
    def work(item):
        if item >= 1:
            raise EditError(f"no {item}")
        return item

    told = together(3, lambda team: team.map(range(6), work))
    assert [(type(error), str(error)) for error in told] == [(EditError, "no 1")] * 3


def test_a_bug_of_one_is_raised_there_and_ends_the_others():
    def work(item):
        if item == 1:
            raise ZeroDivisionError("item 1")
        return item

    told = together(3, lambda team: team.map(range(3), work))
    assert [type(error) for error in told] == [CrewError, ZeroDivisionError, CrewError]
    assert "process 1 failed: ZeroDivisionError: item 1" in str(told[0])


def test_each_does_all_of_it_and_one_error_ends_all():
    assert together(3, lambda team: team.each(lambda: team.rank)) == [0, 1, 2]

    def fails_in_one(team):
        def work():
            if team.rank == 1:
                raise KeditError("here alone")

        return team.each(work)

    assert [str(error) for error in together(3, fails_in_one)] == ["here alone"] * 3


def test_alone_nothing_is_set_up(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")  # left by something else
    with crew() as team:
        assert (team.rank, team.size, team.leads) == (0, 1, True) and team.map("ab", str.upper) == ["A", "B"]
    assert (rank(), size()) == (0, 1)
    with pytest.raises(KeditError, match="no"):
        Crew().map([1], lambda item: (_ for _ in ()).throw(KeditError("no")))

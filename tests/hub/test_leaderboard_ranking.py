"""How rows come about: newest per submitter and cell, seeds averaged, contests apart, ties stable. Pure: files in, rows out."""

import random
from statistics import stdev

import pytest

from kedit_hub.errors import KeditError
from kedit_hub.hub.leaderboard.board import COLUMNS, ranking, tables
from kedit_hub.patch.keys import public_key
from tests.hub.boards import ADA, BOB, contents, run, sheet, submitted


def order(board):
    return [(row.rank, row.method, round(row.value.mean, 3)) for row in board.rows]


def test_better_first():
    files = submitted(run(0.5, "rome"), run(0.9, "memit"), run(0.7, "ft"), key=ADA)
    board = ranking(contents(*files))
    assert order(board) == [(1, "memit", 0.9), (2, "ft", 0.7), (3, "rome", 0.5)]
    assert {row.submitter for row in board.rows} == {public_key(ADA)} and all(row.signed for row in board.rows)
    assert board.skipped == () and board.without == 0


def test_seeds_are_averaged_and_named():
    scores = [0.4, 0.6, 0.8]
    runs = [run(score, seed=seed, efficiency={"edit_wall_s": seed + 1.0}) for seed, score in enumerate(scores)]
    (row,) = ranking(contents(*submitted(*runs, key=ADA)), metric="reliability").rows
    assert row.value.mean == pytest.approx(0.6) and row.value.sd == pytest.approx(stdev(scores))
    assert (row.value.low, row.value.high) == (pytest.approx(0.3), pytest.approx(0.9))  # the widest of any seed
    assert row.seeds == ((0, 0), (1, 0), (2, 0)) and row.seconds == pytest.approx(2.0) and row.bytes == 4096
    assert len(row.runs) == 3 and len(row.submissions) == 1


def test_score_has_no_interval_and_one_seed_no_deviation():
    (row,) = ranking(contents(*submitted(run(0.5)))).rows
    assert row.value.low is None and row.value.high is None and row.value.sd is None and row.value.seeds == 1


def test_the_newest_submission_of_a_cell_counts():
    old, new = submitted(run(0.9), key=ADA, place=1), submitted(run(0.3), key=ADA, place=2)
    for files in ([*old, *new], [*new, *old]):  # as listed does not matter
        (row,) = ranking(contents(*files)).rows
        assert row.value.mean == 0.3


def test_a_new_submission_replaces_only_its_own_seeds():
    """Who has submitted a bad seed cannot get rid of it by submitting the good ones once more."""
    old = submitted(run(0.9, seed=0), run(0.1, seed=1), key=ADA, place=1)
    new = submitted(run(0.8, seed=0), key=ADA, place=2)
    (row,) = ranking(contents(*old, *new)).rows
    assert row.value.mean == pytest.approx(0.45) and row.seeds == ((0, 0), (1, 0))


def test_nobody_replaces_the_row_of_another():
    files = submitted(run(0.9), key=ADA, place=1) + submitted(run(0.1), key=BOB, place=2)
    files += submitted(run(0.2), place=3, authors=("carol",)) + submitted(run(0.3), place=4, authors=("dave",))
    board = ranking(contents(*files))
    assert [row.value.mean for row in board.rows] == [0.9, 0.3, 0.2, 0.1]
    assert [row.submitter for row in board.rows] == [public_key(ADA), "dave", "carol", public_key(BOB)]
    assert [row.signed for row in board.rows] == [True, False, False, True]


def test_unsigned_rows_are_by_who_proposed_them_whoever_merged():
    files = submitted(run(0.9), place=1, authors=("lab", "carol")) + submitted(
        run(0.1), place=2, authors=("lab", "dave")
    )
    assert [row.submitter for row in ranking(contents(*files)).rows] == ["lab, carol", "lab, dave"]


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": {"sha256": "d" * 64}},
        {"dataset": {"sha256": None, "revision": "e" * 40}},
        {"dataset": {"edits_sha256": "e" * 64}},
        {"base": {"quantization": "nf4"}},
        {"base": {"revision": "e" * 40}},
        {"base": {"fingerprint": "e" * 64}},
        {"base": {"id": "org/other"}},
        {"suite": "sequential", "batch_size": 1},
        {"n": 20},
    ],
    ids=str,
)
def test_what_was_measured_otherwise_is_ranked_apart(other):
    files = submitted(run(0.9, "rome"), key=ADA, place=1) + submitted(run(0.5, "memit", **other), key=BOB, place=2)
    board = ranking(contents(*files))
    assert len(board.contests) == 2 and [row.rank for row in board.rows] == [1, 1]
    assert len({contest.title for contest in board.contests}) == 2


def test_a_data_set_is_its_bytes_whatever_it_is_called():
    files = submitted(run(0.9), key=ADA) + submitted(
        run(0.5, dataset={"id": "mine", "split": "test"}), key=BOB, place=1
    )
    assert len(ranking(contents(*files)).contests) == 1


@pytest.mark.parametrize("protocol, best", [("generate", 0.5), ("tf-token", 0.6)])
def test_one_protocol_at_a_time(protocol, best):
    board = ranking(contents(*submitted(run(0.5))), protocol=protocol)
    assert [(row.contest.protocol, row.value.mean) for row in board.rows] == [(protocol, best)]


def test_a_protocol_that_nobody_asked_gives_an_empty_board():
    assert ranking(contents(*submitted(run(0.5))), protocol="choice").rows == ()


def test_an_average_that_nobody_has_is_named_with_those_there_are():
    with pytest.raises(
        KeditError,
        match=r"no run here has the average 'lokality' of 'generate'.*locality neighbour, reliability, score",
    ):
        ranking(contents(*submitted(run(0.5))), metric="lokality")


def test_runs_without_the_average_are_counted():
    bare = run(0.9, "ft", scores={"protocols": {"generate": {**sheet(0.9), "score": None}}, "drift": {}})
    board = ranking(contents(*submitted(run(0.5), bare, key=ADA)))
    assert order(board) == [(1, "rome", 0.5)] and board.without == 1


def test_chance_is_nobodys_merit():
    sure = run(0.5, scores={"protocols": {"choice": {**sheet(0.5), "chance": {"reliability": 0.25}}}, "drift": {}})
    with pytest.raises(KeditError, match="no run here has"):
        ranking(contents(*submitted(sure)), protocol="choice", metric="reliability by chance")


@pytest.mark.parametrize(
    "wanted, found",
    [
        ({"base": "org/model"}, 2), ({"base": "org/none"}, 0), ({"suite": "stack"}, 1), ({"n": 10}, 3), ({"n": 11}, 0),
        ({"dataset": "example/twin-cities"}, 3), ({"dataset": "bbbbbbbb"}, 2), ({"dataset": "bbbb"}, 0), ({"dataset": ""}, 0), ({}, 3),
    ],
    ids=str,
)  # fmt: skip
def test_filters(wanted, found):
    runs = [run(), run(suite="stack", batch_size=1), run(base={"id": "org/x"}, dataset={"sha256": "c" * 64})]
    assert len(ranking(contents(*submitted(*runs)), **wanted).rows) == found


# --- order ---------------------------------------------------------------------------------------------------------


def test_ties_share_a_rank_and_the_older_stands_first():
    files = [*submitted(run(0.5, "rome"), key=BOB, place=3), *submitted(run(0.5, "memit"), key=ADA, place=1)]
    files += [*submitted(run(0.7, "ft"), place=2), *submitted(run(0.2, "kn"), place=4)]
    for _ in range(20):
        random.shuffle(files)
        board = ranking(contents(*files))
        assert order(board) == [(1, "ft", 0.7), (2, "memit", 0.5), (2, "rome", 0.5), (4, "kn", 0.2)]


def test_equal_in_one_commit_is_still_one_order():
    runs = [run(0.5, f"m{i}") for i in range(12)]
    files = [file for one in runs for file in submitted(one)]
    seen = set()
    for _ in range(10):
        random.shuffle(files)
        seen.add(tuple(row.method for row in ranking(contents(*files)).rows))
    assert len(seen) == 1


# --- which edits ---------------------------------------------------------------------------------------------------


def picked(score: float, order_seed: int, edits: str, **more):
    return run(score, order_seed=order_seed, dataset={"edits_sha256": edits * 64}, **more)


def test_orders_of_one_row_are_averaged_though_each_asks_other_edits():
    ada = submitted(picked(0.4, 0, "1"), picked(0.6, 1, "2"), key=ADA, place=1)
    bob = submitted(picked(0.7, 0, "1"), picked(0.9, 1, "2"), key=BOB, place=2)
    board = ranking(contents(*ada, *bob))
    assert [(row.rank, row.value.mean) for row in board.rows] == [(1, pytest.approx(0.8)), (2, pytest.approx(0.5))]
    assert len(board.contests) == 1


def test_who_chose_their_own_edits_is_ranked_apart():
    ada = submitted(picked(0.4, 0, "1"), key=ADA, place=1)
    eve = submitted(picked(1.0, 0, "e"), key=BOB, place=2)
    board = ranking(contents(*ada, *eve))
    assert [row.rank for row in board.rows] == [1, 1] and len(board.contests) == 2


def test_an_order_that_shares_nothing_with_the_others_is_ranked_apart():
    ada = submitted(picked(0.4, 0, "1"), key=ADA, place=1)
    eve = submitted(picked(1.0, 77, "e"), key=BOB, place=2)
    assert len(ranking(contents(*ada, *eve)).contests) == 2


def test_one_way_on_two_choices_of_edits_is_two_rows():
    ada = submitted(picked(0.4, 0, "1"), picked(0.6, 0, "2"), key=ADA)
    assert [row.value.mean for row in ranking(contents(*ada)).rows] == [0.4, 0.6]


# --- for people ----------------------------------------------------------------------------------------------------


def test_tables_are_plain_text_one_cell_for_each_column():
    board = ranking(contents(*submitted(run(0.5), run(0.7, "memit", base={"quantization": "nf4"}), key=ADA)))
    first, second = tables(board)
    for title, columns, rows in (first, second):
        assert columns == COLUMNS and all(len(row) == len(columns) for row in rows)
        assert title.startswith("generate score · batch, 10 edit(s) · org/model")
    assert "in nf4" in second[0] and second[2][0][1] == "memit"
    assert first[2][0][-2:] == (f"{public_key(ADA)[:16]} (signed)", "no")


def test_a_board_as_json():
    import json

    board = ranking(contents(*submitted(run(0.5), key=ADA)))
    told = json.loads(json.dumps(board.to_dict()))
    (contest,) = told["contests"]
    assert (
        contest["n"] == 10 and contest["rows"][0]["mark"] == {"kind": "unchecked"} and contest["rows"][0]["rank"] == 1
    )

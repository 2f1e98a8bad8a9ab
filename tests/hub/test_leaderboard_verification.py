"""Who measured a run again: what counts as reproduced, whose word counts, and where a word does not count."""

from hashlib import sha256

import pytest

from kedit_hub.errors import KeditError
from kedit_hub.hub.leaderboard.board import Attested, Claimed, Unchecked, Verified, ranking, told
from kedit_hub.hub.leaderboard.submission import pack
from kedit_hub.hub.leaderboard.verification import Differs, OtherCell, Reproduced, attest, averages, compare, recipe
from kedit_hub.patch.keys import public_key
from kedit_hub.patch.trust import Rule, TrustPolicy
from tests.hub.boards import ADA, BOARD, BOB, EVE, contents, listed, run, sheet, submitted

TRUSTS_BOB = TrustPolicy(keys={"bob": public_key(BOB)}, rules=[Rule(base="*", signers=["bob"])])


def line_of(one) -> str:
    return pack([one])[0].lines[0][0]


def vouched(one, key, found=None, *, tolerance=0.02, board=BOARD, place=9, authors=("bob",)):
    """A verification of a run by `key`; found: averages, by default those of the run."""
    data = attest(line_of(one), averages(one) if found is None else found, tolerance, key, board)
    return listed(f"verifications/{sha256(data).hexdigest()}.json", data, place, authors)


def mark(*files, policy=None, **how):
    (row,) = ranking(contents(*files), policy=policy, **how).rows
    return row.mark


# --- comparing -----------------------------------------------------------------------------------------------------


def test_the_same_numbers_are_reproduced():
    match compare(run(0.5), run(0.5)):
        case Reproduced(found):
            assert found["generate"]["locality neighbour"] == 0.5 and found["tf-token"]["score"] == 0.6
        case other:
            pytest.fail(str(other))


@pytest.mark.parametrize(
    "claimed, measured, holds", [(0.5, 0.52, True), (0.52, 0.5, True), (0.5, 0.53, False), (0.53, 0.5, False)]
)
def test_the_tolerance_is_for_every_average_both_ways(claimed, measured, holds):
    assert isinstance(compare(run(claimed), run(measured)), Reproduced if holds else Differs)


def test_a_difference_names_the_average():
    found = compare(
        run(0.5),
        run(0.5, scores={"protocols": {"tf-token": sheet(0.6), "generate": {**sheet(0.5), "score": 0.9}}, "drift": {}}),
    )
    assert found == Differs((("generate", "score", 0.5, 0.9),))


def test_an_average_that_is_missing_is_a_difference():
    found = compare(
        run(0.5),
        run(
            0.5, scores={"protocols": {"tf-token": sheet(0.6), "generate": {**sheet(0.5), "score": None}}, "drift": {}}
        ),
    )
    assert found == Differs((("generate", "score", 0.5, None),))


@pytest.mark.parametrize(
    "change, fields",
    [
        ({"seed": 1}, ("seed",)), ({"base": {"quantization": "nf4"}}, ("base",)), ({"method": "memit", "n": 11}, ("method", "n")),
        ({"scores": {"protocols": {"generate": sheet(0.5)}, "drift": {}}}, ("protocols",)),
    ],
    ids=str,
)  # fmt: skip
def test_another_cell_says_nothing(change, fields):
    assert compare(run(0.5), run(0.5, **change)) == OtherCell(fields)


@pytest.mark.parametrize("tolerance", [-0.01, 0.051, 1.0, float("nan"), float("inf")])
def test_a_tolerance_that_would_allow_anything(tolerance):
    with pytest.raises(KeditError, match="too wide"):
        compare(run(0.5), run(0.5), tolerance)


def test_whoever_measures_again_may_have_measured_their_own_profile():
    assert isinstance(
        compare(
            run(0.5, settings={"layer": 3, "profile": "a" * 64}), run(0.5, settings={"layer": 3, "profile": "b" * 64})
        ),
        Reproduced,
    )
    assert compare(run(0.5, settings={"layer": 3}), run(0.5, settings={"layer": 4})) == OtherCell(("settings",))


def test_a_key_that_was_looked_at_before_does_not_stick_to_a_copy():
    one, other = run(0.5, settings={"profile": "a" * 64}), run(0.5, settings={"profile": "b" * 64})
    assert one.key != other.key and isinstance(compare(one, other), Reproduced)


def test_averages_beyond_the_bounds_are_refused_before_they_are_signed():
    with pytest.raises(KeditError, match="cannot be vouched for: averages"):
        attest("0" * 64, {"generate": {f"m{i}": 0.5 for i in range(300)}}, 0.02, BOB, BOARD)


# --- measuring again -----------------------------------------------------------------------------------------------


def test_the_recipe_of_a_run():
    asked = recipe(
        run(
            0.5,
            settings={"value.steps": 60, "value.lr": 0.5, "layer": 3, "profile": "a" * 64},
            base={"quantization": "nf4"},
        )
    )
    assert asked == {
        "methods": ("rome",), "suites": ("batch",), "base": "org/model", "n": (10,), "batch_size": 1, "seeds": (0,), "order_seeds": (0,),
        "quantizations": ("nf4",), "modes": ("gated",), "protocols": ("generate", "tf-token"), "fluency": False,
        "settings": {"value": {"steps": 60, "lr": 0.5}, "layer": 3},
    }  # fmt: skip
    sequential = recipe(run(0.5, suite="sequential", batch_size=5, mode="-", seed=3, order_seed=4))
    assert (sequential["batch_size"], sequential["modes"], sequential["seeds"], sequential["order_seeds"]) == (
        5,
        ("auto",),
        (3,),
        (4,),
    )
    bf16 = run(0.5, suite="quantization", batch_size=1, base={"dtype": "bfloat16"})
    assert recipe(bf16)["quantizations"] == ("bf16",)


def test_every_argument_of_the_recipe_is_one_of_bench():
    from inspect import signature

    from kedit_hub.benchmarking import bench

    assert set(recipe(run(0.5))) <= set(signature(bench).parameters)


@pytest.mark.parametrize("settings", [{"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}, {"a.b": 1, "a.b.c": 2}], ids=str)
def test_settings_that_contradict_themselves(settings):
    with pytest.raises(KeditError, match="a value and a group at once"):
        recipe(run(0.5, settings=settings))


# --- marks ---------------------------------------------------------------------------------------------------------


def test_four_marks():
    files = submitted(run(0.5), key=ADA)
    assert mark(*files) == Unchecked()
    assert mark(*submitted(run(0.5, verified=True), key=ADA)) == Claimed()
    assert mark(*files, vouched(run(0.5), BOB)) == Attested((public_key(BOB),))
    assert mark(*files, vouched(run(0.5), BOB), policy=TRUSTS_BOB) == Verified(("bob",))
    assert [told(one) for one in (Unchecked(), Claimed(), Attested((public_key(BOB),)), Verified(("bob",)))] == [
        "no", "says so itself", f"attested by {public_key(BOB)[:16]}", "verified by bob",
    ]  # fmt: skip


def test_ones_own_word_does_not_count():
    files = submitted(run(0.5), key=BOB, authors=("bob",))
    assert mark(*files, vouched(run(0.5), BOB), policy=TRUSTS_BOB) == Unchecked()
    assert mark(*files, vouched(run(0.5), BOB, authors=("carol",))) == Unchecked()


def test_a_second_key_of_the_same_account_does_not_count():
    """Eve signs with one key and vouches with another: whoever trusts neither is not impressed."""
    files = submitted(run(0.5), key=ADA, authors=("eve",))
    assert mark(*files, vouched(run(0.5), EVE, authors=("eve",))) == Unchecked()
    unsigned = submitted(run(0.5), authors=("eve",))
    assert mark(*unsigned, vouched(run(0.5), EVE, authors=("eve",))) == Unchecked()


def test_a_trusted_key_counts_whoever_put_it_there():
    files = submitted(run(0.5), key=ADA, authors=("lab",))
    assert mark(*files, vouched(run(0.5), BOB, authors=("lab",)), policy=TRUSTS_BOB) == Verified(("bob",))


def test_others_are_not_promoted_by_a_policy_that_does_not_name_them():
    files = submitted(run(0.5), key=ADA)
    assert mark(*files, vouched(run(0.5), EVE, authors=("eve",)), policy=TRUSTS_BOB) == Attested((public_key(EVE),))


def test_every_run_of_a_row_must_be_measured_again():
    one, two = run(0.5, seed=0), run(0.6, seed=1)
    files = submitted(one, two, key=ADA)
    assert mark(*files, vouched(one, BOB), policy=TRUSTS_BOB) == Unchecked()
    assert mark(*files, vouched(one, BOB), vouched(two, EVE, authors=("eve",)), policy=TRUSTS_BOB) == Attested(
        tuple(sorted([public_key(BOB), public_key(EVE)]))
    )
    assert mark(*files, vouched(one, BOB), vouched(two, BOB), policy=TRUSTS_BOB) == Verified(("bob",))


def test_numbers_that_do_not_agree_vouch_for_nothing():
    """A verification is judged by the numbers in it, not by its being there."""
    files = submitted(run(0.9), key=ADA)
    assert mark(*files, vouched(run(0.9), BOB, {"generate": {"score": 0.5}}), policy=TRUSTS_BOB) == Unchecked()


def test_only_what_was_measured_is_vouched_for():
    files = [*submitted(run(0.9), key=ADA), vouched(run(0.9), BOB, {"generate": {"score": 0.9}})]
    assert mark(*files, policy=TRUSTS_BOB) == Verified(("bob",))
    assert mark(*files, policy=TRUSTS_BOB, metric="reliability") == Unchecked()
    assert mark(*files, policy=TRUSTS_BOB, protocol="tf-token") == Unchecked()


def test_the_policy_names_submitters_too():
    (row,) = ranking(contents(*submitted(run(0.5), key=BOB)), policy=TRUSTS_BOB).rows
    assert (row.submitter, row.signed) == ("bob", True)


# --- files ---------------------------------------------------------------------------------------------------------


def left_out(*files) -> str:
    found = contents(*submitted(run(0.5), key=ADA), *files)
    (row,) = ranking(found, policy=TRUSTS_BOB).rows
    assert row.mark == Unchecked() and len(found.skipped) == 1
    return found.skipped[0].reason


def test_a_verification_for_another_board_is_refused():
    assert "made for the board 'eve/board', not for 'lab/board'" in left_out(vouched(run(0.5), BOB, board="eve/board"))


def test_a_verification_of_a_run_that_is_not_here():
    assert "not on the board" in left_out(vouched(run(0.51), BOB))


def test_a_changed_verification():
    where, data = vouched(run(0.5), BOB)
    assert "not those its name says" in left_out(listed(where.path, data.replace(b"0.5", b"0.6")))
    changed = data.replace(b'"tolerance": 0.02', b'"tolerance": 0.04')
    path = f"verifications/{sha256(changed).hexdigest()}.json"
    assert changed != data and "does not verify" in left_out(listed(path, changed))


@pytest.mark.parametrize(
    "found, tolerance",
    [
        ({"generate": {"score": 5.0}}, 0.02), ({"generate": {"score": 0.5}}, 0.9), ({"x" * 121: {"score": 0.5}}, 0.02),
        ({"generate": {f"m{i}": 0.5 for i in range(300)}}, 0.02),
    ],
    ids=["range", "tolerance", "name", "count"],
)  # fmt: skip
def test_a_verification_beyond_its_bounds(found, tolerance):
    """Signed by Eve's own program, which checks nothing."""
    from kedit_hub import strictjson

    statement = {"repo_id": BOARD, "run": line_of(run(0.5)), "averages": found, "tolerance": tolerance}
    text = b"kedit leaderboard verification 1\n" + strictjson.canonical(statement)
    signed = {
        "kedit_verification": 1,
        "statement": statement,
        "key": public_key(EVE),
        "signature": EVE.sign(text).hex(),
    }
    data = strictjson.pretty(signed)
    reason = left_out(listed(f"verifications/{sha256(data).hexdigest()}.json", data))
    assert "averages" in reason or "tolerance" in reason


def test_a_copied_run_is_vouched_for_where_its_numbers_are_and_not_for_who_measured_it():
    """Bob's measurements, submitted by Bob himself beside Ada's equal ones: Ada's row is verified, his own is not."""
    ada = submitted(run(0.5), run(0.4, "ft"), key=ADA, place=1, authors=("ada",))
    bob = submitted(run(0.5), key=BOB, place=2, authors=("bob",))
    board = ranking(contents(*ada, *bob, vouched(run(0.5), BOB)), policy=TRUSTS_BOB)
    marks = {(row.submitter, row.method): row.mark for row in board.rows}
    assert marks[public_key(ADA), "rome"] == Verified(("bob",)) and marks["bob", "rome"] == Unchecked()

"""Submissions of strangers: each is left out by name and reason, and the board stands."""

import json
import time
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_hub import strictjson
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.report.write import report
from kedit_hub.evaluate.run import MAX_NUMBER
from kedit_hub.hub.leaderboard.board import ranking, tables
from kedit_hub.hub.leaderboard.bounds import Bounds
from kedit_hub.hub.leaderboard.contents import Listed, Skipped, admit, choose
from kedit_hub.hub.leaderboard.submission import pack, parse
from kedit_hub.patch.keys import public_key
from tests.hub.boards import ADA, BOARD, EVE, contents, listed, raw, run, sheet, submitted

GOOD = submitted(run(0.5), key=ADA)


def refused(*bad) -> str:
    """The reasons; the honest submission stands all the same."""
    found = contents(*GOOD, *bad)
    assert [row.value.mean for row in ranking(found).rows] == [0.5]
    assert found.skipped
    return " ".join(f"{one.path}: {one.reason}" for one in found.skipped)


def line(**changes) -> bytes:
    """A whole submission of one run with other fields."""
    return strictjson.canonical({**run(0.9).to_dict(), **changes}) + b"\n"


@pytest.mark.parametrize(
    "data, why",
    [
        (b"", "is empty"),
        (b"\n", "is not JSON"),
        (line()[:-1], "cut short"),
        (line()[:-20] + b"\n", "is not JSON"),
        (line() + line(), "not sorted, or one is there twice"),
        (line(seed=1) + line(seed=0), "not sorted"),
        (line(surprise=1), "surprise"),
        (line(kedit_run=2), "reads 1"),
        (line(method="<script>alert(1)</script>"), "method"),
        (line(method="../../etc/passwd"), "method"),
        (line(base={**run().to_dict()["base"], "id": "../../../etc"}), "base.id"),
        (line(n=True), "n:"),
        (line(n=-1), "n:"),
        (line(n=10**30), "digits"),
        (line(verified="yes"), "verified"),
        (line(per_edit=[{"id": None}]), "single edits"),
        (line(scores={"protocols": {"generate": sheet(5.0)}, "drift": {}}), "lies in 0..1"),
        (line(scores={"protocols": {"generate": {**sheet(0.9), "score": "1.0"}}, "drift": {}}), "lies in 0..1"),
        (
            line(
                scores={
                    "protocols": {"generate": {**sheet(0.9), "interval": {"reliability": [-4.0, 9.0]}}},
                    "drift": {},
                }
            ),
            "no interval",
        ),
        (line(scores={"protocols": [], "drift": {}}), "protocols"),
        (line(scores={"protocols": {"generate": sheet(0.9)}, "drift": {"kl": [1.7e308]}}), "holds the number 1.7e+308"),
        (line(efficiency={**run().to_dict()["efficiency"], "edit_wall_s": 1.7e308}), "efficiency.edit_wall_s"),
        (line(efficiency={**run().to_dict()["efficiency"], "train_s": 1.7e308}), "efficiency.train_s"),
        (line(dataset={"id": "example/twin-cities"}), "known by name alone"),
        (line(settings={"a": {"b": 1}}), "settings"),
        (line(settings={"a": "x" * 30_000}), "20,000"),
        (b"[" * 100_000 + b"\n", "nested deeper"),
        (b"{}\n", "kedit_run"),
        (b"null\n", "kedit_run"),
        (b"\x80\x04cos\nsystem\n", "pickle"),
        (b"\xff\xfe\n", "UTF-8"),
        (b"\xef\xbb\xbf" + line(), "byte order mark"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (b"<!doctype html>\n", "web page"),
        (line(scores={"protocols": {"generate": {"score": float("1e300")}}, "drift": {}}), "lies in 0..1"),
        (line().replace(b'"seed":0', b'"seed":0,"seed":1'), "twice in one object"),
        (line().replace(b'"score":0.9', b'"score":NaN'), "NaN"),
        (line().replace(b'"score":0.9', b'"score":1e999'), "not finite"),
        (line().replace(b'"score":0.9', b'"score":0.90'), "another form"),
        (line().replace(b'"seed":0', b'"seed": 0'), "another form"),
        (line().replace(b'"rome"', b'"\\u0072ome"'), "another form"),
        (line(settings={"a": 1}).replace(b'{"a":1}', b'{"a":"\\ud800"}'), "surrogate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed(data, why):
    assert why in refused(raw(data))


def test_the_largest_numbers_have_a_mean():
    most = {"scores": {"protocols": {"generate": sheet(0.9)}, "drift": {"ppl_after": MAX_NUMBER}}}
    cost = {"edit_wall_s": 1e12, "train_s": 1e12, "artifact_bytes": (1 << 63) - 1}
    found = contents(*submitted(*(run(0.9, seed=seed, **most, efficiency=cost) for seed in range(20)), key=EVE))
    (row,) = ranking(found).rows
    assert (len(row.seeds), row.seconds, row.train_s) == (20, 1e12, 1e12)
    assert report([run(0.9, seed=seed, **most, efficiency=cost) for seed in range(20)], "Large")


def test_a_name_that_is_not_the_digest():
    (packed, data), _ = submitted(run(0.9), key=ADA)
    other = listed("submissions/" + "0" * 64 + ".jsonl", data)
    assert "not those its name says" in refused(other)
    changed = listed(packed.path, data.replace(b"0.9", b"1.0"))
    assert packed.path in refused(changed)


def test_one_cell_measured_twice_in_one_submission():
    twice = b"".join(sorted([line(), line(verified=True)]))
    assert "measured twice" in refused(raw(twice))
    with pytest.raises(KeditError, match="measured twice"):
        pack([run(0.9), run(0.4)])


def test_outcomes_of_single_edits_are_never_read_in_bulk():
    """A line that is too long is refused before it is parsed."""
    bomb = line(per_edit=[{"id": str(i), "x": "y" * 50} for i in range(20_000)])
    start = time.process_time()
    with pytest.raises(KeditError, match=r"line 1 has [0-9,]+ bytes"):
        parse(bomb, sha256(bomb).hexdigest())
    assert time.process_time() - start < 0.5
    assert "bytes" in refused(raw(bomb))


def test_thousands_of_protocols_take_no_longer_than_their_bytes():
    many = {f"p{i}": {"reliability": 0.5, "interval": {"reliability": [0.4, 0.6]}} for i in range(1_500)}
    data = line(scores={"protocols": many, "drift": {}})
    start = time.process_time()
    ranking(admit(BOARD, "c" * 40, [raw(data)]), protocol="p7", metric="reliability")
    assert time.process_time() - start < 5  # 17 s when every protocol was looked up in a reading of all


def test_too_many_runs_in_one_file():
    data = b"".join(sorted({line(seed=i) for i in range(6)}))
    with pytest.raises(KeditError, match="it has 6 runs; at most 5"):
        parse(data, sha256(data).hexdigest(), Bounds(max_runs=5))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_submission_is_read_whole_or_refused_in_words(data):
    """Whatever a mutation makes of it: a submission, or KeditError; never another exception."""
    base = bytearray(b"".join(sorted({line(seed=i) for i in range(2)})))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(base) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip":
            base[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del base[at : at + data.draw(st.integers(1, 9))]
        else:
            base[at:at] = data.draw(
                st.sampled_from([b'"', b"{", b"}", b"1e999", b"[[[[", b"\n", b"\x00", b"null", b'"\\ud800"', b"-"])
            )
        if not base:
            break
    found = admit(BOARD, "c" * 40, [raw(bytes(base))])
    assert len(found.entries) + len(found.skipped) == 1
    ranking(found)


FIELDS = ("reliability", "locality", "score", "interval", "n", "contains", "chance", "x", "before")
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(0, 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(ANYTHING)
def test_any_score_sheet_is_ranked_or_refused(averages):
    try:
        value = strictjson.canonical(
            {**run(0.9).to_dict(), "scores": {"protocols": {"generate": averages}, "drift": {}}}
        )
    except UnicodeEncodeError:
        return
    found = contents(raw(value + b"\n"))
    assert len(found.entries) + len(found.skipped) == 1
    for metric in ("score", "reliability", "locality x", "contains reliability"):
        try:
            tables(ranking(found, metric=metric))
        except KeditError as cause:
            assert "has the average" in str(cause)


# --- text ----------------------------------------------------------------------------------------------------------


def test_text_of_strangers_is_inert():
    nasty = "<img src=x onerror=alert(1)>\x1b[2J\u202egnp.exe"
    found = contents(
        raw(line(**{nasty: 1})),
        listed(f"submissions/{nasty}.jsonl", b"x"),
        *submitted(run(0.5), authors=(nasty,)),
    )
    everything = json.dumps(ranking(found).to_dict(), ensure_ascii=False) + repr([one for one in found.skipped])
    for title, _, rows in tables(ranking(found)):
        everything += title + " ".join(cell for row in rows for cell in row)
    assert "\x1b" not in everything and "\u202e" not in everything
    assert "U+001B" in everything  # spelled out, not dropped in silence


def test_reasons_are_bounded():
    found = contents(raw(line(**{"x" * 30_000: 1})), listed("submissions/" + "y" * 500, b""))
    assert all(len(one.reason) < 600 and len(one.path) < 400 for one in found.skipped) and len(found.skipped) == 1
    assert len(Skipped.of("z" * 1000, "w" * 1000).path) < 400


# --- names of files ------------------------------------------------------------------------------------------------

TRICKS = [
    "submissions/../../etc/passwd", "submissions/" + "A" * 64 + ".jsonl", "submissions/" + "a" * 63 + ".jsonl",
    "submissions/x/" + "a" * 64 + ".jsonl", "/submissions/" + "a" * 64 + ".jsonl", "submissions\\" + "a" * 64 + ".jsonl",
    "submissions/" + "a" * 64 + ".jsonl\n", "submissions/" + "a" * 64 + ".jsonl.py", "submissions/" + "a" * 64 + ".pkl",
    "submissions/C:" + "a" * 64 + ".jsonl", "submissions/" + "a" * 64 + ".sig.json/..", "verifications/" + "a" * 64 + ".jsonl",
    "submissions/" + "а" * 64 + ".jsonl", "submissions/", "submissions/\x00", "submissions/" + "a" * 64 + ".sig.jsonl",
]  # fmt: skip


@pytest.mark.parametrize("path", TRICKS)
def test_a_file_of_another_name_is_never_fetched(path):
    kept, skipped = choose([listed(path, b"x")[0], GOOD[0][0]])
    assert kept == [GOOD[0][0]] and [one.reason for one in skipped] == ["a board holds no file of this name"]


def test_ten_thousand_files_are_bounded():
    flood = [Listed(f"submissions/{i:064x}.jsonl", 10, "0" * 40, "c" * 40, i + 1, "", ("eve",)) for i in range(10_000)]
    start = time.process_time()
    kept, skipped = choose([*flood, GOOD[0][0]], Bounds(max_submissions=1_000))
    assert time.process_time() - start < 5
    assert len(kept) == 1_000 and GOOD[0][0] in kept  # what was there first stays
    assert len(skipped) == 9_001 and "1,000 such files are read" in skipped[0].reason


def test_bytes_are_bounded_before_anything_is_fetched():
    big = Listed("submissions/" + "1" * 64 + ".jsonl", 1 << 40, "0" * 40, "c" * 40, 0, "", ())
    some = [Listed(f"submissions/{i:064x}.jsonl", 4_000_000, "0" * 40, "c" * 40, i, "", ()) for i in range(100)]
    kept, skipped = choose([big, *some])
    assert sum(file.size for file in kept) <= Bounds().max_total_bytes
    reasons = " ".join(one.reason for one in skipped)
    assert "1,099,511,627,776 bytes; at most 4,194,304" in reasons and "67,108,864 bytes are read in all" in reasons
    assert len(kept) + len(skipped) == 101


def test_many_hostile_files_at_once():
    bad = [raw(line(**{f"x{i}": 1}), i) for i in range(300)]
    found = contents(*bad, *GOOD)
    assert len(found.skipped) == 300 and len(found.entries) == 1


# --- signatures ----------------------------------------------------------------------------------------------------


def signature(files):
    return next((one, data) for one, data in files if one.path.endswith(".sig.json"))


def test_a_changed_signature_takes_its_submission_with_it():
    files = submitted(run(0.9), key=EVE)
    where, data = signature(files)
    value = json.loads(data)
    value["signature"] = ("0" if value["signature"][0] != "0" else "1") + value["signature"][1:]
    assert "does not verify" in refused(files[0], listed(where.path, strictjson.pretty(value)))


def test_a_signature_over_another_key_is_refused():
    files = submitted(run(0.9), key=EVE)
    where, data = signature(files)
    stolen = {**json.loads(data), "key": public_key(ADA)}
    assert "does not verify" in refused(files[0], listed(where.path, strictjson.pretty(stolen)))


def test_a_signature_for_another_board_is_refused():
    """Replayed from a board whose owner signs anything, or copied with its submission."""
    files = submitted(run(0.9), key=ADA, board="eve/board")
    assert "made for the board 'eve/board', not for 'lab/board'" in refused(*files)


def test_a_signature_of_another_submission_is_refused():
    mine, theirs = submitted(run(0.9), key=ADA), submitted(run(0.8), key=ADA)
    moved = listed(signature(mine)[0].path, signature(theirs)[1])
    assert "of another submission" in refused(mine[0], moved)


def test_a_signature_of_another_kind_is_refused():
    from kedit_hub.hub.leaderboard.verification import attest

    files = submitted(run(0.9))
    other = attest("0" * 64, {"generate": {"score": 0.9}}, 0.02, EVE, BOARD)
    assert "must have exactly the fields" in refused(
        files[0], listed(f"submissions/{pack([run(0.9)])[0].digest}.sig.json", other)
    )
    renamed = json.loads(other)
    renamed["kedit_submission"] = renamed.pop("kedit_verification")
    renamed["statement"] = {"repo_id": BOARD, "submission": pack([run(0.9)])[0].digest}
    path = f"submissions/{pack([run(0.9)])[0].digest}.sig.json"
    assert "does not verify" in refused(files[0], listed(path, strictjson.pretty(renamed)))


def test_nobody_signs_what_another_submitted():
    """Eve puts her key to Ada's unsigned submission, in a later commit: it stays unsigned, and hers is named."""
    ada, eve = submitted(run(0.9), place=1), submitted(run(0.9), key=EVE, place=2)
    found = contents(*ada, signature(eve))
    assert [(entry.signer, entry.submitter) for entry in found.entries] == [(None, ("hub", "ada"))]
    assert "another commit than that of the submission" in found.skipped[0].reason


def test_a_signature_alone_signs_nothing():
    assert "it signs no submission that counts" in refused(signature(submitted(run(0.9), key=EVE)))


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1}, {"key": "0" * 64}, {"key": "z" * 64}, {"signature": "0"}, {"kedit_submission": 2}, {"kedit_submission": True},
        {"statement": {}}, {"statement": {"repo_id": "board", "submission": "0" * 64}}, {"statement": []}, {"signature": None},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_signatures(change):
    files = submitted(run(0.9), key=EVE)
    where, data = signature(files)
    refused(files[0], listed(where.path, strictjson.pretty({**json.loads(data), **change})))


def test_a_key_that_anybody_can_sign_with():
    weak = "0100000000000000000000000000000000000000000000000000000000000000"
    files = submitted(run(0.9), key=EVE)
    where, data = signature(files)
    forged = {**json.loads(data), "key": weak, "signature": weak + "0" * 64}
    assert "does not verify" in refused(files[0], listed(where.path, strictjson.pretty(forged)))

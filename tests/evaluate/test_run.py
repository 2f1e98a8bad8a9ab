"""A run is strict and has one line; a results file keeps whole lines only, whatever happens to the process that writes it."""

import os
import subprocess
import sys
import threading

import pytest

from kedit_hub import strictjson
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.run import ASKED, Run, RunsFile
from tests.evaluate.runs import AVERAGES, FIELDS, SCORES, run


def test_one_line_and_back():
    one = run()
    line = one.to_bytes()
    assert b"\n" not in line and strictjson.canonical(strictjson.loads(line, what="it", max_bytes=1 << 20)) == line
    assert Run.parse(line) == one and Run.parse(line).to_bytes() == line
    assert not one.verified and one.kedit_run == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"suite": "stacked"}, "suite"),
        ({"mode": "auto"}, "mode"),
        ({"method": "../memit"}, "method"),
        ({"n": 0}, "n:"),
        ({"n": 10.0}, "n:"),
        ({"batch_size": 11}, "11 edits in each patch, and 10 in all"),
        ({"seed": -1}, "seed"),
        ({"base": {**FIELDS["base"], "revision": "main"}}, "base.revision"),
        ({"base": {**FIELDS["base"], "path": "/tmp"}}, "base.path"),
        ({"dataset": {"id": "a b"}}, "dataset.id"),
        ({"settings": {"steps": [1, 2]}}, "settings"),
        ({"settings": {f"s{i}": 1 for i in range(300)}}, "at most 256"),
        ({"settings": {"text": "x" * 20_001}}, "20,000 characters"),
        ({"scores": {**SCORES, "protocols": {"generate": 1.0}}}, "under protocols"),
        ({"scores": {**SCORES, "protocols": {"generate": {**AVERAGES, "reliability": 1.5}}}}, "1.5"),
        ({"scores": {**SCORES, "protocols": {"generate": {**AVERAGES, "locality": {"neighbour": True}}}}}, "neighbour"),
        ({"scores": {**SCORES, "protocols": {"generate": {**AVERAGES, "score": "1"}}}}, "score"),
        ({"scores": {**SCORES, "drift": None}}, "the drift"),
        ({"scores": {**SCORES, "environment": []}}, "environment"),
        ({"scores": {**SCORES, "fluency": float("nan")}}, "finite"),
        ({"per_edit": [{"answer": object()}]}, "per_edit"),
        ({"retention": {"10": 1.1}}, "retention"),
        ({"retention": {"ten": 1.0}}, "'ten'"),
        ({"efficiency": {**FIELDS["efficiency"], "edit_cpu_s": -1.0}}, "efficiency.edit_cpu_s"),
        ({"efficiency": {**FIELDS["efficiency"], "edit_cpu_s": float("inf")}}, "efficiency.edit_cpu_s"),
        ({"verified": 1}, "verified"),
        ({"kedit_run": 2}, "kedit_run"),
        ({"note": "hello"}, "note"),
    ],
)
def test_what_is_no_run(changes, said):
    with pytest.raises(KeditError) as refused:
        run(**changes)
    assert said in str(refused.value), refused.value


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b"null", b'{"kedit_run": 2}', b'{"kedit_run": 1}', b"\xff"])
def test_a_line_of_something_else(line):
    with pytest.raises(KeditError, match="line 7"):
        Run.parse(line, what="line 7")


def test_the_key_says_what_was_measured():
    one = run()
    others = {
        "suite": "batch", "method": "rome", "mode": "joint", "base": {**FIELDS["base"], "quantization": "nf4"},
        "dataset": {"id": "kedit-hub/atlas", "split": "dev"}, "n": 11, "batch_size": 2, "seed": 1, "order_seed": 1,
        "settings": {},
    }  # fmt: skip
    assert set(others) == set(ASKED)
    asked = [
        {"scores": {**SCORES, "protocols": {"generate": AVERAGES}}},
        {"scores": {**SCORES, "drift": {**SCORES["drift"], "texts_sha256": "cd" * 32}}},
        {"scores": {**SCORES, "fluency": {"after": 5.0}}},
        {"scores": {**SCORES, "environment": {"device": "cpu", "distractors": "ef" * 32}}},
    ]
    keys = {run(**changes).key for changes in [{name: value} for name, value in others.items()] + asked}
    assert len(keys) == len(others) + len(asked) and one.key not in keys

    worse = {"generate": {**AVERAGES, "reliability": 0.1}, "tf-token": AVERAGES}
    same = run(
        scores={**SCORES, "protocols": worse, "environment": {"device": "cuda"}},
        per_edit=[],
        retention={},
        efficiency={**FIELDS["efficiency"], "edit_cpu_s": 9.0},
        provenance={},
        verified=True,
    )
    assert same.key == one.key


def test_a_file_of_runs(tmp_path):
    file = RunsFile(tmp_path / "new" / "runs.jsonl")
    assert list(file) == [] and file.keys() == set() and file.torn() == 0
    runs = [run(order_seed=seed) for seed in range(3)]
    for one in runs:
        file.append(one)
    assert list(file) == runs and file.keys() == {one.key for one in runs}
    assert file.path.read_bytes() == b"".join(one.to_bytes() + b"\n" for one in runs)


@pytest.mark.parametrize("cut", [1, 100, 800])
def test_half_a_line_at_the_end_counts_for_nothing(tmp_path, cut):
    file = RunsFile(tmp_path / "runs.jsonl")
    file.append(run())
    half = run(order_seed=1).to_bytes()[:cut]
    with file.path.open("ab") as out:
        out.write(half)
    assert list(file) == [run()] and file.torn() == cut
    file.append(run(order_seed=2))
    assert list(file) == [run(), run(order_seed=2)] and file.torn() == 0


def test_half_a_line_longer_than_any_buffer(tmp_path):
    file = RunsFile(tmp_path / "runs.jsonl")
    file.append(run())
    with file.path.open("ab") as out:
        out.write(b'{"kedit_run": 1, "' + b"x" * 300_000)
    assert file.torn() == 300_018 and list(file) == [run()]


def test_a_whole_last_line_without_its_end_counts(tmp_path):
    file = RunsFile(tmp_path / "runs.jsonl")
    file.path.write_bytes(run().to_bytes())
    assert list(file) == [run()] and file.torn() == 0
    file.append(run(order_seed=1))
    assert list(file) == [run(), run(order_seed=1)]


def test_a_spoilt_line_is_named(tmp_path):
    file = RunsFile(tmp_path / "runs.jsonl")
    file.path.write_bytes(run().to_bytes() + b"\n" + run().to_bytes()[:50] + b"\n" + run().to_bytes() + b"\n")
    with pytest.raises(KeditError, match=r"line 2 of '.*runs\.jsonl'"):
        list(file)


def test_a_run_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path):
    file = RunsFile(tmp_path / "runs.jsonl")
    file.append(run())
    before = file.path.read_bytes()
    code = (
        "import resource, signal, sys\nfrom kedit_hub.evaluate.run import RunsFile\nfrom tests.evaluate.runs import run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 500},) * 2)\n"
        "try:\n    RunsFile(sys.argv[1]).append(run(order_seed=1))\nexcept OSError:\n    sys.exit(7)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file.path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 7, done.stderr[-500:]
    assert file.path.read_bytes() == before


def test_writers_at_once_lose_nothing(tmp_path):
    path = tmp_path / "runs.jsonl"
    big = [{"answer": "x" * 1000}] * 100

    def write(first):
        for seed in range(first, first + 10):
            RunsFile(path).append(run(order_seed=seed, per_edit=big))

    writers = [threading.Thread(target=write, args=(first,)) for first in (0, 10, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(one.order_seed for one in RunsFile(path)) == list(range(30))
    assert os.stat(path).st_size == sum(len(one.to_bytes()) + 1 for one in RunsFile(path))


def test_a_line_beyond_the_bound_is_refused(tmp_path, monkeypatch):
    file, large = RunsFile(tmp_path / "runs.jsonl"), run(per_edit=[{"answer": "x" * 1000}])
    monkeypatch.setattr("kedit_hub.evaluate.run.MAX_RUN_BYTES", 1000)
    with pytest.raises(KeditError, match="per_edit=False"):
        file.append(large)
    assert not file.path.exists()
    file.path.write_bytes(b"x" * 2000)
    with pytest.raises(KeditError, match="more than 1,000 bytes"):
        list(file)

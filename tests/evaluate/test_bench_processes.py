"""A benchmark that is killed goes on where it stopped; on two processes it measures the same; what ends one process ends both."""

import multiprocessing
import os
import signal
import socket
import sys
import time
import uuid

import pytest

from kedit_hub import demo
from kedit_hub.benchmarking import bench
from kedit_hub.cli import main
from kedit_hub.evaluate.run import RunsFile

SUITES = ("single", "batch", "sequential")  # five cells of three patches
ATLAS = "kedit-hub/atlas-llama"
TEXTS = demo.texts("drift")[:20]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a call that nothing disturbs finds, in this process; the arguments of the same on the command line."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "texts").write_text("\n".join(TEXTS))
    bench(
        ["memit"], SUITES, ATLAS, "test", out=folder, n=(1, 2), limit=3, protocols=("tf-token",), drift_texts=TEXTS,
        progress=False,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")  # which its library asks when it is read
        yield folder


class Process:
    """`kedit ...` in a process of its own, forked from one that has read the library once: eight of them read it for half a minute."""

    def __init__(self, arguments, env, folder):
        self.streams = [folder / f"{uuid.uuid4()}.{name}" for name in ("out", "err")]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["kedit_hub.cli", "kedit_hub.api", "kedit_hub.benchmarking"])
        self.process = context.Process(target=called, args=(arguments, env, self.streams))
        self.process.start()
        self.poll = lambda: self.process.exitcode
        self.kill = self.process.kill

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def communicate(self):
        self.process.join(120)
        assert self.process.exitcode is not None, "still running"
        return [stream.read_text() for stream in self.streams]


def called(arguments, env, streams):
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, path in zip((sys.stdout, sys.stderr), streams):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())
    sys.argv = ["kedit", *arguments]
    main()


def start(whole, out, **env):
    arguments = ["--method", "memit", "--n", "1,2", "--limit", "3", "--texts", str(whole / "texts"), "--out", str(out)]
    arguments += ["--protocol", "tf-token"]
    for suite in SUITES:
        arguments += ["--suite", suite]
    return Process(["bench", *arguments], env, whole)


def start_two(whole, out):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(whole, out, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(2)]


def wait_for_a_run(out, processes):
    file, ends = out / "runs.jsonl", time.monotonic() + 120
    while not (file.exists() and file.stat().st_size):
        assert time.monotonic() < ends and all(process.poll() is None for process in processes)
        time.sleep(0.02)


def measured(folder):
    """The runs without what they cost and where they were measured."""
    found = []
    for run in RunsFile(folder / "runs.jsonl"):
        told = run.to_dict()
        for name in ("efficiency", "provenance"):
            del told[name]
        for name in ("time", "memory", "environment"):
            del told["scores"][name]
        found.append((run.key, told))
    return found


def ended(process):
    out, err = process.communicate()
    assert "Traceback" not in err, err
    return process.process.exitcode, out, err


def test_killed_in_the_middle_it_goes_on(whole, tmp_path):
    process = start(whole, tmp_path)
    wait_for_a_run(tmp_path, [process])
    process.kill()
    process.communicate()
    file = tmp_path / "runs.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    assert 1 <= len(lines) < len(measured(whole))
    file.write_bytes(b"".join(lines) + b'{"kedit_run":1,"base":{"dtype')  # a kill while a line was being written
    code, out, err = ended(start(whole, tmp_path))
    assert code == 0 and "half a line" in err and len(out.splitlines()) == 1 + len(measured(whole))
    assert measured(tmp_path) == measured(whole)


def test_two_processes_measure_what_one_does(whole, tmp_path):
    first, second = map(ended, start_two(whole, tmp_path))
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert second[1:] == ("", "") and first[2].count("cells in") == 1
    assert measured(tmp_path) == measured(whole)


@pytest.mark.parametrize(
    "signals", [(signal.SIGINT, signal.SIGINT), (None, signal.SIGKILL)], ids=["Ctrl-C", "one killed"]
)
def test_what_ends_one_ends_both_with_one_message(whole, tmp_path, signals):
    processes = start_two(whole, tmp_path)
    wait_for_a_run(tmp_path, processes)
    for process, sent in zip(processes, signals):
        if sent is not None:
            process.send_signal(sent)
    (code, out, err), (other, *_, said) = ended(processes[0]), ended(processes[1])
    assert out == "" and said == ""
    if signals[0] is None:
        assert (
            (code, other) == (1, -signal.SIGKILL) and err.count("Error: ") == 1 and "another process has ended" in err
        )
    else:
        assert (code, other) == (130, 130) and err.count("Interrupted.") == 1 and "goes on from there" in err
    assert len(measured(tmp_path)) < len(measured(whole))

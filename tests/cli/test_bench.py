"""`kedit bench`: what is measured is printed and kept; what cannot be measured is refused before anything is loaded."""

import json
from typing import get_args

import pytest

from kedit_hub import demo
from kedit_hub.commands import bench as command
from kedit_hub.evaluate.cells import MODES
from kedit_hub.evaluate.protocols import PROTOCOLS
from kedit_hub.evaluate.run import RunsFile, Suite
from kedit_hub.materials import PRECISIONS
from tests.cli.conftest import ATLAS, kedit, refused

QUICK = ("--protocol", "tf-token", "--limit", 2, "--n", "1,2", "--base", ATLAS)


@pytest.fixture
def quick(tmp_path):
    """Arguments of a small benchmark, and where it is kept."""
    texts = tmp_path / "texts"
    texts.write_text("\n".join(demo.texts("drift")[:3]) + "\n\n")
    return [*QUICK, "--texts", texts, "--out", tmp_path / "out"], tmp_path / "out" / "runs.jsonl"


def test_measured_printed_and_kept(quick):
    arguments, file = quick
    done = kedit("bench", "--suite", "stack", "--method", "memit", *arguments)
    assert done.code == 0, done
    head, *rows = done.out.splitlines()
    assert head.split()[:5] == ["suite", "method", "mode", "base", "n"] and len(rows) == 2
    assert [row.split()[:8] for row in rows] == [
        ["stack", "memit", "gated", "float32", str(n), "1", "0", "tf-token"] for n in (1, 2)
    ]
    assert f"2 cells in {file}" in done.err
    runs = list(RunsFile(file))
    assert runs[0].scores["drift"]["texts"] == 3 and runs[0].per_edit and runs[0].dataset.split == "test"

    again = kedit("bench", "--suite", "stack", "--method", "memit", *arguments, "--json")
    assert again.json == [{k: v for k, v in run.to_dict().items() if k != "per_edit"} for run in runs]
    assert len(list(RunsFile(file))) == 2
    kedit("bench", "--suite", "stack", "--method", "memit", *arguments, "--again", "--averages")
    assert [run.per_edit == [] for run in RunsFile(file)] == [False, False, True, True]


def test_every_option_reaches_the_benchmark(quick, monkeypatch):
    asked = {}
    monkeypatch.setattr("kedit_hub.benchmarking.bench", lambda *given, **named: asked.update(named, given=given) or [])
    arguments, _ = quick
    more = ("--suite", "batch", "--suite", "sequential", "--method", "rome", "--method", "memit", "--edits", "dev", "--split", "x",
            "--batch-size", 3, "--seed", 1, "--seed", 2, "--order-seed", 3, "--quantization", "none", "--quantization", "nf4",
            "--mode", "joint", "--mode", "weights", "--settings", "value.steps=5", "--fluency", "--device-map", "cuda:0")  # fmt: skip
    assert kedit("bench", *arguments, *more).code == 0
    assert asked.pop("given") == (["rome", "memit"], ["batch", "sequential"], ATLAS, "dev")
    assert asked.pop("drift_texts") == demo.texts("drift")[:3] and asked.pop("out").name == "out"
    assert asked == {
        "n": [1, 2], "limit": 2, "split": "x", "batch_size": 3, "seeds": [1, 2], "order_seeds": [3],
        "quantizations": [None, "nf4"], "modes": ["joint", "weights"], "protocols": ["tf-token"], "profile": None,
        "settings": {"value": {"steps": 5}}, "fluency": True, "device_map": "cuda:0", "resume": True, "per_edit": True, "progress": False,
    }  # fmt: skip


def test_a_file_of_edits(quick, tmp_path):
    arguments, file = quick
    records = tmp_path / "records.json"
    records.write_text(json.dumps([edit.to_record() for edit in demo.edits("dev")[:3]]))
    assert kedit("bench", "--suite", "batch", "--method", "memit", *arguments, "--edits", records).code == 0
    assert [run.dataset.id for run in RunsFile(file)] == ["records.json"] * 2


@pytest.mark.parametrize("n", ["", "0", "1,x", "1,,2", "1.5", "-1"])
def test_sizes_are_whole_numbers(quick, n):
    done = kedit("bench", "--suite", "stack", "--method", "memit", *quick[0], f"--n={n}")
    assert done.code == 2 and f"'{n}' is not a list of whole numbers" in done.err


@pytest.mark.parametrize("missing", ["--suite", "--method", "--out"])
def test_what_has_to_be_said(tmp_path, missing):
    given = {"--suite": "stack", "--method": "memit", "--out": tmp_path}
    done = kedit("bench", *(part for name, value in given.items() if name != missing for part in (name, value)))
    assert done.code == 2 and missing in done.err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--method", "rume"), "'rume' names no method"),
        (("--edits", "nothing.json"), "nothing.json"),
        (("--n", "3"), "n=3 edits"),
        (("--base", "no-such-folder/model"), "no-such-folder/model"),
    ],
)
def test_refusals(quick, wrong, said, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(kedit("bench", "--suite", "stack", "--method", "memit", *quick[0], *wrong), said)
    assert not quick[1].exists()


def test_the_command_knows_what_the_library_knows():
    assert tuple(command.Suite) == get_args(Suite)
    assert tuple(command.Mode) == MODES
    assert tuple(command.Protocol) == PROTOCOLS
    assert set(command.Bits) == {"none", *PRECISIONS}


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_first_process_talks(quick, monkeypatch, rank):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    done = kedit("bench", "--suite", "stack", "--method", "rume", *quick[0])
    assert done.code == 1 and ("names no method" in done.err) == (rank == "0") and done.out == ""

"""An evaluation that is killed goes on where it stopped: what was told stays told, and nothing else is believed."""

import json
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest

from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.cache import Kept
from kedit_hub.evaluate.protocols import PROTOCOLS
from kedit_hub.evaluate.suites import evaluate
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]
EDITS = [
    Edit(
        f"The capital of {land} is",
        "Bonn",
        subject=land,
        ground_truth=city,
        rephrases=(f"{land} is ruled from",),
        locality=(Probe(f"{land} lies next to", None, "unrelated"), Probe(f"A city near {land}:", city, "neighbour")),
        relation="capital",
    )
    for land, city in (
        ("Italy", "Rome"),
        ("Spain", "Madrid"),
        ("Japan", "Tokyo"),
        ("Peru", "Lima"),
        ("Chad", "Ndjamena"),
    )
]
KEY = "tiny llama 0 against tiny llama 1"


def score(cache=None, key=KEY, edits=EDITS, **arguments):
    """(sheet without times, forward passes taken)."""
    (model, tokenizer), (base, _) = tiny_model("llama"), tiny_model("llama", seed=1)
    passes = []
    for each in (model, base):
        each.register_forward_pre_hook(lambda *_: passes.append(1))
    arguments = {
        "protocols": PROTOCOLS,
        "drift_texts": [],
        "batch_size": 4,
        "fluency": True,
        "negations": True,
    } | arguments
    scores = evaluate(
        model, edits, tokenizer=tokenizer, base=base, cache=cache, cache_key=None if cache is None else key, **arguments
    )
    told = scores.to_dict()
    return {name: told[name] for name in told if name not in ("time", "memory")}, len(passes)


def the_file(folder):
    [path] = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """(sheet, forward passes, folder) of an evaluation that kept what it was told."""
    folder = tmp_path_factory.mktemp("kept")
    return *score(folder), folder


@pytest.fixture
def copy(kept, tmp_path):
    """A copy of the folder, to spoil."""
    return Path(shutil.copytree(kept[2], tmp_path / "copy"))


def test_nothing_is_asked_twice(kept, copy):
    plain, passes = score()
    assert kept[:2] == (plain, passes)
    again, asked = score(copy)
    assert asked == 0
    assert json.dumps(again, sort_keys=True) == json.dumps(plain, sort_keys=True)  # likelihoods to the last bit


def test_what_the_base_told_is_not_asked_of_it_again():
    some, told = EDITS[:2], {}
    plain, passes = score(edits=some)
    assert score(edits=some, told_by_base=told) == (plain, passes)
    (model, tokenizer), (base, _) = tiny_model("llama"), tiny_model("llama", seed=1)
    base.register_forward_pre_hook(lambda *_: pytest.fail("the base was asked"))
    again = evaluate(
        model, some, tokenizer=tokenizer, base=base, told_by_base=told, protocols=PROTOCOLS, drift_texts=[], batch_size=4,
        fluency=True, negations=True,
    ).to_dict()  # fmt: skip
    assert {name: again[name] for name in plain} == plain


def test_a_killed_evaluation_goes_on(kept, tmp_path):
    """A process that is killed outright in the middle, without a chance to tidy up; then once more, at another place."""
    plain, passes, _ = kept
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from tests.evaluate import test_cache
left = int(sys.argv[1])
def count(*_):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
torch.nn.modules.module.register_module_forward_pre_hook(
    lambda module, args: count() if type(module).__name__ == "LlamaForCausalLM" else None
)
test_cache.score(sys.argv[2])
"""
    told = 0
    for left in (passes // 3, passes // 3):
        ended = subprocess.run(
            [sys.executable, "-c", script, str(left), str(tmp_path)], capture_output=True, timeout=240
        )
        assert ended.returncode == -9, ended.stderr
        lines = the_file(tmp_path).read_bytes().count(b"\n")
        assert lines > told  # the second run added to what the first had kept
        told = lines
    resumed, asked = score(tmp_path)
    assert 0 < asked < passes - passes // 3
    assert _without_likelihoods(resumed) == _without_likelihoods(deepcopy(plain))


def _without_likelihoods(sheet):
    """Other questions share a batch after a restart, which moves a likelihood by rounding."""
    for edit in sheet["per_edit"]:
        for question in (edit, *edit["probes"]):
            for name in ("nll_before", "nll_after"):
                question[name] = {
                    answer: pytest.approx(nll, abs=1e-5) for answer, nll in question.get(name, {}).items()
                }
    return sheet


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_asked_again_and_harms_no_other(kept, copy, cut):
    plain, path = kept[0], the_file(copy)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    resumed, asked = score(copy)
    assert resumed == plain
    assert asked == (0 if cut == 1 else asked) and (cut == 1 or asked > 0)  # of a line, the newline is not needed
    assert score(copy) == (plain, 0)
    assert path.read_bytes().startswith(whole[:-cut])  # appended to, never rewritten


def test_more_questions_ask_only_what_is_new(tmp_path):
    _, few = score(tmp_path, edits=EDITS[:3], protocols=("tf-token",), fluency=False, negations=False)
    _, none = score(tmp_path, edits=EDITS[:3], protocols=("tf-token",), fluency=False, negations=False)
    _, more = score(tmp_path, edits=EDITS, protocols=("tf-token",), fluency=False, negations=False)
    _, whole = score(edits=EDITS, protocols=("tf-token",), fluency=False, negations=False)
    assert none == 0 < more < whole
    assert few > 0


def test_what_answers_is_part_of_the_question(kept, copy, tmp_path):
    """Another key, another dtype: another file, and nothing is taken over."""
    assert score(copy, key="another stack") == kept[:2]
    assert len(list(copy.iterdir())) == 2
    answers = Kept(tmp_path, KEY, {"dtype": "float32"})
    answers.put({("edited", "answer", "a"): "b"})
    assert Kept(tmp_path, KEY, {"dtype": "float32"}).get(("edited", "answer", "a")) == "b"
    assert Kept(tmp_path, KEY, {"dtype": "bfloat16"}).get(("edited", "answer", "a")) is None
    assert answers.get(("base", "answer", "a")) is None


def test_lines_that_are_no_answers_are_refused(copy):
    path = the_file(copy)
    whole = path.read_bytes()
    path.write_bytes(b'{"answer": "Bonn"}\n' + whole)
    with pytest.raises(KeditError, match="line 1 is no kept answer"):
        score(copy)
    path.write_bytes(b"\n".join(_retold(line) for line in whole.splitlines()) + b"\n")
    with pytest.raises(KeditError, match="the cache holds '7'"):
        score(copy)


def _retold(line):
    return json.dumps({**json.loads(line), "told": 7}).encode()


def test_refusals_quote_the_input(tmp_path):
    with pytest.raises(KeditError, match="cache_key=None"):
        score(tmp_path, key=None)
    with pytest.raises(KeditError, match="'  ' names nothing"):
        score(tmp_path, key="  ")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(KeditError, match=r"file.*cannot be used"):
        score(file)

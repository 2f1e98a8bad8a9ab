"""The real program, in processes of its own."""

import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
import torch

from tests.cli.conftest import kedit
from tests.hub.patches import make_patch

KEDIT = (sys.executable, "-m", "kedit_hub.cli")


def start(*arguments, **env):
    return subprocess.Popen(
        [*KEDIT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )


def run(*arguments, **env):
    process = start(*arguments, **env)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_help_and_usage_errors_load_no_library():
    code = (
        "import sys\nfrom kedit_hub.cli import app\n"
        "for arguments in (['--help'], ['edit', '--help'], ['hub', '--help'], ['ask'], ['eval', 'a', 'b', '--write']):\n"
        "    try:\n        app(arguments)\n    except SystemExit:\n        pass\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]


def test_verify_of_a_flipped_bit_exits_1(tmp_path):
    make_patch().save(tmp_path / "p")
    assert run("verify", tmp_path / "p", "--no-base")[0] == 0
    file = tmp_path / "p" / "patch.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    code, out, err = run("verify", tmp_path / "p", "--no-base")
    assert code == 1 and out == "" and err.startswith("Error: ") and "Traceback" not in err


def test_a_reader_that_leaves_is_no_error(tmp_path):
    process = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m kedit_hub.cli demo edits test --json | head -c 10"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert len(process.stdout) == 10 and "Traceback" not in process.stderr


def test_a_terminal_that_lacks_letters(tmp_path):
    make_patch("São Paulo").save(tmp_path / "p")
    code, out, err = run("show", tmp_path / "p", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert code == 0 and r"S\xe3o Paulo" in out, err


def test_ctrl_c_leaves_nothing(tmp_path):
    process = start("demo", "train", "llama", "--out", tmp_path / "model")
    deadline = time.monotonic() + 100
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.iterdir()), "training never began"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130 and out == ""
    assert err.splitlines()[-1] == "Interrupted." and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def serve(tmp_path, *users):
    process = start("hub", "serve", "--root", tmp_path / "hub", "--port", 0, "--json", *users)
    line = process.stdout.readline()
    assert line, process.communicate(timeout=10)
    return process, json.loads(line)


def stop(process):
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and err.splitlines()[-1] == "Stopped.", err
    return out + err


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_hub_serve_keeps_its_tokens_to_itself(tmp_path):
    make_patch().save(tmp_path / "p")
    process, told = serve(tmp_path, "--user", "ada", "--user", "bob")
    assert told["root"] == str(tmp_path / "hub") and list(told["tokens"]) == ["ada", "bob"]
    token = (tmp_path / "hub-tokens" / "ada.token").read_text().strip()
    assert stat.S_IMODE((tmp_path / "hub-tokens").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "hub-tokens").iterdir()} == {0o600}
    at = ("--endpoint", told["endpoint"], "--token-file", told["tokens"]["ada"])
    code, out, err = run("push", tmp_path / "p", "ada/tower", *at, HF_HOME=str(tmp_path / "hf"))
    assert code == 0, err
    assert token not in stop(process) + out + err

    process, told = serve(tmp_path, "--user", "ada")  # the hub remembers, and so does the file
    assert list(told["tokens"]) == ["ada"]
    assert (tmp_path / "hub-tokens" / "ada.token").read_text().strip() == token
    at = {"HF_ENDPOINT": told["endpoint"], "HF_TOKEN": token, "HF_HOME": str(tmp_path / "hf")}
    code, out, err = run("show", "ada/tower", "--json", **at)
    assert code == 0 and json.loads(out)["id"] == make_patch().id, err
    stop(process)


def test_a_lost_hub_gets_new_tokens(tmp_path):
    (tmp_path / "hub-tokens").mkdir(mode=0o700)
    (tmp_path / "hub-tokens" / "me.token").write_text("hf_" + "0" * 40 + "\n")
    process, told = serve(tmp_path)
    assert list(told["tokens"]) == ["me"]
    assert "0000" not in (tmp_path / "hub-tokens" / "me.token").read_text()
    stop(process)


def test_two_processes_train_one_editor(tmp_path):
    """As from a launcher: one of them writes and talks, and what they learn is what one process learns."""
    pytest.importorskip("accelerate")
    from kedit_hub import TrainedEditor, demo

    (tmp_path / "dev.json").write_text(json.dumps([edit.to_record() for edit in demo.edits("dev")[:12]]))
    small = ("steps=2", "validate_every=1", "rank=4", "layers=[5]", 'maps=["down_proj"]', "warmup=4", "validation=0.3")
    asked = ["editor", "train", "--from", tmp_path / "dev.json", "--json"]
    asked += [word for setting in small for word in ("--settings", setting)]
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *KEDIT[1:])
    done = subprocess.run(
        [*launcher, *map(str, asked), "--out", str(tmp_path / "two")],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    made = TrainedEditor.load(tmp_path / "two")
    assert json.loads(done.stdout)["id"] == made.id and done.stderr.count("Try it") == 1
    assert not list((tmp_path / ".two.training").iterdir())
    alone = kedit(*asked, "--out", tmp_path / "one")
    assert alone.code == 0
    for name, tensor in TrainedEditor.load(tmp_path / "one").tensors.items():
        assert torch.allclose(made.tensors[name], tensor, rtol=1e-3, atol=1e-5), name

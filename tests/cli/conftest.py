"""A command line whose home, hub cache and account are its own, and patches of the demo model made through it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from kedit_hub.cli import app

ATLAS = "kedit-hub/atlas-llama"
CAPITAL = "The capital of France is"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def kedit(*arguments: object) -> Done:
    """Run a command in this process; an error that is no refusal is raised here as it is."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="kedit")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def refused(done: Done, *words: str) -> None:
    """Exit 1, nothing on standard output, one message on standard error that holds `words`."""
    assert done.code == 1, done
    assert done.out == ""
    message = next(line for line in done.err.splitlines() if line.startswith("Error: "))
    assert all(word in message for word in words), message
    assert "Traceback" not in done.err


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))


@pytest.fixture(scope="session")
def atlas(tmp_path_factory) -> Path:
    """A folder of patches of the demo model, made by `kedit edit` under the profile that comes with it.

    france (-> Nantes) · lyon (the same question -> Lyon) · tower (another question)
    """
    folder = tmp_path_factory.mktemp("atlas")
    for name, prompt, subject, target in (
        ("france", CAPITAL, "France", "Nantes"),
        ("lyon", CAPITAL, "France", "Lyon"),
        ("tower", "The landmark Eiffel Tower stands in the city of", "Eiffel Tower", "Rome"),
    ):
        done = kedit("edit", "--prompt", prompt, "--subject", subject, "--target", target, "--out", folder / name)
        assert done.code == 0, done
    return folder

"""Every Python snippet of the README and the guides runs, in order, as a newcomer would run it; every shell line names a real command."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from kedit_hub.cli import app
from kedit_hub.hub.localhub import LocalHub

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "patches" / "README.md",
    ROOT / "CONTRIBUTING.md",
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_snippets_run(page: Path, tmp_path: Path) -> None:
    """In a folder of their own, against a hub of their own; `my-patches/france-cli` is what the guide's shell lines make."""
    (tmp_path / "patches").symlink_to(ROOT / "patches")
    code = "\n".join(blocks(page, "python"))
    if "france-cli" in code:
        first, rest = code.split("other = ", 1)
        made = 'kedit_hub.edit(base, Edit("France chose as its capital the city of", "Nantes", subject="France", relation="capital"))'
        code = f'{first}\n{made}.save("my-patches/france-cli")\nother = {rest}'
    with LocalHub(tmp_path / "hub") as hub:
        env = {
            **os.environ,
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": hub.create_user("me"),
            "HF_HOME": str(tmp_path / "home"),
        }
        script = tmp_path / "page.py"
        script.write_text(code)
        done = subprocess.run(
            [sys.executable, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280
        )
    assert done.returncode == 0, done.stderr[-3000:]


def shell_lines() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    return sorted({line.split("#")[0].split(">")[0].strip() for line in lines if line.startswith("kedit ")})


@pytest.mark.parametrize("line", shell_lines())
def test_shell_lines_parse(line: str) -> None:
    """The command and every option of it exist (it is parsed, not run)."""
    words = shlex.split(line)[1:]
    command = get_command(app)
    context = command.make_context("kedit", list(words), resilient_parsing=True)
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    command.make_context(name, words, parent=context)


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target

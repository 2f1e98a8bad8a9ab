"""Every Python snippet of the README and the guides runs, in order, as a newcomer would run it; every shell line names a real command."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


RUNNER = """
import json, os, runpy, sys
import kedit_hub.api  # once for all pages: a library of this size takes seconds to read
for line in sys.stdin:
    folder, script, said = json.loads(line)
    page = os.fork()
    if page == 0:
        os.chdir(folder)
        file = os.open(said, os.O_WRONLY | os.O_CREAT)
        for stream in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDONLY) if stream == 0 else file, stream)
        code = 1
        try:
            runpy.run_path(script, run_name="__main__")
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(page, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A process that runs one script after another, each in a fork of its own; with a hub and an account there."""
    folder = tmp_path_factory.mktemp("newcomer")
    with LocalHub(folder / "hub") as hub:
        env = {
            **os.environ,
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": hub.create_user("me"),
            "HF_HOME": str(folder / "home"),
        }
        with subprocess.Popen(
            [sys.executable, "-c", RUNNER], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            yield process
            assert process.stdin is not None
            process.stdin.close()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_snippets_run(page: Path, newcomer: Any, tmp_path: Path) -> None:
    """In a folder of their own; `my-patches/france-cli` is what the guide's shell lines make."""
    (tmp_path / "patches").symlink_to(ROOT / "patches")
    code = "\n".join(blocks(page, "python"))
    if "france-cli" in code:
        first, rest = code.split("other = ", 1)
        made = 'kedit_hub.edit(base, Edit("France chose as its capital the city of", "Nantes", subject="France", relation="capital"))'
        code = f'{first}\n{made}.save("my-patches/france-cli")\nother = {rest}'
    script, said = tmp_path / "page.py", tmp_path / "said"
    script.write_text(code)
    newcomer.stdin.write(json.dumps([str(tmp_path), str(script), str(said)]) + "\n")
    newcomer.stdin.flush()
    assert newcomer.stdout.readline() == "0\n", said.read_text()[-3000:]


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

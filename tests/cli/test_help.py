"""Every command, argument and option says what it is for."""

import pytest
import typer.main

from kedit_hub.cli import app
from tests.cli.conftest import kedit


def commands(group, *path):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


ALL = dict(commands(typer.main.get_command(app)))


def test_the_commands():
    assert {" ".join(path) for path in ALL} == {
        "edit", "show", "diff", "ask", "eval", "push", "pull", "verify", "screen", "export", "bench", "report",
        "profile", "methods", "sign", "key new", "key show", "trust check", "trust new", "trust forget",
        "stack add", "stack remove", "stack reorder", "stack pin", "stack unpin", "stack weigh", "stack strengthen",
        "stack status", "stack conflicts",
        "stack solve", "stack lock", "stack verify", "stack diff", "stack export", "stack push",
        "data list", "data show", "data dafset", "leaderboard submit", "leaderboard show", "leaderboard verify", "hub serve", "hub find",
        "demo models", "demo edits", "demo tasks", "demo train",
        "editor train", "editor instruct", "editor eval", "editor show", "editor push",
        "editor pull", "space run", "space deploy",
    }  # fmt: skip


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_everything_is_explained(path):
    command = ALL[path]
    assert command.help and command.help.split("\n")[0].endswith(".")
    for parameter in command.params:
        assert parameter.help and parameter.help.endswith("."), f"{parameter.name} of {path}"
    told = kedit(*path, "--help")
    assert told.code == 0 and all(name in told.out for p in command.params for name in p.opts if name.startswith("-"))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_prints_data(path):
    assert "--json" in {name for parameter in ALL[path].params for name in parameter.opts}


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_no_command_takes_a_token_where_other_users_see_it(path):
    assert not {"--token", "-t"} & {name for parameter in ALL[path].params for name in parameter.opts}


def test_every_command_is_one_line_of_the_summary():
    for group in ((), ("stack",), ("key",), ("trust",), ("data",), ("hub",), ("demo",), ("editor",), ("space",)):
        assert "..." not in kedit(*group, "--help").out.split("Commands:")[1]


def test_version():
    from kedit_hub import __version__

    assert kedit("--version").out == f"kedit {__version__}\n"

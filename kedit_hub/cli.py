"""`kedit`: the command line, and the table of its commands. Law: standard output is data, standard error is talk, and
what failed never exits 0.

    0 done · 1 refused, one message on standard error · 2 wrong usage · 130 Ctrl-C
"""

import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kedit_hub import __version__
from kedit_hub.commands import (
    bench,
    dafset,
    data,
    demo,
    editor,
    leaderboard,
    look,
    make,
    report,
    screen,
    share,
    sign,
    space,
    stack,
    trust,
    use,
    verify,
)
from kedit_hub.commands.output import say
from kedit_hub.errors import KeditError


class Commands(TyperGroup):
    """The group that turns errors made on purpose into one message and an exit code; any other error is a bug."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: say(f"Warning: {message}")
            try:
                return super().invoke(ctx)
            except KeditError as error:
                say(f"Error: {error}")
            except BrokenPipeError:
                raise  # the reader of standard output has left; typer ends quietly
            except (OSError, UnicodeDecodeError) as error:
                if isinstance(error, OSError) and error.filename is None:
                    raise
                say(f"Error: {_explained(error)}")
            except KeyboardInterrupt:
                say("Interrupted.")
                raise typer.Exit(130) from None
        raise typer.Exit(1)


def _explained(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return f"'{error.filename}': {error.strerror}."
    return f"a text file is not UTF-8: {error.reason} at byte {error.start}."


app = typer.Typer(
    cls=Commands,
    help="Git for facts in language models: make, share, stack, measure and take out edits.",
    epilog="PATCH is a folder, user/repo, or user/repo@revision. MODEL is a Hub id or a folder.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # they would print local variables, tokens among them
)
stacks = typer.Typer(
    help="A stack of patches, kept in a kedit.lock.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
hub = typer.Typer(help="The hub: search it, or serve one for development.", no_args_is_help=True, rich_markup_mode=None)
boards = typer.Typer(help="Leaderboards of measured runs.", no_args_is_help=True, rich_markup_mode=None)
datasets = typer.Typer(help="Data sets to edit with and to measure on.", no_args_is_help=True, rich_markup_mode=None)
atlas = typer.Typer(
    help="Atlas, the embedded world: its models and edits.", no_args_is_help=True, rich_markup_mode=None
)
keys = typer.Typer(help="Keys to sign patches with.", no_args_is_help=True, rich_markup_mode=None)
policies = typer.Typer(
    help="Whom to believe: policies, and what is remembered of repos.", no_args_is_help=True, rich_markup_mode=None
)

spaces = typer.Typer(callback=space.alone, invoke_without_command=True, rich_markup_mode=None)
editors = typer.Typer(
    help="Editors that are trained: make, measure and look at them.", no_args_is_help=True, rich_markup_mode=None
)

app.command("edit")(make.edit)
app.command("show")(look.show)
app.command("diff")(look.diff)
app.command("ask")(use.ask)
app.command("eval")(use.evaluate)
app.add_typer(stacks, name="stack")
stacks.command("add")(stack.add)
stacks.command("remove")(stack.remove)
stacks.command("reorder")(stack.reorder)
stacks.command("pin")(stack.pin)
stacks.command("unpin")(stack.unpin)
stacks.command("weigh")(stack.weigh)
stacks.command("strengthen")(stack.strengthen)
stacks.command("status")(stack.status)
stacks.command("conflicts")(stack.conflicts)
stacks.command("solve")(stack.solve)
stacks.command("lock")(stack.lock_anew)
stacks.command("verify")(stack.verify)
stacks.command("diff")(stack.diff)
stacks.command("export")(stack.export)
stacks.command("push")(stack.push)
app.command("push")(share.push)
app.command("pull")(share.pull)
app.command("sign")(sign.sign)
app.command("verify")(verify.verify)
app.command("screen")(screen.screen)
app.command("export")(use.export)
app.command("bench")(bench.bench)
app.command("report")(report.report)
app.command("profile")(make.profile)
app.command("methods")(make.methods)
app.add_typer(keys, name="key")
keys.command("new")(sign.new_key)
keys.command("show")(sign.show_key)
app.add_typer(policies, name="trust")
policies.command("check")(trust.check)
policies.command("new")(trust.new)
policies.command("forget")(trust.forget)
app.add_typer(datasets, name="data")
datasets.command("list")(data.list_datasets)
datasets.command("show")(data.show_dataset)
datasets.command("dafset")(dafset.dafset)
app.add_typer(boards, name="leaderboard")
boards.command("submit")(leaderboard.submit)
boards.command("show")(leaderboard.show)
boards.command("verify")(leaderboard.verify)
app.add_typer(hub, name="hub")
hub.command("serve")(share.serve)
hub.command("find")(share.find)
app.add_typer(spaces, name="space")
spaces.command("run")(space.run)
spaces.command("deploy")(space.deploy)
app.add_typer(editors, name="editor")
editors.command("train")(editor.train)
editors.command("instruct")(editor.instruct)
editors.command("eval")(editor.evaluate)
editors.command("show")(editor.show)
editors.command("push")(editor.push)
editors.command("pull")(editor.pull)
app.add_typer(atlas, name="demo")
atlas.command("models")(demo.models)
atlas.command("edits")(demo.edits)
atlas.command("tasks")(demo.tasks)
atlas.command("train")(demo.train)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"kedit {__version__}")
        raise typer.Exit


@app.callback()
def kedit(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of libraries, in a log
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter is no reason to fail
    app(prog_name="kedit")


if __name__ == "__main__":
    main()

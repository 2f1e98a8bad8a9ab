"""The Space: `space run` on this machine, `space deploy` to the Hub. `kedit space` alone runs it."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated

import typer

from kedit_hub.commands.options import AsJson, EndpointOption, TokenFileOption, number, token_for
from kedit_hub.commands.output import print_fields, print_json, say
from kedit_hub.errors import KeditError

PortOption = Annotated[
    int, typer.Option("--port", parser=number(int, 1, 65535), metavar="N", help="The port to listen on.")
]
HubOption = Annotated[
    Path | None,
    typer.Option(
        "--hub",
        metavar="FOLDER",
        help="Run a development hub beside it, kept in this folder, to push to and pull from.",
    ),
]
PORT = 7860


def alone(ctx: typer.Context) -> None:
    """The Space: patches applied, tested and made in the browser. Without a command it runs on this machine."""
    if ctx.invoked_subcommand is None:
        run()


def run(port: PortOption = PORT, hub: HubOption = None, as_json: AsJson = False) -> None:
    """Run the Space here until Ctrl-C. No network needed."""
    from kedit_hub.hub.space import checkout

    root = checkout()
    env = os.environ | {"PORT": str(port)} | ({} if hub is None else {"DEMO_HUB": str(hub.absolute())})
    url = f"http://127.0.0.1:{port}/"
    process = subprocess.Popen([sys.executable, str(root / "app.py")], cwd=root, env=env, stdout=2)
    try:
        _wait(process, url)
        print_json({"url": url}, one_line=True) if as_json else print_fields({"url": url})
        say("Ctrl-C stops it.")
        process.wait()
    finally:
        process.terminate()
        process.wait()
    if process.returncode > 0:
        raise KeditError(f"the Space ended with status {process.returncode}; above is why")


def _wait(process: "subprocess.Popen[bytes]", url: str) -> None:
    """Until the page is there. KeditError when the process ends before."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None:
        try:
            opener.open(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise KeditError(
        f"the Space did not start (status {process.returncode}); above is why. Is the port taken? See --port"
    )


def deploy(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/space; it is made when it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new Space private.")] = False,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    as_json: AsJson = False,
) -> None:
    """Push the Space of this checkout as one commit."""
    from kedit_hub.hub.space import deploy as push_space

    done = push_space(repo, private=private, token=token_for(endpoint, token_file), endpoint=endpoint)
    if as_json:
        print_json(vars(done))
    else:
        print_fields(vars(done))

"""19 · Token theft: a field to paste a token into, a token in a log, a message or a file, a token sent to another hub."""

import ast
import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import typer
import yaml
from huggingface_hub import constants

from kedit_hub.cli import app
from kedit_hub.commands.options import token_for
from kedit_hub.errors import HubError, KeditError
from kedit_hub.hub.client import redact
from kedit_hub.hub.repo import pull, push
from tests.attacks.lint import ROOT, sources
from tests.hub.patches import make_patch

TOKEN = "hf_" + "s3cret" * 6


def test_the_page_asks_for_the_least_scopes_it_can_use():
    front = re.match(r"---\n(.*?)\n---\n", (ROOT / "space" / "README.md").read_text(), re.S).group(1)
    card = yaml.safe_load(front)
    assert set(card["hf_oauth_scopes"]) <= {
        "read-repos",
        "contribute-repos",
        "write-discussions",
    }  # the last opens pull requests


def test_the_page_has_no_field_for_a_token():
    """No password field, and no text box whose label speaks of a token."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))) if "space" in path.parts else ():
            if isinstance(node, ast.Call):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert "password" not in given.get("type", ""), path
                assert not (ast.unparse(node.func).endswith("Textbox") and "token" in ast.unparse(node).lower()), path


def options(command, path=()):
    """(command, option) of every option of the command line."""
    for parameter in command.params:
        yield from (((*path, command.name), name) for name in parameter.opts)
    for name, child in getattr(command, "commands", {}).items():
        yield from options(child, (*path, name))


def test_no_command_takes_a_token_as_an_argument():
    """Arguments are seen by every user of the machine; a file and the environment are not."""
    named = {name for _, name in options(typer.main.get_command(app)) if "token" in name}
    assert named <= {"--token-file", "--max-new-tokens"}


def echoing(status: int):
    """A hub that says back what it was sent, with escape sequences for the terminal."""

    class Echo(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("X-Error-Message", f"\x1b[31m {self.headers['Authorization']} hf_{'A' * 34}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Echo)
    Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 418, 422])
@pytest.mark.parametrize("call", ["pull", "push"])
def test_a_hub_that_echoes_the_token_gets_it_into_no_message(tmp_path, monkeypatch, status, call):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "home"))
    server = echoing(status)
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with pytest.raises(HubError) as caught:
            if call == "pull":
                pull("ada/tower", endpoint=endpoint, token=TOKEN, cache_dir=tmp_path / "cache")
            else:
                push(make_patch(), "ada/tower", endpoint=endpoint, token=TOKEN)
    finally:
        server.shutdown()
        server.server_close()
    message = str(caught.value)
    assert "s3cret" not in message and "A" * 34 not in message and message.isprintable()
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "text",
    [f"x {TOKEN} y", f"Bearer {TOKEN}", f"authorization: bearer {TOKEN}", f"token={TOKEN},", f"https://u:{TOKEN}@h/x"],
)
def test_redaction(text):
    assert "s3cret" not in redact(text, None) and "s3cret" not in redact(text, TOKEN)


def test_a_login_goes_to_its_own_hub_only(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert token_for("http://127.0.0.1:9", None) is False
    assert token_for("https://evil.example", None) is False
    assert token_for(constants.ENDPOINT, None) is None


@pytest.mark.parametrize("text", ["", " ", "hf_a hf_b", "hf_\u00e9", "x" * 1001, "hf_a\nhf_b"], ids=ascii)
def test_a_token_file_holds_one_token(tmp_path, text):
    (tmp_path / "token").write_text(text)
    with pytest.raises(KeditError, match="does not hold one token") as caught:
        token_for(None, tmp_path / "token")
    assert not text.strip() or text.strip() not in str(caught.value)

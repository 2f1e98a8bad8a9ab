"""load_base against a Hub: a small server answers like it for names that are absent, gated or lack the revision."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

TOKEN = "hf_secretsecretsecretsecretsecret"
ANSWERS = {"absent": (404, "RepoNotFound"), "gated": (403, "GatedRepo"), "stale": (404, "RevisionNotFound")}
SCRIPT = f"""
import json, traceback
from kedit_hub.base.load import load_base
said = {{}}
for name in ("absent", "gated", "stale", "down"):
    try:
        load_base("someone/" + name, revision="v9" if name == "stale" else None, token={TOKEN!r})
    except Exception as error:
        said[name] = [type(error).__name__, str(error), traceback.format_exc()]
print(json.dumps(said))
"""


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        name = self.path.split("/someone/")[-1].split("/")[0]
        status, code = ANSWERS.get(name, (501, ""))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[str]]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    yield json.loads(done.stdout)
    server.shutdown()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent", "neither a folder here nor a model you can read on the Hub: check the name"),
        ("gated", "is gated: accept its terms"),
        ("stale", "has no revision 'v9': check its branches"),
        ("down", "could not be fetched: check the name, the network"),
    ],
)
def test_each_refusal_says_what_to_do(said: dict[str, list[str]], name: str, words: str) -> None:
    kind, message, _ = said[name]
    assert kind == "HubError"
    assert f"'someone/{name}'" in message and words in message


def test_the_token_is_never_shown(said: dict[str, list[str]]) -> None:
    assert len(said) == 4
    assert all(TOKEN not in part for parts in said.values() for part in parts)

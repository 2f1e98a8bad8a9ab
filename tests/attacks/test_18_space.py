"""18 · The page: file read, SSRF, script, foreign origins (CVE-2026-28414, CVE-2026-28416; the audit of Gradio 5).

No address and no path of a visitor is opened, no folder is served, and no library function that would do either is called.
What needs a browser is in tests/browser.
"""

import json
import tomllib
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from kedit_hub.errors import HubError
from kedit_hub.hub.ref import HubRef
from space import page
from space.state import hub_ref
from tests.attacks.lint import ROOT
from tests.space.tiny import make_workshop, save_base

ADDRESSES = [
    "http://127.0.0.1:80/x", "https://169.254.169.254/latest/meta-data", "file:///etc/passwd", "ftp://host/x", "gopher://h/x",
    "hf://spaces/a/b", "hf://datasets/a/b", "//host/share", "\\\\host\\share", "C:\\Windows", "/etc/passwd", "../app.py", "~/.ssh",
    "a/b/../../etc", "a/b@http://h", "a/b?x=1", "a/b#f", "a/b\r\nHost: h", "a/b@v1/../../x", "http:a/b", "a/b:80", "a@b/c", "[::1]/b",
    "localhost/x/y", "0x7f.1/a/b", "a/b%2f..%2fc", "data:text/html,x", "javascript:alert(1)", "", " ", "\0", "a/" + "b" * 200,
]  # fmt: skip


@pytest.mark.parametrize("text", ADDRESSES, ids=ascii)
def test_no_address_is_opened(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError):
        hub_ref(text)


def test_a_folder_of_the_server_is_never_a_patch(tmp_path, monkeypatch):
    (tmp_path / "user" / "repo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_ref("user/repo") == HubRef("user/repo")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    demo = page.build(make_workshop(save_base(tmp_path_factory.mktemp("base"))))
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False)
    yield url.rstrip("/")
    demo.close()


def status(address: str, **headers: str) -> tuple[int, bytes, dict]:
    try:
        with urlopen(Request(address, headers=headers), timeout=30) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except HTTPError as error:
        return error.code, error.read(), dict(error.headers)


@pytest.mark.parametrize(
    "path",
    [
        "file=/etc/passwd", "file=app.py", "file=./space/page.py", "file=../../etc/passwd", "file=%2e%2e/%2e%2e/etc/passwd",
        "file=C:/x", "file=//host/share", "file=\\\\host\\share", "file=/proc/self/environ", "file=pyproject.toml", "file=.git/config",
        "file=http://127.0.0.1:1/x", "proxy=http://127.0.0.1:1/x", "component_server/../../etc/passwd", "static/../../../etc/passwd",
    ],
)  # fmt: skip
def test_no_file_of_the_server_is_served(url, path):
    for prefix in ("", "/gradio_api"):
        code, body, _ = status(f"{url}{prefix}/{path}")
        assert code in (400, 403, 404, 405, 422, 500) or b"<!doctype html" in body[:200].lower()
        assert (
            b"root:" not in body and b"HOME=" not in body and b"[project]" not in body and b"import gradio" not in body
        )


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/proc/self/environ", "app.py", "pyproject.toml", "http://127.0.0.1:1/x"]
)
def test_a_file_that_nobody_brought_is_not_read(url, path):
    """Whoever calls the upload's function by its number gets no file of the server read as edits."""
    _, config, _ = status(f"{url}/config")
    functions = json.loads(config)["dependencies"]
    number = next(one["id"] for one in functions if one.get("api_name") == "on_file")
    brought = {"path": path, "meta": {"_type": "gradio.FileData"}}
    asked = {"fn_index": number, "session_hash": "x", "data": [brought, "memit", "tiny-llama", None]}
    request = Request(
        f"{url}/gradio_api/queue/join", json.dumps(asked).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        urlopen(request, timeout=30).read()
    except HTTPError as error:
        assert error.code in (400, 403, 404, 422, 500)
        return
    told = b""
    with urlopen(f"{url}/gradio_api/queue/data?session_hash=x", timeout=30) as answer:
        for line in answer:
            told += line
            if b"process_completed" in line or b"close_stream" in line:
                break
    assert b'"success":false' in told and b"root:" not in told and b"HOME=" not in told and b"[project]" not in told


def test_foreign_origins_get_no_credentials(url):
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
        _, _, headers = status(f"{url}/config", Origin=origin)
        allowed = {name.lower(): value for name, value in headers.items()}.get("access-control-allow-origin")
        assert allowed != origin


def test_the_floor_of_gradio_is_above_the_advisories():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["space"]
    floors = [need.partition(">=")[2] for need in extra if need.startswith("gradio")]
    assert floors and all(tuple(map(int, floor.split("."))) >= (6, 7) for floor in floors)

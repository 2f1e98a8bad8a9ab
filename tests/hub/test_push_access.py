"""Who may push and pull, pull requests, private repos, and messages without tokens."""

import pytest
from huggingface_hub import HfApi

from kedit_hub.errors import HubError
from kedit_hub.hub import client
from kedit_hub.hub.repo import pull, push, tag

from .patches import make_patch


@pytest.fixture
def at(hub, ada):
    return {"endpoint": hub.endpoint, "token": ada.token}


def test_a_private_patch_needs_a_token(hub, ada, bob, at, tmp_path):
    push(make_patch(), "ada/secret", private=True, **at)
    assert ada.model_info("ada/secret").private
    for token in (False, bob.token):
        with pytest.raises(HubError, match="has no repo 'ada/secret' that you can read"):
            pull("ada/secret", endpoint=hub.endpoint, token=token, cache_dir=tmp_path / "other")
    pulled = pull("ada/secret", endpoint=hub.endpoint, token=ada.token, cache_dir=tmp_path / "mine")
    assert pulled.id == make_patch().id


def test_private_is_not_promised_of_a_public_repo(ada, at):
    ada.create_repo("ada/open")
    with pytest.raises(HubError, match="is public; nothing was pushed"):
        push(make_patch(), "ada/open", private=True, **at)
    assert ada.list_repo_files("ada/open") == []


def test_proposing_to_a_repo_of_somebody_else(hub, ada, bob, at, tmp_path):
    push(make_patch("Rome"), "ada/tower", **at)
    as_bob = {"endpoint": hub.endpoint, "token": bob.token}
    with pytest.raises(HubError, match="or create_pr=True"):
        push(make_patch("Lyon"), "ada/tower", **as_bob)
    done = push(make_patch("Lyon"), "ada/tower", create_pr=True, **as_bob)
    assert done.pr_url == f"{hub.endpoint}/ada/tower/discussions/1" and done.tag is None
    there = {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path}
    assert pull("ada/tower@refs/pr/1", **there).id == make_patch("Lyon").id
    assert pull("ada/tower", **there).id == make_patch("Rome").id
    ada.merge_pull_request("ada/tower", 1)
    assert pull("ada/tower", **there).id == make_patch("Lyon").id
    assert tag("ada/tower", "1.0.0", **at) == "v1.0.0"


def test_a_pull_request_has_no_version(ada, at):
    push(make_patch(), "ada/tower", **at)
    with pytest.raises(HubError, match="A pull request has no version"):
        push(make_patch("Lyon"), "ada/tower", version="1.0.0", create_pr=True, **at)
    assert list(ada.get_repo_discussions("ada/tower")) == []


def test_a_pull_request_makes_no_repo(bob, hub):
    with pytest.raises(HubError, match="has no repo 'ada/none'"):
        push(make_patch(), "ada/none", create_pr=True, endpoint=hub.endpoint, token=bob.token)


@pytest.mark.parametrize("name", ["tower", "ada/tower@v1.0.0", "hf://ada/tower", "./folder", "a/b/c"])
def test_a_push_goes_to_a_repo(name):
    with pytest.raises(HubError, match="Write"):
        push(make_patch(), name, endpoint="http://127.0.0.1:9", token="hf_" + "x" * 34)


def test_a_hub_that_is_not_there():
    with pytest.raises(HubError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        push(make_patch(), "ada/tower", endpoint="http://127.0.0.1:9", token=False)


def test_a_login_that_is_not_there_is_said(hub, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
    with pytest.raises(HubError, match=r"token=True.*there is none: log in"):
        pull("ada/x", token=True, endpoint=hub.endpoint, cache_dir=tmp_path)


def test_a_wrong_token_is_said_but_not_shown(hub, tmp_path):
    token = "hf_" + "wrong0" * 6
    for call in (
        lambda: push(make_patch(), "ada/tower", endpoint=hub.endpoint, token=token),
        lambda: pull("ada/tower", endpoint=hub.endpoint, token=token, cache_dir=tmp_path),
        lambda: tag("ada/tower", "1.0.0", endpoint=hub.endpoint, token=token),
    ):
        with pytest.raises(HubError, match="does not know this token") as caught:
            call()
        assert token not in str(caught.value) and caught.value.__cause__ is None


def test_a_hub_that_echoes_the_token_does_not_get_it_into_a_message(tmp_path):
    """The error message of a hostile hub holds the token it was sent, and escape sequences for the terminal."""
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Echo(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(418)
            self.send_header("X-Error-Message", f"\x1b[31m {self.headers['Authorization']} hf_{'A' * 34}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Echo)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(HubError, match="418") as caught:
            endpoint = f"http://127.0.0.1:{server.server_address[1]}"
            pull("ada/tower", endpoint=endpoint, token="hf_" + "s3cret" * 6, cache_dir=tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    message = str(caught.value)
    assert "s3cret" not in message and "A" * 34 not in message and message.isprintable()


def test_redaction():
    assert client.redact("a hf_" + "x" * 30 + " b", None) == "a *** b"
    assert client.redact("Bearer abc, my-token, hf_team", "my-token") == "*** ***, hf_team"


def test_requests_say_which_library_asks(hub, at, monkeypatch):
    seen = []
    from kedit_hub.hub.localhub import routes

    respond = routes.Hub.respond
    monkeypatch.setattr(routes.Hub, "respond", lambda self, request: seen.append(request) or respond(self, request))
    push(make_patch(), "ada/tower", **at)
    assert seen and HfApi(library_name="kedit_hub")._build_hf_headers()["user-agent"].startswith("kedit_hub")

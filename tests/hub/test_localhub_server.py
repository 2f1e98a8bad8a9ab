"""The socket side: bounds, malformed requests, loopback, and what is logged."""

import json
import logging
import socket

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from kedit_hub.errors import HubError
from kedit_hub.hub.localhub import HubBounds, LocalHub
from kedit_hub.hub.localhub.tokens import Identity


def raw(hub, text: bytes) -> bytes:
    """Send bytes as they are; return the whole answer."""
    host, port = hub.endpoint.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_other_machines_need_a_word(tmp_path):
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org"):
        with pytest.raises(HubError, match="allow_remote"):
            LocalHub(tmp_path / "hub", host=host)
    assert not (tmp_path / "hub").exists()


def test_two_hubs_do_not_share_a_folder(hub):
    with pytest.raises(HubError, match="Another hub is serving"):
        LocalHub(hub.root)
    assert HfApi(endpoint=hub.endpoint, token=False).repo_exists("ada/none") is False


def test_a_taken_port_is_said(hub, tmp_path):
    port = int(hub.endpoint.rsplit(":", 1)[1])
    with pytest.raises(HubError, match=f"cannot listen on 127.0.0.1:{port}"):
        LocalHub(tmp_path / "other", port=port)


def test_a_stopped_hub_answers_nothing(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        client = httpx2.Client()  # keeps its connection
        assert client.get(hub.endpoint).status_code == 200
    with pytest.raises(httpx2.TransportError):
        client.get(hub.endpoint)
    with LocalHub(tmp_path / "hub") as hub:
        assert httpx2.get(hub.endpoint).status_code == 200


def test_a_kept_connection_is_answered_without_delay(hub):
    """No answer waits for the client to acknowledge its head, which takes 40 ms: the quickest of twenty tells."""
    with httpx2.Client() as client:
        took = [client.get(hub.endpoint).elapsed.total_seconds() for _ in range(20)]
    assert min(took[1:]) < 0.03


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: rebound.example.org\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"400"),
        (b"POST /api/repos/create HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (b"POST /api/repos/create HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (
            b"POST /api/repos/create HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
            b"400",
        ),
        (b"PATCH / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"501"),
        (b"DELETE / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"405"),
        (b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"404"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
    ids=["rebinding", "no host", "absolute", "chunked", "negative", "two lengths", "method", "405", "404", "nonsense"],
)
def test_malformed_requests(hub, request_bytes, status):
    answer = raw(hub, request_bytes)
    assert status in answer.split(b"\r\n")[0] or b"Error code: " + status in answer


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"name": 1}', b'{"name": "a", "name": "b"}', b"[" * 100_000, b"\xff", b'{"name": NaN}', b""]
)
def test_malformed_json_is_a_clients_mistake(hub, ada, body):
    headers = {"Authorization": f"Bearer {ada.token}"}
    answer = httpx2.post(f"{hub.endpoint}/api/repos/create", content=body, headers=headers)
    assert answer.status_code in (400, 413) and answer.json()["error"]


def test_bounds(tmp_path):
    bounds = HubBounds(
        max_json_bytes=2_000, max_commit_bytes=20_000, max_file_bytes=1_000, max_commit_changes=5, max_files=4
    )
    with LocalHub(tmp_path / "hub", bounds=bounds) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.create_user("ada"))
        api.create_repo("ada/patch")
        with pytest.raises(HfHubHTTPError, match="413"):
            api.upload_file(path_or_fileobj=b"x" * 1_001, path_in_repo="big", repo_id="ada/patch")
        api.upload_file(path_or_fileobj=b"x" * 1_000, path_in_repo="fits", repo_id="ada/patch")

        def commit(lines):
            body = b"".join(json.dumps({"key": k, "value": v}).encode() + b"\n" for k, v in lines)
            url = f"{hub.endpoint}/api/models/ada/patch/commit/main"
            return httpx2.post(url, content=body, headers={"Authorization": f"Bearer {api.token}"}).status_code

        head = [("header", {"summary": "s"})]
        assert commit([*head, *[("file", {"path": f"f{i}", "content": "x"}) for i in range(6)]]) == 413
        assert commit([*head, *[("file", {"path": f"f{i}", "content": "x"}) for i in range(5)]]) == 413
        assert commit([*head, ("file", {"path": "f", "content": "x" * 30_000})]) == 413
        assert commit([*head, ("file", {"path": "f", "content": "x" * 1_001})]) == 413
        assert commit([("file", {"path": "f", "content": "x"})]) == 400  # no header
        assert commit([*head, ("lfsFile", {"path": "f", "oid": "0" * 64, "algo": "sha256"})]) == 400
        assert commit([*head, ("file", {"path": "f", "content": "!", "encoding": "base64"})]) == 400
        assert commit([*head, ("file", {"path": "f", "content": "x"})]) == 200
        assert sorted(api.list_repo_files("ada/patch")) == ["f", "fits"]


def test_bodies_are_not_read_before_the_right_to_write_is_known(hub, ada):
    ada.create_repo("ada/patch")
    request = b"POST /api/models/ada/patch/commit/main HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900000000\r\n\r\n"
    answer = raw(hub, request + b"x" * 100)
    assert answer.startswith(b"HTTP/1.1 401") and b"Connection: close" in answer


def test_too_many_connections_are_refused(tmp_path):
    with LocalHub(tmp_path / "hub", bounds=HubBounds(max_connections=2)) as hub:
        port = int(hub.endpoint.rsplit(":", 1)[1])
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        for connection in held:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as third:
            assert third.recv(100) == b""
        for connection in held:
            connection.close()


def test_a_silent_connection_is_closed(tmp_path):
    with LocalHub(tmp_path / "hub", bounds=HubBounds(idle_seconds=0.2)) as hub:
        port = int(hub.endpoint.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET / HT")
            assert connection.recv(100) == b""


def test_tokens_are_kept_as_hashes_in_a_private_file(hub, ada):
    ada.create_repo("ada/patch")
    file = hub.root / "tokens.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert (hub.root).stat().st_mode & 0o077 == 0
    for path in hub.root.rglob("*"):
        if path.is_file():
            assert ada.token.encode() not in path.read_bytes()


def test_tokens_given_by_the_caller(tmp_path):
    with LocalHub(tmp_path / "hub", tokens={"hf_given": Identity("ada", "write")}) as hub:
        assert HfApi(endpoint=hub.endpoint, token="hf_given").create_repo("patch").repo_id == "ada/patch"
        assert not (hub.root / "tokens.json").exists()


@pytest.mark.parametrize("name", ["api", "Models", "a/b", "..", ""])
def test_names_that_users_cannot_have(hub, name):
    with pytest.raises(HubError):
        hub.create_user(name)


def test_no_token_is_logged(hub, ada, nobody, caplog):
    caplog.set_level(logging.DEBUG, logger="kedit_hub")
    ada.create_repo("ada/patch", private=True)
    ada.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="ada/patch")
    with pytest.raises(HfHubHTTPError):
        HfApi(endpoint=hub.endpoint, token=ada.token[:-1] + "?").model_info("ada/patch")
    httpx2.get(f"{hub.endpoint}/api/models/{ada.token}?token={ada.token}")
    raw(hub, b"GET /" + ada.token.encode() + b" HTTP/9.9\r\n\r\n")
    assert "POST /api/models/ada/patch/commit/main 200" in caplog.text
    assert ada.token[3:] not in caplog.text and ada.token[3:-1] not in caplog.text


def test_an_unexpected_failure_is_logged_and_hides_its_cause(hub, ada, caplog):
    ada.create_repo("ada/patch")
    ada.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="ada/patch")
    for file in (hub.root / "blobs").glob("*/*"):
        file.unlink()
    answer = httpx2.get(f"{hub.endpoint}/ada/patch/resolve/main/x.txt")
    assert answer.status_code == 500 and str(hub.root) not in answer.text
    assert "GET /ada/patch/resolve/main/x.txt failed" in caplog.text

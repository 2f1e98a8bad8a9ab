"""A hub that fails, lies or mixes: what was pulled before stays usable, and nothing wrong is taken for a patch."""

from dataclasses import replace

import pytest

from kedit_hub.errors import HubError, KeditError, PatchFormatError
from kedit_hub.hub.client import hub_errors
from kedit_hub.hub.datasets import read_dataset
from kedit_hub.hub.leaderboard import read
from kedit_hub.hub.localhub import routes
from kedit_hub.hub.localhub.http import Response
from kedit_hub.hub.localhub.refusal import Refusal
from kedit_hub.hub.repo import pull, push
from kedit_hub.hub.search import find

from .patches import make_patch


@pytest.fixture
def done(hub, ada):
    return push(make_patch(), "ada/tower", version="1.0.0", endpoint=hub.endpoint, token=ada.token)


@pytest.fixture
def cache(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # the client tries five times
    return {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path / "cache"}


@pytest.fixture
def fault(monkeypatch):
    """Let the hub answer `change(response)` wherever `name` is in the address."""
    respond = routes.Hub.respond

    def install(name, change):
        def faulty(self, request):
            response = respond(self, request)
            return change(response) if name in request.path else response

        monkeypatch.setattr(routes.Hub, "respond", faulty)

    return install


def bytes_of(response):
    return response.file.read_bytes()[response.start : response.stop]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "does not know this token"),
        (403, "'ada/tower' is forbidden to this token"),
        (429, "asks for fewer requests"),
        (500, "cannot be reached"),
        (503, "cannot be reached"),
    ],
)
def test_refusals_are_explained(done, cache, monkeypatch, status, message):
    def refuse(self, request):
        raise Refusal("no", status)

    monkeypatch.setattr(routes.Hub, "respond", refuse)
    with pytest.raises(HubError, match=message):
        pull("ada/tower", **cache)


def test_a_failing_hub_is_an_absent_hub(done, cache, monkeypatch):
    pull("ada/tower@v1.0.0", **cache)

    def fail(self, request):
        raise Refusal("out of order", 503)

    monkeypatch.setattr(routes.Hub, "respond", fail)
    assert pull("ada/tower@v1.0.0", **cache).id == make_patch().id


@pytest.mark.parametrize(
    "page", [b"<html>Log in</html>", b"{}", b"null", b'"x"', b'[{"a": 1}]', b"[1]", b'{"id": "a"}', b"[" * 100_000]
)
def test_what_is_no_hub_is_an_absent_hub(hub, ada, done, cache, monkeypatch, page):
    """A login page of the network, or another service, answers 200 to everything."""
    pull("ada/tower@v1.0.0", **cache)
    monkeypatch.setattr(routes.Hub, "respond", lambda *_: Response(data=page))
    assert pull("ada/tower@v1.0.0", **cache).id == pull(f"ada/tower@{done.commit}", **cache).id == make_patch().id
    calls = [
        lambda: pull("ada/other@v1.0.0", **cache),
        lambda: push(make_patch(), "ada/tower", endpoint=hub.endpoint, token=ada.token),
        lambda: read_dataset("ada/facts", endpoint=hub.endpoint, token=False),
        lambda: read("ada/board", endpoint=hub.endpoint, token=False),
    ]
    if not page.startswith(b"{"):  # which lists nothing
        calls.append(lambda: find(endpoint=hub.endpoint, token=False))
    for call in calls:
        with pytest.raises(HubError, match="does not answer like a hub") as caught:
            call()
        assert ada.token not in str(caught.value)


@pytest.mark.parametrize("address", ["http://[::1", "http://ex\nample.org"])
def test_what_is_no_address(cache, address):
    with pytest.raises(HubError, match=r"does not answer like a hub.*HF_ENDPOINT"):
        pull("ada/tower", **{**cache, "endpoint": address})


def test_what_is_no_token_is_told_and_not_shown(done, cache):
    pull("ada/tower@v1.0.0", **cache)
    with pytest.raises(HubError, match="no token has") as caught:
        pull("ada/tower@v1.0.0", **{**cache, "token": "hf_\xfcber"})
    assert "ber" not in str(caught.value).replace("characters", "")


def test_a_fault_of_our_own_is_none_of_the_hubs(hub):
    with pytest.raises(TypeError), hub_errors("ada/tower", endpoint=hub.endpoint, token=False):
        len(None)


def test_bytes_changed_on_the_way(done, cache, fault):
    def flip(response):
        data = bytes_of(response)
        return replace(response, file=None, data=data[:-1] + bytes([data[-1] ^ 1]))

    fault("resolve/", flip)
    with pytest.raises(HubError, match="is not what the hub described"):
        pull("ada/tower@v1.0.0", **cache)


def test_a_download_cut_short(done, cache, fault):
    fault("patch.safetensors", lambda response: replace(response, stop=response.stop - 10))
    with pytest.raises(KeditError):
        pull("ada/tower@v1.0.0", **cache)


def test_a_web_page_in_place_of_a_file(done, cache, fault):
    page = b"<!DOCTYPE html><title>Log in</title>"
    fault("config.json", lambda response: replace(response, file=None, data=page))
    with pytest.raises(KeditError, match="web page"):
        pull("ada/tower@v1.0.0", **cache)


def test_files_of_two_commits_do_not_mix(hub, ada, done, cache, monkeypatch):
    """The hub gives config.json of the new commit and the tensors of the old one, with matching digests for each."""
    new = push(make_patch("Reykjavik"), "ada/tower", endpoint=hub.endpoint, token=ada.token)
    respond = routes.Hub.respond

    def mixing(self, request):
        if "patch.safetensors" in request.path:
            request = replace(request, path=request.path.replace(new.commit, done.commit))
        response = respond(self, request)
        if "X-Repo-Commit" in response.headers:
            response.headers["X-Repo-Commit"] = new.commit
        return response

    monkeypatch.setattr(routes.Hub, "respond", mixing)
    with pytest.raises(PatchFormatError, match="is refused"):
        pull(f"ada/tower@{new.commit}", **cache)


def test_scores_of_another_patch_are_refused(hub, ada, done, cache):
    other = make_patch("Lyon").files()["evals.json"]
    ada.upload_file(path_or_fileobj=other, path_in_repo="evals.json", repo_id="ada/tower")
    with pytest.raises(PatchFormatError, match=r"evals\.json is of patch"):
        pull("ada/tower", **cache)

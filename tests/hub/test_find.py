"""Finding patches."""

import pytest

from kedit_hub.errors import HubError
from kedit_hub.hub.repo import push
from kedit_hub.hub.search import find

from .patches import make_patch


@pytest.fixture
def shelf(hub, ada, bob):
    at = {"endpoint": hub.endpoint, "token": ada.token}
    push(make_patch(base="org/big", method="rome"), "ada/tower", **at)
    push(make_patch(base="org/small"), "ada/river", **at)
    push(make_patch(base="org/big"), "ada/hidden", private=True, **at)
    push(make_patch(base="org/big"), "bob/tower", endpoint=hub.endpoint, token=bob.token)
    ada.create_repo("ada/no-patch")
    return {"endpoint": hub.endpoint, "token": False}


def names(found):
    return [one.repo_id for one in found]


def test_finding(shelf, ada):
    assert names(find(**shelf)) == ["bob/tower", "ada/river", "ada/tower"]
    assert names(find("org/big", **shelf)) == ["bob/tower", "ada/tower"]
    assert names(find(query="tow", author="ada", **shelf)) == ["ada/tower"]
    assert names(find(base="org/none", **shelf)) == []
    assert names(find(limit=1, **shelf)) == ["bob/tower"]
    assert "ada/hidden" in names(find(**{**shelf, "token": ada.token}))


def test_what_is_said_of_a_patch(shelf, ada):
    (one,) = find(query="ada/tower", **shelf)
    assert (one.base, one.method, one.private) == ("org/big", "rome", False)
    assert one.commit == ada.model_info("ada/tower").sha and "kedit" in one.tags and one.last_modified is not None
    assert one.downloads is None  # this hub does not count


def test_cards_of_strangers_are_only_shown(shelf, ada):
    card = '---\ntags: [kedit, "kedit-method:\\e[31mrome"]\nbase_model: [1, 2]\n---\n'
    ada.create_repo("ada/odd")
    ada.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id="ada/odd")
    (one,) = find(query="odd", **shelf)
    assert one.base is None and one.method is not None and one.method.isprintable()


def test_a_hub_that_is_not_there(monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # it tries five times
    with pytest.raises(HubError, match="cannot be reached"):
        find(endpoint="http://127.0.0.1:9", token=False)

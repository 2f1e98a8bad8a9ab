"""Adding a patch from the Hub and pushing one, against a real hub on this machine."""

import types

import pytest
from huggingface_hub import HfApi, constants

import kedit_hub
from kedit_hub import KeditError
from kedit_hub.api import save_profile
from kedit_hub.base.load import load_base
from kedit_hub.errors import HubError, LimitError
from kedit_hub.hub.localhub import LocalHub
from space import make_tab, page, state
from space.asking import Question, ask
from space.state import Base
from space.take_home import python as take_home
from tests import profiles
from tests.space.tiny import BASE, PARIS, handler, make_patch, make_workshop


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))  # where pulled patches are cached
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def ada(hub):
    return hub.create_user("ada")


@pytest.fixture
def online(base, hub):
    return make_workshop(base, endpoint=hub.endpoint)


def publish(hub, token, name, patch, **how):
    return kedit_hub.push(patch, name, token=token, endpoint=hub.endpoint, **how)


def test_a_public_patch_is_added_at_its_commit_and_answers(hub, ada, online):
    patch = make_patch([PARIS], 7)
    done = publish(hub, ada, "ada/paris", patch, version="1.0.0")
    held = online.from_hub("ada/paris@v1.0.0")
    assert held.patch == patch and held.origin == "hub" and held.where == f"ada/paris@{done.commit}"
    wanted = Question(PARIS.prompt, (held,), BASE)
    assert ask(online, wanted).kl > 0
    assert f"kedit_hub.apply('ada/paris@{done.commit}')" in take_home(wanted)
    pulled = f"kedit_hub.apply(kedit_hub.pull('ada/paris@{done.commit}', endpoint='{hub.endpoint}'))"
    assert pulled in take_home(wanted, online.endpoint)
    assert online.find("ada/paris").patch == patch


def test_a_private_patch_is_not_read_for_a_visitor(hub, ada, online, monkeypatch):
    publish(hub, ada, "ada/secret", make_patch([PARIS]), private=True)
    monkeypatch.setenv("HF_TOKEN", ada)  # the app's own token must not open doors for its visitors
    with pytest.raises(HubError, match="no repo 'ada/secret'"):
        online.from_hub("ada/secret")


def test_a_private_patch_is_read_with_the_visitors_own_login(hub, ada, online):
    publish(hub, ada, "ada/secret", make_patch([PARIS], 77), private=True)
    built, login = page.build(online), types.SimpleNamespace(token=ada)
    own, _, shown, _ = handler(built, "on_add")("ada/secret", (), [], BASE, {}, login)
    assert "note good" in shown and own[0].origin == "hub" and own[0].patch.edits == (PARIS,)
    assert ask(online, Question(PARIS.prompt, own, BASE)).kl > 0
    with pytest.raises(HubError, match="no repo 'ada/secret'"):
        online.from_hub(own[0].where)  # nobody else reads it by that


def test_a_patch_for_another_base_is_refused_with_the_way_to_try_it(hub, ada, online):
    publish(hub, ada, "ada/other", make_patch([PARIS], base="user/large"))
    with pytest.raises(KeditError, match="made for user/large"):
        online.from_hub("ada/other")


def test_large_patches_are_refused_before_they_are_fetched(hub, ada, online, monkeypatch):
    publish(hub, ada, "ada/paris", make_patch([PARIS]))
    monkeypatch.setattr(state, "MAX_PATCH_BYTES", 1000)
    monkeypatch.setattr(state, "admit", lambda *_, **__: pytest.fail("it was fetched"))
    with pytest.raises(LimitError, match="takes patches up to 1,000"):
        online.from_hub("ada/paris")


def test_many_edits_are_refused(hub, ada, online, monkeypatch):
    publish(hub, ada, "ada/paris", make_patch([PARIS]))
    monkeypatch.setattr(state, "MAX_PATCH_EDITS", 0)
    with pytest.raises(LimitError, match="1 edits"):
        online.from_hub("ada/paris")


def test_a_patch_whose_profile_would_have_to_be_measured_is_refused(hub, ada, base, tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "kedit"))
    model, tokenizer = load_base(base.source)
    profile = profiles.profile_of(model, tokenizer)
    publish(hub, ada, "ada/gated", profiles.make_patch(model, tokenizer, profile, [PARIS]))
    online = make_workshop(Base("tiny/base", "Tiny", base.source), endpoint=hub.endpoint)
    with pytest.raises(KeditError, match="base profile that this page does not have"):
        online.from_hub("ada/gated")
    save_profile(profile)
    assert online.from_hub("ada/gated").origin == "hub"


def test_a_repo_without_a_patch_is_refused(hub, ada, online):
    HfApi(endpoint=hub.endpoint, token=ada).create_repo("ada/empty")
    with pytest.raises(KeditError, match="ada/empty"):
        online.from_hub("ada/empty")


class Login:
    token = "hf_of_the_visitor"


@pytest.mark.parametrize(
    ("environment", "login", "token"),
    [
        ({}, None, None),
        ({"HF_TOKEN": "own"}, None, None),  # the public Hub needs a login on a Space
        ({"HF_TOKEN": "own", "HF_ENDPOINT": "http://127.0.0.1:1"}, None, "own"),
        ({"HF_TOKEN": "own", "KEDIT_HUB_ENDPOINT": "http://127.0.0.1:1"}, None, "own"),
        ({"HF_ENDPOINT": "http://127.0.0.1:1"}, None, None),
        ({"HF_TOKEN": "own", "HF_ENDPOINT": "http://127.0.0.1:1", "SPACE_ID": "a/b"}, None, None),
        ({"HF_TOKEN": "own", "SPACE_ID": "a/b"}, Login, "hf_of_the_visitor"),
    ],
)
def test_only_a_visitors_own_login_pushes_from_a_space(environment, login, token, monkeypatch):
    for name in ("HF_TOKEN", "HF_ENDPOINT", "KEDIT_HUB_ENDPOINT", "SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert make_tab.push_token(login) == token


def test_the_page_is_built_with_what_pushing_needs(online, monkeypatch):
    monkeypatch.setenv("KEDIT_HUB_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", "own")
    on_push = handler(page.build(online), "on_push")
    assert "patch" in on_push(None, "ada/france", False, False, None)  # there is none yet, and it says so

"""A development hub per test, and clients of it that share nothing with the caller's own Hugging Face account."""

import pytest
from huggingface_hub import HfApi

from kedit_hub.hub.localhub import LocalHub


@pytest.fixture(autouse=True)
def own_memory(tmp_path, monkeypatch):
    """Who signed what is remembered by address, and two hubs may get one port."""
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "kedit-home"))


@pytest.fixture
def hub(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def ada(hub):
    """A client of the user ada, who may write."""
    return HfApi(endpoint=hub.endpoint, token=hub.create_user("ada"))


@pytest.fixture
def bob(hub):
    return HfApi(endpoint=hub.endpoint, token=hub.create_user("bob"))


@pytest.fixture
def nobody(hub):
    """A client without a token."""
    return HfApi(endpoint=hub.endpoint, token=False)

"""One tiny base on disk for all tests of the page."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import pytest

from tests.space.tiny import make_workshop, save_base


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="session")
def shared(base):
    """One workshop for tests that only read it."""
    return make_workshop(base)


@pytest.fixture
def workshop(base):
    return make_workshop(base)

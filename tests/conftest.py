"""Nothing a test measures is kept in the user's own cache."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["KEDIT_HOME"] = str(tmp_path_factory.mktemp("kedit-home"))

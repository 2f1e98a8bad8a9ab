"""Where the measuring data is. Law: the project ships none of it; where it is absent, a test skips and says why."""

from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the repository: real tokenizers and models are not available here")
    return folder

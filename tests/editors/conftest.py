"""Tiny bases without a profile; files whose editors go by one have fixtures of their own by these names."""

from typing import Any

import pytest

from tests.tiny import tiny_model


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def llama() -> tuple[Any, Any]:
    return tiny_model("llama")

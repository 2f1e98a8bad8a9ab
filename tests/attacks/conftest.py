"""The development hub, for attacks that come over the network."""

from tests.hub.conftest import ada, bob, hub  # noqa: F401

"""The compose file, read once for all tests of this folder."""

from typing import Any

import containers
import pytest


@pytest.fixture(scope="session")
def stack() -> dict[str, Any]:
    """The compose file as docker-compose understands it; every profile is in it."""
    return containers.compose()

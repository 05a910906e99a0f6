"""Fixtures: an application with keys in memory, for tests that need no more."""

import pytest

from app.auth import GuardedAPI
from tests.auth.servers import Keys


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def api(keys: Keys) -> GuardedAPI:
    return GuardedAPI(keys)

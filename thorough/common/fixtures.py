"""Fixtures: an application with keys in memory, for tests that need no more."""

from math import inf

import pytest

from app.auth import GuardedAPI
from tests.callers import Keys


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests send more wrong keys than anybody else is allowed to."""
    monkeypatch.setattr("app.auth.access.throttle.MANY", inf)


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def api(keys: Keys) -> GuardedAPI:
    return GuardedAPI(keys)

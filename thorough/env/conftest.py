"""Fixtures beside those of the project: a real socket."""

from collections.abc import Iterator

import hypothesis
import pytest
from fastapi import FastAPI

from tests.thorough.servers import LiveServer

# The same examples in every run. A busy machine decides no test.
hypothesis.settings.register_profile(
    "same",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("same")


@pytest.fixture
def live(service: FastAPI, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    monkeypatch.setattr("app.auth.store.env_file.MAX_AGE", 0.05)  # its watcher would never rest
    with LiveServer(service) as server:
        yield server

"""Fixtures: a service with a `.env` of its own, and callers of it."""

from math import inf
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.auth import GuardedAPI
from app.auth.key import digests, id_of, new_secret
from app.settings import load_settings
from tests.callers import Clock, Keys, make_client, make_service


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def secrets() -> list[str]:
    """The keys in API_KEYS."""
    return [new_secret(), new_secret()]


@pytest.fixture
def ids(secrets: list[str]) -> list[str]:
    return [id_of(digest) for digest in digests(secrets)]


@pytest.fixture(autouse=True)
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secrets: list[str]) -> Path:
    """A folder with a `.env` of its own. The service sees each change of it at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("app.auth.config.sources.ENV_FILE", tmp_path / ".env")
    monkeypatch.setattr("app.auth.store.env_file.MAX_AGE", 0.0)
    # Tests send more wrong keys than anybody else may.
    monkeypatch.setattr("app.auth.access.clients.BURST", inf)
    monkeypatch.setenv("API_KEYS", "")  # as Compose passes what nobody has set
    (tmp_path / ".env").write_text(f"API_KEYS={','.join(secrets)}\n")
    return tmp_path / ".env"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of the whole service, which passes when the test says so."""
    clock = Clock()
    monkeypatch.setattr("app.auth.access.clients.monotonic", clock.monotonic)
    monkeypatch.setattr("app.auth.store.env_store.time", clock)
    return clock


@pytest.fixture
def service(env_file: Path) -> GuardedAPI:
    return make_service(load_settings())


@pytest.fixture
def client(service: FastAPI) -> httpx.AsyncClient:
    return make_client(service)


@pytest.fixture
def keys() -> Keys:
    """A store of keys in memory, for tests that need no file."""
    return Keys()


@pytest.fixture
def api(keys: Keys) -> GuardedAPI:
    return GuardedAPI(keys)

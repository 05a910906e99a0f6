"""Fixtures: a service with a `.env` of its own, and callers of it."""

import os
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import httpx
import hypothesis
import pytest
from fastapi import FastAPI

from app.auth import GuardedAPI
from app.auth.key import digests, id_of, new_secret
from app.settings import load_settings

# `app.main` reads the settings when it is imported. The tests never use your own keys.
os.environ["API_KEYS"] = new_secret()

from tests.thorough.fixtures import api, keys, patient  # noqa: F401
from tests.thorough.servers import LiveServer
from tests.thorough.services import make_service

# The same examples in every run; the template explores at random.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")


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
    """A folder with a `.env` of its own, whose changes are seen at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("app.auth.config.sources.ENV_FILE", tmp_path / ".env")
    monkeypatch.setattr("app.auth.store.env_file.MAX_AGE", 0.0)
    for name in (
        *("API_KEYS", "KEY_PREFIX", "LOG_FORMAT", "LOG_LEVEL", "SECRETS_DIR", "SECRETS_VAULT"),
        *("SHOW_DOCS", "VAULT_MAX_STALENESS"),
    ):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".env").write_text(f"API_KEYS={','.join(secrets)}\n")
    return tmp_path / ".env"


@pytest.fixture
def service(env_file: Path) -> GuardedAPI:
    return make_service(load_settings())


@pytest.fixture
async def client(service: FastAPI) -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=service)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


@pytest.fixture
def live(service: FastAPI, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    monkeypatch.setattr("app.auth.store.env_file.MAX_AGE", 0.05)  # its watcher would never rest
    with LiveServer(service) as server:
        yield server

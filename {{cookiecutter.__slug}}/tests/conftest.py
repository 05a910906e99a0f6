import os
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.keys import new_secret
from app.security import GuardedAPI
from app.settings import ENV_FILE, load_settings

# `app.main` reads the settings when it is imported. The tests never use your own keys.
os.environ["API_KEYS"] = new_secret()

from tests.servers import LiveServer, make_service


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def secrets() -> list[str]:
    return [new_secret(), new_secret()]


@pytest.fixture(autouse=True)
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secrets: list[str]) -> Path:
    """A working directory with a `.env` of its own, whose changes are seen at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("API_KEYS", raising=False)
    monkeypatch.delenv("LOG_LEVEL", raising=False)
    monkeypatch.setattr("app.env_file.MAX_AGE", 0.0)
    ENV_FILE.write_text(f"API_KEYS={','.join(secrets)}\n")
    return tmp_path / ENV_FILE


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
    monkeypatch.setattr("app.env_file.MAX_AGE", 0.05)  # its watcher would never rest
    with LiveServer(service) as server:
        yield server

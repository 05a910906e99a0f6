"""Fixtures: the service with a database of its own, and callers of it."""

import os
import shutil
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack
from math import inf
from pathlib import Path
from tempfile import mkdtemp

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.orm import Session

# `app.main` reads the settings when it is imported. The tests never use your own keys.
os.environ["DATABASE_URL"] = f"sqlite:///{mkdtemp()}/keys.db"
os.environ["API_KEYS"] = ""

from app.auth import GuardedAPI
from app.auth.database.migrate import upgrade
from app.auth.database.models import ENV_ID
from app.auth.database.owner_migrations import upgrade_tables
from app.auth.key import digests, id_of, new_secret
from app.auth.keys.service import KeyService
from app.auth.store.cache import DatabaseKeyStore
from app.cli import MIGRATIONS
from app.constants import API_KEY_HEADER
from app.database import get_engine
from app.settings import Settings, load_settings
from tests.callers import Keys, make_service


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def secrets() -> list[str]:
    """The keys in API_KEYS."""
    return [new_secret(), new_secret()]


@pytest.fixture
def ids(secrets: list[str]) -> list[str]:
    return [ENV_ID + id_of(digest) for digest in digests(secrets)]


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secrets: list[str]) -> Path:
    """A folder of its own; the environment has no settings but the database and the keys."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("app.auth.config.sources.ENV_FILE", tmp_path / ".env")
    for name in (*Settings.model_fields, "SECRETS_DIR", "SECRETS_VAULT"):
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/keys.db")
    monkeypatch.setenv("API_KEYS", ",".join(secrets))
    # Tests send more wrong keys than anybody else may.
    monkeypatch.setattr("app.auth.access.throttle.MANY", inf)
    return tmp_path


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its schema and your tables, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "keys.db"
    url = sa.URL.create("sqlite", database=str(path))
    upgrade(url)
    upgrade_tables(url, MIGRATIONS)
    return path


@pytest.fixture
def database_url(working_directory: Path, migrated: Path) -> Iterator[sa.URL]:
    """A fresh database, with its schema and your tables. DATABASE_URL names it."""
    path = working_directory / "keys.db"
    shutil.copy(migrated, path)
    yield sa.URL.create("sqlite", database=str(path))
    if get_engine.cache_info().currsize:
        get_engine().dispose()
        get_engine.cache_clear()


@pytest.fixture
def session(database_url: sa.URL) -> Iterator[Session]:
    """Fills your tables and looks into them. Commit before you call the service."""
    with Session(get_engine().execution_options(begin="BEGIN")) as session:
        yield session


@pytest.fixture
def service(database_url: sa.URL) -> Iterator[GuardedAPI]:
    """The application; slow machines do not make its database look out of reach."""
    service = make_service(load_settings().model_copy(update={"key_max_staleness": 30.0}))
    yield service
    assert isinstance(service.keys, DatabaseKeyStore)
    service.keys.close()


@pytest.fixture
def store(service: GuardedAPI) -> DatabaseKeyStore:
    assert isinstance(service.keys, DatabaseKeyStore)
    return service.keys


@pytest.fixture
def key_service(service: GuardedAPI) -> KeyService:
    key_service: KeyService = service.state.key_service
    return key_service


@pytest.fixture
async def client(service: FastAPI) -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=service)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


@pytest.fixture
async def client_with(
    service: FastAPI, key_service: KeyService, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Callable[..., httpx.AsyncClient]]:
    """Callers whose keys have the scopes that you name: `client_with("reports:read")`."""
    # The service asks the database for each key that it does not know yet.
    monkeypatch.setattr("app.auth.store.cache.RECHECK", 0.0)
    async with AsyncExitStack() as clients:

        def client_with(*scopes: str) -> httpx.AsyncClient:
            key = key_service.create("client", scopes, actor="tests").key
            client = httpx.AsyncClient(
                transport=httpx.ASGITransport(app=service),
                base_url="http://service",
                headers={API_KEY_HEADER: key},
            )
            clients.push_async_callback(client.aclose)
            return client

        yield client_with


@pytest.fixture
def keys() -> Keys:
    """A store of keys in memory, for tests that need no database."""
    return Keys()


@pytest.fixture
def api(keys: Keys) -> GuardedAPI:
    return GuardedAPI(keys)

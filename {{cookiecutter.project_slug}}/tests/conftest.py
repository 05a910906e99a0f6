"""Fixtures: the service with a database of its own, and callers of it."""

import shutil
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.orm import Session

from app.auth import GuardedAPI
from app.auth.database.migrate import upgrade
from app.auth.database.models import ENV_ID
from app.auth.database.owner_migrations import upgrade_tables
from app.auth.key import digests, id_of, new_secret
from app.auth.keys.service import KeyService
from app.auth.store.cache import DatabaseKeyStore
from app.cli import MIGRATIONS
from app.constants import MISSING_KEY_STATUS
from app.database import get_engine
from app.settings import load_settings
from tests.callers import Clock, Keys, make_client, make_service, status_of


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
    """A folder of its own. There are no settings but these."""
    monkeypatch.setattr("app.settings.latest", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("app.auth.config.sources.ENV_FILE", tmp_path / ".env")
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/keys.db")
    monkeypatch.setenv("API_KEYS", ",".join(secrets))
    # Tests send more wrong keys than anybody else may.
    monkeypatch.setattr("app.auth.access.clients.BURST", inf)
    return tmp_path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of the whole service, which passes when the test says so."""
    clock = Clock()
    monkeypatch.setattr("app.auth.database.clock.time", lambda: clock.now)
    for module in ("access.clients", "store.cache", "store.queries", "store.usage_writer"):
        monkeypatch.setattr(f"app.auth.{module}.monotonic", clock.monotonic)
    return clock


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


class Server:
    """Your application, as one process runs it."""

    def __init__(self, api: GuardedAPI) -> None:
        assert isinstance(api.keys, DatabaseKeyStore)
        self.api, self.store = api, api.keys
        self.keys: KeyService = api.state.key_service

    async def status(self, secret: str) -> int:
        return await status_of(self.api, secret.encode())

    async def admits(self, *secrets: str) -> str:
        """`+` for each that gets in, `-` for each that does not, once it has heard of all changes."""
        await self.store.refresh()
        signs = {200: "+", MISSING_KEY_STATUS: "-"}
        return "".join([signs[await self.status(secret)] for secret in secrets])


@pytest.fixture
def start_server(
    database_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Server]]:
    """Starts one more server, with the settings as they are then."""
    # However busy this machine is, its database does not look out of reach. New keys get in at once.
    monkeypatch.setattr("app.auth.store.cache.TIMEOUT", 60.0)
    monkeypatch.setattr("app.auth.store.cache.RECHECK", 0.0)
    servers: list[Server] = []

    def start_server(key_max_staleness: float = 60.0) -> Server:
        update = {"key_max_staleness": key_max_staleness}
        servers.append(Server(make_service(load_settings().model_copy(update=update))))
        return servers[-1]

    yield start_server
    for server in servers:
        server.store.close()


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Server:
    return start_server()


@pytest.fixture
def service(server: Server) -> GuardedAPI:
    return server.api


@pytest.fixture
def key_service(service: GuardedAPI) -> KeyService:
    return Server(service).keys


@pytest.fixture
def client(service: FastAPI) -> httpx.AsyncClient:
    return make_client(service)


@pytest.fixture
def client_with(service: FastAPI, key_service: KeyService) -> Callable[..., httpx.AsyncClient]:
    """Callers whose keys have the scopes that you name: `client_with("reports:read")`."""

    def client_with(*scopes: str, owner: str = "") -> httpx.AsyncClient:
        key = key_service.create("client", scopes, owner=owner, actor="tests").key
        return make_client(service, key)

    return client_with


@pytest.fixture
def keys() -> Keys:
    """A store of keys in memory, for tests that need no database."""
    return Keys()


@pytest.fixture
def api(keys: Keys) -> GuardedAPI:
    return GuardedAPI(keys)

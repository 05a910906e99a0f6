"""Fixtures: a service with a database of its own, and callers of it."""

import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import httpx
import hypothesis
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.orm import Session

from app.auth import GuardedAPI
from app.auth.database.models import ENV_ID
from app.auth.key import digests, id_of, new_secret
from app.auth.keys.service import KeyService
from app.auth.store.cache import DatabaseKeyStore
from app.constants import API_KEY_HEADER
from app.database import get_engine
from app.settings import load_settings

# `app.main` reads the settings when it is imported. The tests never use your own keys.
os.environ["API_KEYS"] = new_secret()
os.environ["DATABASE_URL"] = f"sqlite:///{mkdtemp()}/keys.db"
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

from tests.thorough.databases import Databases, PostgreSQLDatabases, SQLiteDatabases, postgresql
from tests.thorough.fixtures import api, keys, patient  # noqa: F401
from tests.thorough.servers import LiveServer
from tests.thorough.services import MADE, make_service

# The same examples in every run; the template explores at random.
hypothesis.settings.register_profile(
    "same",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # nor does a busy machine decide
)
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
    return [ENV_ID + id_of(digest) for digest in digests(secrets)]


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secrets: list[str]) -> Path:
    """A folder of its own, with settings in the environment alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("app.auth.config.sources.ENV_FILE", tmp_path / ".env")
    for name in (
        "KEY_PREFIX",
        "KEY_MAX_STALENESS",
        "LOG_FORMAT",
        "LOG_LEVEL",
        "RATE_LIMIT",
        "SECRETS_DIR",
        "SECRETS_VAULT",
        "SHOW_CONSOLE",
        "SHOW_DOCS",
        "VALKEY_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/keys.db")
    monkeypatch.setenv("API_KEYS", ",".join(secrets))
    return tmp_path


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    """Of the databases of all services that a test has made."""
    yield
    while MADE:
        store = MADE.pop().keys
        assert isinstance(store, DatabaseKeyStore)
        store.close()


@pytest.fixture(scope="session")
def sqlite_databases(tmp_path_factory: pytest.TempPathFactory) -> SQLiteDatabases:
    return SQLiteDatabases(tmp_path_factory.mktemp("sqlite"))


@pytest.fixture(scope="session")
def postgresql_databases() -> Iterator[PostgreSQLDatabases]:
    # Not in pytest's folder: the path of a socket has to be short.
    with TemporaryDirectory() as folder, postgresql(Path(folder)) as server:
        databases = PostgreSQLDatabases(server)
        yield databases
        databases.drop()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One for each core; none for files that you name, which so begin at once."""
    return 0 if config.option.file_or_dir else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The tests of the machinery run on both databases; of yours, those that ask for both."""
    if "databases" in metafunc.fixturenames and metafunc.module.__name__.startswith(
        "tests.thorough."
    ):
        metafunc.parametrize("databases", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def databases(request: pytest.FixtureRequest) -> Databases:
    """SQLite. Both: `@pytest.mark.parametrize("databases", ["sqlite", "postgresql"], indirect=True)`."""
    kind = getattr(request, "param", "sqlite")
    databases: Databases = request.getfixturevalue(f"{kind}_databases")
    return databases


@pytest.fixture
def database_url(
    databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[sa.URL]:
    """A fresh database, with its schema and your tables; the settings name it."""
    with databases.fresh(tmp_path) as url:
        monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
        yield url
        if get_engine.cache_info().currsize:
            get_engine().dispose()
            get_engine.cache_clear()


@pytest.fixture
def session(database_url: sa.URL) -> Iterator[Session]:
    """To fill your tables and look into them. Commit before you call the service."""
    with Session(get_engine().execution_options(begin="BEGIN")) as session:
        yield session


@pytest.fixture
def service(database_url: sa.URL) -> GuardedAPI:
    """With so much patience that no busy machine decides a test."""
    return make_service(load_settings().model_copy(update={"key_max_staleness": 30.0}))


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
    # No key is so new that the service has not heard of it: it asks for each that it does not know.
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
def live(service: FastAPI, store: DatabaseKeyStore) -> Iterator[LiveServer]:
    store._max_staleness = 2.0  # as long as every revocation takes
    with LiveServer(service) as server:
        yield server

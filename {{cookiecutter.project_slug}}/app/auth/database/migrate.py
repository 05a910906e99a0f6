"""Bringing the schema of the keys up to date."""

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import event

from app.auth.database.engine import (
    FIRST_SCHEMA,
    LONG_PATIENCE,
    SCHEMA,
    SCHEMA_TABLE,
    check_schema,
    connect,
    schema_of,
    transaction,
)
from app.auth.errors import StoreUnavailableError

MIGRATIONS: Final = Path(__file__).parent / "migrations"


def upgrade(url: sa.URL) -> None:
    """Makes the SQLite file, if there is none.

    Raises SettingsError or StoreUnavailableError if the database cannot be used.
    """
    engine = connect(url)
    if engine.dialect.name == "sqlite":
        make_file(Path(f"{url.database}"))
    if (schema_of(engine) or "") < SCHEMA:
        with alone(connect(url, patience=LONG_PATIENCE)) as connection:
            command.upgrade(configuration(connection), "head")
    check_schema(engine)


def make_file(path: Path) -> None:
    """For its owner only: it tells who uses the service. Raises StoreUnavailableError."""
    try:
        path.touch(mode=0o600)
    except OSError as error:
        reason = f"{path}: {error.strerror}"
        raise StoreUnavailableError(f"DATABASE_URL: out of reach: {reason}") from None


def configuration(connection: sa.Connection) -> Config:
    config = Config()
    # A percent sign in the folder's name would be taken for the name of another option.
    config.set_main_option("script_location", MIGRATIONS.as_posix().replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@contextmanager
def alone(engine: sa.Engine) -> Generator[sa.Connection]:
    """A transaction that waits for every other change: one migrates at a time."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _let_tables_be_rebuilt)
    with transaction(engine, write=True) as connection:
        inspector = sa.inspect(connection)
        theirs = inspector.has_table("alembic_version")
        if theirs and inspector.has_table("api_keys") and not inspector.has_table(SCHEMA_TABLE):
            _take_over(connection)
        yield connection


def _let_tables_be_rebuilt(opened: sqlite3.Connection, _: object) -> None:
    """What else refers to a table is neither deleted with the old one nor renamed with the new."""
    opened.execute("PRAGMA foreign_keys = OFF")
    opened.execute("PRAGMA legacy_alter_table = ON")


def _take_over(connection: sa.Connection) -> None:
    """Older services had one chain of revisions for the keys and everything else."""
    ours, theirs = (
        sa.Table(name, sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))
        for name in (SCHEMA_TABLE, "alembic_version")
    )
    ours.create(connection)
    connection.execute(sa.insert(ours).values(version_num=FIRST_SCHEMA))
    connection.execute(sa.delete(theirs).where(theirs.c.version_num == FIRST_SCHEMA))

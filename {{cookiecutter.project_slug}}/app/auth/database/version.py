"""Which schema a database has, and whether this service can use it."""

from pathlib import Path
from typing import Final

import sqlalchemy as sa

from app.auth.database.engine import file_of, transaction
from app.auth.errors import SettingsError
from app.constants import COMMAND

SCHEMA: Final = "0005"  # the newest revision in `migrations`
SCHEMA_TABLE: Final = "api_keys_schema"


def check_schema(engine: sa.Engine) -> None:
    """Raises SettingsError if the database has no schema or another one, and
    StoreUnavailableError."""
    upgrade = f"uv run {COMMAND} db upgrade"
    if engine.dialect.name == "sqlite" and file_of(Path(f"{engine.url.database}")) is None:
        raise SettingsError(
            f"DATABASE_URL: there is no {engine.url.database};"
            f" start the service, or make it with: {upgrade}"
        )
    with transaction(engine) as connection:
        found = schema_of(connection)
    if found is None:
        raise SettingsError(f"DATABASE_URL: no keys were ever kept there; begin with: {upgrade}")
    if found > SCHEMA:
        raise SettingsError(
            "DATABASE_URL: its schema is newer than the service; install the newer service"
        )
    if found < SCHEMA:
        raise SettingsError(
            "DATABASE_URL: a version that was never released made its tables;"
            f" name a new database, and begin with: {upgrade}"
        )


def schema_of(connection: sa.Connection) -> str | None:
    """The revision of the tables; None if there are none, "" if they have no revision."""
    inspector = sa.inspect(connection)
    if inspector.has_table(SCHEMA_TABLE):
        version = sa.column("version_num", sa.String())
        newest = sa.select(sa.func.max(version)).select_from(sa.table(SCHEMA_TABLE))
        return connection.scalar(newest)
    return "" if inspector.has_table("api_keys") else None

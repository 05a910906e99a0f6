"""Creates the schema of the keys."""

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from app.auth.database.engine import LONG_TIMEOUT, check_schema, connect, schema_of, transaction
from app.auth.errors import StoreUnavailableError

MIGRATIONS: Final = Path(__file__).parent / "migrations"


def upgrade(url: sa.URL) -> bool:
    """Creates the tables, and the SQLite file, if they are missing. Returns whether they were.

    Raises SettingsError or StoreUnavailableError if the database cannot be used.
    """
    engine = connect(url)
    if engine.dialect.name == "sqlite":
        make_file(Path(f"{url.database}"))
    # If several processes upgrade at once, one creates the tables and the others wait.
    with transaction(connect(url, timeout=LONG_TIMEOUT), write=True) as connection:
        if missing := schema_of(connection) is None:
            command.upgrade(configuration(connection), "head")
    check_schema(engine)
    return missing


def make_file(path: Path) -> None:
    """Only the owner may read it: it lists the service's callers. Raises StoreUnavailableError."""
    try:
        path.touch(mode=0o600)
    except OSError as error:
        reason = f"{path}: {error.strerror}"
        raise StoreUnavailableError(f"DATABASE_URL: out of reach: {reason}") from None


def configuration(connection: sa.Connection) -> Config:
    config = Config()
    # Alembic takes a percent sign in a path for a reference to another option.
    config.set_main_option("script_location", MIGRATIONS.as_posix().replace("%", "%%"))
    config.attributes["connection"] = connection
    return config

"""Creates the tables of the keys, with triggers and indexes that enforce their rules."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from app.auth.database.engine import (
    LONG_TIMEOUT,
    SCHEMA,
    SCHEMAS,
    check_schema,
    connect,
    schema_of,
    transaction,
)
from app.auth.database.models import metadata
from app.auth.errors import StoreUnavailableError

# Forbidden statements: the table, the kind of statement, and the condition.
RULES: Final = {
    "api_keys_stay": ("api_keys", "DELETE", "true"),
    "api_key_secrets_stay": ("api_key_secrets", "DELETE", "true"),
    "api_key_events_stay": ("api_key_events", "DELETE", "true"),
    "api_key_events_are_final": ("api_key_events", "UPDATE", "true"),
    "api_key_revocations_are_final": (
        "api_keys",
        "UPDATE",
        "OLD.revoked_at IS NOT NULL OR NEW.id <> OLD.id",
    ),
    "api_key_secrets_stay_ended": (
        "api_key_secrets",
        "UPDATE",
        "OLD.ended_at IS NOT NULL AND NEW.ended_at IS DISTINCT FROM OLD.ended_at",
    ),
    "api_key_secrets_never_end_later": (
        "api_key_secrets",
        "UPDATE",
        "NEW.digest <> OLD.digest OR NEW.key_id <> OLD.key_id OR OLD.expires_at IS NOT NULL"
        " AND (NEW.expires_at IS NULL OR NEW.expires_at > OLD.expires_at)",
    ),
}
# SQLite's OR REPLACE deletes the conflicting row and fires no trigger for that. (With row ids in
# these tables, a trigger could not see that row either.)
_SAME_PLACE: Final = (
    "key_id = NEW.key_id AND ended_at IS NULL AND NEW.ended_at IS NULL"
    " AND (expires_at IS NULL) = (NEW.expires_at IS NULL)"
)
REPLACING: Final = {
    "api_keys_are_not_replaced": ("api_keys", "INSERT", "id = NEW.id"),
    "api_key_secrets_are_not_replaced": (
        "api_key_secrets",
        "INSERT",
        f"digest = NEW.digest OR {_SAME_PLACE}",
    ),
    "api_key_secrets_replace_none": (
        "api_key_secrets",
        "UPDATE OF expires_at, ended_at",
        f"digest <> NEW.digest AND {_SAME_PLACE}",
    ),
    "api_key_events_are_not_replaced": ("api_key_events", "INSERT", "id = NEW.id"),
}


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
            create_tables(connection)
    check_schema(engine)
    return missing


def make_file(path: Path) -> None:
    """Only the owner may read it: it lists the service's callers. Raises StoreUnavailableError."""
    try:
        path.touch(mode=0o600)
    except OSError as error:
        reason = f"{path}: {error.strerror}"
        raise StoreUnavailableError(f"DATABASE_URL: out of reach: {reason}") from None


def create_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection, checkfirst=False)
    # A key has one current secret, and during the overlap of a rotation one old secret.
    for which, expires in (("current", "IS NULL"), ("old", "IS NOT NULL")):
        connection.exec_driver_sql(
            f"CREATE UNIQUE INDEX api_key_secrets_one_{which} ON api_key_secrets (key_id)"
            f" WHERE ended_at IS NULL AND expires_at {expires}"
        )
    is_sqlite = connection.dialect.name == "sqlite"
    for statement in _rules_in_sqlite() if is_sqlite else _rules_in_postgresql():
        connection.exec_driver_sql(statement)
    SCHEMAS.create(connection)
    connection.execute(sa.insert(SCHEMAS).values(version_num=SCHEMA))


def _rules_in_sqlite() -> Iterator[str]:
    for name, (table, statement, condition) in (RULES | REPLACING).items():
        if name in REPLACING:
            condition = f"EXISTS (SELECT 1 FROM {table} WHERE {condition})"  # noqa: S608
        yield (
            f"CREATE TRIGGER {name} BEFORE {statement} ON {table}"
            f" WHEN {condition.replace('IS DISTINCT FROM', 'IS NOT')}"
            f" BEGIN SELECT RAISE(ABORT, '{name}'); END"
        )


def _rules_in_postgresql() -> Iterator[str]:
    for name, (table, statement, condition) in RULES.items():
        yield (
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION '{name}'; END $$"
        )
        when = f"FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION {name}()"
        yield f"CREATE TRIGGER {name} BEFORE {statement} ON {table} {when}"
        if statement == "DELETE":
            yield f"CREATE TRIGGER {name}_all BEFORE TRUNCATE ON {table} EXECUTE FUNCTION {name}()"

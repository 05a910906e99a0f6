"""The owner's tables: how the revisions in `app/migrations` are written and applied.

Nothing here knows the tables: `app/migrations/env.py` tells.
"""

import re
import sqlite3
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy as sa
from alembic import command, context
from alembic.autogenerate.api import AutogenContext
from alembic.config import Config
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.util import CommandError
from sqlalchemy import event, exc

from app.auth.config.settings import AuthSettings
from app.auth.config.sources import load
from app.auth.database.engine import connect, transaction
from app.auth.database.version import check_schema
from app.auth.errors import SettingsError, StoreUnavailableError

MIGRATIONS: Final = Path(__file__).parents[2] / "migrations"
PATIENCE: Final = 3600.0  # seconds, for tables of any size, and for who came first


def upgrade_tables(url: sa.URL, migrations: Path | None = None) -> None:
    """Apply the owner's revisions, if there is a place for them. Raises SettingsError."""
    migrations = migrations or MIGRATIONS
    if (migrations / "env.py").is_file():
        try:
            command.upgrade(configuration(url, migrations), "head")
        except CommandError as error:
            raise SettingsError(f"{migrations}: {error}") from error


def configuration(url: sa.URL, migrations: Path = MIGRATIONS) -> Config:
    """For Alembic's commands, on this database."""
    config = Config()
    # A percent sign in the folder's name would be taken for the name of another option.
    config.set_main_option("script_location", migrations.as_posix().replace("%", "%%"))
    config.attributes["url"] = url
    return config


def run_migrations(metadata: sa.MetaData, **options: Any) -> None:
    """What `env.py` calls, whichever of Alembic's commands was given: `metadata` has the tables.

    In one transaction, while nobody else migrates: if it fails, nothing has changed. The options
    are further ones of Alembic's `context.configure`.
    """
    try:
        url = context.config.attributes.get("url") or load(AuthSettings).database_url
        check_schema(connect(url))
        with _alone(connect(url, patience=PATIENCE)) as connection:
            context.configure(
                connection=connection,
                target_metadata=metadata,
                # Those of the keys, and other people's, are in the database alone.
                include_name=lambda name, kind, _: kind != "table" or name in metadata.tables,
                render_item=_import_its_module,
                render_as_batch=True,  # SQLite needs it; on PostgreSQL it is the same as without
                on_version_apply=_check_references,
                **options,
            )
            with context.begin_transaction():
                context.run_migrations()
    except (SettingsError, StoreUnavailableError) as error:
        raise CommandError(f"{error}") from None


def _import_its_module(kind: str, item: Any, writing: AutogenContext) -> Literal[False]:
    """A type of the owner's is written with its module's name."""
    module = type(item).__module__
    if kind == "type" and not module.startswith("sqlalchemy."):
        writing.imports.add(f"import {module}")
    return False


@contextmanager
def _alone(engine: sa.Engine) -> Generator[sa.Connection]:
    """A transaction that waits for every other migration."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _suspend_references)
    with transaction(engine, write=True) as connection, warnings.catch_warnings():
        warnings.filterwarnings("error", "Unnamed CHECK")  # a rebuilt table would lack it
        warnings.filterwarnings("error", "Revision .* is not present")
        warnings.filterwarnings("ignore", "Skipped unsupported reflection of expression-based")
        if engine.dialect.name == "sqlite":
            _Rebuilds(connection)
        try:
            yield connection
        except (exc.SQLAlchemyError, Warning) as error:
            said = " ".join(f"{getattr(error, 'orig', error)}".split())
            statement = " ".join(f"{getattr(error, 'statement', '')}".split())
            raise CommandError(f"Nothing has changed: {said} {statement}".strip()) from error


# SQLite. What it cannot change in a table, Alembic does by a rebuild: it makes another table,
# copies the rows, drops the first one and gives its name to the other.


def _suspend_references(opened: sqlite3.Connection, _: object) -> None:
    """Nothing is deleted because of the drop. Within a transaction this would do nothing."""
    opened.execute("PRAGMA foreign_keys = OFF")


def _check_references(ctx: MigrationContext, step: MigrationInfo, *_: Any, **__: Any) -> None:
    """After each revision; PostgreSQL does it by itself."""
    if ctx.dialect.name == "sqlite" and ctx.connection:
        rows = ctx.connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if rows:
            broken = ", ".join(sorted({f"{row[0]} (to {row[2]})" for row in rows}))
            raise CommandError(
                f"Nothing has changed: after {step.up_revision_id}, rows refer to nothing: {broken}"
            )


class _Rebuilds:
    """What goes with the first table, unseen by Alembic, comes back, or the revision fails."""

    _NAMED = re.compile(r'\s*ALTER TABLE "?_alembic_tmp_')
    # Alembic sees neither triggers nor indexes on expressions.
    _SCHEMA = (
        "SELECT type, name, tbl_name, sql, type = 'trigger' OR EXISTS"
        " (SELECT 1 FROM pragma_index_xinfo(entry.name) WHERE cid = -2) FROM sqlite_master AS entry"
    )

    def __init__(self, connection: sa.Connection) -> None:
        self._before: list[tuple[str, str, str, str, bool]] = []
        event.listen(connection, "before_cursor_execute", self._prepare)
        event.listen(connection, "after_cursor_execute", self._complete)

    def _prepare(self, _: object, cursor: sqlite3.Cursor, statement: str, *__: object) -> None:
        if statement.lstrip().startswith("DROP TABLE"):
            self._before = cursor.connection.execute(self._SCHEMA).fetchall()
        elif self._NAMED.match(statement):
            # Or whatever mentions the table would have to make sense while there is none.
            cursor.connection.execute("PRAGMA legacy_alter_table = ON")

    def _complete(self, _: object, cursor: sqlite3.Cursor, statement: str, *__: object) -> None:
        if not self._NAMED.match(statement):
            return
        run = cursor.connection.execute
        run("PRAGMA legacy_alter_table = OFF")
        now = {(kind, name): sql for kind, name, _, sql, _ in run(self._SCHEMA)}
        for kind, name, table, sql, unseen in self._before:
            new = now.get((kind, name))
            if unseen and new is None:
                run(sql)
                _compile_triggers(run, table)
            elif kind == "table" and new:
                for word in ("AUTOINCREMENT", "COLLATE"):
                    if sql.upper().count(word) > new.upper().count(word):
                        raise CommandError(f"Nothing has changed: {name} would lose its {word}")


def _compile_triggers(run: Callable[..., sqlite3.Cursor], table: str) -> None:
    """Or they would fail, not the revision, when the table has lost a column that they need."""
    names = [name for (name,) in run("SELECT name FROM pragma_table_info(?)", [table])]
    quoted, *columns = ('"{}"'.format(name.replace('"', '""')) for name in (table, *names))
    for change in (
        f"INSERT INTO {quoted} DEFAULT VALUES",
        f"UPDATE {quoted} SET {', '.join(f'{column} = 0' for column in columns)}",  # noqa: S608
        f"DELETE FROM {quoted}",  # noqa: S608
    ):
        run(f"EXPLAIN {change}")

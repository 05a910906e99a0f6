"""Migrates the owner's tables with the Alembic revisions in a folder.

The folder's `env.py` calls `run_migrations`.
"""

import sqlite3
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy as sa
from alembic import command, context
from alembic.autogenerate.api import AutogenContext
from alembic.config import Config
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.util import CommandError
from sqlalchemy import event, exc

from app.auth.database.engine import check_schema, connect, transaction
from app.auth.errors import SettingsError, StoreUnavailableError

TIMEOUT: Final = 3600.0  # seconds, enough for large tables and for a migration that runs first


def upgrade_tables(url: sa.URL, folder: Path) -> bool:
    """Apply the revisions in this folder, if it has an `env.py`. Returns whether there were any to
    apply. Raises SettingsError."""
    config = configuration(url, folder)
    if (folder / "env.py").is_file():
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise SettingsError(f"{folder}: {error}") from error
    return "changed" in config.attributes


def configuration(url: sa.URL, folder: Path) -> Config:
    """The configuration of Alembic's commands for this database."""
    config = Config()
    # Alembic takes a percent sign in a path for a reference to another option.
    config.set_main_option("script_location", folder.as_posix().replace("%", "%%"))
    config.attributes["url"] = url
    return config


def run_migrations(metadata: sa.MetaData, load_settings: Callable[[], Any], **options: Any) -> None:
    """Run the migrations of the current Alembic command in one transaction, one process at a time.

    `metadata` has the tables. The settings have a `database_url`. The options go to Alembic's
    `context.configure`, and win over those given here. Raises CommandError.
    """
    yours = options.pop("on_version_apply", ())
    options = {
        "target_metadata": metadata,
        "on_version_apply": [
            _check_foreign_keys,
            *(yours if isinstance(yours, Iterable) else [yours]),
        ],
        "include_schemas": any(table.schema for table in metadata.tables.values()),
        "include_name": partial(_is_yours, metadata),
        "render_item": _import_its_module,
        "render_as_batch": True,  # SQLite needs it; PostgreSQL does not mind
        **options,
    }
    try:
        url = context.config.attributes.get("url") or load_settings().database_url
        if context.is_offline_mode():  # `alembic upgrade head --sql` prints the statements
            offline = {"url": url, "literal_binds": True, "dialect_opts": {"paramstyle": "named"}}
            context.configure(**{**offline, **options})
            with context.begin_transaction():
                context.run_migrations()
            return
        check_schema(connect(url))
        engine = connect(url, timeout=TIMEOUT)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _suspend_foreign_keys)
            event.listen(engine, "before_cursor_execute", _refuse_loss)
        with transaction(engine, write=True) as connection, _errors_in_one_line():
            context.configure(connection=connection, **options)
            with context.begin_transaction():
                context.run_migrations()
    except (SettingsError, StoreUnavailableError) as error:
        raise CommandError(f"{error}") from None


def _is_yours(metadata: sa.MetaData, name: str | None, kind: str, parents: Any) -> bool:
    """Ignore the tables of the keys, and the tables and schemas of other applications."""
    if kind == "schema":
        return name is None or any(table.schema == name for table in metadata.tables.values())
    return kind != "table" or parents["schema_qualified_table_name"] in metadata.tables


def _import_its_module(kind: str, item: Any, writing: AutogenContext) -> Literal[False]:
    """Make a revision import the modules of the owner's column types."""
    module = type(item).__module__
    if kind == "type" and not module.startswith("sqlalchemy."):
        writing.imports.add(f"import {module}")
    return False


@contextmanager
def _errors_in_one_line() -> Generator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Unnamed CHECK")  # a rebuilt table would lack it
        warnings.filterwarnings("error", "Revision .* is not present")
        warnings.filterwarnings("ignore", "Skipped unsupported reflection of expression-based")
        try:
            yield
        except (exc.SQLAlchemyError, Warning) as error:
            problem = " ".join(f"{getattr(error, 'orig', error)}".split())
            statement = " ".join(f"{getattr(error, 'statement', '')}".split())
            raise CommandError(f"Nothing has changed: {problem} {statement}".strip()) from error


# SQLite cannot change much of a table. Alembic's batch mode rebuilds it: it creates another table,
# copies the rows, drops the old table and renames the new one.


def _suspend_foreign_keys(opened: sqlite3.Connection, _: object) -> None:
    """Otherwise the drop deletes the rows that refer to the table. The pragma has no effect in a
    transaction, so it runs before."""
    opened.execute("PRAGMA foreign_keys = OFF")


def _check_foreign_keys(ctx: MigrationContext, step: MigrationInfo, *_: Any, **__: Any) -> None:
    """Runs after each revision. PostgreSQL checks them by itself."""
    context.config.attributes["changed"] = True
    if ctx.dialect.name == "sqlite" and ctx.connection and not ctx.as_sql:
        rows = ctx.connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if rows:
            broken = ", ".join(sorted({f"{row[0]} (to {row[2]})" for row in rows}))
            raise CommandError(
                f"Nothing has changed: after {step.up_revision_id}, rows refer to nothing: {broken}"
            )


def _refuse_loss(_: object, cursor: sqlite3.Cursor, statement: str, *__: object) -> None:
    """Refuse a rebuild that would lose parts of the table which Alembic does not see."""
    if not statement.lstrip().startswith("DROP TABLE"):
        return
    run = cursor.connection.execute
    tables = dict(run("SELECT lower(name), upper(sql) FROM sqlite_master WHERE type = 'table'"))
    for table in (name for name in tables if f"_alembic_tmp_{name}" in tables):
        old, new = tables[table], tables[f"_alembic_tmp_{table}"]
        lost = [word for word in ("AUTOINCREMENT", "COLLATE") if old.count(word) > new.count(word)]
        unseen = run(
            "SELECT type, name FROM sqlite_master AS entry WHERE lower(tbl_name) = ? AND"
            " (type = 'trigger' OR"
            " EXISTS (SELECT 1 FROM pragma_index_xinfo(entry.name) WHERE cid = -2))",
            [table],
        )
        if lost := [*lost, *(f"{kind} {name}" for kind, name in unseen)]:
            raise CommandError(
                f"Nothing has changed: {table} would lose {', '.join(lost)}. In the revision, drop"
                " triggers and indexes before it is changed and create them again afterwards; tell"
                " batch_alter_table the rest"
            )

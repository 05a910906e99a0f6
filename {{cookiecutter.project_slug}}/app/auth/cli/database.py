"""The commands `db`: the schema, backups and old counts."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import typer

from app.auth.cli.context import name_database, wait
from app.auth.cli.output import one_line_errors, print_text, progress
from app.auth.config.settings import AuthSettings
from app.auth.database import clock, migrate
from app.auth.database.engine import SCHEMA, SCHEMA_TABLE, transaction, uri_of
from app.auth.errors import SettingsError
from app.auth.keys.service import KeyService, open_service
from app.auth.usage import counts

db = typer.Typer(no_args_is_help=True)


@db.command()
def upgrade(ctx: typer.Context) -> None:
    """Create all tables, or update them before a newer service starts."""
    from app.auth.database.owner_migrations import upgrade_tables  # loads Alembic

    with one_line_errors():
        settings = _settings(ctx)
        changed = migrate.upgrade(settings.database_url)
        for policy in ctx.obj.make_policies(settings):
            changed |= policy.upgrade()
        changed |= upgrade_tables(settings.database_url, ctx.obj.migrations)
        print_text(f"The schema is up to date{' now' if changed else ': nothing to do'}.")


@db.command()
def backup(ctx: typer.Context, file: Path) -> None:
    """Copy a SQLite database into a new file, also while the service runs."""
    with one_line_errors():
        path = _path_of(_settings(ctx), f'pg_dump --format=custom --file={file} "$DATABASE_URL"')
        _copy(path, file, is_backup=True)
        print_text(f"{file} is a backup.")


@db.command()
def restore(ctx: typer.Context, file: Path) -> None:
    """Put a SQLite database back as a backup has it, also while the service runs."""
    with one_line_errors():
        settings = _settings(ctx)
        options = '--clean --if-exists --single-transaction --dbname="$DATABASE_URL"'
        path = _path_of(settings, f"pg_restore {options} {file}")
        seconds = KeyService(settings).longest_staleness()
        _copy(file, path, is_backup=False)
        wait(seconds)
        print_text("The keys are those of the backup: what was ended or paused since is valid.")


@db.command()
def thin(ctx: typer.Context) -> None:
    """Compact the usage counts of hours into days where they are more than a month old."""
    with one_line_errors():
        service = open_service(ctx.obj.load_settings())
        with transaction(service.engine) as connection:
            now = clock.now(connection)
        rows = sum(progress(counts.thin(service.engine, now)))
        print_text(f"{rows} rows compacted.")


def _settings(ctx: typer.Context) -> Any:
    settings = ctx.obj.load_settings()
    name_database(settings)
    return settings


def _path_of(settings: AuthSettings, command: str) -> Path:
    if settings.database_url.get_backend_name() != "sqlite":
        raise SettingsError(f"DATABASE_URL: for PostgreSQL, run: {command}")
    return Path(f"{settings.database_url.database}")


def _copy(source: Path, target: Path, *, is_backup: bool) -> None:
    """Copy a database in one transaction. Raises SettingsError."""
    try:
        with closing(sqlite3.connect(uri_of(source, "ro"), uri=True)) as old:
            query = f"SELECT max(version_num) FROM {SCHEMA_TABLE}"  # noqa: S608
            if (found := old.execute(query).fetchone()[0]) != SCHEMA:
                raise SettingsError(f"{source} has the schema {found}; the service needs {SCHEMA}")
            if (problem := old.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                raise SettingsError(f"{source} is damaged: {problem}")
            target.touch(mode=0o600, exist_ok=not is_backup)
            with closing(sqlite3.connect(uri_of(target, "rw"), uri=True)) as new:
                old.backup(new)  # waits while somebody writes
                if is_backup:
                    new.execute("PRAGMA journal_mode = DELETE")  # one file, also while it is read
    except (OSError, sqlite3.Error) as error:
        raise SettingsError(f"{source}: {error}; nothing has changed") from None

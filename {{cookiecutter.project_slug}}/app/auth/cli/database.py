"""The commands `db`: the schema, backups and old counts."""

from pathlib import Path
from time import sleep
from typing import Annotated, Any

import typer

from app.auth.cli.output import note, one_line_errors, print_text
from app.auth.config.settings import AuthSettings
from app.auth.database import clock, migrate
from app.auth.database.engine import transaction
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
def backup(ctx: typer.Context, file: Annotated[Path, typer.Argument(help="A new file.")]) -> None:
    """Copy a SQLite database, also while the service runs."""
    from app.auth.database.backup import back_up

    with one_line_errors():
        back_up(_settings(ctx).database_url, file)
        print_text(f"{file} is a backup.")


@db.command()
def restore(ctx: typer.Context, file: Annotated[Path, typer.Argument(help="A backup.")]) -> None:
    """Put a SQLite database back as it was, also while the service runs."""
    from app.auth.database.backup import restore

    with one_line_errors():
        settings = _settings(ctx)
        seconds = KeyService(settings).longest_staleness()
        restore(settings.database_url, file)
        note(f"Waiting {seconds:g} s: then every server follows.")
        sleep(seconds)
        print_text("The keys are those of the backup. What was revoked since then is valid again.")


@db.command()
def thin(ctx: typer.Context) -> None:
    """Compact the usage counts of hours into days where they are more than a month old."""
    with one_line_errors():
        service = open_service(ctx.obj.load_settings())
        with transaction(service.engine) as connection:
            now = clock.now(connection)
        print_text(f"{sum(counts.thin(service.engine, now))} rows compacted.")


def name_database(settings: AuthSettings) -> None:
    """Name the database if it is not the default: a shell may have other settings."""
    if settings.database_url != AuthSettings.model_fields["database_url"].default:
        note(f"In {settings.database_url.set(query={}).render_as_string()}:")


def _settings(ctx: typer.Context) -> Any:
    settings = ctx.obj.load_settings()
    name_database(settings)
    return settings

"""The commands `keys export`, `keys import` and `db copy`."""

import signal
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError

from app.auth.cli.commands import SCANNED
from app.auth.cli.context import (
    AsJson,
    actor,
    changing,
    name_database,
    reading,
    wait_until_all_follow,
    wiring_of,
)
from app.auth.cli.output import note, one_line_errors, print_text, progress, show
from app.auth.config.settings import AuthSettings
from app.auth.database import clock
from app.auth.database.engine import transaction
from app.auth.errors import InvalidError, SettingsError
from app.transfer import formats
from app.transfer import keys as exchange

Format = Literal["native", "plain", "sha256", "fastapi-simple-security"]
Scopes = Annotated[list[str] | None, typer.Option("--scope", help="Of rows that name none.")]
Target = Annotated[str, typer.Option(help="An empty database.", envvar="COPY_TO")]
SCANNED.append(exchange.ImportedKeys)


@contextmanager
def _all_or_nothing() -> Generator[None]:
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except KeyboardInterrupt:
        note("Interrupted: nothing has changed.")
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGINT, handler)


def _progress(work: Iterable[Any], length: int | None = None) -> Iterator[Any]:
    yield from progress(work, length)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what follows is the commit


def export(
    ctx: typer.Context,
    with_usage: Annotated[bool, typer.Option("--with-usage", help="Also the counts.")] = False,
) -> None:
    """Print all keys as JSON lines, with digests and without any secret."""
    with reading(ctx) as service:
        for line in exchange.export(service.engine, with_usage):
            print_text(line.model_dump_json(exclude_defaults=True))


def import_keys(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(help="- is the standard input.")],
    format: Annotated[Format, typer.Option(help="What wrote the file.")] = "native",
    scope: Scopes = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also what can be guessed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring in keys that exist elsewhere, all of them or none. No key has to change."""
    with changing(ctx) as service:
        with _all_or_nothing():
            with transaction(service.engine) as connection:
                known = {"now": clock.now(connection), "actor": actor(), "scopes": scope or ()}
            if format == "native":
                lines = exchange.parse(_read(file))
            elif format == "fastapi-simple-security":
                lines = formats.of_fastapi_simple_security(file, force=force, **known)
            else:
                plain = format == "plain"
                lines = formats.of_text(_read(file), in_the_clear=plain, force=force, **known)
            done = exchange.bring_in(
                service, [*lines], dry_run=dry_run, actor=actor(), progress=_progress
            )
        if done.imported and not dry_run:
            wait_until_all_follow(service)
        show(done, as_json)


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not in UTF-8"
        raise InvalidError(f"{file} cannot be read: {reason}") from None


def copy(ctx: typer.Context, to: Target) -> None:
    """Copy everything into an empty database, from SQLite to PostgreSQL or back."""
    with one_line_errors():
        settings: Any = wiring_of(ctx).load_settings()
        try:
            target = AuthSettings(database_url=to).database_url
        except ValidationError as error:
            raise SettingsError(f"--to: {error.errors()[0]['msg']}") from None
        name_database(settings)
        with _all_or_nothing():
            from app.transfer import copy as copying  # loads the web framework

            copied = copying.copy(settings, target, wiring_of(ctx), _progress)
        for table, rows in copied.items():
            print_text(f"{rows:>12,}  {table}")
        print_text("All of it is there as it was here. DATABASE_URL may name it now.")

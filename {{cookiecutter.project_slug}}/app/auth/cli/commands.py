"""The command line, and the commands `keys` that read. None needs a running server."""

from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from functools import cache
from typing import Annotated, Any, Final

import typer

from app.auth.cli.changes import keys
from app.auth.cli.context import AsJson, Id, Wiring, duration, reading, wiring_of
from app.auth.cli.database import db
from app.auth.cli.output import (
    chart,
    escape_what_cannot_be_encoded,
    note,
    one_line_errors,
    print_text,
    show,
)
from app.auth.config import sources
from app.auth.config.settings import AuthSettings
from app.auth.database.models import ENV_ID
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.key import KNOWING, id_of
from app.auth.keys.service import open_service
from app.auth.usage import report
from app.auth.usage.report import KeyUse

SCANNED: Final[list[Callable[[AuthSettings], Any]]] = []  # what a part makes for KNOWING
OfOwner = Annotated[str | None, typer.Option("--owner", help="The keys of this owner alone.")]


def command_line(wiring: Wiring) -> typer.Typer:
    """The command line with `keys` and `db`. You can add commands of your own."""
    # Plain tracebacks: pretty ones can show local variables, and with them a key.
    main = typer.Typer(
        no_args_is_help=True, pretty_exceptions_enable=False, context_settings={"obj": wiring}
    )
    main.callback()(_prepare)
    main.add_typer(keys, name="keys", help="Create, change, rotate, revoke and watch the keys.")
    main.add_typer(db, name="db", help="The database: schema and backups.")
    return main


def _prepare() -> None:
    """Manage the service from the command line."""
    escape_what_cannot_be_encoded()


@keys.command("list")
def list_keys(ctx: typer.Context, owner: OfOwner = None, as_json: AsJson = False) -> None:
    """Show all keys, oldest first."""
    with reading(ctx) as service:
        found = sorted(service.of_owner(owner).all(), key=lambda key: key.created_at)
        show(found, as_json)


@keys.command("show")
def show_key(ctx: typer.Context, id: Id, as_json: AsJson = False) -> None:
    """Show a key, and whether its old secret is still being used."""
    with reading(ctx) as service:
        show(service.get(id), as_json)


@keys.command()
def audit(
    ctx: typer.Context,
    id: Annotated[str | None, typer.Argument(help="Of this key alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what was done to the keys, when and by whom."""
    with reading(ctx) as service:
        show(service.events(id), as_json)


@keys.command()
def usage(
    ctx: typer.Context,
    id: Annotated[str | None, typer.Argument(help="Of this key alone, by hour or day.")] = None,
    since: Annotated[
        timedelta | None,
        typer.Option(parser=duration, metavar="7d", help="How long ago to begin."),
    ] = None,
    owner: OfOwner = None,
    as_json: AsJson = False,
) -> None:
    """Show how often keys were used, and who was refused without one."""
    since = timedelta(days=7) if since is None else since
    if not since:
        raise typer.BadParameter("that is no time at all; write --since 7d")
    with reading(ctx) as service:
        if id is None:
            everything = report.of_all(service.engine, since, owner)
            keys, networks = everything.more_keys, everything.more_strangers
            more = [f"{keys} more keys, {networks} more networks"] * bool(keys or networks)
            show(everything, as_json, [everything.keys, everything.strangers, *more])
        else:
            used = report.of_key(service.engine, id, since)
            in_all = KeyUse(**used.model_dump(include={*KeyUse.model_fields}))
            show(used, as_json, [in_all, used.by_secret, chart(used, since)])


@keys.command()
def doctor(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Look for keys that need attention; exit with 1 if there is one."""
    with reading(ctx) as service:
        from app.auth.usage.findings import diagnose, examine_file  # loads the web framework

        findings = [*examine_file(sources.ENV_FILE), *diagnose(service, wiring_of(ctx).routes())]
        show(findings, as_json)
    raise typer.Exit(bool(findings))


@keys.command()
def scan(
    ctx: typer.Context,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Text, logs, dumps; - is what you type or paste."),
    ],
    as_json: AsJson = False,
) -> None:
    """Look for keys in files; exit with 1 if there is one."""
    from app.auth.cli.scan import report

    with one_line_errors():
        settings = wiring_of(ctx).load_settings()
        known, more = _known_keys(settings), [make(settings) for make in SCANNED]
        KNOWING.update(more)
        found = report(files, known, print_text, as_json=as_json)
    raise typer.Exit(found)


def _known_keys(settings: AuthSettings) -> Callable[[Collection[bytes]], Mapping[bytes, str]]:
    """The keys of API_KEYS and those of the database, which is opened for other digests only."""
    in_env = {digest: ENV_ID + id_of(digest) for digest in settings.api_keys}
    databases = [cache(lambda: open_service(settings))]

    def ids_of(digests: Collection[bytes]) -> Mapping[bytes, str]:
        others = [digest for digest in digests if digest not in in_env]
        try:
            return in_env | databases[0]().ids_of(others) if others and databases else in_env
        except (SettingsError, StoreUnavailableError) as error:
            databases.clear()  # it is not asked again
            note(f"Not every key is known here: {error}")
            return in_env

    return ids_of

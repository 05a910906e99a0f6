"""The commands `keys`, which need no running server."""

import os
import re
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from time import sleep
from typing import Annotated, Any, Literal, cast

import typer

from app.auth.access.policy import Policy
from app.auth.cli.database import db, name_database
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
from app.auth.database import clock
from app.auth.database.engine import transaction
from app.auth.database.models import ENV_ID
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.key import id_of
from app.auth.keys.service import KeyService, open_service
from app.auth.keys.views import OVERLAP, KeyView
from app.auth.usage import report
from app.auth.usage.report import KeyUse


@dataclass(frozen=True)
class Wiring:
    """What the commands need of the application. Each is used only when it is needed."""

    load_settings: Callable[[], Any]  # an AuthSettings. Raises SettingsError
    make_policies: Callable[[Any], Sequence[Policy]]  # for these settings
    routes: Callable[[], Sequence[Any]]  # of the application, which this imports
    migrations: Path  # the folder for the owner's tables


keys = typer.Typer(no_args_is_help=True)


def command_line(wiring: Wiring) -> typer.Typer:
    """The command line with `keys` and `db`. You can add commands of your own."""
    # Plain tracebacks: pretty ones can show local variables, and with them a key.
    main = typer.Typer(
        no_args_is_help=True, pretty_exceptions_enable=False, context_settings={"obj": wiring}
    )
    main.callback()(_prepare)
    main.add_typer(keys, name="keys", help="Create, rotate, revoke and watch the keys.")
    main.add_typer(db, name="db", help="The database: schema and backups.")
    return main


def _prepare() -> None:
    """Manage the service from the command line."""
    escape_what_cannot_be_encoded()


def wiring_of(ctx: typer.Context) -> Wiring:
    return cast("Wiring", ctx.obj)


def _duration(text: str) -> timedelta:
    if not (match := re.fullmatch(r"(\d{1,5})([smhdw])", text)):
        raise typer.BadParameter("write a number and s, m, h, d or w, for example 90d")
    names = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    return timedelta(**{names[match[2]]: int(match[1])})


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            "write it like 2030-12-31T23:59+02:00; 2030-12-31 is its first moment, in UTC"
        ) from None


_WHEN = "A date is its first moment; without a zone, times are in UTC."
Id = Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Also the last key that may manage keys.")]
Name = Annotated[str, typer.Argument(help="Who uses it.")]
Scopes = Annotated[list[str] | None, typer.Option("--scope", help="What for; repeatable.")]
ExpiresIn = Annotated[timedelta | None, typer.Option(parser=_duration, metavar="90d")]
ExpiresAt = Annotated[datetime | None, typer.Option(parser=_instant, metavar="TIME", help=_WHEN)]


@keys.command()
def create(
    ctx: typer.Context,
    name: Name,
    scope: Scopes = None,
    expires_in: ExpiresIn = None,
    expires_at: ExpiresAt = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and show it, this once."""
    create_key(ctx, name, scope, {}, expires_in, expires_at, as_json)


def create_key(
    ctx: typer.Context,
    name: str,
    scopes: Iterable[str] | None,
    restrictions: Mapping[str, Sequence[str]],
    expires_in: timedelta | None,
    expires_at: datetime | None,
    as_json: bool,
) -> None:
    """Shared by `create` here and the one of a part that adds options for restrictions."""
    if expires_in is not None and expires_at:
        raise typer.BadParameter("give --expires-in or --expires-at")
    with changing(ctx) as service:
        if expires_in is not None:
            with transaction(service.engine) as connection:
                expires_at = clock.now(connection) + expires_in
        service.create(
            name,
            scopes or (),
            restrictions=restrictions,
            expires_at=expires_at,
            actor=_actor(),
            show=partial(show, as_json=as_json),
        )


@keys.command("list")
def list_keys(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show all keys, oldest first."""
    with reading(ctx) as service:
        found = sorted(service.all(), key=lambda key: key.created_at)
        show(found, as_json)


@keys.command("show")
def show_key(ctx: typer.Context, id: Id, as_json: AsJson = False) -> None:
    """Show a key, and whether its old secret is still being used."""
    with reading(ctx) as service:
        show(service.get(id), as_json)


@keys.command()
def rotate(
    ctx: typer.Context,
    id: Id,
    overlap: Annotated[
        timedelta | None,
        typer.Option(parser=_duration, metavar="24h", help="How long the old secret lives on."),
    ] = None,
    drop: Annotated[
        Literal["old", "new"] | None,
        typer.Option(help="While two secrets are in force: end the old one, or the lost new one."),
    ] = None,
    no_new: Annotated[
        bool, typer.Option("--no-new", help="Only drop one; the old one still expires.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret and show it, this once. Its id and scopes stay."""
    if no_new and (drop is None or overlap is not None):
        raise typer.BadParameter("--no-new goes with --drop alone")
    overlap = OVERLAP if overlap is None else overlap
    with changing(ctx) as service:
        if no_new and drop:
            _show_when_all_follow(service, service.drop(id, drop, actor=_actor()), as_json)
            return
        shown = partial(show, as_json=as_json)
        service.rotate(id, overlap=overlap, drop=drop, actor=_actor(), show=shown)
        if drop or not overlap:
            _wait_until_all_follow(service)


@keys.command()
def revoke(
    ctx: typer.Context,
    id: Annotated[str | None, typer.Argument(help="The key's id, as `keys list` shows it.")] = None,
    issued_before: Annotated[
        datetime | None,
        typer.Option(
            parser=_instant, metavar="TIME", help=f"All secrets from before, instead. {_WHEN}"
        ),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """End a key for good. When this returns, no server accepts it any more."""
    if (id is None) == (issued_before is None):
        raise typer.BadParameter("give a key's id, or --issued-before")
    with changing(ctx) as service:
        ended: KeyView | list[KeyView]
        if issued_before:
            ended = service.revoke_issued_before(issued_before, force=force, actor=_actor())
        else:
            ended = service.revoke(f"{id}", force=force, actor=_actor())
        _show_when_all_follow(service, ended, as_json)


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
        typer.Option(parser=_duration, metavar="7d", help="How long ago to begin."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how often keys were used, and who was refused without one."""
    since = timedelta(days=7) if since is None else since
    if not since:
        raise typer.BadParameter("that is no time at all; write --since 7d")
    with reading(ctx) as service:
        if id is None:
            everything = report.of_all(service.engine, since)
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
        known = _known_keys(wiring_of(ctx).load_settings())
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


def _open(ctx: typer.Context, settings: AuthSettings) -> KeyService:
    return open_service(settings, wiring_of(ctx).make_policies(settings))


@contextmanager
def reading(ctx: typer.Context) -> Generator[KeyService]:
    """For commands that neither create nor migrate a database."""
    with one_line_errors():
        yield _open(ctx, wiring_of(ctx).load_settings())


@contextmanager
def changing(ctx: typer.Context) -> Generator[KeyService]:
    with one_line_errors(" A secret that cannot be shown is not issued."):
        settings = wiring_of(ctx).load_settings()
        service = _open(ctx, settings)
        service.import_env_keys()
        name_database(settings)
        yield service


def _wait_until_all_follow(service: KeyService) -> None:
    seconds = service.longest_staleness()
    note(f"Waiting {seconds:g} s: then no server accepts it any more.")
    sleep(seconds)


def _show_when_all_follow(
    service: KeyService, ended: KeyView | Sequence[KeyView], as_json: bool
) -> None:
    _wait_until_all_follow(service)
    show(ended, as_json)


def _actor() -> str:
    """The user who runs this process. Environment variables do not change it."""
    try:
        import pwd

        user = pwd.getpwuid(os.getuid()).pw_name
    except ImportError:  # Windows
        user = os.getlogin()
    except KeyError:  # a container may run as a user without a name
        user = f"{os.getuid()}"
    return f"cli:{user:.90}" if user.isprintable() else "cli"

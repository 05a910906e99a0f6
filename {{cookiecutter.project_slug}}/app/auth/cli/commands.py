"""The command line: `keys` manages the keys, also while no server runs; `db upgrade` the schema."""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from math import ceil
from time import sleep
from typing import Annotated, Literal

import typer
from pydantic import BaseModel

from app.auth.config import sources
from app.auth.config.settings import AuthSettings
from app.auth.database import clock
from app.auth.database.engine import transaction
from app.auth.database.models import ENV_ID
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.key import id_of
from app.auth.keys.service import KeyService, KeyServiceError, open_service
from app.auth.keys.views import OVERLAP, IssuedKey, KeyUse, KeyView, UsageView
from app.auth.usage.counts import OUTCOMES
from app.settings import load_settings

# Plain tracebacks: pretty ones can show local variables, and with them a key.
main = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
keys = typer.Typer(no_args_is_help=True)
db = typer.Typer(no_args_is_help=True)
main.add_typer(keys, name="keys", help="Create, rotate, revoke and watch the keys.")
main.add_typer(db, name="db", help="The database's schema.")


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


# What `show` tells and a table has no room for.
_DETAILS = {
    "limits",
    "networks",
    "created_by",
    "issued_at",
    "revoked_at",
    "old_key_expires_at",
    "old_key_last_used_at",
}
_WHEN = "A date is its first moment; without a zone, times are in UTC."

Id = Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Also the last key that may manage keys.")]


@main.callback()
def _prepare() -> None:
    """Manage the service from the command line."""
    # What the terminal cannot show is escaped: better than a secret that is lost.
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Who uses it.")],
    scope: Annotated[list[str] | None, typer.Option(help="What for; may be given again.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="600/minute", help="How often: a second, minute or hour slides."),
    ] = None,
    quota: Annotated[
        list[str] | None,
        typer.Option(metavar="50000/month", help="How often in a day or month of the calendar."),
    ] = None,
    networks: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="10.0.0.0/8", help="From these addresses alone."),
    ] = None,
    expires_in: Annotated[timedelta | None, typer.Option(parser=_duration, metavar="90d")] = None,
    expires_at: Annotated[
        datetime | None, typer.Option(parser=_instant, metavar="TIME", help=_WHEN)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, this once."""
    if expires_in is not None and expires_at:
        raise typer.BadParameter("give --expires-in or --expires-at")
    with _changing() as service:
        if expires_in is not None:
            with transaction(service.engine) as connection:
                expires_at = clock.now(connection) + expires_in
        service.create(
            name,
            scope or (),
            limits=_limits(limit or (), quota or ()),
            networks=networks or (),
            expires_at=expires_at,
            actor=_actor(),
            show=partial(_show, as_json=as_json),
        )
        if (limit or quota) and service.counts_limits_apart():
            _note(
                "Several servers were there lately. Where they run at once, each counts for itself:"
                " name a VALKEY_URL for them."
            )


def _limits(sliding: Iterable[str], quotas: Iterable[str]) -> list[str]:
    """Each with the option that says what it is."""
    for text in sliding:
        if text.endswith(("/day", "/month")):
            raise typer.BadParameter(f"{text} is of the calendar: give it as --quota")
    for text in quotas:
        if not text.endswith(("/day", "/month")):
            raise typer.BadParameter(f"{text} slides: give it as --limit")
    return [*sliding, *quotas]


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Show all keys, oldest first."""
    with _service() as service:
        _show(list(service.all()), as_json)


@keys.command()
def show(id: Id, as_json: AsJson = False) -> None:
    """Show a key, and whether its old secret is still being used."""
    with _service() as service:
        _show(service.get(id), as_json)


@keys.command()
def rotate(
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
    with _changing() as service:
        if no_new and drop:
            _show_when_all_follow(service, service.drop(id, drop, actor=_actor()), as_json)
            return
        show = partial(_show, as_json=as_json)
        service.rotate(id, overlap=overlap, drop=drop, actor=_actor(), show=show)
        if drop or not overlap:
            _wait_until_all_follow(service)


@keys.command()
def revoke(
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
    if id is not None and issued_before is None:
        with _changing() as service:
            revoked = service.revoke(id, force=force, actor=_actor())
            _show_when_all_follow(service, revoked, as_json)
    elif issued_before is not None and id is None:
        with _changing() as service:
            all_revoked = service.revoke_issued_before(issued_before, force=force, actor=_actor())
            _show_when_all_follow(service, all_revoked, as_json)
    else:
        raise typer.BadParameter("give a key's id, or --issued-before")


@keys.command()
def audit(
    id: Annotated[str | None, typer.Argument(help="Of this key alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what was done to the keys, when and by whom."""
    with _service() as service:
        _show(service.events(id), as_json)


@keys.command()
def usage(
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
    with _service() as service:
        if id is None:
            everything = service.all_usage(since)
            if as_json:
                _show(everything, as_json)
                return
            _show(everything.keys, as_json)
            _print("")
            _show(everything.strangers, as_json)
            return
        used = service.usage(id, since)
        if as_json:
            _show(used, as_json)
            return
        _show(KeyUse(**used.model_dump(include={*KeyUse.model_fields})), as_json)
        _print("")
        _show(used.by_secret, as_json)
        _print("")
        _print(_chart(used, since))


def _chart(used: UsageView, since: timedelta) -> str:
    """A bar for each hour of two days, or for each day of more."""
    by_hour = since <= timedelta(days=2)
    counts: dict[str, Counter[str]] = {}
    for period in used.by_hour:
        when = f"{period.starts_at:%Y-%m-%d %H:00Z}" if by_hour else f"{period.starts_at:%Y-%m-%d}"
        counts.setdefault(when, Counter()).update(period.model_dump(include={*OUTCOMES}))
    most = max((each.total() for each in counts.values()), default=0)
    rows = [
        [
            when,
            "#" * ceil(40 * each.total() / max(most, 1)),
            *(f"{each[outcome]}" for outcome in OUTCOMES),
        ]
        for when, each in counts.items()
    ]
    heads = ["HOUR" if by_hour else "DAY", "", *(outcome.upper() for outcome in OUTCOMES)]
    return _aligned([heads, *rows])


@keys.command()
def doctor(as_json: AsJson = False) -> None:
    """Look for keys that need attention; exit with 1 if there is one."""
    with _service() as service:
        # Here, for it starts up the whole service, which would make a database.
        from app.auth.usage.doctor import diagnose, examine_file
        from app.main import app

        findings = [*examine_file(sources.ENV_FILE), *diagnose(service, app.routes)]
        _show(findings, as_json)
    raise typer.Exit(bool(findings))


@keys.command()
def scan(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Text, logs, dumps; - is what you type or paste."),
    ],
    as_json: AsJson = False,
) -> None:
    """Look for keys in files, however they are spelled; exit with 1 if there is one."""
    from app.auth.cli.scan import Source, report

    with _one_line_errors():
        settings = load_settings()
        in_env = {each: ENV_ID + id_of(each) for each in settings.api_keys}
        service = cache(lambda: open_service(settings))  # only if there is something to ask for
        sources: list[Source] = [lambda _: in_env, lambda digests: service().ids_of(digests)]
        found = report(files, sources, show=_print, note=_note, as_json=as_json)
    raise typer.Exit(found)


@db.command("upgrade")
def upgrade_database() -> None:
    """Make all tables, or bring them up to date before a newer service starts."""
    from app.auth.database.migrate import upgrade
    from app.auth.database.owner_migrations import upgrade_tables

    with _one_line_errors():
        settings = load_settings()
        _name_database(settings)
        upgrade(settings.database_url)
        upgrade_tables(settings.database_url)
        _print("The schema is up to date.")


@db.command("thin")
def thin_database() -> None:
    """Sum up the hours of how keys were used, where they are a month old, into days."""
    with _service() as service:
        _print(f"{service.thin_usage()} rows less.")


@contextmanager
def _service() -> Generator[KeyService]:
    """For commands that only read: they make no database, and migrate none."""
    with _one_line_errors():
        yield open_service(load_settings())


@contextmanager
def _changing() -> Generator[KeyService]:
    with _one_line_errors(" A secret that cannot be shown is not issued."):
        settings = load_settings()
        service = open_service(settings)
        service.adopt_env_keys()
        _name_database(settings)
        yield service


@contextmanager
def _one_line_errors(not_shown: str = "") -> Generator[None]:
    try:
        if sys.stdout is None:
            raise _NotShownError("it is closed")
        yield
    except (SettingsError, KeyServiceError, StoreUnavailableError) as error:
        _note(f"{error}")
        raise typer.Exit(1) from None
    except _NotShownError as error:
        _note(f"{error}{not_shown}")
        raise typer.Exit(1) from None


def _name_database(settings: AuthSettings) -> None:
    """Say where, if that is not the usual place: a shell may have another environment."""
    if settings.database_url != AuthSettings.model_fields["database_url"].default:
        _note(f"In {settings.database_url.set(query={}).render_as_string()}:")


def _wait_until_all_follow(service: KeyService) -> None:
    seconds = service.longest_staleness()
    _note(f"Waiting {seconds:g} s: then no server accepts it any more.")
    sleep(seconds)


def _show_when_all_follow(
    service: KeyService, ended: KeyView | Sequence[KeyView], as_json: bool
) -> None:
    _wait_until_all_follow(service)
    _show(ended, as_json)


def _actor() -> str:
    """The user of this process, not what some variable says."""
    try:
        import pwd

        user = pwd.getpwuid(os.getuid()).pw_name
    except ImportError:  # Windows
        user = os.getlogin()
    except KeyError:  # a container may run as a user without a name
        user = f"{os.getuid()}"
    return f"cli:{user:.90}" if user.isprintable() else "cli"


def _show(result: BaseModel | Sequence[BaseModel], as_json: bool) -> None:
    several = result if isinstance(result, Sequence) else [result]
    if as_json:
        dumped = [each.model_dump(mode="json") for each in several]
        _print(json.dumps(dumped if several is result else dumped[0]))
    elif several is not result:
        fields = [(f"{name}:", _readable(value)) for name, value in several[0]]
        _print(_aligned(fields))
    elif several:
        names = [name for name in type(several[0]).model_fields if name not in _DETAILS]
        rows = [[_readable(getattr(each, name)) for name in names] for each in several]
        _print(_aligned([[name.replace("_", " ").upper() for name in names], *rows]))
    else:
        _print("None.")
    if isinstance(result, IssuedKey) and not as_json:
        _note("Keep the key now: it is not shown again.")


class _NotShownError(Exception):
    """Standard output does not take what there is to show."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Standard output: {reason}.")


def _print(text: str) -> None:
    """Raises _NotShownError if it does not arrive."""
    try:
        typer.echo(text)  # which leaves nothing in a buffer
    except OSError as error:
        sys.stdout = None  # or Python tries once more at its end, and says so in ten lines
        raise _NotShownError(f"{error.strerror}") from None


def _note(text: str) -> None:
    """For people; what is done does not depend on whether they can read it."""
    try:
        typer.echo(text, err=True)
        sys.stderr.flush()
    except (AttributeError, OSError):  # it is closed, or what it goes to is
        sys.stderr = None  # or Python tries once more to write it at its end, and fails


def _readable(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%MZ}"
    if isinstance(value, list):
        return " ".join(value) or "-"
    return "-" if value in (None, "") else f"{value}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)

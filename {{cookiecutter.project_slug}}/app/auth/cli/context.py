"""What the commands share: their wiring, their options, and the service that they open."""

import os
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import sleep
from typing import Annotated, Any, cast

import typer

from app.auth.access.policy import Policy
from app.auth.cli.output import note, one_line_errors, show
from app.auth.config.settings import AuthSettings
from app.auth.keys.service import KeyService, open_service
from app.auth.keys.views import KeyView


@dataclass(frozen=True)
class Wiring:
    """What the commands need of the application. Each is used only when it is needed."""

    load_settings: Callable[[], Any]  # an AuthSettings. Raises SettingsError
    make_policies: Callable[[Any], Sequence[Policy]]  # for these settings
    routes: Callable[[], Sequence[Any]]  # of the application, which this imports
    migrations: Path  # the folder for the owner's tables


def wiring_of(ctx: typer.Context) -> Wiring:
    return cast("Wiring", ctx.obj)


def duration(text: str) -> timedelta:
    if not (match := re.fullmatch(r"(\d{1,5})([smhdw])", text)):
        raise typer.BadParameter("write a number and s, m, h, d or w, for example 90d")
    names = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    return timedelta(**{names[match[2]]: int(match[1])})


def instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            "write it like 2030-12-31T23:59+02:00; 2030-12-31 is its first moment, in UTC"
        ) from None


WHEN = "A date is its first moment; without a zone, times are in UTC."
Id = Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Also the last key that may manage keys.")]
Owner = Annotated[str | None, typer.Option(help="Whose it is, as your own records say.")]
Note = Annotated[str | None, typer.Option(help="What else is worth knowing.")]
ExpiresIn = Annotated[timedelta | None, typer.Option(parser=duration, metavar="90d")]
ExpiresAt = Annotated[datetime | None, typer.Option(parser=instant, metavar="TIME", help=WHEN)]


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


def name_database(settings: AuthSettings) -> None:
    """Name the database if it is not the default: a shell may have other settings."""
    if settings.database_url != AuthSettings.model_fields["database_url"].default:
        note(f"In {settings.database_url.set(query={}).render_as_string()}:")


def wait(seconds: float) -> None:
    note(f"Waiting {seconds:g} s: then every server follows.")
    sleep(seconds)


def wait_until_all_follow(service: KeyService) -> None:
    wait(service.longest_staleness())


def show_when_all_follow(
    service: KeyService, changed: KeyView | Sequence[KeyView], as_json: bool
) -> None:
    wait_until_all_follow(service)
    show(changed, as_json)


def actor() -> str:
    """The user who runs this process. Environment variables do not change it."""
    try:
        import pwd

        user = pwd.getpwuid(os.getuid()).pw_name
    except ImportError:  # Windows
        user = os.getlogin()
    except KeyError:  # a container may run as a user without a name
        user = f"{os.getuid()}"
    return f"cli:{user:.90}" if user.isprintable() else "cli"

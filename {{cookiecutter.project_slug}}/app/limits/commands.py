"""`keys create` with options for limits and addresses."""

from collections.abc import Iterable
from typing import Annotated

import typer

from app.auth.cli import commands
from app.auth.cli.commands import AsJson, ExpiresAt, ExpiresIn, Name, Scopes


def create(
    ctx: typer.Context,
    name: Name,
    scope: Scopes = None,
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
    expires_in: ExpiresIn = None,
    expires_at: ExpiresAt = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and show it, this once."""
    restrictions = {"limits": _limits(limit or (), quota or ()), "networks": networks or []}
    commands.create_key(ctx, name, scope, restrictions, expires_in, expires_at, as_json)


def _limits(sliding: Iterable[str], quotas: Iterable[str]) -> list[str]:
    """Both kinds in one list. Raises BadParameter if one was given to the wrong option."""
    for text in sliding:
        if text.endswith(("/day", "/month")):
            raise typer.BadParameter(f"{text} is of the calendar: give it as --quota")
    for text in quotas:
        if not text.endswith(("/day", "/month")):
            raise typer.BadParameter(f"{text} slides: give it as --limit")
    return [*sliding, *quotas]

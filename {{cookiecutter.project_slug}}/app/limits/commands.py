"""`keys create` and `keys update` with options for limits and addresses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import typer

from app.auth.cli.changes import (
    Added,
    Name,
    NewName,
    NoExpiry,
    Removed,
    Scopes,
    Update,
    create_key,
    update_key,
)
from app.auth.cli.context import AsJson, ExpiresAt, ExpiresIn, Force, Id, Note, Owner
from app.auth.keys.change import Fields
from app.auth.keys.views import KeyView

Limits = Annotated[
    list[str] | None,
    typer.Option("--limit", metavar="600/minute", help="A second, minute or hour slides."),
]
Quotas = Annotated[
    list[str] | None,
    typer.Option("--quota", metavar="50000/month", help="Of a day or month of the calendar."),
]
Networks = Annotated[
    list[str] | None,
    typer.Option("--from", metavar="10.0.0.0/8", help="From these addresses alone."),
]
OF_CALENDAR = ("/day", "/month")


def create(
    ctx: typer.Context,
    name: Name,
    scope: Scopes = None,
    limit: Limits = None,
    quota: Quotas = None,
    networks: Networks = None,
    owner: Owner = None,
    note: Note = None,
    expires_in: ExpiresIn = None,
    expires_at: ExpiresAt = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and show it, this once."""
    fields = Fields(name=name, scopes=scope or [], owner=owner or "", note=note or "")
    limits = _limits(limit or (), quota or ())
    fields["restrictions"] = {"limits": limits, "networks": networks or []}
    create_key(ctx, fields, expires_in, expires_at, as_json)


def update(
    ctx: typer.Context,
    id: Id,
    name: NewName = None,
    add_scope: Added = None,
    remove_scope: Removed = None,
    limit: Limits = None,
    quota: Quotas = None,
    networks: Networks = None,
    owner: Owner = None,
    note: Note = None,
    expires_in: ExpiresIn = None,
    expires_at: ExpiresAt = None,
    no_expiry: NoExpiry = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Change a key. What is not given stays; an empty text clears it."""

    def restrict(key: KeyView) -> Mapping[str, Sequence[str]]:
        """--limit takes the place of all that slide, --quota of all of the calendar."""
        had = key.restrictions.get("limits", [])
        sliding = [text for text in had if not text.endswith(OF_CALENDAR)]
        quotas = [text for text in had if text.endswith(OF_CALENDAR)]
        bounds = {}
        if not limit is quota is None:
            bounds["limits"] = _limits(
                sliding if limit is None else filter(None, limit),
                quotas if quota is None else filter(None, quota),
            )
        if networks is not None:
            bounds["networks"] = [*filter(None, networks)]
        return bounds

    _limits(filter(None, limit or ()), filter(None, quota or ()))  # complains before all else
    texts = {"name": name, "owner": owner, "note": note}
    edit = Update(texts, add_scope, remove_scope, expires_in, expires_at, no_expiry)
    if not limit is quota is networks is None:
        edit = replace(edit, restrict=restrict)
    update_key(ctx, id, edit, force, as_json)


def _limits(sliding: Iterable[str], quotas: Iterable[str]) -> list[str]:
    """Both kinds in one list. Raises BadParameter if one was given to the wrong option."""
    sliding, quotas = [*sliding], [*quotas]
    for text in sliding:
        if text.endswith(OF_CALENDAR):
            raise typer.BadParameter(f"{text} is of the calendar: give it as --quota")
    for text in quotas:
        if not text.endswith(OF_CALENDAR):
            raise typer.BadParameter(f"{text} slides: give it as --limit")
    return [*sliding, *quotas]

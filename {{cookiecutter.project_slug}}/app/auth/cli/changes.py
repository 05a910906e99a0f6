"""The commands `keys` that change keys."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any, Literal, cast

import typer

from app.auth.cli.context import (
    WHEN,
    AsJson,
    ExpiresAt,
    ExpiresIn,
    Force,
    Id,
    Note,
    Owner,
    actor,
    changing,
    duration,
    instant,
    show_when_all_follow,
    wait_until_all_follow,
)
from app.auth.cli.output import show
from app.auth.database import clock
from app.auth.database.engine import transaction
from app.auth.errors import InvalidError
from app.auth.keys.change import Fields
from app.auth.keys.service import KeyService
from app.auth.keys.views import OVERLAP, KeyView

Name = Annotated[str, typer.Argument(help="Who uses it.")]
Scopes = Annotated[list[str] | None, typer.Option("--scope", help="What for; repeatable.")]
NewName = Annotated[str | None, typer.Option("--name")]
Added = Annotated[list[str] | None, typer.Option("--add-scope", help="Repeatable.")]
Removed = Annotated[list[str] | None, typer.Option("--remove-scope", help="Repeatable.")]
NoExpiry = Annotated[bool, typer.Option("--no-expiry", help="It has no end any more.")]

keys = typer.Typer(no_args_is_help=True)


@keys.command()
def create(
    ctx: typer.Context,
    name: Name,
    scope: Scopes = None,
    owner: Owner = None,
    note: Note = None,
    expires_in: ExpiresIn = None,
    expires_at: ExpiresAt = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and show it, this once."""
    fields = Fields(name=name, scopes=scope or [], owner=owner or "", note=note or "")
    create_key(ctx, fields, expires_in, expires_at, as_json)


def create_key(
    ctx: typer.Context,
    fields: Fields,
    expires_in: timedelta | None,
    expires_at: datetime | None,
    as_json: bool,
) -> None:
    """Shared with the command of a part that adds options."""
    _give_one_end(expires_in, expires_at)
    with changing(ctx) as service:
        fields["expires_at"] = _end(service, expires_in, expires_at)
        service.create(**fields, actor=actor(), show=partial(show, as_json=as_json))


def _give_one_end(
    expires_in: timedelta | None, expires_at: datetime | None, no_expiry: bool = False
) -> None:
    if (expires_in is not None) + bool(expires_at) + no_expiry > 1:
        raise typer.BadParameter("give --no-expiry or a time, with --expires-in or --expires-at")


def _end(
    service: KeyService, expires_in: timedelta | None, expires_at: datetime | None
) -> datetime | None:
    if expires_in is None:
        return expires_at
    with transaction(service.engine) as connection:
        return clock.now(connection) + expires_in


@keys.command()
def update(
    ctx: typer.Context,
    id: Id,
    name: NewName = None,
    add_scope: Added = None,
    remove_scope: Removed = None,
    owner: Owner = None,
    note: Note = None,
    expires_in: ExpiresIn = None,
    expires_at: ExpiresAt = None,
    no_expiry: NoExpiry = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Change a key. What is not given stays; an empty text clears it."""
    texts = {"name": name, "owner": owner, "note": note}
    edit = Update(texts, add_scope, remove_scope, expires_in, expires_at, no_expiry)
    update_key(ctx, id, edit, force, as_json)


@dataclass(frozen=True)
class Update:
    """What `update` was given. Shared with the one of a part that adds options."""

    texts: Mapping[str, str | None]
    added: Sequence[str] | None
    removed: Sequence[str] | None
    expires_in: timedelta | None
    expires_at: datetime | None
    no_expiry: bool
    restrict: Callable[[KeyView], Mapping[str, Sequence[str]]] | None = None

    def __call__(self, key: KeyView) -> Fields:
        fields: dict[str, Any] = {
            name: text for name, text in self.texts.items() if text is not None
        }
        if self.added or self.removed:
            if absent := {*(self.removed or ())} - {*key.scopes}:
                held = " ".join(key.scopes) or "none"
                raise InvalidError(f"{key.id} has no scope {min(absent)}; it has {held}")
            fields["scopes"] = {*key.scopes, *(self.added or ())} - {*(self.removed or ())}
        if self.expires_at or self.no_expiry:
            fields["expires_at"] = self.expires_at
        if self.restrict:
            fields["restrictions"] = {**key.restrictions, **self.restrict(key)}
        return cast("Fields", fields)


def update_key(ctx: typer.Context, id: str, edit: Update, force: bool, as_json: bool) -> None:
    _give_one_end(edit.expires_in, edit.expires_at, edit.no_expiry)
    with changing(ctx) as service:
        edit = replace(edit, expires_at=_end(service, edit.expires_in, edit.expires_at))
        updated = service.update(id, edit, force=force, actor=actor())
        show_when_all_follow(service, updated, as_json)


@keys.command()
def pause(ctx: typer.Context, id: Id, force: Force = False, as_json: AsJson = False) -> None:
    """Refuse a key until `resume`. When this returns, no server accepts it."""
    with changing(ctx) as service:
        paused = service.pause(id, force=force, actor=actor())
        show_when_all_follow(service, paused, as_json)


@keys.command()
def resume(ctx: typer.Context, id: Id, as_json: AsJson = False) -> None:
    """Accept a paused key again."""
    with changing(ctx) as service:
        show_when_all_follow(service, service.resume(id, actor=actor()), as_json)


@keys.command()
def rotate(
    ctx: typer.Context,
    id: Id,
    overlap: Annotated[
        timedelta | None,
        typer.Option(parser=duration, metavar="24h", help="How long the old secret lives on."),
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
            show_when_all_follow(service, service.drop(id, drop, actor=actor()), as_json)
            return
        shown = partial(show, as_json=as_json)
        service.rotate(id, overlap=overlap, drop=drop, actor=actor(), show=shown)
        if drop or not overlap:
            wait_until_all_follow(service)


@keys.command()
def revoke(
    ctx: typer.Context,
    id: Annotated[str | None, typer.Argument(help="The key's id, as `keys list` shows it.")] = None,
    issued_before: Annotated[
        datetime | None,
        typer.Option(
            parser=instant, metavar="TIME", help=f"All secrets from before, instead. {WHEN}"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --issued-before: only say which keys.")
    ] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """End a key for good. When this returns, no server accepts it any more."""
    if (id is None) == (issued_before is None) or (dry_run and not issued_before):
        raise typer.BadParameter("give a key's id, or --issued-before")
    with changing(ctx) as service:
        ended: KeyView | list[KeyView]
        if issued_before:
            ended = service.revoke_issued_before(
                issued_before, force=force, dry_run=dry_run, actor=actor()
            )
        else:
            ended = service.revoke(f"{id}", force=force, actor=actor())
        if dry_run:
            show(ended, as_json)
        else:
            show_when_all_follow(service, ended, as_json)

"""The public data of keys, and the queries for it."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import sqlalchemy as sa
from pydantic import BaseModel, Field

from app.auth.database.models import api_key_secrets, api_keys
from app.auth.errors import NotFoundError
from app.auth.key import Key, masked

OVERLAP: Final = timedelta(hours=24)
LONGEST: Final = timedelta(days=36_500)
AT_ONCE: Final = 1000  # keys per query


class KeyView(BaseModel):
    """A key without its secret. Times are in UTC."""

    id: str
    name: str
    scopes: list[str]
    restrictions: dict[str, list[str]]  # by the name of the policy
    owner: str
    note: str
    status: Literal["active", "paused", "expired", "revoked"]
    created_by: str
    created_at: datetime
    issued_at: datetime  # of its newest secret
    expires_at: datetime | None
    paused_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    # Of the old secret, while a rotation overlaps.
    old_key_expires_at: datetime | None
    old_key_last_used_at: datetime | None


class IssuedKey(KeyView):
    """A key with its new secret, which is never shown again."""

    key: str = Field(repr=False)


class EventView(BaseModel):
    at: datetime
    action: str
    actor: str
    key_id: str
    changes: dict[str, list[Any]] | None  # of an update: by field, before and after


def is_active(now: datetime) -> sa.ColumnElement[bool]:
    unexpired = sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now)
    return sa.and_(api_keys.c.revoked_at.is_(None), api_keys.c.paused_at.is_(None), unexpired)


def select_views(now: datetime) -> sa.Select[Any]:
    """Select the columns of a KeyView, one row per key."""
    secret, latest = api_key_secrets.c, sa.func.max
    key, active = api_keys.c, is_active(now)
    status = sa.case(
        (active, "active"),
        (key.revoked_at.is_not(None), "revoked"),
        (key.expires_at <= now, "expired"),
        else_="paused",
    )
    old = sa.and_(active, secret.ended_at.is_(None), secret.expires_at > now)
    computed = {
        "status": status,
        "issued_at": latest(secret.created_at),
        "last_used_at": latest(secret.last_used_at),
        "old_key_expires_at": latest(sa.case((old, secret.expires_at))),
        "old_key_last_used_at": latest(sa.case((old, secret.last_used_at))),
    }
    columns = [column.label(name) for name, column in computed.items()]
    return sa.select(api_keys, *columns).join(api_key_secrets).group_by(api_keys.c.id)


def is_of(owner: str | None) -> sa.ColumnElement[bool]:
    """Whether a key is one of this owner. No key is one of the owner ""; None is for all keys."""
    if owner is None:
        return sa.true()
    return (api_keys.c.owner == owner) & (api_keys.c.owner != "")


def active_keys(connection: sa.Connection, now: datetime) -> Iterator[KeyView]:
    """Stream the active keys, in batches of AT_ONCE."""
    rows = connection.execution_options(yield_per=AT_ONCE).execute(
        select_views(now).where(is_active(now))
    )
    return map(shown, rows)


def get_view(
    connection: sa.Connection, id: str, now: datetime, owner: str | None = None
) -> KeyView:
    """The key with this id; with an owner, only if it is the key of this owner.

    Raises NotFoundError.
    """
    row = None
    if id.isascii() and id.isprintable():  # PostgreSQL rejects some other text
        which = (api_keys.c.id == id, is_of(owner))
        row = connection.execute(select_views(now).where(*which)).one_or_none()
    if row is None:
        raise NotFoundError(f"No key has the id '{masked(id)}'; `keys list` shows the ids")
    return shown(row)


def shown(row: sa.Row[Any]) -> KeyView:
    """Return the KeyView for a row of `select_views`."""
    return KeyView.model_validate({**row._mapping, "scopes": row.scopes.split()})


def key_of(row: sa.Row[Any]) -> Key:
    """Return the Key for a row with the columns of `api_keys`."""
    return Key(row.id, row.name, frozenset(row.scopes.split()), row.restrictions, row.owner)

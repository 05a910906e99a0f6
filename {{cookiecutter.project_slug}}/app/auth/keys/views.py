"""The public data of keys, and the queries for it."""

from collections.abc import Iterator, Sequence
from copy import copy
from datetime import datetime, timedelta
from typing import Any, Final, Literal, Self

import sqlalchemy as sa
from pydantic import BaseModel, Field

from app.auth.access.policy import Policy
from app.auth.config.settings import AuthSettings
from app.auth.database import clock
from app.auth.database.engine import connect, transaction
from app.auth.database.models import (
    ENV_ID,
    LEAST_STALENESS,
    api_key_events,
    api_key_secrets,
    api_key_servers,
    api_keys,
)
from app.auth.errors import NotFoundError, StoreUnavailableError
from app.auth.key import Key, id_of, masked

OVERLAP: Final = timedelta(hours=24)
LONGEST: Final = timedelta(days=36_500)
AT_ONCE: Final = 1000  # keys per query
LONGEST_STALENESS: Final = 60.0  # seconds; the maximum in the settings


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


def flat(item: BaseModel, mode: str = "json") -> dict[str, Any]:
    """Its fields, with each restriction of a key as a field of its own."""
    fields: dict[str, Any] = {}
    for name, value in item.model_dump(mode=mode).items():
        fields |= value if name == "restrictions" else {name: value}
    return fields


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


class KeyReader:
    """Reads the keys in the database. No server needs to run.

    Every method raises StoreUnavailableError if the database is unreachable.
    """

    def __init__(self, settings: AuthSettings, policies: Sequence[Policy] = ()) -> None:
        self.engine = connect(settings.database_url)
        self.policies = policies
        self.owner: str | None = None  # with one, all other keys do not exist
        self._env_keys = {ENV_ID + id_of(hashed): hashed for hashed in settings.api_keys}

    def of_owner(self, owner: str | None) -> Self:
        """The same for the keys of this owner alone, or of all with None."""
        narrow = copy(self)
        narrow.owner = owner
        return narrow

    def get(self, id: str) -> KeyView:
        """Return one key. Raises NotFoundError."""
        with transaction(self.engine) as connection:
            return self._filled(get_view(connection, id, clock.now(connection), self.owner))

    def page(
        self, after: str = "", limit: int = 100, *conditions: sa.ColumnElement[bool]
    ) -> list[KeyView]:
        """Return keys after the id `after`, oldest first; keys of API_KEYS come last."""
        with transaction(self.engine) as connection:
            query = select_views(clock.now(connection)).where(is_of(self.owner), *conditions)
            query = query.where(api_keys.c.id > after)
            rows = connection.execute(query.order_by(api_keys.c.id).limit(limit))
            return [self._filled(shown(row)) for row in rows]

    def all(self) -> Iterator[KeyView]:
        after = ""
        while page := self.page(after, AT_ONCE):
            yield from page
            after = page[-1].id

    def ids_of(self, digests: Sequence[bytes]) -> dict[bytes, str]:
        """Return the key ids of the secrets that the database has, valid or ended."""
        with transaction(self.engine) as connection:
            return ids_of(connection, digests)

    def is_named(self, id: str) -> bool:
        """Whether API_KEYS still names this key. True for keys from elsewhere."""
        return not id.startswith(ENV_ID) or id in self._env_keys

    def events(self, id: str | None = None) -> list[EventView]:
        """Return the events, oldest first. Raises NotFoundError."""
        event = api_key_events.c
        query = sa.select(api_key_events).order_by(event.id)
        query = query.where(event.key_id.in_(sa.select(api_keys.c.id).where(is_of(self.owner))))
        with transaction(self.engine) as connection:
            if id is not None:
                found = get_view(connection, id, clock.now(connection), self.owner)
                query = query.where(event.key_id == found.id)
            rows = connection.execute(query)
            return [EventView.model_validate(row, from_attributes=True) for row in rows]

    def longest_staleness(self) -> float:
        """Seconds until every server knows the changes committed before this call."""
        try:
            with transaction(self.engine) as connection:
                servers = connection.execute(sa.select(api_key_servers)).all()
                now = clock.now(connection)
        except StoreUnavailableError:
            return LONGEST_STALENESS
        # A server that was not seen for a day has stopped, unless this clock is days ahead.
        latest = max((server.seen_at for server in servers), default=now)
        alive = (server for server in servers if server.seen_at > min(now, latest) - clock.DAY)
        longest: float = max((server.max_staleness for server in alive), default=0.0)
        return max(longest, LEAST_STALENESS)

    def _filled(self, view: KeyView) -> KeyView:
        """The view, with an empty list for each restriction that the key does not have."""
        empty = {policy.name: list[str]() for policy in self.policies}
        return view.model_copy(update={"restrictions": empty | view.restrictions})


def ids_of(connection: sa.Connection, digests: Sequence[bytes]) -> dict[bytes, str]:
    secret = api_key_secrets.c
    query = sa.select(secret.digest, secret.key_id).where(secret.digest.in_(digests))
    return {row.digest: row.key_id for row in connection.execute(query)}

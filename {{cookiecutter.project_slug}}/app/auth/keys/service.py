"""The key service: it creates, rotates, revokes and lists keys.

Each change and its event are written in one transaction.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from secrets import token_hex
from typing import Final, Literal

import sqlalchemy as sa

from app.auth.access.policy import Policy, parse_restrictions
from app.auth.config.settings import AuthSettings
from app.auth.database import clock
from app.auth.database.engine import LONG_TIMEOUT, check_schema, connect, transaction
from app.auth.database.migrate import upgrade
from app.auth.database.models import (
    ENV_ID,
    LEAST_STALENESS,
    api_key_events,
    api_key_secrets,
    api_key_servers,
    api_keys,
)
from app.auth.errors import ConflictError, InvalidError, SettingsError, StoreUnavailableError
from app.auth.key import digest, id_of, new_secret, with_prefix
from app.auth.keys.change import Change, check_name, check_scopes
from app.auth.keys.views import (
    AT_ONCE,
    LONGEST,
    OVERLAP,
    EventView,
    IssuedKey,
    KeyView,
    get_view,
    is_active,
    select_views,
    shown,
)

MANAGE: Final = "keys:manage"  # the scope that at least one key must keep
LONGEST_STALENESS: Final = 60.0  # seconds; the maximum in the settings

Show = Callable[[IssuedKey], None]
"""Shows a new secret before the change is committed. If it raises, nothing changes."""


Authorize = Callable[[Change, KeyView], None]
"""Raises ForbiddenError if the caller may not make this change to this key."""


def anybody(_: Change, __: KeyView) -> None:
    """Allow every change, for callers with access to the database."""


class KeyService:
    """Manages the keys in the database. No server needs to run.

    Every method raises StoreUnavailableError if the database is unreachable. `authorize` runs
    inside the transaction. Pass it for callers without access to the database.
    """

    def __init__(self, settings: AuthSettings, policies: Sequence[Policy] = ()) -> None:
        self.engine = connect(settings.database_url)
        self.policies = policies
        self._prefix = settings.key_prefix
        self._env_keys = {ENV_ID + id_of(hashed): hashed for hashed in settings.api_keys}

    def import_env_keys(self) -> None:
        """Add the keys of API_KEYS to the database. A key revoked there stays revoked."""
        listed = [*self._env_keys.values()]
        if len(self.ids_of(listed)) == len(listed):
            return
        with self._change() as change:
            known = _ids_of(change.connection, listed)  # again: another server may have added them
            ids = sorted(id for id, hashed in self._env_keys.items() if hashed not in known)
            for id in ids:
                change.add(id, "API_KEYS", "*", self._env_keys[id], created_by="API_KEYS")
            change.record("created", "API_KEYS", ids)

    def create(
        self,
        name: str,
        scopes: Iterable[str] = (),
        *,
        restrictions: Mapping[str, Sequence[str]] | None = None,
        expires_at: datetime | None = None,
        actor: str,
        authorize: Authorize = anybody,
        show: Show | None = None,
    ) -> IssuedKey:
        """Create a key. Raises InvalidError, or the error of `authorize`."""
        name, scopes, secret = check_name(name), check_scopes(scopes), new_secret()
        try:
            bounds = parse_restrictions(restrictions or {}, self.policies)
        except ValueError as error:
            raise InvalidError(f"{error}") from None
        with self._change() as change:
            if expires_at and not change.now < expires_at < change.now + LONGEST:
                raise InvalidError("A key expires in the future, and within a hundred years")
            # The milliseconds come first, so that ids sort by age.
            id = f"{int(change.now.timestamp() * 1000):011x}{token_hex(3)}"
            more = {"created_by": actor, "expires_at": expires_at, "restrictions": bounds}
            change.add(id, name, scopes, digest(secret.encode()), **more)
            authorize(change, change.view(id))
            change.record("created", actor, [id])
            return self._issued(change.view(id), secret, show)

    def rotate(
        self,
        id: str,
        *,
        overlap: timedelta = OVERLAP,
        drop: Literal["old", "new"] | None = None,
        actor: str,
        authorize: Authorize = anybody,
        show: Show | None = None,
    ) -> IssuedKey:
        """Give a key a new secret. The current one stays valid for the overlap, but no longer than
        before. If two are valid already, `drop` says which one ends now.

        Raises InvalidError, NotFoundError, ForbiddenError or ConflictError.
        """
        if id.startswith(ENV_ID):
            raise ConflictError(f"{id} lives in API_KEYS; create another key, then revoke this one")
        if not timedelta() <= overlap <= LONGEST:
            raise InvalidError("An overlap is between nothing and a hundred years")
        secret = new_secret()
        with self._change() as change:
            key = self._active(change, id, authorize)
            in_force = change.in_force(id)
            if len(in_force) == 2:
                if not drop:
                    raise ConflictError(
                        f"Two secrets of {id} are in force until"
                        f" {key.old_key_expires_at:%Y-%m-%d %H:%M} UTC; drop the old one if nobody"
                        " needs it any more, the new one if it got lost"
                    )
                change.end(api_key_secrets.c.digest == in_force.pop(drop))
            ends_at = change.now + overlap
            for left in in_force.values():
                change.expire(left, min(ends_at, key.expires_at or ends_at))
            change.issue(id, digest(secret.encode()))
            change.record("rotated", actor, [id])
            return self._issued(change.view(id), secret, show)

    def drop(
        self,
        id: str,
        which: Literal["old", "new"],
        *,
        actor: str,
        authorize: Authorize = anybody,
    ) -> KeyView:
        """End one of two secrets without a new one. An old one that remains still expires.

        Raises NotFoundError, ForbiddenError or ConflictError.
        """
        with self._change() as change:
            self._active(change, id, authorize)
            in_force = change.in_force(id)
            if len(in_force) < 2:
                raise ConflictError(f"{id} has no two secrets in force; to end the key, revoke it")
            change.end(api_key_secrets.c.digest == in_force[which])
            change.record(f"dropped {which}", actor, [id])
            return self._filled(change.view(id))

    def revoke(
        self, id: str, *, force: bool = False, actor: str, authorize: Authorize = anybody
    ) -> KeyView:
        """End a key for good.

        Raises NotFoundError, ForbiddenError, or ConflictError if no manager would be left.
        """
        with self._change() as change:
            authorize(change, change.view(id))
            self._revoke(change, api_keys.c.id == id, force, actor)
            return self._filled(change.view(id))

    def revoke_issued_before(
        self, moment: datetime, *, force: bool = False, actor: str
    ) -> list[KeyView]:
        """End every secret issued before `moment`, and revoke each key without a newer one.

        Returns the revoked keys. Raises ConflictError if no manager would be left.
        """
        secret = api_key_secrets.c
        in_force = sa.select(secret.key_id).where(secret.ended_at.is_(None))
        renewed = in_force.where(secret.created_at >= moment)
        outdated = in_force.where(secret.created_at < moment)
        alive = sa.select(api_keys.c.id).where(api_keys.c.revoked_at.is_(None))
        which = api_keys.c.id.in_(outdated) & api_keys.c.id.not_in(renewed)
        with self._change(timeout=LONG_TIMEOUT) as change:
            revoked = self._revoke(change, which, force, actor)
            rotated = change.end(secret.created_at < moment, secret.key_id.in_(alive))
            change.record("dropped old", actor, rotated)
            return [self._filled(view) for view in change.views(revoked)]

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

    def _active(self, change: Change, id: str, authorize: Authorize) -> KeyView:
        key = change.view(id)
        authorize(change, key)
        if key.status != "active":
            raise ConflictError(f"{id} is {key.status}; create another key")
        return key

    def _revoke(
        self, change: Change, which: sa.ColumnElement[bool], force: bool, actor: str
    ) -> list[str]:
        before = self._managers(change)
        ids = change.revoke(which)
        if not force and self._managers(change) < before:
            raise ConflictError(
                f"No key with {MANAGE} and without an end would be left; force it if that is meant"
            )
        change.record("revoked", actor, ids)
        return ids

    def _managers(self, change: Change) -> int:
        """2 if a key without expiry can manage keys, 1 if only expiring keys can, 0 if none can."""
        scopes = " " + api_keys.c.scopes + " "
        manages = [scopes.contains(f" {held} ") for held in ("*", "keys:*", MANAGE)]
        named = sa.or_(api_keys.c.id.not_like(f"{ENV_ID}%"), api_keys.c.id.in_(self._env_keys))
        for_good = sa.case((api_keys.c.expires_at.is_(None), 2), else_=1)
        query = sa.select(sa.func.max(for_good))
        query = query.where(is_active(change.now), named, sa.or_(*manages))
        return change.connection.scalar(query) or 0

    def get(self, id: str) -> KeyView:
        """Return one key. Raises NotFoundError."""
        with transaction(self.engine) as connection:
            return self._filled(get_view(connection, id, clock.now(connection)))

    def page(
        self, after: str = "", limit: int = 100, *conditions: sa.ColumnElement[bool]
    ) -> list[KeyView]:
        """Return keys after the id `after`, oldest first; keys of API_KEYS come last."""
        with transaction(self.engine) as connection:
            query = select_views(clock.now(connection)).where(api_keys.c.id > after, *conditions)
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
            return _ids_of(connection, digests)

    def is_named(self, id: str) -> bool:
        """Whether API_KEYS still names this key. True for keys from elsewhere."""
        return not id.startswith(ENV_ID) or id in self._env_keys

    def events(self, id: str | None = None) -> list[EventView]:
        """Return the events, oldest first. Raises NotFoundError."""
        query = sa.select(api_key_events).order_by(api_key_events.c.id)
        with transaction(self.engine) as connection:
            if id is not None:
                found = get_view(connection, id, clock.now(connection))
                query = query.where(api_key_events.c.key_id == found.id)
            rows = connection.execute(query)
            return [EventView.model_validate(row, from_attributes=True) for row in rows]

    @contextmanager
    def _change(self, timeout: float | None = None) -> Generator[Change]:
        with transaction(self.engine, write=True, timeout=timeout) as connection:
            yield Change(connection, clock.now(connection))

    def _filled(self, view: KeyView) -> KeyView:
        """The view, with an empty list for each restriction that the key does not have."""
        empty = {policy.name: list[str]() for policy in self.policies}
        return view.model_copy(update={"restrictions": empty | view.restrictions})

    def _issued(self, view: KeyView, secret: str, show: Show | None) -> IssuedKey:
        issued = IssuedKey(**self._filled(view).model_dump(), key=with_prefix(secret, self._prefix))
        if show:
            show(issued)
        return issued


def _ids_of(connection: sa.Connection, digests: Sequence[bytes]) -> dict[bytes, str]:
    secret = api_key_secrets.c
    query = sa.select(secret.digest, secret.key_id).where(secret.digest.in_(digests))
    return {row.digest: row.key_id for row in connection.execute(query)}


def open_service(
    settings: AuthSettings, policies: Sequence[Policy] = (), *, migrate: bool = False
) -> KeyService:
    """Check the schema; `migrate` upgrades it on SQLite. Raises SettingsError if the service needs
    another schema, and StoreUnavailableError."""
    service = KeyService(settings, policies)
    try:
        check_schema(service.engine)
    except SettingsError:
        if not (migrate and service.engine.dialect.name == "sqlite"):
            raise
        upgrade(settings.database_url)
    return service

"""The life of a key: created, rotated, revoked, and what is told about it.

Every change is one transaction with its event in it: it happens wholly or not at all.
"""

import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from secrets import token_bytes, token_hex
from typing import Any, Final, Literal, TypeVar

import sqlalchemy as sa

from app.auth.database import clock
from app.auth.database.engine import LONG_PATIENCE, check_schema, connect, transaction
from app.auth.database.models import (
    ENV_ID,
    LEAST_STALENESS,
    api_key_events,
    api_key_secrets,
    api_key_servers,
    api_keys,
)
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.key import Key, digest, id_of, is_scope, masked, new_secret, with_prefix
from app.auth.keys.views import (
    LONGEST,
    OVERLAP,
    AllUsage,
    DayOfUse,
    EventView,
    Finding,
    IssuedKey,
    KeyView,
    UsageView,
)
from app.auth.usage import counts as usage
from app.auth.usage.anomalies import examine_usage
from app.limits.allowed_from import are_within, parse_networks
from app.limits.rates import are_within as limits_are_within
from app.limits.rates import parse_limits, with_default, written

MANAGE: Final = "keys:manage"  # the scope that somebody must keep
LONGEST_STALENESS: Final = 60.0  # seconds; what the settings allow at most
AT_ONCE: Final = 1000  # keys, so that no query gets long

# Printable for Unicode, but nothing that somebody could see.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


T = TypeVar("T")


class KeyServiceError(Exception):
    """Why a change was not made, and what can be done. Nothing has changed."""


class InvalidError(KeyServiceError):
    """A name, a scope or a time that is none."""


class ForbiddenError(KeyServiceError):
    """The caller who asked for it may not have it."""


class NotFoundError(KeyServiceError):
    """No key has this id."""


class ConflictError(KeyServiceError):
    """The key, or the keys as a whole, are in a state that does not allow it."""


Show = Callable[[IssuedKey], None]
"""Shows a new secret before the change is committed: if it fails, nothing has changed."""


def check_name(name: str) -> str:
    """Without the space around it. Raises InvalidError for what people could not tell apart."""
    name = name.strip()
    visible = any(unicodedata.category(each)[0] in "LNPS" for each in name)
    if not (visible and name.isprintable() and len(name) <= 100 and _BLANK.isdisjoint(name)):
        raise InvalidError("A name has 1 to 100 characters, all of them visible or spaces")
    return name


def check_scopes(scopes: Iterable[str]) -> list[str]:
    """Each of them once, in order. Raises InvalidError for what is no scope."""
    for scope in scopes:
        if not is_scope(scope):
            raise InvalidError(
                f"{scope!r} is not a scope; write one like reports:read or reports:*"
            )
    return sorted(set(scopes))


def _check(parse: Callable[[Iterable[str]], T], written: Iterable[str]) -> T:
    try:
        return parse(written)
    except ValueError as error:
        raise InvalidError(f"{error}") from None


@dataclass(frozen=True)
class _Change:
    """A transaction that has waited for all changes before it."""

    connection: sa.Connection
    now: datetime

    def view(self, id: str) -> KeyView:
        return _view(self.connection, id, self.now)

    def views(self, ids: Sequence[str]) -> list[KeyView]:
        found: list[KeyView] = []
        for first in range(0, len(ids), AT_ONCE):
            some = _views(self.now).where(api_keys.c.id.in_(ids[first : first + AT_ONCE]))
            rows = self.connection.execute(some.order_by(api_keys.c.id))
            found.extend(_shown(row) for row in rows)
        return found

    def add(self, id: str, name: str, scopes: Iterable[str], hashed: bytes, **more: Any) -> None:
        values = {"id": id, "name": name, "scopes": " ".join(scopes), "created_at": self.now}
        self.connection.execute(sa.insert(api_keys).values(**values, **more))
        self.issue(id, hashed)

    def issue(self, id: str, hashed: bytes) -> None:
        values = {"digest": hashed, "key_id": id, "created_at": self.now}
        self.connection.execute(sa.insert(api_key_secrets).values(**values))

    def in_force(self, id: str) -> dict[Literal["old", "new"], bytes]:
        """The digests of an active key's secrets. What has expired is put down as ended."""
        secret = api_key_secrets.c
        self.end(secret.key_id == id, secret.expires_at <= self.now)
        query = sa.select(secret.digest, secret.expires_at)
        rows = self.connection.execute(query.where(secret.key_id == id, secret.ended_at.is_(None)))
        return {"old" if row.expires_at else "new": row.digest for row in rows}

    def end(self, *which: sa.ColumnElement[bool]) -> list[str]:
        """End secrets for good. Gives the ids of their keys."""
        secret = api_key_secrets.c
        statement = sa.update(api_key_secrets).where(secret.ended_at.is_(None), *which)
        ended = statement.values(ended_at=self.now).returning(secret.key_id)
        return sorted(self.connection.scalars(ended))

    def expire(self, hashed: bytes, at: datetime) -> None:
        """Let a secret end then, unless it ends before; or now, if then is now."""
        secret = api_key_secrets.c
        if at <= self.now:
            self.end(secret.digest == hashed)
            return
        later = sa.or_(secret.expires_at.is_(None), secret.expires_at > at)
        statement = sa.update(api_key_secrets).where(secret.digest == hashed, later)
        self.connection.execute(statement.values(expires_at=at))

    def revoke(self, which: sa.ColumnElement[bool]) -> list[str]:
        """Gives the ids of those that were not revoked before."""
        statement = sa.update(api_keys).where(api_keys.c.revoked_at.is_(None), which)
        revoked = statement.values(revoked_at=self.now).returning(api_keys.c.id)
        return sorted(self.connection.scalars(revoked))

    def record(self, action: str, actor: str, ids: Sequence[str]) -> None:
        """Write down what was done: every server hears of it by this."""
        if ids:
            event = {"at": self.now, "stamp": token_bytes(8), "action": action, "actor": actor}
            latest = self.connection.scalar(sa.select(sa.func.max(api_key_events.c.id))) or 0
            rows = [
                {**event, "id": number, "key_id": id} for number, id in enumerate(ids, latest + 1)
            ]
            self.connection.execute(sa.insert(api_key_events), rows)


class KeyService:
    """Changes the keys, whether a server runs or not.

    All of it raises StoreUnavailableError if the database is out of reach. `by` is the caller who
    asks for a change, if it is not somebody with access to the database.
    """

    def __init__(self, settings: Any) -> None:
        self.engine = connect(settings.database_url)
        self._prefix = settings.key_prefix
        self._shares_limits = bool(settings.valkey_url)
        self._rate_limit = settings.rate_limit  # of keys that have none of their own
        self._env_keys = {ENV_ID + id_of(hashed): hashed for hashed in settings.api_keys}

    def adopt_env_keys(self) -> None:
        """Let the database know the keys of API_KEYS; one that was revoked there stays revoked."""

        def unknown(connection: sa.Connection) -> list[str]:
            hashed = api_key_secrets.c.digest
            ours = sa.select(hashed).where(hashed.in_(self._env_keys.values()))
            known = set(connection.scalars(ours))
            return sorted(id for id, hashed in self._env_keys.items() if hashed not in known)

        with transaction(self.engine) as connection:
            if not unknown(connection):
                return
        with self._change() as change:
            ids = unknown(change.connection)  # of several servers that start, one is the first
            for id in ids:
                change.add(id, "API_KEYS", "*", self._env_keys[id], created_by="API_KEYS")
            change.record("created", "API_KEYS", ids)

    def create(
        self,
        name: str,
        scopes: Iterable[str] = (),
        *,
        limits: Iterable[str] = (),
        networks: Iterable[str] = (),
        expires_at: datetime | None = None,
        actor: str,
        by: Key | None = None,
        show: Show | None = None,
    ) -> IssuedKey:
        """Raises InvalidError or ForbiddenError."""
        name, scopes, secret = check_name(name), check_scopes(scopes), new_secret()
        bounds = {
            "limits": written(_check(parse_limits, limits)),
            "networks": " ".join(map(str, _check(parse_networks, networks))),
        }
        hashed = digest(secret.encode())
        with self._change() as change:
            if expires_at and not change.now < expires_at < change.now + LONGEST:
                raise InvalidError("A key expires in the future, and within a hundred years")
            self._may_have(change, by, scopes, expires_at)
            self._may_be_as_free(change, by, **bounds)
            # The milliseconds come first, so that ids sort by age.
            id = f"{int(change.now.timestamp() * 1000):011x}{token_hex(3)}"
            change.add(id, name, scopes, hashed, created_by=actor, expires_at=expires_at, **bounds)
            change.record("created", actor, [id])
            return self._issued(change.view(id), secret, show)

    def rotate(
        self,
        id: str,
        *,
        overlap: timedelta = OVERLAP,
        drop: Literal["old", "new"] | None = None,
        actor: str,
        by: Key | None = None,
        show: Show | None = None,
    ) -> IssuedKey:
        """Give a key a new secret; the one it has stays in force for the overlap, and no longer
        than it would have been. Two that are in force already: `drop` says which one ends now.

        Raises InvalidError, NotFoundError, ForbiddenError or ConflictError.
        """
        if id.startswith(ENV_ID):
            raise ConflictError(f"{id} lives in API_KEYS; create another key, then revoke this one")
        if not timedelta() <= overlap <= LONGEST:
            raise InvalidError("An overlap is between nothing and a hundred years")
        secret = new_secret()
        with self._change() as change:
            key = self._active(change, id, by)
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
        self, id: str, which: Literal["old", "new"], *, actor: str, by: Key | None = None
    ) -> KeyView:
        """End one of two secrets, and issue none. The old one that is left still expires.

        Raises NotFoundError, ForbiddenError or ConflictError.
        """
        with self._change() as change:
            self._active(change, id, by)
            in_force = change.in_force(id)
            if len(in_force) < 2:
                raise ConflictError(f"{id} has no two secrets in force; to end the key, revoke it")
            change.end(api_key_secrets.c.digest == in_force[which])
            change.record(f"dropped {which}", actor, [id])
            return change.view(id)

    def revoke(self, id: str, *, force: bool = False, actor: str, by: Key | None = None) -> KeyView:
        """End a key for good.

        Raises NotFoundError, ForbiddenError, or ConflictError for the last manager.
        """
        with self._change() as change:
            self._may_have(change, by, change.view(id).scopes)
            self._revoke(change, api_keys.c.id == id, force, actor)
            return change.view(id)

    def revoke_issued_before(
        self, moment: datetime, *, force: bool = False, actor: str
    ) -> list[KeyView]:
        """End every secret that was issued before, and each key that has no other.

        Gives the keys that were revoked. Raises ConflictError if no manager would be left.
        """
        secret = api_key_secrets.c
        in_force = sa.select(secret.key_id).where(secret.ended_at.is_(None))
        renewed = in_force.where(secret.created_at >= moment)
        outdated = in_force.where(secret.created_at < moment)
        alive = sa.select(api_keys.c.id).where(api_keys.c.revoked_at.is_(None))
        which = api_keys.c.id.in_(outdated) & api_keys.c.id.not_in(renewed)
        with self._change(patience=LONG_PATIENCE) as change:
            revoked = self._revoke(change, which, force, actor)
            rotated = change.end(secret.created_at < moment, secret.key_id.in_(alive))
            change.record("dropped old", actor, rotated)
            return change.views(revoked)

    def longest_staleness(self) -> float:
        """Seconds after which every server has heard of what was committed before the call."""
        try:
            with transaction(self.engine) as connection:
                servers = connection.execute(sa.select(api_key_servers)).all()
                now = clock.now(connection)
        except StoreUnavailableError:
            return LONGEST_STALENESS
        # One that was not seen for a day has ended; but it may be this clock that is days ahead.
        latest = max((each.seen_at for each in servers), default=now)
        alive = (each for each in servers if each.seen_at > min(now, latest) - clock.DAY)
        longest: float = max((each.max_staleness for each in alive), default=0.0)
        return max(longest, LEAST_STALENESS)

    def counts_limits_apart(self) -> bool:
        """Whether several servers run now, each of which counts for itself."""
        with transaction(self.engine) as connection:
            lately = clock.now(connection) - timedelta(minutes=2)
            server = api_key_servers.c
            running = sa.select(sa.func.count()).where(
                server.max_staleness > 0, server.seen_at > lately
            )
            return not self._shares_limits and (connection.scalar(running) or 0) > 1

    def _active(self, change: _Change, id: str, by: Key | None) -> KeyView:
        key = change.view(id)
        self._may_have(change, by, key.scopes, key.expires_at)
        self._may_be_as_free(change, by, " ".join(key.limits), " ".join(key.networks))
        if key.status != "active":
            raise ConflictError(f"{id} is {key.status}; create another key")
        return key

    def _may_have(
        self,
        change: _Change,
        by: Key | None,
        scopes: Iterable[str],
        expires_at: datetime | Literal["any"] | None = "any",
    ) -> None:
        """Raises ForbiddenError if that is more than the caller has, or outlives it."""
        if by is None:
            return
        caller = change.view(by.id)
        if caller.status != "active":  # since a moment
            raise ForbiddenError(f"Your key is {caller.status}")
        for scope in scopes:
            if not by.covers(scope):
                raise ForbiddenError(f"Missing scope: {scope}")
        ends_at = caller.expires_at
        if expires_at != "any" and ends_at and (expires_at is None or expires_at > ends_at):
            raise ForbiddenError(
                f"No key that you manage may outlive yours: until {ends_at:%Y-%m-%dT%H:%M:%SZ}"
            )

    def _may_be_as_free(self, change: _Change, by: Key | None, limits: str, networks: str) -> None:
        """Raises ForbiddenError if the caller is kept to less, or to other addresses."""
        if by is None:
            return
        caller = change.view(by.id)
        theirs, asked = (
            with_default(parse_limits(each), self._rate_limit)
            for each in (caller.limits, limits.split())
        )
        if not limits_are_within(asked, theirs):
            raise ForbiddenError(
                f"No key that you manage may send more than yours: {written(theirs)}"
            )
        if not are_within(parse_networks(networks.split()), parse_networks(caller.networks)):
            raise ForbiddenError(
                "No key that you manage may be used from elsewhere than yours:"
                f" {' '.join(caller.networks)}"
            )

    def _revoke(
        self, change: _Change, which: sa.ColumnElement[bool], force: bool, actor: str
    ) -> list[str]:
        before = self._managers(change)
        ids = change.revoke(which)
        if not force and self._managers(change) < before:
            raise ConflictError(
                f"No key with {MANAGE} and without an end would be left; force it if that is meant"
            )
        change.record("revoked", actor, ids)
        return ids

    def _managers(self, change: _Change) -> int:
        """2 if a key may manage keys for good, 1 if one may for some time, 0 if none may."""
        scopes = " " + api_keys.c.scopes + " "
        manages = [scopes.contains(f" {held} ") for held in ("*", "keys:*", MANAGE)]
        named = sa.or_(api_keys.c.id.not_like(f"{ENV_ID}%"), api_keys.c.id.in_(self._env_keys))
        for_good = sa.case((api_keys.c.expires_at.is_(None), 2), else_=1)
        query = sa.select(sa.func.max(for_good))
        query = query.where(is_active(change.now), named, sa.or_(*manages))
        return change.connection.scalar(query) or 0

    def get(self, id: str) -> KeyView:
        """Raises NotFoundError."""
        with transaction(self.engine) as connection:
            return _view(connection, id, clock.now(connection))

    def page(self, after: str = "", limit: int = 100, search: str = "") -> list[KeyView]:
        """The keys that follow that id, oldest first; those of API_KEYS are last. With `search`
        those that have it in the name or the id."""
        with transaction(self.engine) as connection:
            query = _views(clock.now(connection)).where(api_keys.c.id > after, _has(search))
            rows = connection.execute(query.order_by(api_keys.c.id).limit(limit))
            return [_shown(row) for row in rows]

    def all(self) -> Iterator[KeyView]:
        after = ""
        while page := self.page(after, AT_ONCE):
            yield from page
            after = page[-1].id

    def ids_of(self, digests: Sequence[bytes]) -> dict[bytes, str]:
        """The ids of those secrets that the database knows, whether in force or ended."""
        secret = api_key_secrets.c
        query = sa.select(secret.digest, secret.key_id).where(secret.digest.in_(digests))
        with transaction(self.engine) as connection:
            return {row.digest: row.key_id for row in connection.execute(query)}

    def is_named(self, id: str) -> bool:
        """Whether API_KEYS still names this key, if it is one of those."""
        return not id.startswith(ENV_ID) or id in self._env_keys

    def events(self, id: str | None = None) -> list[EventView]:
        """What was done, oldest first. Raises NotFoundError."""
        query = sa.select(api_key_events).order_by(api_key_events.c.id)
        with transaction(self.engine) as connection:
            if id is not None:
                found = _view(connection, id, clock.now(connection))
                query = query.where(api_key_events.c.key_id == found.id)
            rows = connection.execute(query)
            return [EventView.model_validate(row, from_attributes=True) for row in rows]

    def usage(self, id: str, since: timedelta) -> UsageView:
        """How a key was used in that time, up to now. Raises NotFoundError."""
        with transaction(self.engine) as connection:
            key = _view(connection, id, now := clock.now(connection))
            return usage.of_key(connection, key, now - since, now)

    def all_usage(self, since: timedelta) -> AllUsage:
        with transaction(self.engine) as connection:
            return usage.of_all(connection, clock.now(connection) - since)

    def usage_by_day(self, ids: Sequence[str], since: timedelta) -> list[DayOfUse]:
        with transaction(self.engine) as connection:
            return usage.by_day(connection, ids, clock.now(connection) - since)

    def unusual(self, keys: Iterable[KeyView]) -> list[Finding]:
        """What is unusual about how these keys are used, and about strangers."""
        with transaction(self.engine) as connection:
            return [*examine_usage(connection, keys, clock.now(connection))]

    def thin_usage(self) -> int:
        """Sum up hours of long ago into days. Gives how many rows there are less for it."""
        with self._change(LONG_PATIENCE) as change:
            return usage.thin(change.connection, change.now)

    @contextmanager
    def _change(self, patience: float | None = None) -> Generator[_Change]:
        with transaction(self.engine, write=True, patience=patience) as connection:
            yield _Change(connection, clock.now(connection))

    def _issued(self, view: KeyView, secret: str, show: Show | None) -> IssuedKey:
        issued = IssuedKey(**view.model_dump(), key=with_prefix(secret, self._prefix))
        if show:
            show(issued)
        return issued


def open_service(settings: Any, *, migrate: bool = False) -> KeyService:
    """Raises SettingsError if the database has not the schema that this service needs, and
    StoreUnavailableError. `migrate` brings SQLite up to date."""
    service = KeyService(settings)
    try:
        check_schema(service.engine)
    except SettingsError:
        if not (migrate and service.engine.dialect.name == "sqlite"):
            raise
        from app.auth.database.migrate import upgrade  # here, for it takes longer than all the rest

        upgrade(settings.database_url)
    return service


def is_active(now: datetime) -> sa.ColumnElement[bool]:
    unexpired = sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now)
    return sa.and_(api_keys.c.revoked_at.is_(None), unexpired)


def _has(search: str) -> sa.ColumnElement[bool]:
    if not search:
        return sa.true()
    # Beyond ASCII, SQLite tells small letters from capitals, and so does PostgreSQL's locale "C".
    spellings = sorted({search, search.lower(), search.upper(), search.title()})
    columns = (api_keys.c.id, api_keys.c.name)
    return sa.or_(*(c.icontains(text, autoescape=True) for text in spellings for c in columns))


def _views(now: datetime) -> sa.Select[Any]:
    """All that a KeyView tells, of every key."""
    secret, latest = api_key_secrets.c, sa.func.max
    revoked, active = api_keys.c.revoked_at.is_not(None), is_active(now)
    status = sa.case((active, "active"), (revoked, "revoked"), else_="expired")
    old = sa.and_(active, secret.ended_at.is_(None), secret.expires_at > now)
    told = {
        "status": status,
        "issued_at": latest(secret.created_at),
        "last_used_at": latest(secret.last_used_at),
        "old_key_expires_at": latest(sa.case((old, secret.expires_at))),
        "old_key_last_used_at": latest(sa.case((old, secret.last_used_at))),
    }
    columns = [column.label(name) for name, column in told.items()]
    return sa.select(api_keys, *columns).join(api_key_secrets).group_by(api_keys.c.id)


def active_keys(connection: sa.Connection, now: datetime) -> Iterator[KeyView]:
    """One after the other, however many there are."""
    rows = connection.execution_options(yield_per=AT_ONCE).execute(
        _views(now).where(is_active(now))
    )
    return map(_shown, rows)


def _view(connection: sa.Connection, id: str, now: datetime) -> KeyView:
    row = None
    if id.isascii() and id.isprintable():  # else no database need be asked, or could be
        row = connection.execute(_views(now).where(api_keys.c.id == id)).one_or_none()
    if row is None:
        raise NotFoundError(f"No key has the id {masked(id)!r}; `keys list` shows the ids")
    return _shown(row)


def _shown(row: sa.Row[Any]) -> KeyView:
    lists = {name: row._mapping[name].split() for name in ("scopes", "limits", "networks")}
    return KeyView.model_validate({**row._mapping, **lists})

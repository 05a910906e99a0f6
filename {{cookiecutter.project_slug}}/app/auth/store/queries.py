"""What a server asks the database of the keys, and what it writes there. Runs in a thread."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import inf
from secrets import token_hex
from typing import Any, Final

import sqlalchemy as sa

from app.auth.database import clock
from app.auth.database.engine import LONG_TIMEOUT, transaction
from app.auth.database.models import (
    ENV_ID,
    Instant,
    api_key_events,
    api_key_secrets,
    api_key_servers,
    api_keys,
)
from app.auth.key import Key, id_of
from app.auth.keys.views import active_keys, key_of
from app.auth.usage import anomalies, counts
from app.auth.usage.anomalies import Finding
from app.auth.usage.counts import Batch

logger = logging.getLogger(__name__)

AT_ONCE = 50_000  # digests, so that no query takes long
MOST_NEWS = 10_000  # events; after more of them it is quicker to read everything
FLUSH_AT_ONCE = 500  # secrets, so that no change to a key has to wait long


@dataclass(frozen=True, slots=True)
class Secret:
    key: Key
    ends_at: float  # seconds since the epoch: its own end or its key's; 0 if it has ended
    ended: str  # the reason to refuse it then


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the events are known. The stamp is random: another history has another one."""

    event: int
    stamp: bytes


NOWHERE: Final = Cursor(-1, b"")


@dataclass(frozen=True, slots=True)
class Changes:
    position: Cursor
    changed: Sequence[bytes] | None  # digests; None if all may have changed
    counted: float  # seconds that others wait for this server


class Queries:
    """All raise StoreUnavailableError."""

    def __init__(
        self,
        engine: sa.Engine,
        env_keys: Iterable[bytes],
    ) -> None:
        self._engine, self._env_keys = engine, frozenset(env_keys)
        self._env_ids = {ENV_ID + id_of(digest) for digest in self._env_keys}
        self.name_server()

    def name_server(self) -> None:
        """Each process has a name of its own: this one may have forked."""
        self._server = token_hex(8)

    def changes_since(self, known: Cursor, timeout: float) -> Changes:
        """What has changed since, and whether others wait for this server when they revoke.

        The timeout, in seconds, is that of a transaction.
        """
        events, servers = api_key_events.c, api_key_servers.c

        def latest(column: sa.Column[Any]) -> sa.ScalarSelect[Any]:
            return sa.select(column).order_by(events.id.desc()).limit(1).scalar_subquery()

        bound = sa.select(servers.max_staleness).where(servers.id == self._server)
        with transaction(self._engine, timeout=timeout) as connection:
            # In one statement: others wait for this server if they have changed anything since.
            query = sa.select(latest(events.id), latest(events.stamp), bound.scalar_subquery())
            event, stamp, counted = connection.execute(query).one()
            news = Changes(Cursor(event or 0, stamp or b""), [], counted or 0.0)
            if news.position == known:
                return news
            at_known = sa.select(events.stamp).where(events.id == known.event)
            if known.event > 0 and connection.scalar(at_known) != known.stamp:
                logger.warning("The database holds another history of the keys; all is read anew.")
                return replace(news, changed=None)
            if known is NOWHERE or news.position.event - known.event > MOST_NEWS:
                return replace(news, changed=None)
            keys = sa.select(events.key_id).where(events.id > known.event)
            changed = sa.select(api_key_secrets.c.digest).where(api_key_secrets.c.key_id.in_(keys))
            return replace(news, changed=connection.scalars(changed).all())

    def digests(self, after: bytes) -> Sequence[bytes]:
        """Those of all secrets, in order, some at a time."""
        digest = api_key_secrets.c.digest
        some = sa.select(digest).where(digest > after).order_by(digest).limit(AT_ONCE)
        with transaction(self._engine) as connection:
            return connection.scalars(some).all()

    def moments(self) -> list[datetime]:
        """What the clock learns from."""
        with transaction(self._engine) as connection:
            return clock.moments(connection)

    def secret(self, digest: bytes) -> Secret | None:
        own = (api_key_secrets.c.expires_at.label("own_expires_at"), api_key_secrets.c.ended_at)
        query = sa.select(api_keys, *own).join(api_key_secrets)
        with transaction(self._engine) as connection:
            row = connection.execute(query.where(api_key_secrets.c.digest == digest)).one_or_none()
        if row is None or (row.id.startswith(ENV_ID) and digest not in self._env_keys):
            return None
        key = key_of(row)
        if row.revoked_at:
            return Secret(key, 0.0, "revoked key")
        if row.ended_at:
            return Secret(key, 0.0, "replaced secret")
        ends = [at.timestamp() for at in (row.expires_at, row.own_expires_at) if at]
        return Secret(key, min(ends, default=inf), "expired key")

    def used(self, key_id: str, since: datetime) -> int:
        """How many requests a key has sent since then, as far as that is written down."""
        with transaction(self._engine) as connection:
            return counts.used(connection, key_id, since)

    def note_networks(self, used: Sequence[counts.Row]) -> None:
        for first in range(0, len(used), FLUSH_AT_ONCE):
            with transaction(self._engine, write=True) as connection:
                counts.note_networks(connection, used[first : first + FLUSH_AT_ONCE])

    def notice(self, now: datetime) -> list[Finding]:
        """What has become unusual, told to one of all servers."""
        with transaction(self._engine, timeout=LONG_TIMEOUT) as connection:
            active = active_keys(connection, now)
            keys = (
                key for key in active if not key.id.startswith(ENV_ID) or key.id in self._env_ids
            )
            found = [*anomalies.examine_usage(connection, keys, now)]
        with transaction(self._engine, write=True) as connection:
            return anomalies.remember(connection, found, now)

    def write(
        self, used: dict[bytes, float], now: datetime, max_staleness: float, starting: bool
    ) -> None:
        """When secrets were last used (seconds since the epoch), and that this server is there."""
        # One column, and only forward: nothing that is known here can bring anything back.
        at = sa.bindparam("at", type_=Instant)
        last, earliest_wrong = api_key_secrets.c.last_used_at, sa.bindparam("wrong", type_=Instant)
        later = sa.or_(last.is_(None), last < at, last > earliest_wrong)
        statement = sa.update(api_key_secrets).values(last_used_at=at)
        statement = statement.where(api_key_secrets.c.digest == sa.bindparam("used"), later)
        wrong = now + clock.DAY
        uses = [
            {"used": each, "at": datetime.fromtimestamp(used[each], UTC), "wrong": wrong}
            for each in used
        ]
        for first in range(0, len(uses), FLUSH_AT_ONCE):
            with transaction(self._engine, write=True) as connection:
                connection.execute(statement, uses[first : first + FLUSH_AT_ONCE])

        servers = api_key_servers
        this = {"max_staleness": max_staleness, "seen_at": now}
        with transaction(self._engine, write=True) as connection:
            if starting:
                _forget_servers(connection, now)
            ours = sa.update(servers).where(servers.c.id == self._server).values(**this)
            if connection.execute(ours).rowcount == 0:
                connection.execute(sa.insert(servers).values(id=self._server, **this))

    def add(self, batch: Batch) -> None:
        """Add its counts; once, for it may be that all but the answer went well the last time."""
        ours = api_key_servers.c.id == self._server
        with transaction(self._engine, write=True) as connection:
            written = connection.scalar(sa.select(api_key_servers.c.batch).where(ours))
            if (written or 0) < batch.number:
                counts.add(connection, batch.table, batch.rows)
                number = sa.update(api_key_servers).where(ours).values(batch=batch.number)
                connection.execute(number)

    def thin(self, now: datetime) -> int:
        with transaction(self._engine, write=True, timeout=LONG_TIMEOUT) as connection:
            return counts.thin(connection, now)


def _forget_servers(connection: sa.Connection, now: datetime) -> None:
    """Those that ended long ago, or whose clock was wrong."""
    seen_at = api_key_servers.c.seen_at
    possible = seen_at <= now + clock.DAY
    latest = connection.scalar(sa.select(sa.func.max(seen_at)).where(possible))
    gone = seen_at < (latest or now) - 2 * clock.DAY
    connection.execute(sa.delete(api_key_servers).where(sa.or_(sa.not_(possible), gone)))

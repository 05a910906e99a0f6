"""The queries and writes of a server. They block, so they run in threads."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import inf
from secrets import token_hex
from time import monotonic
from typing import Any, Final, TypeVar

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
from app.auth.errors import StoreUnavailableError
from app.auth.key import Key, id_of
from app.auth.keys.views import active_keys, key_of
from app.auth.usage import counts, findings
from app.auth.usage.counts import Batch

logger = logging.getLogger(__name__)

AT_ONCE = 50_000  # digests a query, so that none takes long
MOST_NEWS = 10_000  # events; with more of them, a reload is faster
THIN_FOR = 1.0  # seconds of each flush
FLUSH_AT_ONCE = 500  # secrets a transaction, so that changes to keys wait only briefly

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Secret:
    key: Key
    ends_at: float  # seconds since the epoch: its own end or its key's; 0 if it has ended
    ended: str  # why it is refused from then on


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last known event. Its random stamp differs after a restored backup."""

    event: int
    stamp: bytes


NOWHERE: Final = Cursor(-1, b"")
IMPORTED: Final = "imported"
CREATING: Final = ("created", IMPORTED)  # the events that bring a key each, with a secret
ISSUING: Final = (*CREATING, "rotated", "imported secret")  # those that bring a secret each
COUNT: Final = sa.func.count()
UNFIT: Final = "DATABASE_URL: this is a standby, or a backup is not restored wholly"
# A standby lags behind. The rules come back after all rows.
WHOLE: Final = sa.text(
    "NOT pg_is_in_recovery() AND 'api_keys_stay' IN (SELECT tgname FROM pg_trigger)"
)


@dataclass(frozen=True, slots=True)
class Changes:
    position: Cursor
    changed: Sequence[bytes] | None  # digests; None if all may have changed
    counted: float  # seconds for which commands wait for this server


class Queries:
    """All methods raise StoreUnavailableError."""

    def __init__(self, engine: sa.Engine, env_keys: Iterable[bytes]) -> None:
        self.engine, self._env_keys = engine, frozenset(env_keys)
        self._is_another = False  # another history is being read
        self.has_imported = False
        self._env_ids = {ENV_ID + id_of(digest) for digest in self._env_keys}
        self.server = token_hex(8)

    def changes_since(self, known: Cursor, timeout: float) -> Changes:
        """The changes after this cursor, and whether commands that revoke wait for this server.

        `timeout` is that of the transaction, in seconds.
        """
        events, servers = api_key_events.c, api_key_servers.c

        def latest(column: sa.Column[Any]) -> sa.ScalarSelect[Any]:
            return sa.select(column).order_by(events.id.desc()).limit(1).scalar_subquery()

        bound = sa.select(servers.max_staleness).where(servers.id == self.server)
        with transaction(self.engine, timeout=timeout) as connection:
            # One statement, so one snapshot: every later change then waits for this server.
            query = sa.select(latest(events.id), latest(events.stamp), bound.scalar_subquery())
            if self.engine.dialect.name == "postgresql":
                query = query.where(WHOLE)
            if (found := connection.execute(query).one_or_none()) is None:
                raise StoreUnavailableError(UNFIT)
            event, stamp, counted = found
            news = Changes(Cursor(event or 0, stamp or b""), [], counted or 0.0)
            if news.position == known:
                return news
            at_known = sa.select(events.stamp).where(events.id == known.event)
            if known.event > 0 and connection.scalar(at_known) != known.stamp:
                self._is_another = True
                return replace(news, changed=None)
            if known is NOWHERE or news.position.event - known.event > MOST_NEWS:
                return replace(news, changed=None)
            keys = sa.select(events.key_id).where(events.id > known.event)
            changed = sa.select(api_key_secrets.c.digest).where(api_key_secrets.c.key_id.in_(keys))
            digests = connection.scalars(changed).all()
            of_keys = sa.select(COUNT, COUNT.filter(events.action == IMPORTED))
            of_keys = of_keys.where(events.key_id.in_(keys), events.action.in_(ISSUING))
            issued, imported = connection.execute(of_keys).one()
            self.has_imported |= imported > 0
            return replace(news, changed=digests if issued == len(digests) else None)

    def digests(self, after: bytes) -> Sequence[bytes]:
        """The next digests of all secrets, in order, AT_ONCE at most."""
        digest = api_key_secrets.c.digest
        some = sa.select(digest).where(digest > after).order_by(digest).limit(AT_ONCE)
        with transaction(self.engine) as connection:
            return connection.scalars(some).all()

    def check(self, position: Cursor, secrets: int) -> list[datetime]:
        """Compare what was read with the events. Returns the times that the clock learns from.

        A restore may bring one table after another.
        """
        events = api_key_events.c
        issued = sa.select(COUNT).where(events.action.in_(ISSUING))
        created = sa.select(COUNT).where(events.action.in_(CREATING))

        def rows(table: sa.Table) -> sa.ScalarSelect[int]:
            return sa.select(COUNT).select_from(table).scalar_subquery()

        query = sa.select(
            issued.where(events.id <= position.event).scalar_subquery() <= secrets,
            issued.scalar_subquery() == rows(api_key_secrets),
            created.scalar_subquery() == rows(api_keys),
            sa.exists().where(events.action == IMPORTED),
        )
        with transaction(self.engine) as connection:
            *whole, self.has_imported = connection.execute(query).one()
            if not all(whole):
                raise StoreUnavailableError(UNFIT)
            moments = clock.moments(connection)
        if self._is_another:
            logger.warning("The database holds another history of the keys; all is read anew.")
            self._is_another = False
        return moments

    def secret(self, digest: bytes) -> Secret | None:
        own = (api_key_secrets.c.expires_at.label("own_expires_at"), api_key_secrets.c.ended_at)
        query = sa.select(api_keys, *own).join(api_key_secrets)
        with transaction(self.engine) as connection:
            row = connection.execute(query.where(api_key_secrets.c.digest == digest)).one_or_none()
        if row is None:  # though its digest was read, and nothing deletes a key
            raise StoreUnavailableError(UNFIT)
        if row.id.startswith(ENV_ID) and digest not in self._env_keys:
            return None
        key = key_of(row)
        if row.revoked_at:
            return Secret(key, 0.0, "revoked key")
        if row.ended_at:
            return Secret(key, 0.0, "replaced secret")
        if row.paused_at:
            return Secret(key, 0.0, "paused key")
        ends = [at.timestamp() for at in (row.expires_at, row.own_expires_at) if at]
        return Secret(key, min(ends, default=inf), "expired key")

    def note_networks(self, used: Sequence[counts.Network]) -> None:
        for first in range(0, len(used), FLUSH_AT_ONCE):
            with transaction(self.engine, write=True) as connection:
                counts.note_networks(connection, used[first : first + FLUSH_AT_ONCE])

    def notice(self, now: datetime) -> list[findings.Finding]:
        """The new anomalies. Of all servers, one gets each."""
        with transaction(self.engine, timeout=LONG_TIMEOUT) as connection:
            active = active_keys(connection, now)
            keys = (
                key for key in active if not key.id.startswith(ENV_ID) or key.id in self._env_ids
            )
            found = [*findings.examine_usage(connection, keys, now)]
        with transaction(self.engine, write=True) as connection:
            return findings.remember(connection, found, now)

    def write(
        self, used: dict[bytes, float], now: datetime, max_staleness: float, starting: bool
    ) -> None:
        """Write when secrets were last used (seconds since the epoch), and this server's row."""
        if starting:  # a process that was forked must not share the name of its parent
            self.server = token_hex(8)
        # It moves one column forward and nothing else, so outdated data cannot revive a key.
        at = sa.bindparam("at", type_=Instant)
        last, earliest_wrong = api_key_secrets.c.last_used_at, sa.bindparam("wrong", type_=Instant)
        later = sa.or_(last.is_(None), last < at, last > earliest_wrong)
        statement = sa.update(api_key_secrets).values(last_used_at=at)
        statement = statement.where(api_key_secrets.c.digest == sa.bindparam("used"), later)
        wrong = now + clock.DAY
        uses = [
            {"used": digest, "at": datetime.fromtimestamp(used_at, UTC), "wrong": wrong}
            for digest, used_at in used.items()
        ]
        for first in range(0, len(uses), FLUSH_AT_ONCE):
            with transaction(self.engine, write=True) as connection:
                connection.execute(statement, uses[first : first + FLUSH_AT_ONCE])

        servers = api_key_servers
        this = {"max_staleness": max_staleness, "seen_at": now}
        with transaction(self.engine, write=True) as connection:
            if starting:
                _forget_servers(connection, now)
            ours = sa.update(servers).where(servers.c.id == self.server).values(**this)
            if connection.execute(ours).rowcount == 0:
                connection.execute(sa.insert(servers).values(id=self.server, **this))

    def add(self, batch: Batch) -> None:
        """Add the counts of a batch once, even if it is tried again after a lost answer."""
        ours = api_key_servers.c.id == self.server
        with transaction(self.engine, write=True) as connection:
            written = connection.scalar(sa.select(api_key_servers.c.batch).where(ours))
            if (written or 0) < batch.number:
                counts.add(connection, batch.table, batch.rows)
                number = sa.update(api_key_servers).where(ours).values(batch=batch.number)
                connection.execute(number)

    def thin(self, now: datetime) -> bool:
        """Compact old counts for a moment. Returns whether none are left."""
        give_up_at = monotonic() + THIN_FOR
        return all(monotonic() < give_up_at for _ in counts.thin(self.engine, now))


def _forget_servers(connection: sa.Connection, now: datetime) -> None:
    """Delete the servers that ended long ago, or whose clock was wrong."""
    seen_at = api_key_servers.c.seen_at
    possible = seen_at <= now + clock.DAY
    latest = connection.scalar(sa.select(sa.func.max(seen_at)).where(possible))
    gone = seen_at < (latest or now) - 2 * clock.DAY
    connection.execute(sa.delete(api_key_servers).where(sa.or_(sa.not_(possible), gone)))


async def run(
    threads: ThreadPoolExecutor,
    give_up_at: float | None,
    function: Callable[..., T],
    *arguments: Any,
) -> T:
    """Run this in a thread. Raises StoreUnavailableError."""
    running = asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
    try:
        return await in_time(give_up_at, running)
    finally:
        running.cancel()  # if it has not begun, it is not needed any more


async def in_time(give_up_at: float | None, answer: asyncio.Future[T]) -> T:
    """Wait for the answer. Every error becomes a StoreUnavailableError."""
    await asyncio.wait([answer], timeout=None if give_up_at is None else give_up_at - monotonic())
    if not answer.done():
        raise StoreUnavailableError("DATABASE_URL: no answer in time")
    error = answer.exception()
    if error is None:
        return answer.result()
    # A new error for each caller: a shared one would collect the frames of all.
    if isinstance(error, StoreUnavailableError):
        raise StoreUnavailableError(f"{error}") from error.__cause__
    raise StoreUnavailableError(f"The keys cannot be followed: {error!r}") from error

"""The keys as the guard sees them: in memory, and never more out of date than was promised.

A server trusts what it knows for KEY_MAX_STALENESS after it began to ask for it, and no longer.
Whatever takes access away waits as long before it returns: then no server accepts it any more.
"""

import asyncio
import logging
from array import array
from bisect import bisect_left, insort
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import inf
from secrets import token_hex
from time import monotonic
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from app.auth import clock
from app.auth.access import UNKNOWN
from app.auth.engine import PATIENCE, connect, transaction
from app.auth.errors import StoreUnavailableError
from app.auth.keys import Key
from app.auth.models import (
    ENV_ID,
    LEAST_STALENESS,
    Instant,
    api_key_events,
    api_key_secrets,
    api_key_servers,
    api_keys,
)
from app.auth.settings import AuthSettings

logger = logging.getLogger(__name__)

FLUSH_EVERY = 5.0  # seconds until it is written when a secret was last used
FLUSH_AT_ONCE = 500  # secrets, so that no change to a key has to wait long
SEEN_EVERY = 60.0  # seconds until a server that has nothing to write says that it is there
COUNTED_FOR = 12 * 3600.0  # seconds since then; others wait for it twice as long
# An unknown secret may be one that was made just now, so it is worth a question; but in a flood of
# unknown ones, questions take no more than one part in ten of the time.
RECHECK = 0.02  # seconds, at most
MOST_IN_MEMORY = 20_000  # secrets; what does not fit costs a query when it comes back
AT_ONCE = 50_000  # digests, so that no query takes long
MOST_NEWS = 10_000  # events; after more of them it is quicker to read everything

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Secret:
    key: Key
    ends_at: float  # seconds since the epoch: its own end or its key's; 0 if it has ended
    ended: str  # the reason to refuse it then


@dataclass(frozen=True, slots=True)
class _Position:
    """How far the events are known. The stamp is random: another history has another one."""

    event: int
    stamp: bytes


_NOWHERE: Final = _Position(-1, b"")


@dataclass(frozen=True, slots=True)
class _News:
    position: _Position
    changed: Sequence[bytes] | None  # digests; None if all may have changed
    counted: float  # seconds that others wait for this server


class DatabaseKeyStore:
    """Looks secrets up: in memory those in use, of all others only what tells them from strangers'.

    That is the first eight bytes of their digests. Who is not among them costs no query.
    """

    def __init__(self, settings: AuthSettings) -> None:
        self._engine = connect(settings.database_url, pooled=True)
        # Its own: endpoints may fill all others. And some for the questions alone, which hang or
        # wait for nothing that the rest does.
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="api-keys")
        self._asking_threads = ThreadPoolExecutor(4, thread_name_prefix="api-keys-news")
        self._env_keys = settings.api_keys
        self._max_staleness = settings.key_max_staleness
        # Seconds until a question is asked anew, on another connection: no less than a loaded
        # machine may need.
        self._patience = min(max(self._max_staleness, 1.0), PATIENCE)
        self._id = token_hex(8)
        self._counted = 0.0
        self._counted_until = self._silent_until = -inf
        self._used: dict[bytes, float] = {}  # when each secret was last let in
        self._secrets: dict[bytes, _Secret] = {}
        self._known = array("Q")  # sorted
        self._position = _NOWHERE
        self._changes = 0  # how often there were news
        self._asked_at = self._trusted_until = self._ask_strangers_at = -inf
        self._asking: asyncio.Task[None] | None = None
        self._clock = clock.Clock()
        self._written_at = 0.0  # what its clock said
        self._saw_an_end = False
        self._problem = ""  # the one with writing, as the log has it

    # What the guard asks.

    def recall(self, digest: bytes) -> Key | None:
        secret = self._secrets.get(digest)
        if secret is None or monotonic() > self._trusted_until:
            return None
        now = self._clock.now()
        if secret.ends_at <= now:
            return None
        self._used[digest] = now
        return secret.key

    async def find(self, digest: bytes) -> Key | str:
        came_at = monotonic()
        if came_at > self._trusted_until:
            await self._know_since(came_at)
        secret = self._secrets.get(digest) or await self._look_up(digest, came_at)
        if secret is None:
            return UNKNOWN
        now = self._clock.now()
        if secret.ends_at <= now:
            # So that no clock takes it back later. Once: nobody who is refused makes it write.
            self._saw_an_end |= secret.ends_at > self._written_at
            return secret.ended
        self._used[digest] = now
        return secret.key

    async def is_reachable(self) -> bool:
        try:
            if monotonic() > self._trusted_until:
                await self._know_since(monotonic())
        except StoreUnavailableError:
            return False
        return True

    async def _look_up(self, digest: bytes, came_at: float) -> _Secret | None:
        if not self._is_known(digest) and came_at > self._ask_strangers_at:
            await self._know_since(came_at)
        while self._is_known(digest):
            changes = self._changes
            give_up_at = came_at + self._max_staleness
            secret = await self._run(self._threads, give_up_at, self._read, digest)
            # A revocation that was heard of meanwhile must not be undone by what was read before.
            if changes == self._changes:
                if secret:
                    if len(self._secrets) >= MOST_IN_MEMORY:
                        del self._secrets[next(iter(self._secrets))]
                    self._secrets[digest] = secret
                return secret
        return None

    def _is_known(self, digest: bytes) -> bool:
        start = _start_of(digest)
        place = bisect_left(self._known, start)
        return place < len(self._known) and self._known[place] == start

    # What it asks the database.

    async def catch_up(self) -> None:
        """Hear of every change up to now. Raises StoreUnavailableError."""
        await self._know_since(monotonic())

    async def _know_since(self, moment: float) -> None:
        """Know what was so then or later: no answer counts that was asked for before."""
        give_up_at = monotonic() + self._max_staleness
        while self._asked_at < moment:
            await _in_time(give_up_at, self._question())

    def _question(self) -> asyncio.Task[None]:
        """One to the database, however many wait for the answer."""
        if not self._asking or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            # Somebody has to take an error: all who waited for the answer may have given up.
            self._asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
        return self._asking

    async def _ask(self) -> None:
        threads = self._asking_threads
        while True:
            asked_at = monotonic()
            give_up_at = asked_at + self._patience
            news = await self._run(threads, give_up_at, self._read_news, self._position)
            if news.changed is not None:
                break
            await self._learn_everything(news.position)
        for digest in news.changed:
            self._secrets.pop(digest, None)
            if not self._is_known(digest):
                insort(self._known, _start_of(digest))
        self._changes += bool(news.changed)
        self._position, self._counted = news.position, news.counted
        if not news.counted:  # say soon that it is there: nobody knows of this server
            self._silent_until = -inf
        self._asked_at, self._trusted_until = asked_at, asked_at + self._staleness()
        self._ask_strangers_at = asked_at + min(10 * (monotonic() - asked_at), RECHECK)

    def _staleness(self) -> float:
        """Seconds for which an answer is trusted: no more than those who revoke wait for."""
        counted = self._counted if monotonic() < self._counted_until else 0.0
        return max(counted, LEAST_STALENESS)

    async def _learn_everything(self, position: _Position) -> None:
        self._trusted_until = -inf
        known, after, threads = array("Q"), b"", self._asking_threads
        while digests := await self._run(threads, None, self._read_digests, after):
            known.extend(map(_start_of, digests))
            after = digests[-1]
        self._clock.learn(await self._run(threads, None, self._read_moments))
        self._secrets.clear()
        self._known, self._position = known, position
        self._changes += 1
        self._written_at = 0.0

    async def _run(
        self,
        threads: ThreadPoolExecutor,
        give_up_at: float | None,
        function: Callable[..., T],
        *arguments: Any,
    ) -> T:
        running = asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
        try:
            return await _in_time(give_up_at, running)
        finally:
            running.cancel()  # what nobody waits for any more need not begin

    # What follows reads and writes, in a thread.

    def _read_news(self, known: _Position) -> _News:
        events, servers = api_key_events.c, api_key_servers.c

        def latest(column: sa.Column[Any]) -> sa.ScalarSelect[Any]:
            return sa.select(column).order_by(events.id.desc()).limit(1).scalar_subquery()

        counted = sa.select(servers.max_staleness).where(servers.id == self._id).scalar_subquery()
        with transaction(self._engine, patience=self._patience) as connection:
            # In one statement: others wait for this server if they have changed anything since.
            query = sa.select(latest(events.id), latest(events.stamp), counted)
            event, stamp, counted = connection.execute(query).one()
            news = _News(_Position(event or 0, stamp or b""), [], counted or 0.0)
            if news.position == known:
                return news
            at_known = sa.select(events.stamp).where(events.id == known.event)
            if known.event > 0 and connection.scalar(at_known) != known.stamp:
                logger.warning("The database holds another history of the keys; all is read anew.")
                return replace(news, changed=None)
            if known is _NOWHERE or news.position.event - known.event > MOST_NEWS:
                return replace(news, changed=None)
            keys = sa.select(events.key_id).where(events.id > known.event)
            changed = sa.select(api_key_secrets.c.digest).where(api_key_secrets.c.key_id.in_(keys))
            return replace(news, changed=connection.scalars(changed).all())

    def _read_digests(self, after: bytes) -> Sequence[bytes]:
        digest = api_key_secrets.c.digest
        some = sa.select(digest).where(digest > after).order_by(digest).limit(AT_ONCE)
        with transaction(self._engine) as connection:
            return connection.scalars(some).all()

    def _read_moments(self) -> list[datetime]:
        with transaction(self._engine) as connection:
            return clock.moments(connection)

    def _read(self, digest: bytes) -> _Secret | None:
        own = (api_key_secrets.c.expires_at.label("own_expires_at"), api_key_secrets.c.ended_at)
        query = sa.select(api_keys, *own).join(api_key_secrets)
        with transaction(self._engine) as connection:
            row = connection.execute(query.where(api_key_secrets.c.digest == digest)).one_or_none()
        if row is None or (row.id.startswith(ENV_ID) and digest not in self._env_keys):
            return None
        key = Key(row.id, row.name, frozenset(row.scopes.split()))
        if row.revoked_at:
            return _Secret(key, 0.0, f"revoked key {row.id}")
        if row.ended_at:
            return _Secret(key, 0.0, f"replaced secret of key {row.id}")
        ends = [at.timestamp() for at in (row.expires_at, row.own_expires_at) if at]
        return _Secret(key, min(ends, default=inf), f"expired key {row.id}")

    def _write(
        self, used: dict[bytes, float], now: datetime, max_staleness: float, starting: bool
    ) -> None:
        """When secrets were last used, and that this server is there."""
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

        server = api_key_servers
        this = {"max_staleness": max_staleness, "seen_at": now}
        with transaction(self._engine, write=True) as connection:
            if starting:  # forget servers that ended long ago, or whose clock was wrong
                possible = server.c.seen_at <= now + clock.DAY
                latest = connection.scalar(sa.select(sa.func.max(server.c.seen_at)).where(possible))
                gone = server.c.seen_at < (latest or now) - 2 * clock.DAY
                connection.execute(sa.delete(server).where(sa.or_(sa.not_(possible), gone)))
            ours = sa.update(server).where(server.c.id == self._id).values(**this)
            if connection.execute(ours).rowcount == 0:
                connection.execute(sa.insert(server).values(id=self._id, **this))

    # In the background.

    @asynccontextmanager
    async def follow(self) -> AsyncGenerator[None]:
        """Keep up with the database while the service runs, and write when keys were last used.

        Raises StoreUnavailableError if the keys cannot be read at the start.
        """
        self._id = token_hex(8)  # a process may have forked since the store was made
        await self.flush(starting=True)
        await _in_time(None, self._question())
        if ahead := self._clock.ahead:
            logger.warning("The keys' database says %s. Is this machine's clock right?", ahead)
        stop = asyncio.Event()
        work = [
            asyncio.create_task(_keep_doing(self.catch_up, lambda: self._staleness() / 4, stop)),
            asyncio.create_task(_keep_doing(self.flush, lambda: FLUSH_EVERY, stop)),
        ]
        try:
            yield
        finally:
            stop.set()
            await asyncio.wait(work)
            self._counted_until = self._trusted_until = -inf
            await self.flush(stopping=True)
            self.close()

    def close(self) -> None:
        """Let go of the database, until somebody asks again."""
        self._trusted_until = -inf
        self._engine.dispose()

    async def flush(self, *, starting: bool = False, stopping: bool = False) -> None:
        """Write when keys were last used; what cannot be written now is kept for the next time."""
        news = self._used or self._saw_an_end or starting or stopping
        if not news and monotonic() < self._silent_until:
            return
        used, self._saw_an_end = self._used, False
        self._used = {}
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        max_staleness = 0.0 if stopping else self._max_staleness
        began_at = monotonic()
        try:
            await self._run(self._threads, None, self._write, used, now, max_staleness, starting)
        except BaseException as error:
            self._used, self._saw_an_end = used | self._used, True
            if not isinstance(error, StoreUnavailableError):  # it was given up halfway
                raise
            if self._problem != f"{error}":
                logger.warning("When keys were last used is not written yet. %s", error)
            self._problem = f"{error}"
        else:
            self._problem, self._written_at = "", now.timestamp()
            self._counted_until = -inf if stopping else began_at + COUNTED_FOR
            self._silent_until = began_at + SEEN_EVERY


async def _in_time(give_up_at: float | None, answer: asyncio.Future[T]) -> T:
    """The answer. Raises StoreUnavailableError, whatever it is that stands in its way."""
    await asyncio.wait([answer], timeout=None if give_up_at is None else give_up_at - monotonic())
    if not answer.done():
        raise StoreUnavailableError("DATABASE_URL: no answer in time")
    error = answer.exception()
    if error is None:
        return answer.result()
    # Another one for each who waits: one would collect the frames of them all.
    if isinstance(error, StoreUnavailableError):
        raise StoreUnavailableError(f"{error}") from error.__cause__
    raise StoreUnavailableError(f"The keys cannot be followed: {error!r}") from error


async def _keep_doing(
    what: Callable[[], Awaitable[None]], every: Callable[[], float], stop: asyncio.Event
) -> None:
    """Whatever happens; while it does not work, what is known ceases to be trusted."""
    problem = ""
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), every())
            return
        try:
            await what()
        except StoreUnavailableError as error:
            if problem != f"{error}":
                logger.error(
                    "%s. Nobody gets in until it is back.", error, exc_info=error.__cause__
                )
            problem = f"{error}"
        except Exception:
            logger.exception("The keys cannot be followed; trying again.")
            problem = "unknown"
        else:
            if problem:
                logger.info("The database is back.")
            problem = ""


def _start_of(digest: bytes) -> int:
    return int.from_bytes(digest[:8])


def open_store(settings: AuthSettings) -> DatabaseKeyStore:
    return DatabaseKeyStore(settings)

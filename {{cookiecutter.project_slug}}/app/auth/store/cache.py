"""An in-memory cache of the keys.

It polls the database and trusts an answer for KEY_MAX_STALENESS seconds (default 1). A command
that takes access away waits that long before it returns, so no server still accepts the key
afterwards.
"""

import asyncio
import logging
from array import array
from bisect import bisect_left, insort
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from math import inf
from time import monotonic

from app.auth.access.rule import UNKNOWN, Refusal
from app.auth.config.settings import AuthSettings
from app.auth.database import clock
from app.auth.database.engine import TIMEOUT, connect
from app.auth.database.models import LEAST_STALENESS
from app.auth.errors import StoreUnavailableError
from app.auth.key import KNOWING, Key
from app.auth.store.queries import NOWHERE, Cursor, Queries, Secret, in_time, run
from app.auth.store.usage_writer import UsageWriter

logger = logging.getLogger(__name__)

FLUSH_EVERY = 5.0  # seconds between writes of how keys were used
# An unknown secret may be a new one, so it is worth a poll. In a flood of unknown secrets, polls
# take at most a tenth of the time.
RECHECK = 0.02  # seconds until the next such poll, at most
MOST_IN_MEMORY = 20_000  # secrets; any other costs a query when it is used again


class DatabaseKeyStore:
    """Caches the secrets in use, and the first eight bytes of the digest of every secret.

    A secret whose digest begins with none of these costs no query.
    """

    has_scopes = True

    def __init__(self, settings: AuthSettings) -> None:
        self._engine = connect(settings.database_url, pooled=True)
        # Endpoints may fill the default threads, so the store has its own. Polls have threads of
        # their own too: other queries do not delay them.
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="api-keys")
        self._asking_threads = ThreadPoolExecutor(4, thread_name_prefix="api-keys-news")
        self.max_staleness = settings.key_max_staleness
        # A slower poll is repeated on another connection. A loaded machine may need a second.
        self._timeout = min(max(self.max_staleness, 1.0), TIMEOUT)
        self._queries = Queries(self._engine, settings.api_keys)
        self._clock = clock.Clock()
        self._counted = 0.0
        self._secrets: dict[bytes, Secret] = {}
        self._known = array("Q")  # how the digests of all secrets begin, sorted
        self._position = NOWHERE
        self.changes = 0  # counts the polls that found changes, and the reloads
        self._asked_at = self._trusted_until = self._ask_strangers_at = -inf
        self._asking: asyncio.Task[None] | None = None
        self._flush_at, self._is_on_its_own = monotonic() + FLUSH_EVERY, False
        self.usage = UsageWriter(self._queries, self._threads, self._clock)
        self.observe = self.usage.observe

    def now(self) -> float:
        """Seconds since the epoch. This clock does not go back."""
        return self._clock.now()

    def ages(self) -> tuple[float, float]:
        """Seconds since the keys were read, and since usage was written (at least every minute)."""
        return monotonic() - self._asked_at, monotonic() - self.usage.wrote_at

    # Lookups.

    def cached(self, digest: bytes) -> Key | None:
        secret = self._secrets.get(digest)
        if secret is None or monotonic() > self._trusted_until:
            return None
        return secret.key if secret.ends_at > self._clock.now() else None

    async def lookup(self, digest: bytes) -> Key | Refusal:
        came_at = monotonic()
        if came_at > self._trusted_until:
            await self._ensure_fresh(came_at)
        secret = self._secrets.get(digest) or await self._look_up(digest, came_at)
        if came_at > self._flush_at:
            await self._flush_in_request()
        if secret is None:
            return UNKNOWN
        if secret.ends_at > self._clock.now():
            return secret.key
        self.usage.note_end(secret.ends_at)
        return Refusal(secret.ended, secret.key.id)

    def may_exist(self, digest: bytes) -> bool:
        start = _start_of(digest)
        place = bisect_left(self._known, start)
        return place < len(self._known) and self._known[place] == start

    async def is_reachable(self) -> bool:
        try:
            if monotonic() > self._trusted_until:
                await self._ensure_fresh(monotonic())
        except StoreUnavailableError:
            return False
        return True

    async def _look_up(self, digest: bytes, came_at: float) -> Secret | None:
        if not self.may_exist(digest) and came_at > self._ask_strangers_at:
            await self._ensure_fresh(came_at)
        while self.may_exist(digest):
            changes = self.changes
            give_up_at = came_at + self.max_staleness
            secret = await run(self._threads, give_up_at, self._queries.secret, digest)
            # If keys have changed meanwhile, this one may be revoked: read it again.
            if changes == self.changes:
                if secret:
                    if len(self._secrets) >= MOST_IN_MEMORY:
                        del self._secrets[next(iter(self._secrets))]
                    self._secrets[digest] = secret
                return secret
        return None

    # Polls.

    async def refresh(self) -> None:
        """Read all changes up to now. Raises StoreUnavailableError."""
        await self._ensure_fresh(monotonic())

    async def _ensure_fresh(self, moment: float) -> None:
        """Wait for the answer to a poll that began at this moment or later."""
        give_up_at = monotonic() + self.max_staleness
        while self._asked_at < moment:
            await in_time(give_up_at, self._poll())

    def _poll(self, timeout: float | None = None) -> asyncio.Task[None]:
        """The poll that is running, or a new one. All callers share its answer."""
        asking = self._asking
        # A loop that has ended leaves its poll undone.
        if not asking or asking.done() or asking.get_loop() is not asyncio.get_running_loop():
            asking = asyncio.create_task(self._refresh_now(timeout or self._timeout))
            # Take the error here, because every caller may have given up.
            asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
            self._asking = asking
        return asking

    async def _refresh_now(self, seconds: float) -> None:
        threads, changes_since = self._asking_threads, self._queries.changes_since
        while True:
            asked_at = monotonic()
            give_up_at = asked_at + seconds
            answer = await run(threads, give_up_at, changes_since, self._position, seconds)
            if answer.changed is not None:
                break
            await self._reload(answer.position)
        if self._queries.has_imported:
            KNOWING.add(self)
        for digest in answer.changed:
            self._secrets.pop(digest, None)
            if not self.may_exist(digest):
                insort(self._known, _start_of(digest))
        self.changes += bool(answer.changed)
        self._position, self._counted = answer.position, answer.counted
        if not answer.counted:  # the database lacks this server's row: write it soon
            self.usage.silent_until = -inf
        self._asked_at, self._trusted_until = asked_at, asked_at + self._staleness()
        self._ask_strangers_at = asked_at + min(10 * (monotonic() - asked_at), RECHECK)

    def _staleness(self) -> float:
        """Seconds for which an answer is trusted. A command that revokes waits at least as long."""
        counted = self._counted if monotonic() < self.usage.counted_until else 0.0
        return max(counted, LEAST_STALENESS)

    async def _reload(self, position: Cursor) -> None:
        self._trusted_until = -inf
        known, after, threads = array("Q"), b"", self._asking_threads
        while digests := await run(threads, None, self._queries.digests, after):
            known.extend(map(_start_of, digests))
            after = digests[-1]
        check = self._queries.check
        self._clock.learn(await run(threads, None, check, position, len(known)))
        if ahead := self._clock.ahead:
            logger.warning("The keys' database says %s. Is this machine's clock right?", ahead)
        self._secrets.clear()
        self._known, self._position = known, position
        self.changes += 1
        self.usage.written_at = 0.0

    # Background tasks.

    @asynccontextmanager
    async def follow(self) -> AsyncGenerator[None]:
        """Poll the database while the service runs, and write how keys were used.

        Raises StoreUnavailableError if the keys cannot be read at the start.
        """
        self._flush_at = inf
        await self.flush(starting=True)
        await in_time(None, self._poll(TIMEOUT))  # a busy machine may be slow to start
        stop = asyncio.Event()
        work = [
            asyncio.create_task(_keep_doing(self.refresh, lambda: self._staleness() / 4, stop)),
            asyncio.create_task(_keep_doing(self.flush, lambda: FLUSH_EVERY, stop)),
        ]
        try:
            yield
        finally:
            stop.set()
            await asyncio.wait(work)
            self.usage.counted_until = self._trusted_until = -inf
            self._flush_at = monotonic() + FLUSH_EVERY
            await self.flush(stopping=True)
            self.close()

    def close(self) -> None:
        """Close the connections. The next lookup opens one again."""
        self._trusted_until = -inf
        self._engine.dispose()

    async def flush(self, *, starting: bool = False, stopping: bool = False) -> None:
        """Write how keys were used. After an error, the next call writes it."""
        max_staleness = 0.0 if stopping else self.max_staleness
        await self.usage.flush(max_staleness, starting=starting, stopping=stopping)

    async def _flush_in_request(self) -> None:
        """Flush without a lifespan. The request waits, for its loop may stand still afterwards."""
        self._flush_at = monotonic() + FLUSH_EVERY
        starting, self._is_on_its_own = not self._is_on_its_own, True
        if starting:
            logger.warning(
                "No lifespan runs here: requests write how keys are used, a stop loses the last"
                " of it. Have the server, or the application that mounts this one, run the lifespan."
            )
        # Nobody can know whether such a server still runs, so changes do not wait for it.
        writing = self.usage.flush(LEAST_STALENESS, starting=starting, stopping=False)
        with suppress(TimeoutError):
            await asyncio.wait_for(writing, self._timeout)


async def _keep_doing(
    what: Callable[[], Awaitable[None]], every: Callable[[], float], stop: asyncio.Event
) -> None:
    """Repeat this until `stop`. An error is logged and does not end it."""
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

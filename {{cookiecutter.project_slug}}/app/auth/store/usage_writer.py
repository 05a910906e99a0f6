"""Writes how keys are used: each request counts in memory, and is soon in the database."""

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from math import inf
from time import monotonic

from app.auth.access.rule import OUT_OF_REACH
from app.auth.database.clock import Clock
from app.auth.errors import StoreUnavailableError
from app.auth.log import RequestRecord
from app.auth.store.queries import Queries, run
from app.auth.usage.counts import Counts

logger = logging.getLogger(__name__)

SEEN_EVERY = 60.0  # seconds until a server with nothing to write renews its row
COUNTED_FOR = 12 * 3600.0  # seconds for which a server relies on its row; commands do twice as long
NOTICE_EVERY = 600.0  # seconds between searches for anomalies


class UsageWriter:
    """Writes the counts, when each secret was last used, and the row of this server."""

    def __init__(self, queries: Queries, threads: ThreadPoolExecutor, clock: Clock) -> None:
        self.queries, self.threads, self._clock = queries, threads, clock
        self._used: dict[bytes, float] = {}  # when each secret was last accepted
        self.counts = Counts()
        self._saw_an_end = False
        self._problem = ""  # why writing failed, as it was logged
        self._thinned_on: date | None = None
        self._notice_at = -inf
        self.wrote_at = -inf
        self.written_at = 0.0  # seconds since the epoch, by the store's clock
        self.counted_until = -inf  # until then, commands wait for this server
        self.silent_until = -inf  # until then, a flush without counts writes nothing

    def observe(self, record: RequestRecord) -> None:
        """Count a request, by its key or by why it was refused. `flush` writes the counts."""
        now = self._clock.now()
        if record.key:
            self.counts.use(record.digest, now, record.outcome, record.client)
            if record.outcome != "limited":
                self._used[record.digest] = now
        elif record.refusal and record.refusal != OUT_OF_REACH:  # its key may be valid
            self.counts.refuse(record.client, now, record.refusal)

    def note_end(self, ends_at: float) -> None:
        """Have the time written, once, so that a clock that is set back revives no secret."""
        self._saw_an_end |= ends_at > self.written_at

    async def flush(self, max_staleness: float, *, starting: bool, stopping: bool) -> None:
        is_needed = self._used or self.counts or self._saw_an_end or starting or stopping
        if not is_needed and monotonic() < self.silent_until:
            return
        used, self._saw_an_end = self._used, False
        self._used = {}
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        began_at = monotonic()
        try:
            write = self.queries.write
            await run(self.threads, None, write, used, now, max_staleness, starting)
            used.clear()
            batches = self.counts.batches()
            while batches:
                await run(self.threads, None, self.queries.add, batch := batches[0])
                if batches and batches[0] is batch:  # no other loop has written it meanwhile
                    batches.popleft()
            if networks := self.counts.networks():
                await run(self.threads, None, self.queries.note_networks, networks)
                self.counts.noted(networks)
            if not (starting or stopping):  # neither waits for this
                await self._housekeep(now)
        except BaseException as error:
            self._used, self._saw_an_end = used | self._used, True
            if not isinstance(error, StoreUnavailableError):  # such as a cancellation
                raise
            if self._problem != f"{error}":
                logger.warning("How keys were used is not written yet. %s", error)
            self._problem = f"{error}"
        else:
            self._problem, self.written_at = "", now.timestamp()
            self.counted_until = -inf if stopping else began_at + COUNTED_FOR
            self.silent_until = began_at + SEEN_EVERY
            self.wrote_at = began_at

    async def _housekeep(self, now: datetime) -> None:
        """Compact old counts every day, and look for anomalies every NOTICE_EVERY seconds."""
        today, thin = now.date(), self.queries.thin
        if today != self._thinned_on and await run(self.threads, None, thin, now):
            self._thinned_on = today
        if monotonic() >= self._notice_at:
            self._notice_at = monotonic() + NOTICE_EVERY
            for finding in await run(self.threads, None, self.queries.notice, now):
                logger.warning(
                    *("Unusual%s: %s; %s.", finding.id and f" ({finding.id})"),
                    *(finding.problem, finding.advice),
                    extra={"key_id": finding.id, "problem": finding.problem},
                )

"""Limits counted in the keys' PostgreSQL, in one call a request.

The tables are unlogged: a crash of the server empties them, and a charge costs no write to disk.
"""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from app.auth.database.engine import LOCK, OPTIONS, connect
from app.limits.limit import CALENDAR
from app.limits.limiter import TIMEOUT, Counted, Window

CONNECTIONS: Final = 4  # a process; a call takes a fraction of a millisecond

# Requests have running numbers, so that the first and the last in a window tell how many it has.
# Times are in microseconds. The name of the function changes with its text.
TABLES: Final = """
CREATE UNLOGGED TABLE IF NOT EXISTS api_key_hits (
  key text COLLATE "C", time bigint, number bigint, leaves_at bigint, PRIMARY KEY (key, time)
);
CREATE INDEX IF NOT EXISTS api_key_hits_leave ON api_key_hits (leaves_at);
CREATE UNLOGGED TABLE IF NOT EXISTS api_key_quotas (
  key text COLLATE "C", period text, begins_at bigint, used bigint,
  PRIMARY KEY (key, period, begins_at)
);
CREATE OR REPLACE FUNCTION api_key_charge_1(
  whose text, most bigint[], spans bigint[], periods text[], starts bigint[], ended bigint[],
  known bigint[], OUT admitted boolean, OUT remaining bigint[], OUT frees_in bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
  now bigint; latest api_key_hits; oldest api_key_hits; taken bigint; longest bigint := 0;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'limits need the isolation level read committed'; -- to see others after a wait
  END IF;
  PERFORM pg_advisory_xact_lock(hashtextextended(whose, 0));
  now := extract(epoch FROM clock_timestamp()) * 1000000;
  SELECT * INTO latest FROM api_key_hits WHERE key = whose ORDER BY time DESC LIMIT 1;
  IF latest.time > now + 3600000000 THEN -- its clock was far ahead
    DELETE FROM api_key_hits WHERE key = whose;
    latest := NULL;
  END IF;
  now := greatest(now, latest.time + 1);
  admitted := true;
  FOR i IN 1..cardinality(most) LOOP
    IF spans[i] > 0 THEN
      longest := greatest(longest, spans[i]);
      SELECT * INTO oldest FROM api_key_hits WHERE key = whose AND time > now - spans[i]
        ORDER BY time LIMIT 1;
      taken := coalesce(latest.number - oldest.number + 1, 0);
      IF taken > most[i] THEN -- the limit was higher
        SELECT * INTO oldest FROM api_key_hits WHERE key = whose AND time > now - spans[i]
          ORDER BY time LIMIT 1 OFFSET taken - most[i];
      END IF;
      frees_in[i] := coalesce(oldest.time + spans[i] - now, spans[i]);
    ELSE
      SELECT used INTO taken FROM api_key_quotas
        WHERE key = whose AND period = periods[i] AND begins_at = starts[i];
      taken := greatest(taken, known[i]);
      IF taken < 0 THEN
        admitted := NULL;
        RETURN;
      END IF;
      frees_in[i] := 0;
    END IF;
    remaining[i] := most[i] - taken;
    admitted := admitted AND remaining[i] > 0;
  END LOOP;
  IF NOT admitted THEN
    RETURN;
  END IF;
  IF longest > 0 THEN
    INSERT INTO api_key_hits VALUES (whose, now, coalesce(latest.number, 0) + 1, now + longest);
    DELETE FROM api_key_hits WHERE ctid = ANY (ARRAY(
      SELECT ctid FROM api_key_hits WHERE leaves_at <= now ORDER BY leaves_at LIMIT 10
      FOR UPDATE SKIP LOCKED));
  END IF;
  FOR i IN 1..cardinality(most) LOOP
    remaining[i] := remaining[i] - 1;
    IF spans[i] = 0 THEN
      INSERT INTO api_key_quotas VALUES (whose, periods[i], starts[i], most[i] - remaining[i])
        ON CONFLICT (key, period, begins_at) DO UPDATE SET used = excluded.used;
      DELETE FROM api_key_quotas
        WHERE key = whose AND period = periods[i] AND begins_at < ended[i];
    END IF;
  END LOOP;
END $$;
"""
_CHARGE: Final = (
    "SELECT * FROM api_key_charge_1(%s, %s::bigint[], %s::bigint[], %s::text[], %s::bigint[],"
    " %s::bigint[], %s::bigint[])"
)

_Connection = psycopg.AsyncConnection[tuple[Any, ...]]


class PostgresqlCounter:
    """Counts by the clock of the database's server."""

    setting = "DATABASE_URL"
    errors: tuple[type[Exception], ...] = (psycopg.Error, OSError)

    def __init__(self, url: sa.URL) -> None:
        _, options = connect(url).dialect.create_connect_args(url)
        self._options: dict[str, Any] = {**options, **OPTIONS, "autocommit": True}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._idle: list[_Connection] = []

    async def charge(self, key_id: str, windows: Sequence[Window]) -> Counted | None:
        starts = [int(each.begins_at.timestamp()) if each.begins_at else 0 for each in windows]
        lasts = [2 * CALENDAR.get(each.period, 0) for each in windows]
        arguments = (
            key_id,
            [each.requests for each in windows],
            [each.seconds * 1_000_000 for each in windows],
            [each.period for each in windows],
            starts,
            [start - last for start, last in zip(starts, lasts, strict=True)],
            [each.used for each in windows],
        )
        give_up_at = asyncio.get_running_loop().time() + TIMEOUT
        was_used = bool(self._idle)
        try:
            admitted, left, frees_in = await self._ask(arguments, give_up_at)
        except psycopg.OperationalError:
            if not was_used:
                raise
            await self.close()  # the server may have closed them while nobody asked
            admitted, left, frees_in = await self._ask(arguments, give_up_at)
        if admitted is None:
            return None
        return Counted(admitted, left, [each / 1_000_000 for each in frees_in])

    async def _ask(self, arguments: Sequence[Any], give_up_at: float) -> tuple[Any, ...]:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # connections belong to the loop that opened them
            self._loop, self._idle, self._free = loop, [], asyncio.Semaphore(CONNECTIONS)
        async with asyncio.timeout_at(give_up_at):
            await self._free.acquire()
        try:
            async with asyncio.timeout_at(give_up_at):
                opened = (
                    self._idle.pop() if self._idle else await _Connection.connect(**self._options)
                )
            timer = loop.call_at(give_up_at, _hang_up, opened)
            try:
                row = await _charge(opened, arguments)
            except BaseException:
                _hang_up(opened)
                await opened.close()
                raise
            finally:
                timer.cancel()
            self._idle.append(opened)
            return row
        finally:
            self._free.release()

    async def close(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()


async def _charge(connection: _Connection, arguments: Sequence[Any]) -> tuple[Any, ...]:
    try:
        cursor = await connection.execute(_CHARGE, arguments)
    except psycopg.errors.UndefinedFunction:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
            await connection.execute(TABLES)
        cursor = await connection.execute(_CHARGE, arguments)
    return await cursor.fetchone() or (None, (), ())


def _hang_up(connection: _Connection) -> None:
    """A cancelled query waits for the server, which may be frozen; a closed socket does not."""
    with (
        suppress(OSError, psycopg.Error),
        socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)

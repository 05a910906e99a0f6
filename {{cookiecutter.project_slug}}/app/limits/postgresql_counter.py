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

from app.auth.database.engine import LOCK, OPTIONS, connect, transaction
from app.constants import COMMAND
from app.limits.connections import Connections
from app.limits.limit import CALENDAR
from app.limits.limiter import Counted, OutOfReachError, Window

# Requests have running numbers, so that the first and the last in a window tell how many it has.
# `longest` is the length of the longest window. The arguments for each window are its requests; its
# length in microseconds, or 0 for a quota; of a quota the length and the start of its period in
# seconds, and the requests used already (-1: unknown). It returns whether the request is charged,
# and for each window the requests left and the microseconds until it frees one; null if a quota is
# unknown. The name changes with the text.
_TABLES: Final = """
CREATE UNLOGGED TABLE IF NOT EXISTS api_key_hits (
  key text COLLATE "C", time bigint, number bigint, leaves_at bigint, PRIMARY KEY (key, time)
);
CREATE INDEX IF NOT EXISTS api_key_hits_leave ON api_key_hits (leaves_at);
CREATE UNLOGGED TABLE IF NOT EXISTS api_key_quotas (
  key text COLLATE "C", period bigint, starts_at bigint, used bigint,
  PRIMARY KEY (key, period, starts_at)
);
CREATE OR REPLACE FUNCTION api_key_charge_2(whose text, longest bigint, windows bigint[])
RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
  now bigint; latest api_key_hits; oldest api_key_hits; span bigint; taken bigint;
  charged bigint := 1; answer bigint[] := '{1}';
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'limits need the isolation level read committed'; -- to see others after a wait
  END IF;
  PERFORM pg_advisory_xact_lock(hashtextextended(whose, 0));
  now := extract(epoch FROM clock_timestamp()) * 1000000;
  SELECT * INTO latest FROM api_key_hits WHERE key = whose ORDER BY time DESC LIMIT 1;
  IF latest.time > now + longest THEN -- its clock was far ahead
    DELETE FROM api_key_hits WHERE key = whose;
    latest := NULL;
  END IF;
  now := greatest(now, latest.time + 1);
  FOR i IN 1..cardinality(windows) BY 5 LOOP
    span := windows[i + 1];
    IF span > 0 THEN
      taken := 0;
      IF latest.time > now - span THEN
        SELECT * INTO oldest FROM api_key_hits WHERE key = whose AND time > now - span
          ORDER BY time LIMIT 1;
        taken := latest.number - oldest.number + 1;
        IF taken > windows[i] THEN -- the limit was higher
          SELECT * INTO oldest FROM api_key_hits WHERE key = whose AND time > now - span
            ORDER BY time LIMIT 1 OFFSET taken - windows[i];
        END IF;
        span := coalesce(oldest.time, now) + span - now; -- null if it is swept already
      END IF;
    ELSE
      SELECT used INTO taken FROM api_key_quotas
        WHERE key = whose AND period = windows[i + 2] AND starts_at = windows[i + 3];
      taken := greatest(taken, windows[i + 4]);
      IF taken < 0 THEN
        RETURN NULL;
      END IF;
    END IF;
    answer := answer || (windows[i] - taken) || span;
    IF taken >= windows[i] THEN
      charged := 0;
    END IF;
  END LOOP;
  answer[1] := charged;
  IF charged = 0 THEN
    RETURN answer;
  END IF;
  IF longest > 0 THEN
    INSERT INTO api_key_hits VALUES (whose, now, coalesce(latest.number, 0) + 1, now + longest);
    IF mod(coalesce(latest.number, 0), 16) = 0 THEN
      DELETE FROM api_key_hits WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM api_key_hits WHERE leaves_at <= now ORDER BY leaves_at LIMIT 64
        FOR UPDATE SKIP LOCKED));
    END IF;
  END IF;
  FOR i IN 0..cardinality(windows) / 5 - 1 LOOP
    answer[2 * i + 2] := answer[2 * i + 2] - 1;
    IF windows[5 * i + 2] = 0 THEN
      INSERT INTO api_key_quotas
        VALUES (whose, windows[5 * i + 3], windows[5 * i + 4], windows[5 * i + 1] - answer[2 * i + 2])
        ON CONFLICT (key, period, starts_at) DO UPDATE SET used = excluded.used;
      DELETE FROM api_key_quotas WHERE key = whose AND period = windows[5 * i + 3]
        AND starts_at < windows[5 * i + 4] - 2 * windows[5 * i + 3];
    END IF;
  END LOOP;
  RETURN answer;
END $$;
"""
_CHARGE: Final = "SELECT api_key_charge_2(%s, %s, %s::bigint[])"
_IS_MISSING: Final = "SELECT to_regproc('api_key_charge_2') IS NULL"

_Connection = psycopg.AsyncConnection[tuple[Any, ...]]


class PostgresqlCounter:
    """Counts by the clock of the database's server."""

    setting = "DATABASE_URL"

    def __init__(self, url: sa.URL) -> None:
        _, options = connect(url).dialect.create_connect_args(url)
        options = {**options, **OPTIONS, "autocommit": True}
        self._connections = Connections(
            lambda: _Connection.connect(**options),
            _Connection.close,
            *(psycopg.Error, psycopg.OperationalError),
        )
        self.close = self._connections.close

    async def charge(self, key_id: str, windows: Sequence[Window]) -> Counted | None:
        numbers: list[int] = []
        for window in windows:
            start = int(window.begins_at.timestamp()) if window.begins_at else 0
            length = CALENDAR.get(window.period, 0)
            numbers += window.requests, window.seconds * 1_000_000, length, start, window.used
        longest = max(numbers[1::5])
        arguments = key_id, longest, "{" + ",".join(map(str, numbers)) + "}"
        answer = await self._connections.ask(
            lambda opened, give_up_at: _charge(opened, give_up_at, arguments)
        )
        if answer is None:
            return None
        admitted, *rest = answer
        return Counted(bool(admitted), rest[::2], [each / 1_000_000 for each in rest[1::2]])


async def _charge(
    connection: _Connection, give_up_at: float, arguments: Sequence[str | int]
) -> list[int] | None:
    # psycopg waits for a query that it cancels, and the server may be frozen.
    timer = asyncio.get_running_loop().call_at(give_up_at, _hang_up, connection)
    try:
        try:
            cursor = await connection.execute(_CHARGE, arguments)
        except psycopg.errors.UndefinedFunction:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
                await connection.execute(_TABLES)
            cursor = await connection.execute(_CHARGE, arguments)
        row: tuple[list[int] | None] | None = await cursor.fetchone()
        return row and row[0]
    except psycopg.errors.InsufficientPrivilege as error:
        # Its first line names an object, and nobody's data.
        advice = f"who owns the tables of the keys runs: uv run {COMMAND} db upgrade"
        raise OutOfReachError(f"{error.diag.message_primary}; {advice}") from None
    except psycopg.errors.RaiseException as error:
        raise OutOfReachError(f"{error.diag.message_primary}") from None
    finally:
        timer.cancel()


def _hang_up(connection: _Connection) -> None:
    with (
        suppress(OSError, psycopg.Error),
        socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)


def create_tables(url: sa.URL) -> bool:
    """Create what is missing. Returns whether anything was. Raises StoreUnavailableError."""
    with transaction(connect(url), write=True) as connection:
        # They may belong to another role.
        if missing := bool(connection.exec_driver_sql(_IS_MISSING).scalar()):
            connection.exec_driver_sql(_TABLES)
    return missing

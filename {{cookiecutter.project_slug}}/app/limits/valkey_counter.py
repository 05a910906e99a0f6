"""Limits that servers share: Valkey or Redis counts, by its own clock, in one call a request."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from math import inf
from time import monotonic
from typing import Any, Final

from valkey.asyncio import BlockingConnectionPool, Valkey
from valkey.exceptions import ValkeyError

from app.auth.errors import SettingsError
from app.constants import COMMAND
from app.limits.limit import Charge, Limit, Used, calendar_period
from app.limits.local import LocalLimiter
from app.limits.settings import VALKEY_URL_FORM

logger = logging.getLogger(__name__)

TIMEOUT: Final = 0.5  # seconds until Valkey counts as out of reach
PAUSE: Final = 2.0  # seconds until the next attempt
CONNECTIONS: Final = 10  # a process; a call takes a fraction of a millisecond

# Arguments for each limit: its requests; its window in microseconds, or 0 for a quota; the requests
# used already (-1: unknown); the seconds until its key expires. The script charges all limits or
# none. It returns for each the requests left and the microseconds until the window frees one.
_CHARGE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local left, resets, over = {}, {}, false
for i, key in ipairs(KEYS) do
  local most, span = tonumber(ARGV[4 * i - 3]), tonumber(ARGV[4 * i - 2])
  if span > 0 then
    local latest = tonumber(redis.call('LINDEX', key, -1) or 0)
    if latest > now + span then redis.call('DEL', key) end -- its clock was far ahead
    local oldest = redis.call('LINDEX', key, 0)
    while oldest and tonumber(oldest) <= now - span do
      redis.call('LPOP', key)
      oldest = redis.call('LINDEX', key, 0)
    end
    left[i] = most - redis.call('LLEN', key)
    resets[i] = oldest and oldest + span - now or 0
  else
    local used = redis.call('GET', key)
    if not used then
      if tonumber(ARGV[4 * i - 1]) < 0 then return false end
      redis.call('SET', key, ARGV[4 * i - 1])
      used = ARGV[4 * i - 1]
    end
    left[i], resets[i] = most - used, 0
  end
  if left[i] <= 0 then over = true end
end
for i, key in ipairs(KEYS) do
  if not over then
    left[i] = left[i] - 1
    if tonumber(ARGV[4 * i - 2]) > 0 then
      redis.call('RPUSH', key, time[1] .. string.format('%06d', time[2]))
      if resets[i] == 0 then resets[i] = tonumber(ARGV[4 * i - 2]) end
    else
      redis.call('INCR', key)
    end
  end
  redis.call('EXPIRE', key, ARGV[4 * i])
end
return {over and 1 or 0, left, resets}
"""


class ValkeyLimiter:
    """Counts in Valkey. While that is out of reach, each server counts alone, with `local`.

    Raises SettingsError if the URL is not valid.
    """

    def __init__(self, url: str, local: LocalLimiter, used: Used, now: Callable[[], float]) -> None:
        self._local, self._used, self._now = local, used, now
        try:
            pool = BlockingConnectionPool.from_url(
                url, max_connections=CONNECTIONS, timeout=None, client_name=COMMAND
            )
            pool.connection_class(**pool.connection_kwargs)  # opens no connection yet
        except (TypeError, ValueError):  # unknown options, or a port that is no number
            raise SettingsError(f"VALKEY_URL: {VALKEY_URL_FORM}") from None
        self._client = Valkey.from_pool(pool)
        self._charge = self._client.register_script(_CHARGE)
        self._ask_at = -inf
        self._problem = ""

    async def charge(self, key_id: str, limits: Sequence[Limit]) -> Charge:
        if monotonic() < self._ask_at:
            return await self._local.charge(key_id, limits)
        moment = self._now()
        periods = [
            None if limit.seconds else calendar_period(limit.period, moment) for limit in limits
        ]
        try:
            answer = await self._ask(key_id, limits, periods, moment, [-1] * len(limits))
            if answer is None:  # it lacks a quota: the period is new, or it has lost its data
                used = [await self._used(key_id, period[0]) if period else -1 for period in periods]
                answer = await self._ask(key_id, limits, periods, moment, used)
        except (ValkeyError, OSError, TimeoutError) as error:
            self._ask_at = monotonic() + PAUSE
            problem = type(error).__name__
            if self._problem != problem:
                logger.warning(
                    "VALKEY_URL: out of reach (%s). Each server counts its requests for itself.",
                    problem,
                )
            self._problem = problem
            return await self._local.charge(key_id, limits)
        if self._problem:
            logger.info("Valkey is back: the servers count together.")
            self._problem = ""
            self._local.forget_quotas()
        is_over, *columns = answer
        states = [
            (left, period[1] - moment if period else reset / 1_000_000)
            for period, left, reset in zip(periods, *columns, strict=True)
        ]
        if not is_over:
            return Charge(states)
        waits = [wait if left <= 0 else 0.0 for left, wait in states]
        over = limits[waits.index(max(waits))]
        return Charge([(max(0, left), wait) for left, wait in states], over, max(waits))

    async def _ask(
        self,
        key_id: str,
        limits: Sequence[Limit],
        periods: Sequence[tuple[datetime, float] | None],
        moment: float,
        used: Sequence[int],
    ) -> Any:
        names: list[str] = []
        arguments: list[int] = []
        for limit, period, count in zip(limits, periods, used, strict=True):
            # A cluster keeps names with the same text in braces on one node.
            name = f"{COMMAND}:" + "{" + key_id + "}" + f":{limit}"
            if period:
                begins_at, ends_at = period
                names.append(f"{name}:{begins_at:%Y-%m-%d}")
                arguments += [limit.requests, 0, count, round(ends_at - moment) + 3600]
            else:
                names.append(name)
                arguments += [limit.requests, limit.seconds * 1_000_000, -1, limit.seconds + 1]
        async with asyncio.timeout(TIMEOUT):
            return await self._charge(names, arguments)

    async def close(self) -> None:
        await self._client.aclose()

"""Limits counted in Valkey or Redis, by its own clock, in one call a request."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha1
from typing import Any, Final

from valkey.asyncio import BlockingConnectionPool, Valkey
from valkey.exceptions import NoScriptError, ValkeyError

from app.auth.errors import SettingsError
from app.constants import COMMAND
from app.limits.limit import CALENDAR
from app.limits.limiter import TIMEOUT, Counted, Window
from app.limits.settings import VALKEY_URL_FORM

CONNECTIONS: Final = 10  # a process; a call takes a fraction of a millisecond

# Arguments for each window: its requests; its length in microseconds, or 0 for a quota; the requests
# used already (-1: unknown); the seconds until its key expires. The script charges all windows or
# none. It returns for each the requests left and the microseconds until it frees one.
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
    if left[i] < 0 then oldest = redis.call('LINDEX', key, -left[i]) end -- the limit was higher
    resets[i] = oldest and oldest + span - now or span
  else
    local used = math.max(tonumber(redis.call('GET', key) or -1), tonumber(ARGV[4 * i - 1]))
    if used < 0 then return false end
    left[i], resets[i] = most - used, 0
  end
  if left[i] <= 0 then over = true end
end
for i, key in ipairs(KEYS) do
  if not over then
    left[i] = left[i] - 1
    if tonumber(ARGV[4 * i - 2]) > 0 then
      redis.call('RPUSH', key, time[1] .. string.format('%06d', time[2]))
      redis.call('EXPIRE', key, ARGV[4 * i])
    else
      redis.call('SET', key, ARGV[4 * i - 3] - left[i], 'EX', ARGV[4 * i])
    end
  end
end
return {over and 0 or 1, left, resets}
"""
_NAME: Final = sha1(_CHARGE.encode(), usedforsecurity=False).hexdigest()


class ValkeyCounter:
    """Raises SettingsError if the URL is not valid."""

    setting = "VALKEY_URL"
    errors: tuple[type[Exception], ...] = (ValkeyError, OSError)

    def __init__(self, url: str) -> None:
        try:
            pool = BlockingConnectionPool.from_url(
                url, max_connections=CONNECTIONS, timeout=None, client_name=COMMAND
            )
            pool.connection_class(**pool.connection_kwargs)  # opens no connection yet
        except (TypeError, ValueError):  # unknown options, or a port that is no number
            raise SettingsError(f"VALKEY_URL: {VALKEY_URL_FORM}") from None
        self._client = Valkey.from_pool(pool)
        self._run: Callable[..., Awaitable[Any]] = self._client.execute_command

    async def charge(self, key_id: str, windows: Sequence[Window]) -> Counted | None:
        names: list[str] = []
        arguments: list[Any] = []
        for window in windows:
            # A cluster keeps names with the same text in braces on one node.
            name = f"{COMMAND}:" + "{" + key_id + "}:" + window.period
            if window.begins_at:
                names.append(f"{name}:{window.begins_at:%Y-%m-%d}")
                lasts = CALENDAR[window.period] + 86_400
                arguments += [window.requests, 0, window.used, lasts]
            else:
                names.append(name)
                arguments += [window.requests, window.seconds * 1_000_000, -1, window.seconds + 1]
        async with asyncio.timeout(TIMEOUT):
            try:
                answer = await self._run("EVALSHA", _NAME, len(names), *names, *arguments)
            except NoScriptError:
                answer = await self._run("EVAL", _CHARGE, len(names), *names, *arguments)
        if answer is None:
            return None
        admitted, left, resets = answer
        return Counted(bool(admitted), left, [reset / 1_000_000 for reset in resets])

    async def close(self) -> None:
        await self._client.aclose()

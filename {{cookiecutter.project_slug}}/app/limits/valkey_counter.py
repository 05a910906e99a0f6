"""Limits counted in Valkey or Redis, by its own clock, in one call a request."""

import asyncio
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any, Final, cast

from valkey.asyncio.connection import AbstractConnection, ConnectionPool
from valkey.exceptions import ConnectionError as ConnectionLostError
from valkey.exceptions import NoScriptError, ValkeyError

from app.auth.errors import SettingsError
from app.constants import COMMAND
from app.limits.connections import Connections
from app.limits.limit import CALENDAR
from app.limits.limiter import Counted, Window
from app.limits.settings import VALKEY_URL_FORM

# Arguments for each window: its requests; its length in microseconds, or 0 for a quota; the requests
# used already (-1: unknown); the seconds until its key expires. The script charges all windows or
# none. It returns for each the requests left and the microseconds until it frees one.
_CHARGE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local left, frees, over = {}, {}, false
for i, key in ipairs(KEYS) do
  local most, span = tonumber(ARGV[4 * i - 3]), tonumber(ARGV[4 * i - 2])
  if span > 0 then
    local oldest, some = nil, 1
    repeat -- in twice as large steps each, so that many at once are no work
      oldest = tonumber(redis.call('LINDEX', key, some - 1))
      local gone = oldest and oldest <= now - span
      if gone then redis.call('LPOP', key, some) end
      local is_first = not gone and some == 1
      some = gone and some * 2 or 1
    until is_first
    -- Its clock was far ahead:
    if oldest and oldest > now + span then redis.call('DEL', key); oldest = nil end
    left[i] = oldest and most - redis.call('LLEN', key) or most
    if left[i] < 0 then oldest = tonumber(redis.call('LINDEX', key, -left[i])) end -- it was higher
    frees[i] = oldest and oldest + span - now or span
  else
    local used = math.max(tonumber(redis.call('GET', key) or -1), tonumber(ARGV[4 * i - 1]))
    if used < 0 then return false end
    left[i], frees[i] = most - used, 0
  end
  if left[i] <= 0 then over = true end
end
local answer = {over and 0 or 1}
for i, key in ipairs(KEYS) do
  if not over then
    left[i] = left[i] - 1
    if tonumber(ARGV[4 * i - 2]) > 0 then
      redis.call('RPUSH', key, string.format('%d%06d', time[1], time[2]))
      redis.call('EXPIRE', key, ARGV[4 * i])
    else
      redis.call('SET', key, ARGV[4 * i - 3] - left[i], 'EX', ARGV[4 * i])
    end
  end
  answer[2 * i], answer[2 * i + 1] = left[i], string.format('%d', frees[i])
end
return table.concat(answer, ' ') -- the client reads one text faster than many numbers
"""
_NAME: Final = sha1(_CHARGE.encode(), usedforsecurity=False).hexdigest()


class ValkeyCounter:
    """Raises SettingsError if the URL is not valid."""

    setting = "VALKEY_URL"

    def __init__(self, url: str) -> None:
        try:
            # Its connections are used without the client, whose layers take half of the time.
            make: Callable[[], Any] = ConnectionPool.from_url(
                url, client_name=COMMAND
            ).make_connection
            make()  # opens no connection yet
        except (TypeError, ValueError):  # unknown options, or a port that is no number
            raise SettingsError(f"VALKEY_URL: {VALKEY_URL_FORM}") from None

        async def connected() -> AbstractConnection:
            connection = make()
            await connection.connect()
            return cast(AbstractConnection, connection)

        self._connections = Connections(connected, _disconnect, ValkeyError, ConnectionLostError)
        self.close = self._connections.close

    async def charge(self, key_id: str, windows: Sequence[Window]) -> Counted | None:
        names: list[str] = []
        arguments: list[int] = []
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
        answer = await self._connections.ask(
            lambda opened, give_up_at: _charge(opened, give_up_at, names, arguments)
        )
        if answer is None:
            return None
        admitted, *rest = map(int, answer.split())
        return Counted(bool(admitted), rest[::2], [each / 1_000_000 for each in rest[1::2]])


async def _charge(
    connection: AbstractConnection,
    give_up_at: float,
    names: Sequence[str],
    arguments: Sequence[int],
) -> bytes | None:
    async with asyncio.timeout_at(give_up_at):
        try:
            return await _call(connection, "EVALSHA", _NAME, len(names), *names, *arguments)
        except NoScriptError:
            return await _call(connection, "EVAL", _CHARGE, len(names), *names, *arguments)


async def _call(connection: AbstractConnection, *words: str | int) -> bytes | None:
    await connection.send_command(*words)
    answer: bytes | None = await connection.read_response()
    return answer


async def _disconnect(connection: AbstractConnection) -> None:
    await connection.disconnect(nowait=True)

"""Limits: how many requests a key may send in a time, counted in this process.

`600/minute` slides: no minute has more of them, wherever it begins. `50000/month`, a quota, is of
the calendar, in UTC. `valkey.py` counts the same for servers that share it.
"""

import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import ceil
from time import monotonic_ns
from typing import Final, NamedTuple, Protocol

from app.auth.errors import SettingsError

SLIDING: Final = {"second": 1, "minute": 60, "hour": 3600}  # in seconds
CALENDAR: Final = {"day": 86_400, "month": 31 * 86_400}  # in seconds, at most
SECOND: Final = 1_000_000_000  # nanoseconds: fractions of a second do not add up to one
MOST_SLIDING: Final = 10_000  # requests, for each takes memory until it has slid out
MOST: Final = 1_000_000_000
MOST_IDLE: Final = 20_000  # keys whose counts are kept though nothing is in them

LIMIT_PATTERN: Final = r"^[1-9][0-9]{0,9}/(" + "|".join((*SLIDING, *CALENDAR)) + ")$"
_LIMIT: Final = re.compile(LIMIT_PATTERN)


class Limit(NamedTuple):
    requests: int
    period: str

    def __str__(self) -> str:
        return f"{self.requests}/{self.period}"

    @property
    def seconds(self) -> int:
        """For which it slides; 0 of a quota."""
        return SLIDING.get(self.period, 0)


def parse_limits(written: Iterable[str]) -> tuple[Limit, ...]:
    """In the order of their periods. Raises ValueError."""
    limits: dict[str, Limit] = {}
    for text in written:
        if not _LIMIT.fullmatch(text):
            raise ValueError(f"{text!r} is not a limit; write one like 600/minute or 50000/month")
        number, _, period = text.partition("/")
        limit = Limit(int(number), period)
        if limit.requests > (most := MOST_SLIDING if limit.seconds else MOST):
            raise ValueError(f"{text!r} is too many: {most} at most; quotas are of a day or month")
        if period in limits:
            raise ValueError(f"{text!r} is a second limit per {period}; give one")
        limits[period] = limit
    return tuple(limits[period] for period in (*SLIDING, *CALENDAR) if period in limits)


def with_default(own: tuple[Limit, ...], default: tuple[Limit, ...]) -> tuple[Limit, ...]:
    """A default holds where there is no limit that slides; a quota leaves room for it."""
    return own if any(limit.seconds for limit in own) else (*default, *own)


def are_within(inner: Iterable[Limit], outer: Iterable[Limit]) -> bool:
    """Whether who keeps to the first keeps to the second."""
    most = {limit.period: limit.requests for limit in inner}
    return all(most.get(limit.period, MOST + 1) <= limit.requests for limit in outer)


def written(limits: Iterable[Limit]) -> str:
    """As it is stored."""
    return " ".join(map(str, limits))


class Charge(NamedTuple):
    """What a request was charged: nothing, if one of the limits had none left.

    `told` is of each limit how many requests are left, and in how many seconds one of those that
    are gone comes back; of a quota, all.
    """

    told: Sequence[tuple[int, float]]
    over: Limit | None = None
    wait: float = 0.0  # seconds until it may be tried again


def headers_of(charge: Charge, limits: tuple[Limit, ...]) -> list[tuple[bytes, bytes]]:
    """As the IETF's draft on RateLimit fields has them."""
    told = [
        f'"{limit.period}";r={left};t={ceil(seconds)}'
        for limit, (left, seconds) in zip(limits, charge.told, strict=True)
    ]
    headers = [_policies(limits), (b"ratelimit", ", ".join(told).encode())]
    if charge.over:
        headers.append((b"retry-after", f"{ceil(charge.wait)}".encode()))
    return headers


@lru_cache
def _policies(limits: tuple[Limit, ...]) -> tuple[bytes, bytes]:
    policies = [
        # A month has no fixed length.
        f'"{limit.period}";q={limit.requests}' + f";w={limit.seconds}" * bool(limit.seconds)
        for limit in limits
    ]
    return b"ratelimit-policy", ", ".join(policies).encode()


Used = Callable[[str, datetime], Awaitable[int]]
"""How many requests a key has sent since then, as it is written down."""


class Limiter(Protocol):
    async def charge(self, key_id: str, limits: Sequence[Limit]) -> Charge:
        """One request to all of its limits, or to none. Raises StoreUnavailableError."""
        ...

    async def close(self) -> None:
        """Let go of whom it asks, until it is used again."""
        ...


def open_limiter(valkey_url: str, used: Used, now: Callable[[], float]) -> Limiter:
    """Raises SettingsError if there is nothing that could ask Valkey."""
    local = LocalLimiter(used, now)
    if not valkey_url:
        return local
    try:
        from app.limits.valkey_counter import ValkeyLimiter
    except ImportError:
        raise SettingsError("VALKEY_URL: install what asks it: uv sync --extra valkey") from None
    return ValkeyLimiter(valkey_url, local, used, now)


class LocalLimiter:
    """Counts in this process, for itself."""

    def __init__(self, used: Used, now: Callable[[], float]) -> None:
        self._used, self._now = used, now
        self._counts: dict[str, tuple[Sequence[Limit], Sequence[_Sliding | _Quota]]] = {}
        self._forget_at = MOST_IDLE

    async def charge(self, key_id: str, limits: Sequence[Limit]) -> Charge:
        known, counts = self._counts.get(key_id, ((), ()))
        if known != limits:
            if len(self._counts) >= self._forget_at:
                self._forget_idle()
            counts = [_Sliding(limit) if limit.seconds else _Quota(limit) for limit in limits]
            self._counts[key_id] = limits, counts
        moment = self._now()
        for count in counts:
            if isinstance(count, _Quota) and not count.covers(moment):
                begins_at, ends_at = calendar_period(count.limit.period, moment)
                count.begin(moment, ends_at, await self._used(key_id, begins_at))
        now = monotonic_ns()  # nobody else gets a turn from here on
        over, wait = None, 0.0
        for count in counts:
            if (needed := count.wait(now, moment)) > wait:
                over, wait = count.limit, needed
        if over is None:
            for count in counts:
                count.add(now)
        return Charge([count.told(now, moment) for count in counts], over, wait)

    async def close(self) -> None:
        """It asks nobody."""

    def forget_quotas(self) -> None:
        """Others have counted meanwhile: look again what is written down."""
        for _, counts in self._counts.values():
            for count in counts:
                if isinstance(count, _Quota):
                    count.ends_at = 0.0

    def _forget_idle(self) -> None:
        now = monotonic_ns()
        self._counts = {
            id: known
            for id, known in self._counts.items()
            if not all(isinstance(count, _Sliding) and count.is_idle(now) for count in known[1])
        }
        self._forget_at = max(MOST_IDLE, 2 * len(self._counts))


class _Sliding:
    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self._span = limit.seconds * SECOND
        self._times = deque[int]()  # nanoseconds, of the requests that were let in, oldest first

    def is_idle(self, now: int) -> bool:
        return self._slide(now) == 0

    def wait(self, now: int, _: float) -> float:
        if self._slide(now) < self.limit.requests:
            return 0.0
        return (self._times[0] + self._span - now) / SECOND

    def add(self, now: int) -> None:
        self._times.append(now)

    def told(self, now: int, _: float) -> tuple[int, float]:
        times = self._times
        resets_in = (times[0] + self._span - now) / SECOND if times else 0.0
        return self.limit.requests - len(times), resets_in

    def _slide(self, now: int) -> int:
        while self._times and self._times[0] <= now - self._span:
            self._times.popleft()
        return len(self._times)


class _Quota:
    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.ends_at = 0.0  # seconds since the epoch
        self._used = 0

    def covers(self, moment: float) -> bool:
        # Who came just before it began waits for no other one; but a clock may have been far ahead.
        return self.ends_at - 2 * CALENDAR[self.limit.period] <= moment < self.ends_at

    def begin(self, moment: float, ends_at: float, used: int) -> None:
        if not self.covers(moment):  # or another request has found out meanwhile
            self.ends_at, self._used = ends_at, used

    def wait(self, _: int, moment: float) -> float:
        return self.ends_at - moment if self._used >= self.limit.requests else 0.0

    def add(self, _: int) -> None:
        self._used += 1

    def told(self, _: int, moment: float) -> tuple[int, float]:
        return max(0, self.limit.requests - self._used), self.ends_at - moment


def calendar_period(period: str, moment: float) -> tuple[datetime, float]:
    """When the one that this moment lies in begins and ends, in UTC."""
    today = datetime.fromtimestamp(moment, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return today, (today + timedelta(days=1)).timestamp()
    first = today.replace(day=1)
    return first, (first + timedelta(days=32)).replace(day=1).timestamp()

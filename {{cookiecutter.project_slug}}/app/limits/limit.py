"""Limits: how many requests a key may send in a period.

`600/minute` is a sliding window: no 60 seconds have more requests, wherever they begin.
`50000/month` is a quota: it counts by the calendar, in UTC.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import ceil
from typing import Final, NamedTuple

SLIDING: Final = {"second": 1, "minute": 60, "hour": 3600}  # in seconds
CALENDAR: Final = {"day": 86_400, "month": 31 * 86_400}  # in seconds, at most
MOST_SLIDING: Final = 10_000  # requests: each takes room until it leaves the window
MOST: Final = 1_000_000_000

LIMIT_PATTERN: Final = r"^[1-9][0-9]{0,9}/(" + "|".join((*SLIDING, *CALENDAR)) + ")$"
_LIMIT: Final = re.compile(LIMIT_PATTERN)


class Limit(NamedTuple):
    requests: int
    period: str

    def __str__(self) -> str:
        return f"{self.requests}/{self.period}"

    @property
    def seconds(self) -> int:
        """The length of the sliding window; 0 for a quota."""
        return SLIDING.get(self.period, 0)


def parse_limits(written: Iterable[str]) -> tuple[Limit, ...]:
    """The limits, shortest period first. Raises ValueError."""
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
    """The limits that hold. The default applies unless the key has a sliding limit of its own."""
    return own if any(limit.seconds for limit in own) else (*default, *own)


def are_within(inner: Iterable[Limit], outer: Iterable[Limit]) -> bool:
    """Whether a key that keeps to `inner` always keeps to `outer`."""
    most = {limit.period: limit.requests for limit in inner}
    return all(most.get(limit.period, MOST + 1) <= limit.requests for limit in outer)


class Charge(NamedTuple):
    """The result of charging a request. A request over one limit is charged to none.

    `told` has for each limit how many requests are left, and the seconds until the window frees
    the next one or, for a quota, until its period ends.
    """

    told: Sequence[tuple[int, float]]
    over: Limit | None = None
    wait: float = 0.0  # seconds until the client may try again


def headers_of(charge: Charge, limits: tuple[Limit, ...]) -> list[tuple[bytes, bytes]]:
    """The headers of the IETF draft on RateLimit fields, and Retry-After if over a limit."""
    states = [
        f'"{limit.period}";r={left};t={ceil(seconds)}'
        for limit, (left, seconds) in zip(limits, charge.told, strict=True)
    ]
    headers = [_policies(limits), (b"ratelimit", ", ".join(states).encode())]
    if charge.over:
        # Clients whose timers are shorter than a month would try again at once.
        headers.append((b"retry-after", b"%d" % min(ceil(charge.wait), CALENDAR["day"])))
    return headers


@lru_cache
def _policies(limits: tuple[Limit, ...]) -> tuple[bytes, bytes]:
    policies = [
        # A month has no fixed length.
        f'"{limit.period}";q={limit.requests}' + f";w={limit.seconds}" * bool(limit.seconds)
        for limit in limits
    ]
    return b"ratelimit-policy", ", ".join(policies).encode()


def calendar_period(period: str, moment: float) -> tuple[datetime, float]:
    """The beginning and the end (seconds since the epoch) of the current day or month in UTC."""
    today = datetime.fromtimestamp(moment, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return today, (today + timedelta(days=1)).timestamp()
    first = today.replace(day=1)
    return first, (first + timedelta(days=32)).replace(day=1).timestamp()

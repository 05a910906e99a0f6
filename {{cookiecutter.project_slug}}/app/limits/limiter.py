"""Charges requests where the keys are, or in memory while that is out of reach."""

import logging
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from math import inf
from time import monotonic
from typing import Final, NamedTuple, Protocol

from app.limits.limit import Charge, Limit, calendar_period

logger = logging.getLogger(__name__)

TIMEOUT: Final = 0.5  # seconds until a counter counts as out of reach
PAUSE: Final = 2.0  # seconds until the next attempt


class UsageSource(Protocol):
    """The part of the store that limits need."""

    def now(self) -> float:
        """Seconds since the epoch, from a clock that never goes back."""
        ...

    async def used_since(self, key_id: str, since: datetime) -> int:
        """Return how many requests of a key since then are written, or counted by this server.

        Raises StoreUnavailableError.
        """
        ...


class Window(NamedTuple):
    """One limit of a key, at this moment."""

    requests: int
    seconds: int  # the length of a sliding window; 0 for a quota
    period: str
    begins_at: datetime | None  # of a quota
    used: int  # of a quota: how often the key was used already; -1 if that is not known


class Counted(NamedTuple):
    """The result of a charge: whether the request is charged to all windows, or to none.

    For each window, how many requests are left, and the seconds until a sliding one frees the next.
    """

    admitted: bool
    left: Sequence[int]
    frees_in: Sequence[float]


class OutOfReachError(Exception):
    """A counter does not count. The message says why, without any secret."""


class Counter(Protocol):
    """The place where limits are counted."""

    setting: str
    """The setting that names it."""

    async def charge(self, key_id: str, windows: Sequence[Window]) -> Counted | None:
        """Charge a request to all windows, or to none. Raises OutOfReachError.

        None, and no charge, if the use of a quota is known neither here nor by the caller.
        """
        ...

    async def close(self) -> None:
        """Close the connections. The next charge opens one again."""
        ...


class Limiter:
    """While `counter` is out of reach, each server counts alone, in `spare`."""

    def __init__(self, counter: Counter, spare: Counter, source: UsageSource) -> None:
        self._counter, self._spare, self._source = counter, spare, source
        self._ask_at = -inf
        self._problem = ""
        self._apart: set[str] = set()  # keys whose quotas were charged to `spare`

    async def charge(
        self, key_id: str, limits: Sequence[Limit], *, is_known: bool = True
    ) -> Charge:
        """Charge a request to all limits, or to none. Raises StoreUnavailableError.

        Without `is_known`, the key may have been used without being charged to its quotas.
        """
        moment = self._source.now()
        periods = [
            None if each.seconds else calendar_period(each.period, moment) for each in limits
        ]
        windows = [
            _window(limit, period and period[0])
            for limit, period in zip(limits, periods, strict=True)
        ]
        admitted, lefts, frees_in = await self._count(key_id, windows, is_known)
        told = [
            (left if left > 0 else 0, period[1] - moment if period else seconds)
            for period, left, seconds in zip(periods, lefts, frees_in, strict=True)
        ]
        if admitted:
            return Charge(told)
        waits = [wait if left == 0 else 0.0 for left, wait in told]
        return Charge(told, limits[waits.index(max(waits))], max(waits))

    async def _count(self, key_id: str, windows: Sequence[Window], is_known: bool) -> Counted:
        """A counter that was out of reach may lack requests: it is told how many are written."""
        if (now := monotonic()) >= self._ask_at:
            if self._problem:  # one request tries again; the others do not wait for it
                self._ask_at = now + PAUSE
            try:
                knows = is_known and key_id not in self._apart
                counted = await self._charge(self._counter, key_id, windows, knows=knows)
            except OutOfReachError as error:
                self._ask_at = monotonic() + PAUSE
                self._say(f"{error}")
            else:
                self._apart.discard(key_id)
                if self._problem:
                    logger.info("Limits are counted together again.")
                    self._problem, self._ask_at = "", -inf
                return counted
        knows = is_known and key_id in self._apart
        counted = await self._charge(self._spare, key_id, windows, knows=knows)
        if any(window.begins_at for window in windows):
            self._apart.add(key_id)
        return counted

    async def _charge(
        self, counter: Counter, key_id: str, windows: Sequence[Window], *, knows: bool
    ) -> Counted:
        counted = await counter.charge(key_id, windows) if knows else None
        while counted is None:
            windows = [
                window._replace(used=await self._source.used_since(key_id, window.begins_at))
                if window.begins_at
                else window
                for window in windows
            ]
            counted = await counter.charge(key_id, windows)
        return counted

    def _say(self, problem: str) -> None:
        if not self._problem:
            logger.warning(
                "%s: limits cannot be counted there: %s. Each server counts its own requests.",
                *(self._counter.setting, problem),
            )
        self._problem = problem

    async def check(self) -> None:
        """Log a warning if the counter is out of reach, or refuses its setting."""
        await self.charge("", [Limit(1, "second")])

    async def close(self) -> None:
        await self._counter.close()
        await self._spare.close()


@lru_cache(1000)
def _window(limit: Limit, begins_at: datetime | None) -> Window:
    return Window(limit.requests, limit.seconds, limit.period, begins_at, used=-1)

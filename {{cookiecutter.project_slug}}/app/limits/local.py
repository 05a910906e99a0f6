"""Limits counted in the memory of one process."""

from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Final

from app.limits.limit import CALENDAR, Charge, Limit, Used, calendar_period

SECOND: Final = 1_000_000_000  # nanoseconds: sums of whole numbers are exact
MOST_IDLE: Final = 20_000  # keys in memory before empty counts are dropped


class LocalLimiter:
    """Counts the requests of this process alone."""

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
        now = monotonic_ns()  # from here on nothing awaits, so no other request interferes
        over, wait = None, 0.0
        for count in counts:
            if (needed := count.wait(now, moment)) > wait:
                over, wait = count.limit, needed
        if over is None:
            for count in counts:
                count.add(now)
        return Charge([count.told(now, moment) for count in counts], over, wait)

    async def close(self) -> None:
        """It has no connections."""

    def forget_quotas(self) -> None:
        """Read the quotas from the database again, because other servers have counted meanwhile."""
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
        self._times = deque[int]()  # nanoseconds, of the accepted requests, oldest first

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
        # A moment just before the period counts too. If it is long before, a clock was wrong.
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

"""Time that does not go back: an expired key stays expired, whatever is done to a clock.

What counts is the latest moment that any process has written down. One that lies more than a day
ahead of the clock does not: some clock was wrong, and no key is to suffer from it for good.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from time import time
from typing import Final

import sqlalchemy as sa

from app.auth.database.models import api_key_events, api_key_servers

DAY: Final = timedelta(days=1)
_DAY: Final = DAY.total_seconds()


class Clock:
    """Of a process that stays."""

    def __init__(self) -> None:
        self._latest = 0.0
        self.ahead = ""  # what was written down that cannot be true

    def now(self) -> float:
        """Seconds since the epoch."""
        now = time()
        if now < self._latest <= now + _DAY:
            return self._latest
        self._latest = now
        return now

    def learn(self, moments: Iterable[datetime]) -> None:
        limit = datetime.fromtimestamp(time(), UTC) + DAY
        self.ahead = ""
        for moment in moments:
            if moment <= limit:
                self._latest = max(self._latest, moment.timestamp())
            else:
                self.ahead = f"that it is {moment:%Y-%m-%d %H:%MZ}"


def moments(connection: sa.Connection) -> list[datetime]:
    """What clocks have said lately."""
    events = sa.select(api_key_events.c.at).order_by(api_key_events.c.id.desc()).limit(100)
    seen = connection.scalars(sa.select(api_key_servers.c.seen_at))
    return [*seen, *connection.scalars(events)]


def now(connection: sa.Connection) -> datetime:
    """Of a process that does one thing."""
    clock = Clock()
    clock.learn(moments(connection))
    return datetime.fromtimestamp(clock.now(), UTC)

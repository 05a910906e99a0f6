"""A clock that does not go back, so that an expired key stays expired when a clock is set back.

It uses the latest time that any process has written to the database. It ignores a time more than a
day ahead of the system clock: one wrong clock must not expire keys for good.
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
    """For a process that keeps running."""

    def __init__(self) -> None:
        self._latest = 0.0
        self.ahead = ""  # what a wrong clock has written, in words

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
    """The times that servers and changes have written lately."""
    events = sa.select(api_key_events.c.at).order_by(api_key_events.c.id.desc()).limit(100)
    seen = connection.scalars(sa.select(api_key_servers.c.seen_at))
    return [*seen, *connection.scalars(events)]


def now(connection: sa.Connection) -> datetime:
    """The time in UTC, for a process that needs it once."""
    clock = Clock()
    clock.learn(moments(connection))
    return datetime.fromtimestamp(clock.now(), UTC)

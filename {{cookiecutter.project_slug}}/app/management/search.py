"""Two queries for the page `/console`: keys by name, and their use by day."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta

import sqlalchemy as sa

from app.auth.database import clock
from app.auth.database.engine import transaction
from app.auth.database.models import api_key_secrets, api_key_usage, api_keys
from app.auth.usage.counts import OUTCOMES
from app.auth.usage.report import hour_of, sums
from app.management.bodies import DayOfUse


def has(search: str) -> sa.ColumnElement[bool]:
    """Whether the name or the id of a key contains this text, in any case of its letters."""
    if not search:
        return sa.true()
    # Beyond ASCII, case matters to SQLite, and to PostgreSQL with the locale "C".
    spellings = sorted({search, search.lower(), search.upper(), search.title()})
    columns = (api_keys.c.id, api_keys.c.name)
    return sa.or_(*(c.icontains(text, autoescape=True) for text in spellings for c in columns))


def use_by_day(engine: sa.Engine, ids: Sequence[str], since: timedelta) -> list[DayOfUse]:
    """The days on which these keys were used, oldest first."""
    with transaction(engine) as connection:
        return _use_by_day(connection, ids, clock.now(connection) - since)


def _use_by_day(connection: sa.Connection, ids: Sequence[str], since: datetime) -> list[DayOfUse]:
    secret, start = api_key_secrets.c, api_key_usage.c.starts_at
    hours = sa.select(secret.key_id, start, *sums())
    hours = hours.join(api_key_usage, secret.digest == api_key_usage.c.digest)
    hours = hours.where(secret.key_id.in_(ids), start >= hour_of(since).replace(hour=0))
    days: dict[tuple[str, date], DayOfUse] = {}  # summed here: databases disagree on days
    for row in connection.execute(hours.group_by(secret.key_id, start).order_by(start)):
        id, day = row.key_id, row.starts_at.date()
        used = days.setdefault((id, day), DayOfUse(id=id, day=day))
        for outcome in OUTCOMES:
            setattr(used, outcome, getattr(used, outcome) + int(row._mapping[outcome]))
    return list(days.values())

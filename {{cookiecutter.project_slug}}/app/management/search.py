"""Two queries for the page `/console`: keys by name, and their use by day."""

from collections.abc import Sequence
from datetime import date, timedelta

import sqlalchemy as sa

from app.auth.database import clock
from app.auth.database.engine import transaction
from app.auth.database.models import api_key_secrets, api_key_usage, api_keys
from app.auth.keys.views import is_of
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


def use_by_day(
    engine: sa.Engine, ids: Sequence[str], since: timedelta, owner: str | None = None
) -> list[DayOfUse]:
    """The days on which these keys were used, oldest first. With an owner: those of its keys."""
    secret, start = api_key_secrets.c, api_key_usage.c.starts_at
    hours = sa.select(secret.key_id, start, *sums()).join(api_keys)
    hours = hours.join(api_key_usage, secret.digest == api_key_usage.c.digest)
    hours = hours.where(secret.key_id.in_(ids), is_of(owner))
    hours = hours.group_by(secret.key_id, start).order_by(start)
    with transaction(engine) as connection:
        first = hour_of(clock.now(connection) - since).replace(hour=0)
        rows = connection.execute(hours.where(start >= first)).all()
    days: dict[tuple[str, date], DayOfUse] = {}  # summed here: databases disagree on days
    for row in rows:
        id, day = row.key_id, row.starts_at.date()
        used = days.setdefault((id, day), DayOfUse(id=id, day=day))
        for outcome in OUTCOMES:
            setattr(used, outcome, getattr(used, outcome) + int(row._mapping[outcome]))
    return list(days.values())

"""Reports how often keys were used, and how often anonymous callers were refused."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import sqlalchemy as sa
from pydantic import BaseModel

from app.auth.database import clock
from app.auth.database.engine import transaction
from app.auth.database.models import (
    api_key_refusals,
    api_key_secrets,
    api_key_usage,
    api_keys,
)
from app.auth.keys.views import get_view, is_of
from app.auth.usage.counts import OUTCOMES

MOST_LISTED: Final = 1000  # keys, and networks with a reason


class KeyUse(BaseModel):
    """How often a key was served, refused because it lacks a scope, and stopped by a limit."""

    id: str
    name: str
    owner: str
    served: int
    refused: int
    limited: int
    last_used_at: datetime | None


class SecretUse(BaseModel):
    created_at: datetime
    in_force: bool
    served: int
    refused: int
    limited: int


class PeriodOfUse(BaseModel):
    """An hour, or a day if it is more than a month ago."""

    starts_at: datetime
    hours: Literal[1, 24]
    served: int
    refused: int
    limited: int


class UsageView(KeyUse):
    since: datetime
    total: int
    by_secret: list[SecretUse]  # newest first
    by_hour: list[PeriodOfUse]  # periods with any request, oldest first


class StrangerUse(BaseModel):
    """How often callers without a valid key were refused, by network and reason."""

    network: str
    reason: str
    refused: int


class AllUsage(BaseModel):
    """The first of each list, and the sums over all."""

    keys: list[KeyUse]  # most served first
    more_keys: int  # that are not listed
    served: int
    refused: int
    limited: int
    strangers: list[StrangerUse]  # most refused first
    more_strangers: int
    strangers_refused: int


def of_key(engine: sa.Engine, id: str, since: timedelta, owner: str | None = None) -> UsageView:
    """The use of a key from this long ago until now. Raises NotFoundError."""
    secret = api_key_secrets.c
    with transaction(engine) as connection:
        now = clock.now(connection)
        key, begin = get_view(connection, id, now, owner), now - since
        used = sa.select(*sums()).join(api_key_secrets, secret.digest == api_key_usage.c.digest)
        used = used.where(secret.key_id == key.id, _is_since(api_key_usage, begin))
        is_current = sa.or_(secret.expires_at.is_(None), secret.expires_at > now)
        in_force = sa.and_(secret.ended_at.is_(None), is_current).label("in_force")
        by_secret = used.add_columns(secret.created_at, in_force)
        by_secret = by_secret.group_by(secret.digest).order_by(secret.created_at.desc())
        of_period = (api_key_usage.c.starts_at, api_key_usage.c.hours)
        by_hour = used.add_columns(*of_period).group_by(*of_period).order_by(*of_period)
        periods = [PeriodOfUse.model_validate(row._mapping) for row in connection.execute(by_hour)]
        secrets = [SecretUse.model_validate(row._mapping) for row in connection.execute(by_secret)]
    in_all = {name: sum(getattr(period, name) for period in periods) for name in OUTCOMES}
    return UsageView(
        id=key.id,
        name=key.name,
        owner=key.owner,
        since=begin,
        total=sum(in_all.values()),
        **in_all,
        last_used_at=key.last_used_at,
        by_secret=secrets,
        by_hour=periods,
    )


def of_all(engine: sa.Engine, since: timedelta, owner: str | None = None) -> AllUsage:
    """The use of all keys from this long ago until now, and the refusals. With an owner: the use of
    the keys of this owner, and no refusals, for nobody knows whose those are."""
    secret, refusal = api_key_secrets.c, api_key_refusals.c
    last_used_at = sa.func.max(secret.last_used_at).label("last_used_at")
    key = api_keys.c
    keys = sa.select(key.id, key.name, key.owner, *sums(), last_used_at)
    keys = keys.join(api_key_secrets).join(api_key_usage, secret.digest == api_key_usage.c.digest)
    keys = keys.where(is_of(owner)).group_by(api_keys.c.id)
    kind = (refusal.network, refusal.reason)
    strangers = sa.select(*kind, sa.func.sum(refusal.refused).label("refused")).group_by(*kind)
    with transaction(engine) as connection:
        begin = clock.now(connection) - since
        used = keys.where(_is_since(api_key_usage, begin)).subquery()
        counted = (_is_since(api_key_refusals, begin), sa.literal(owner is None))
        refused = strangers.where(*counted).subquery()
        by_use = (used.c.served.desc(), used.c.id)
        by_refusals = (refused.c.refused.desc(), refused.c.network, refused.c.reason)
        first_keys, more_keys, *in_all = _first(connection, used, by_use, *OUTCOMES)
        first, more, in_vain = _first(connection, refused, by_refusals, "refused")
    return AllUsage(
        keys=[KeyUse.model_validate(row) for row in first_keys],
        more_keys=more_keys,
        **dict(zip(OUTCOMES, in_all, strict=True)),
        strangers=[StrangerUse.model_validate(row) for row in first],
        more_strangers=more,
        strangers_refused=in_vain,
    )


def _first(
    connection: sa.Connection, rows: sa.Subquery, order: Sequence[Any], *counts: str
) -> tuple[Any, ...]:
    """The first MOST_LISTED rows, how many more there are, and the sum of each count over all."""
    sums = [sa.func.sum(rows.c[count]).over() for count in counts]
    query = sa.select(sa.func.count().over(), *sums, rows).order_by(*order).limit(MOST_LISTED)
    found = connection.execute(query).all()
    number, *in_all = found[0][: 1 + len(counts)] if found else (0, *(0 for _ in counts))
    return [row._mapping for row in found], number - len(found), *in_all


def sums() -> list[sa.Label[int]]:
    return [sa.func.sum(api_key_usage.c[outcome]).label(outcome) for outcome in OUTCOMES]


def _is_since(counted: sa.Table, moment: datetime) -> sa.ColumnElement[bool]:
    """Whether a count belongs to the hour of this moment (of a compacted one: its day) or later."""
    start, hour = counted.c.starts_at, hour_of(moment)
    return (start >= hour.replace(hour=0)) & ((counted.c.hours == 24) | (start >= hour))


def hour_of(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)

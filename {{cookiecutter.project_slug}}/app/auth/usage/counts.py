"""How keys are used: counted in memory, written down every few seconds, told by the hour."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from typing import Any, Final, Literal, get_args

import sqlalchemy as sa

from app.auth.access.addresses import network_of
from app.auth.database.models import (
    LONGEST_REASON,
    api_key_networks,
    api_key_refusals,
    api_key_secrets,
    api_key_usage,
    api_keys,
)
from app.auth.keys.views import (
    AllUsage,
    DayOfUse,
    KeyUse,
    KeyView,
    PeriodOfUse,
    SecretUse,
    StrangerUse,
    UsageView,
)

HOUR: Final = 3600  # seconds
DAY: Final = 24 * HOUR
HOURS_KEPT: Final = timedelta(days=31)  # then they are summed up into days
AT_ONCE: Final = 500  # counts, so that no change to a key has to wait long
MOST_NETWORKS: Final = 1000  # for which refusals are told apart until they are written down
MOST_NOTED: Final = 50_000  # networks of secrets that are remembered for a day
MOST_OF_A_SECRET: Final = 100  # networks that are written down for a day
ELSEWHERE: Final = "elsewhere"  # all further ones

Outcome = Literal["served", "refused", "limited"]
OUTCOMES: Final = get_args(Outcome)
Row = dict[str, Any]
_Network = tuple[int, bytes, str]  # a day, a secret's digest, and from where it was used


@dataclass(frozen=True, slots=True)
class Batch:
    """Counts that are written in one transaction; the number tells whether they were."""

    number: int
    table: sa.Table
    rows: Sequence[Row]


class Counts:
    """What has happened and is not written down yet."""

    def __init__(self) -> None:
        self._uses = Counter[tuple[bytes, int, Outcome]]()
        self._refusals = Counter[tuple[str, int, str]]()
        self._networks: set[_Network] = set()
        self._noted: set[_Network] = set()  # those of them that are written down
        self._batches = deque[Batch]()
        self._number = 0

    def use(self, digest: bytes, now: float, outcome: Outcome, client: str) -> None:
        hour = int(now) // HOUR
        self._uses[digest, hour, outcome] += 1
        network = hour // 24, digest, _network_of(client)
        if network not in self._noted and len(self._networks) < MOST_NETWORKS:
            self._networks.add(network)

    def refuse(self, client: str, now: float, reason: str) -> None:
        network = _network_of(client) if len(self._refusals) < MOST_NETWORKS else ELSEWHERE
        self._refusals[network, int(now) // HOUR, reason[:LONGEST_REASON]] += 1

    def __bool__(self) -> bool:
        return bool(self._uses or self._refusals or self._batches or self._networks)

    def batches(self) -> deque[Batch]:
        """What is to be written down, the oldest first. What was, is to be taken out."""
        uses, self._uses = self._uses, Counter()
        refusals, self._refusals = self._refusals, Counter()
        self._add(api_key_usage, _use_rows(uses))
        named = [
            {"network": network, "reason": reason, "refused": count, **_hour(hour)}
            for (network, hour, reason), count in refusals.items()
        ]
        self._add(api_key_refusals, named)
        return self._batches

    def networks(self) -> list[Row]:
        """From where secrets were used, on which day, if that is not written down yet."""
        return [
            {
                "digest": digest,
                "network": network,
                "starts_at": datetime.fromtimestamp(day * DAY, UTC),
            }
            for day, digest, network in self._networks
        ]

    def noted(self, rows: Iterable[Row]) -> None:
        """They are written down."""
        networks = {
            (int(row["starts_at"].timestamp()) // DAY, row["digest"], row["network"])
            for row in rows
        }
        self._networks -= networks
        if len(self._noted) > MOST_NOTED:
            self._noted.clear()
        self._noted |= networks

    def _add(self, table: sa.Table, rows: Sequence[Row]) -> None:
        for first in range(0, len(rows), AT_ONCE):
            self._number += 1
            self._batches.append(Batch(self._number, table, rows[first : first + AT_ONCE]))


def _use_rows(uses: Counter[tuple[bytes, int, Outcome]]) -> list[Row]:
    rows: dict[tuple[bytes, int], Row] = {}
    for (digest, hour, outcome), count in uses.items():
        empty = {"digest": digest, **dict.fromkeys(OUTCOMES, 0), **_hour(hour)}
        rows.setdefault((digest, hour), empty)[outcome] = count
    return list(rows.values())


def _hour(number: int) -> Row:
    return {"starts_at": datetime.fromtimestamp(number * HOUR, UTC), "hours": 1}


def _network_of(client: str) -> str:
    """As far as somebody else may be responsible for it."""
    return network_of(client, 24, 48)


def add(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Add counts to those that are there."""
    statement = _insert(connection, table)
    counts = [column.name for column in table.c if not column.primary_key]
    statement = statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={name: table.c[name] + statement.excluded[name] for name in counts},
    )
    connection.execute(statement, list(rows))


def note_networks(connection: sa.Connection, rows: Sequence[Row]) -> None:
    """Write down from where secrets were used on a day: of each the first hundred networks."""
    known = api_key_networks.c
    days = {(row["digest"], row["starts_at"]) for row in rows}
    of_day = (known.digest, known.starts_at)
    counted = sa.select(*of_day, sa.func.count().label("networks")).group_by(*of_day)
    counted = counted.where(sa.tuple_(*of_day).in_(days))
    counts = Counter(
        {(row.digest, row.starts_at): row.networks for row in connection.execute(counted)}
    )
    new = []
    for row in rows:
        day = row["digest"], row["starts_at"]
        if counts[day] < MOST_OF_A_SECRET:
            counts[day] += 1
            new.append(row)
    if new:
        connection.execute(_insert(connection, api_key_networks).on_conflict_do_nothing(), new)


def _insert(connection: sa.Connection, table: sa.Table) -> Any:
    """One that may meet what is there: each database speaks of that in its own dialect."""
    # Here, for to load PostgreSQL's takes a while.
    return import_module(f"sqlalchemy.dialects.{connection.dialect.name}").insert(table)


def used(connection: sa.Connection, key_id: str, since: datetime) -> int:
    """How many requests of a key were let in as far as its limits go."""
    usage, secret = api_key_usage.c, api_key_secrets.c
    query = sa.select(sa.func.sum(usage.served + usage.refused))
    query = query.join(api_key_secrets, secret.digest == usage.digest)
    return int(
        connection.scalar(query.where(secret.key_id == key_id, usage.starts_at >= since)) or 0
    )


def thin(connection: sa.Connection, now: datetime) -> int:
    """Sum up hours of long ago into days; how many rows there are less for it."""
    before = (now - HOURS_KEPT).replace(hour=0, minute=0, second=0, microsecond=0)
    fewer = 0
    for table in (api_key_usage, api_key_refusals):
        old = sa.and_(table.c.hours == 1, table.c.starts_at < before)
        rows: list[Row] = [
            {**row._asdict(), "hours": 24, "starts_at": row.starts_at.replace(hour=0)}
            for row in connection.execute(sa.select(table).where(old))
        ]
        if rows:
            add(connection, table, rows)
            connection.execute(sa.delete(table).where(old))
            days = {tuple(row[column.name] for column in table.primary_key) for row in rows}
            fewer += len(rows) - len(days)
    old = api_key_networks.c.starts_at < before
    fewer += connection.execute(sa.delete(api_key_networks).where(old)).rowcount
    return fewer


def of_key(connection: sa.Connection, key: KeyView, since: datetime, now: datetime) -> UsageView:
    secret = api_key_secrets.c
    used = sa.select(*_sums()).join(api_key_secrets, secret.digest == api_key_usage.c.digest)
    used = used.where(secret.key_id == key.id, _is_since(api_key_usage, since))
    in_force = sa.and_(
        secret.ended_at.is_(None), sa.or_(secret.expires_at.is_(None), secret.expires_at > now)
    )
    of_secret = (secret.created_at, in_force.label("in_force"))
    by_secret = (
        used.add_columns(*of_secret).group_by(secret.digest).order_by(secret.created_at.desc())
    )
    of_period = (api_key_usage.c.starts_at, api_key_usage.c.hours)
    by_hour = used.add_columns(*of_period).group_by(*of_period).order_by(*of_period)
    periods = [PeriodOfUse.model_validate(row._mapping) for row in connection.execute(by_hour)]
    secrets = [SecretUse.model_validate(row._mapping) for row in connection.execute(by_secret)]
    in_all = {each: sum(getattr(period, each) for period in periods) for each in OUTCOMES}
    return UsageView(
        id=key.id,
        name=key.name,
        since=since,
        total=sum(in_all.values()),
        **in_all,
        last_used_at=key.last_used_at,
        by_secret=secrets,
        by_hour=periods,
    )


def by_day(connection: sa.Connection, ids: Sequence[str], since: datetime) -> list[DayOfUse]:
    """Of these keys, the days on which they were used, the oldest first."""
    secret, start = api_key_secrets.c, api_key_usage.c.starts_at
    hours = sa.select(secret.key_id, start, *_sums())
    hours = hours.join(api_key_usage, secret.digest == api_key_usage.c.digest)
    hours = hours.where(secret.key_id.in_(ids), start >= _hour_of(since).replace(hour=0))
    days: dict[tuple[str, date], DayOfUse] = {}  # summed up here: to each database a day is another
    for row in connection.execute(hours.group_by(secret.key_id, start).order_by(start)):
        id, day = row.key_id, row.starts_at.date()
        used = days.setdefault((id, day), DayOfUse(id=id, day=day))
        for outcome in OUTCOMES:
            setattr(used, outcome, getattr(used, outcome) + int(row._mapping[outcome]))
    return list(days.values())


def of_all(connection: sa.Connection, since: datetime) -> AllUsage:
    """Of the keys that were used, those that were used most come first."""
    secret, refusal = api_key_secrets.c, api_key_refusals.c
    last_used_at = sa.func.max(secret.last_used_at).label("last_used_at")
    keys = sa.select(api_keys.c.id, api_keys.c.name, *_sums(), last_used_at)
    keys = keys.join(api_key_secrets).join(api_key_usage, secret.digest == api_key_usage.c.digest)
    keys = keys.where(_is_since(api_key_usage, since)).group_by(api_keys.c.id)
    often = sa.func.sum(refusal.refused)
    strangers = sa.select(refusal.network, refusal.reason, often.label("refused"))
    strangers = strangers.where(_is_since(api_key_refusals, since)).group_by(
        refusal.network, refusal.reason
    )
    return AllUsage(
        keys=[
            KeyUse.model_validate(row._mapping)
            for row in connection.execute(keys.order_by(sa.desc("served"), api_keys.c.id))
        ],
        strangers=[
            StrangerUse.model_validate(row._mapping)
            for row in connection.execute(
                strangers.order_by(often.desc(), *strangers.selected_columns[:2])
            )
        ],
    )


def _sums() -> list[sa.Label[int]]:
    return [sa.func.sum(api_key_usage.c[outcome]).label(outcome) for outcome in OUTCOMES]


def _is_since(counted: sa.Table, moment: datetime) -> sa.ColumnElement[bool]:
    """Of the hour or, where days are told, the day that it lies in, or later."""
    start, hour = counted.c.starts_at, _hour_of(moment)
    return sa.or_(start >= hour, (counted.c.hours == 24) & (start >= hour.replace(hour=0)))


def _hour_of(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)

"""Counts how keys are used, in memory. The store writes the counts every few seconds."""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from time import monotonic, sleep
from typing import Any, Final, Literal, get_args

import sqlalchemy as sa

from app.auth.access.clients import network_of
from app.auth.database.engine import transaction
from app.auth.database.models import (
    LONGEST_REASON,
    api_key_networks,
    api_key_refusals,
    api_key_usage,
)

HOUR: Final = 3600  # seconds
DAY: Final = 24 * HOUR
HOURS_KEPT: Final = timedelta(days=31)  # then they are compacted into days
REFUSALS_KEPT: Final = timedelta(days=366)  # then they are deleted
AT_ONCE: Final = 500  # counts a transaction, so that changes to keys wait only briefly
MOST_NETWORKS: Final = 1000  # that are counted apart between two writes, and in an hour or a day
MOST_NOTED: Final = 50_000  # written networks in memory, so that none is written again
MOST_SEEN: Final = 50_000  # callers in memory between two writes
MOST_OF_A_SECRET: Final = 100  # networks a day that are written
ELSEWHERE: Final = "elsewhere"  # stands for all further networks

Outcome = Literal["served", "refused", "limited"]
OUTCOMES: Final = get_args(Outcome)
Row = dict[str, Any]
Network = tuple[int, bytes, str]  # a day, a secret's digest, and the network that used it


@dataclass(frozen=True, slots=True)
class Batch:
    """Counts for one transaction. The number tells whether they are written already."""

    number: int
    table: sa.Table
    rows: Sequence[Row]


class Counts:
    """The counts that are not written yet."""

    def __init__(self) -> None:
        self.uses = defaultdict[bytes, dict[int, Row]](dict)  # by secret and hour
        self._refusals = Counter[tuple[str, int, str]]()
        self._networks: set[Network] = set()
        self._noted: set[Network] = set()  # written already
        self._seen: set[tuple[bytes, int, str]] = set()  # since the last batches
        self.waiting = deque[Batch]()  # oldest first
        self.made = 0  # batches so far

    def use(self, digest: bytes, now: float, outcome: Outcome, client: str) -> None:
        hour = int(now) // HOUR
        hours = self.uses[digest]
        if hour not in hours:
            hours[hour] = {"digest": digest, **dict.fromkeys(OUTCOMES, 0), **_hour(hour)}
        hours[hour][outcome] += 1
        if (digest, hour, client) not in self._seen and len(self._seen) < MOST_SEEN:  # most are
            self._seen.add((digest, hour, client))
            network = hour // 24, digest, _network_of(client)
            if network not in self._noted and len(self._networks) < MOST_NETWORKS:
                self._networks.add(network)

    def refuse(self, client: str, now: float, reason: str) -> None:
        network = _network_of(client) if len(self._refusals) < MOST_NETWORKS else ELSEWHERE
        self._refusals[network, int(now) // HOUR, reason[:LONGEST_REASON]] += 1

    def __bool__(self) -> bool:
        return bool(self.uses or self._refusals or self.waiting or self._networks)

    def batches(self) -> deque[Batch]:
        """The batches to write, oldest first. The caller removes each that it has written."""
        self._seen.clear()
        uses, self.uses = self.uses, defaultdict(dict)
        refusals, self._refusals = self._refusals, Counter()
        self._add(api_key_usage, [row for hours in uses.values() for row in hours.values()])
        named = [
            {"network": network, "reason": reason, "refused": count, **_hour(hour)}
            for (network, hour, reason), count in refusals.items()
        ]
        self._add(api_key_refusals, named)
        return self.waiting

    def networks(self) -> list[Network]:
        """The networks that used a secret on a day, except those that are written already."""
        return [*self._networks]

    def noted(self, networks: Iterable[Network]) -> None:
        """Mark these networks as written."""
        self._networks.difference_update(networks)
        if len(self._noted) > MOST_NOTED:
            self._noted.clear()
        self._noted.update(networks)

    def _add(self, table: sa.Table, rows: Sequence[Row]) -> None:
        for first in range(0, len(rows), AT_ONCE):
            self.made += 1
            self.waiting.append(Batch(self.made, table, rows[first : first + AT_ONCE]))


def _hour(number: int) -> Row:
    return {"starts_at": datetime.fromtimestamp(number * HOUR, UTC), "hours": 1}


def _network_of(client: str) -> str:
    """The /24 of an IPv4 address or the /48 of an IPv6 one, usually one organisation."""
    return network_of(client, 24, 48)


def add(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Add these counts to the stored ones."""
    if table is api_key_refusals:
        rows = [*_bounded(connection, rows)]
    statement = _insert(connection, table)
    counts = [column.name for column in table.c if not column.primary_key]
    statement = statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={name: table.c[name] + statement.excluded[name] for name in counts},
    )
    connection.execute(statement, list(rows))


def _bounded(connection: sa.Connection, rows: Iterable[Row]) -> Iterator[Row]:
    """These refusals, with ELSEWHERE in the place of networks that are too many for their hour."""
    known = api_key_refusals.c
    kinds: dict[tuple[datetime, int], set[tuple[str, str]]] = {}
    for row in rows:
        period, kind = (row["starts_at"], row["hours"]), (row["network"], row["reason"])
        if period not in kinds:
            stored = sa.select(known.network, known.reason)
            stored = stored.where(known.starts_at == period[0], known.hours == period[1])
            kinds[period] = {(network, reason) for network, reason in connection.execute(stored)}
        if kind in kinds[period] or len(kinds[period]) < MOST_NETWORKS:
            kinds[period].add(kind)
            yield row
        else:
            yield {**row, "network": ELSEWHERE}


def note_networks(connection: sa.Connection, networks: Iterable[Network]) -> None:
    """Store the networks that used a secret on a day, MOST_OF_A_SECRET at most."""
    rows: dict[tuple[bytes, datetime], list[Row]] = {}
    for day, digest, network in networks:
        of = digest, datetime.fromtimestamp(day * DAY, UTC)
        rows.setdefault(of, []).append({"digest": of[0], "starts_at": of[1], "network": network})
    of_day = (api_key_networks.c.digest, api_key_networks.c.starts_at)
    counted = sa.select(*of_day, sa.func.count()).group_by(*of_day)
    counted = counted.where(sa.tuple_(*of_day).in_(rows))
    stored = {(digest, day): count for digest, day, count in connection.execute(counted)}
    new = [row for of in rows for row in rows[of][: max(0, MOST_OF_A_SECRET - stored.get(of, 0))]]
    if new:
        connection.execute(_insert(connection, api_key_networks).on_conflict_do_nothing(), new)


def _insert(connection: sa.Connection, table: sa.Table) -> Any:
    """An INSERT with ON CONFLICT, which is a part of each database's dialect."""
    # Imported here, because PostgreSQL's dialect takes a while to load.
    return import_module(f"sqlalchemy.dialects.{connection.dialect.name}").insert(table)


def thin(engine: sa.Engine, now: datetime) -> Iterator[int]:
    """Compact old hours into days, and delete what is too old. Yields, after each of many short
    transactions, how many rows it has compacted or deleted."""
    month = (now - HOURS_KEPT).replace(hour=0, minute=0, second=0, microsecond=0)
    networks, refusals = api_key_networks.c, api_key_refusals.c
    for table, is_old in (
        (api_key_usage, (api_key_usage.c.starts_at < month) & (api_key_usage.c.hours == 1)),
        (api_key_refusals, (refusals.starts_at < month) & (refusals.hours == 1)),
        (api_key_refusals, refusals.starts_at < now - REFUSALS_KEPT),
        (api_key_networks, networks.starts_at < month),
    ):
        starts_at = table.c.starts_at
        with transaction(engine) as connection:
            oldest = connection.scalar(sa.select(sa.func.min(starts_at)).where(is_old))
        some = sa.select(table).where(is_old).order_by(starts_at).limit(AT_ONCE)
        one = [column == sa.bindparam(f"old_{column.name}") for column in table.primary_key]
        while oldest:
            began_at = monotonic()
            with transaction(engine, write=True) as connection:
                rows = [*connection.execute(some.where(starts_at >= oldest)).mappings()]
                days = [
                    {**row, "hours": 24, "starts_at": row["starts_at"].replace(hour=0)}
                    for row in rows
                    if row.get("hours") == 1
                ]
                if days:
                    add(connection, table, days)
                if rows:
                    olds = [{f"old_{name}": value for name, value in row.items()} for row in rows]
                    connection.execute(sa.delete(table).where(*one), olds)
            oldest = rows[-1]["starts_at"] if len(rows) == AT_ONCE else None
            yield len(rows)
            sleep(monotonic() - began_at)  # others may write as long

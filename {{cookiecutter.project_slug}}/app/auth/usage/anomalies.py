"""What is unusual about how keys are used: six rules, whose numbers are yours to change."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from pydantic import BaseModel

from app.auth.database.clock import DAY
from app.auth.database.models import (
    api_key_findings,
    api_key_networks,
    api_key_refusals,
    api_key_secrets,
    api_key_usage,
)
from app.auth.keys.views import KeyView


class Finding(BaseModel):
    """What `doctor` has found; about the service as a whole if there is no id."""

    id: str
    name: str
    problem: str
    advice: str


MONTH: Final = timedelta(days=28)  # whole weeks, for many callers rest at weekends


@dataclass(frozen=True, slots=True)
class Habits:
    """Of a key: how many requests there were in its busiest hour."""

    busiest: int = 0  # of the last day
    busiest_before: int = 0  # of the month before that
    denied: int = 0  # requests of the last day, for want of a scope
    networks: int = 0  # that it was used from on this day, or on the one before
    networks_before: int = 0  # on the day with the most of them, in the month before that


@dataclass(frozen=True, slots=True)
class Rule:
    """`is_broken` is asked with a key, its habits, and the time."""

    problem: str
    advice: str
    is_broken: Callable[[KeyView, Habits, datetime], bool]


def _has_habits(key: KeyView, now: datetime) -> bool:
    """What a new key does is not unusual: nobody knows yet what is usual."""
    return key.created_at < now - timedelta(days=7)


RULES: Final = (
    Rule(
        "silent for 30 days",
        "revoke it if nobody needs it any more",
        lambda key, _, now: bool(key.last_used_at and key.last_used_at < now - timedelta(days=30)),
    ),
    Rule(
        "used ten times as much as in any hour of a month",
        "ask its owner; rotate it if that was somebody else",
        lambda key, habits, now: (
            _has_habits(key, now) and habits.busiest > max(1000, 10 * habits.busiest_before)
        ),
    ),
    Rule(
        "used from three times as many networks as on any day of a month",
        "ask its owner who has it; rotate it if that was somebody else",
        lambda key, habits, now: (
            _has_habits(key, now) and habits.networks > max(10, 3 * habits.networks_before)
        ),
    ),
    Rule(
        "refused 100 times in a day for want of a scope",
        "its owner tries what it may not; see the log",
        lambda _, habits, __: habits.denied >= 100,
    ),
    Rule(
        "its old secret is still in use, and ends within six hours",
        "its owner has to move to the new one now",
        lambda key, _, now: bool(
            key.old_key_expires_at
            and key.old_key_expires_at < now + timedelta(hours=6)
            and key.old_key_last_used_at
            and key.old_key_last_used_at > now - timedelta(hours=1)
        ),
    ),
)
KNOCKS: Final = 1000  # refusals of one network in a day


def examine_usage(
    connection: sa.Connection, keys: Iterable[KeyView], now: datetime
) -> Iterator[Finding]:
    habits = _habits(connection, now)
    for key in keys:
        if key.status == "active":
            for rule in RULES:
                if rule.is_broken(key, habits.get(key.id, Habits()), now):
                    yield Finding(
                        id=key.id, name=key.name, problem=rule.problem, advice=rule.advice
                    )
    refusal, count = api_key_refusals.c, sa.func.sum(api_key_refusals.c.refused)
    networks = sa.select(refusal.network).where(refusal.starts_at >= now - DAY)
    networks = networks.group_by(refusal.network).having(count >= KNOCKS)
    for network in connection.scalars(networks.order_by(refusal.network)):
        yield Finding(
            id="",
            name="",
            problem=f"{KNOCKS} requests or more without a key from {network} in a day",
            advice="keep it out, or tell whoever it is; the log has the reasons",
        )


def _habits(connection: sa.Connection, now: datetime) -> dict[str, Habits]:
    usage, secret = api_key_usage.c, api_key_secrets.c
    requests = sa.func.sum(usage.served + usage.refused).label("requests")
    hours = sa.select(
        secret.key_id, usage.starts_at, requests, sa.func.sum(usage.refused).label("refused")
    )
    hours = hours.join(api_key_secrets, secret.digest == usage.digest)
    hours = hours.where(usage.starts_at >= now - DAY - MONTH, usage.hours == 1)
    by_hour = hours.group_by(secret.key_id, usage.starts_at).subquery()
    lately = by_hour.c.starts_at >= now - DAY
    told = (
        sa.func.max(sa.case((lately, by_hour.c.requests), else_=0)),
        sa.func.max(sa.case((lately, 0), else_=by_hour.c.requests)),
        sa.func.sum(sa.case((lately, by_hour.c.refused), else_=0)),
    )
    rows = connection.execute(sa.select(by_hour.c.key_id, *told).group_by(by_hour.c.key_id))
    networks = _networks(connection, now)
    return {
        id: Habits(*(int(number) for number in (*requests, *networks.get(id, (0, 0)))))
        for id, *requests in rows
    }


def _networks(connection: sa.Connection, now: datetime) -> dict[str, tuple[int, int]]:
    """How many networks each key was used from lately, and at most on a day before."""
    network, secret = api_key_networks.c, api_key_secrets.c
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    days = sa.select(secret.key_id, network.starts_at, sa.func.count().label("networks"))
    days = days.join(api_key_secrets, secret.digest == network.digest)
    days = days.where(network.starts_at >= today - DAY - MONTH)
    by_day = days.group_by(secret.key_id, network.starts_at).subquery()
    lately = by_day.c.starts_at >= today - DAY
    told = (
        sa.func.max(sa.case((lately, by_day.c.networks), else_=0)),
        sa.func.max(sa.case((lately, 0), else_=by_day.c.networks)),
    )
    rows = connection.execute(sa.select(by_day.c.key_id, *told).group_by(by_day.c.key_id))
    return {id: (int(now), int(before)) for id, now, before in rows}


def remember(
    connection: sa.Connection, findings: Iterable[Finding], now: datetime
) -> list[Finding]:
    """Write down what is unusual. Gives what was not before."""
    known = api_key_findings.c
    found = {(finding.id, finding.problem): finding for finding in findings}
    before = {(row.key_id, row.problem) for row in connection.execute(sa.select(api_key_findings))}
    for id, problem in before - found.keys():
        over = sa.delete(api_key_findings).where(known.key_id == id, known.problem == problem)
        connection.execute(over)
    new = sorted(found.keys() - before)
    if new:
        rows = [{"key_id": id, "problem": problem, "since": now} for id, problem in new]
        connection.execute(sa.insert(api_key_findings), rows)
    return [found[each] for each in new]

"""Finds keys that need attention, such as those in unusual use, and gives advice.

The thresholds in `_problems` and `_anomalies` are yours to change.
"""

import os
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import sqlalchemy as sa
from pydantic import BaseModel
from starlette.routing import BaseRoute

from app.auth.access.dependencies import scopes_of
from app.auth.access.selfcheck import places_at
from app.auth.database import clock
from app.auth.database.clock import DAY
from app.auth.database.engine import transaction
from app.auth.database.models import (
    ENV_ID,
    api_key_findings,
    api_key_networks,
    api_key_refusals,
    api_key_secrets,
    api_key_usage,
)
from app.auth.key import Key
from app.auth.keys.change import MANAGE
from app.auth.keys.service import KeyService
from app.auth.keys.views import KeyView

UNUSED: Final = timedelta(days=7)  # after its creation
EXPIRING: Final = timedelta(days=14)  # before its end
ROTATION: Final = timedelta(days=90)  # the age at which a secret should be rotated
MONTH: Final = timedelta(days=28)  # whole weeks, because many callers pause at weekends
MAX_REFUSALS: Final = 1000  # of one network in a day


class Finding(BaseModel):
    """A problem of a key or, if the id is empty, of the service as a whole, with advice."""

    id: str
    name: str
    problem: str
    advice: str


def diagnose(service: KeyService, routes: Sequence[BaseRoute]) -> list[Finding]:
    """The findings about the keys, the clocks, and how the keys are used."""
    now = clock.Clock()
    with transaction(service.engine) as connection:
        now.learn(clock.moments(connection))
    moment = datetime.fromtimestamp(now.now(), UTC)
    known = [key for key in service.all() if service.is_named(key.id)]
    enforced = [policy.name for policy in service.policies]
    findings = examine(known, scopes_asked_for(routes), moment, now.ahead, enforced)
    with transaction(service.engine) as connection:
        return [*findings, *examine_usage(connection, known, moment)]


def scopes_asked_for(routes: Sequence[BaseRoute]) -> set[str]:
    """The scopes that endpoints and routers ask for, also in mounted applications."""
    places = (place for route in routes for place in places_at(route))
    return {scope for place in places for scope in scopes_of(place.asks)}


def examine(
    keys: Iterable[KeyView],
    asked_for: Collection[str],
    now: datetime,
    ahead: str = "",
    enforced: Collection[str] = (),
) -> list[Finding]:
    """The findings about active keys. `ahead` is a future time that a wrong clock has written, in
    words; `enforced` are the names of the restrictions that policies enforce."""
    keys = [key for key in keys if key.status == "active"]
    findings = [
        Finding(id=key.id, name=key.name, problem=problem, advice=advice)
        for key in keys
        if not key.id.startswith(ENV_ID)
        for problem, advice in _problems(key, asked_for, now, enforced)
    ]
    return [*_of_managers_and_clocks(keys, now, ahead), *findings]


def examine_file(file: Path) -> Iterator[Finding]:
    """Findings about `.env`: it holds keys, so only its owner may read it, and git must not."""
    if not file.is_file():
        return
    if os.name != "nt" and file.stat().st_mode & 0o077:
        yield Finding(
            id="", name="", problem=f"others may read {file.name}", advice=f"chmod 600 {file}"
        )
    if (git := shutil.which("git")) and _is_known_to(git, file):
        advice = f"git rm --cached {file.name}, and revoke the keys in it"
        yield Finding(id="", name="", problem=f"git knows {file.name}", advice=advice)


def _is_known_to(git: str, file: Path) -> bool:
    command = [git, "ls-files", "--error-unmatch", file.name]
    return subprocess.run(command, cwd=file.parent, capture_output=True).returncode == 0  # noqa: S603


def _of_managers_and_clocks(
    keys: Sequence[KeyView], now: datetime, ahead: str
) -> Iterator[Finding]:
    managers = [key for key in keys if _cover(key.scopes, [MANAGE])]
    ends = [key.expires_at for key in managers if key.expires_at]
    if managers and len(ends) == len(managers) and max(ends) < now + EXPIRING:
        advice = "create a key that may manage keys and has no end"
        yield Finding(
            id="", name="", problem=f"no manager after {max(ends):%Y-%m-%d}", advice=advice
        )
    if ahead:
        yield Finding(id="", name="", problem=f"a clock has said {ahead}", advice="set the clocks")


def _problems(
    key: KeyView, asked_for: Collection[str], now: datetime, enforced: Collection[str]
) -> Iterator[tuple[str, str]]:
    if unenforced := sorted(key.restrictions.keys() - set(enforced)):
        yield (
            f"refused, for nothing here enforces its {', '.join(unenforced)}",
            "install the part that does, or revoke the key",
        )
    if not key.last_used_at and key.created_at < now - UNUSED:
        yield "never used", "revoke it if nobody has it"
    if key.expires_at and key.expires_at < now + EXPIRING:
        yield f"expires on {key.expires_at:%Y-%m-%d}", "give it a later end if it is still needed"
    if key.issued_at < now - ROTATION:
        yield f"not rotated since {key.issued_at:%Y-%m-%d}", "rotate it"
    if "*" in key.scopes:
        yield "too many scopes: all there are", "leave it the ones that it needs"
    elif unasked := [scope for scope in key.scopes if not _cover([scope], asked_for)]:
        yield f"scopes that no endpoint asks for: {' '.join(unasked)}", "take them away"


def _cover(scopes: Iterable[str], asked_for: Iterable[str]) -> bool:
    """Whether these scopes cover any of those."""
    return any(map(Key("", "", frozenset(scopes)).covers, asked_for))


# Anomalies, from how keys are used.


class Activity(NamedTuple):
    """The use of a key in the last day, and its baseline from the month before."""

    busiest: int  # requests in the busiest hour of the last day
    busiest_before: int  # requests in the busiest hour of the month before
    denied: int  # requests of the last day that lacked a scope
    networks: int  # networks today or yesterday, whichever had more
    networks_before: int  # networks on the busiest day of the month before


def _anomalies(key: KeyView, activity: Activity, now: datetime) -> Iterator[tuple[str, str]]:
    """The anomalies of a key, each with advice."""
    if key.last_used_at and key.last_used_at < now - timedelta(days=30):
        yield "silent for 30 days", "revoke it if nobody needs it any more"
    if key.created_at < now - timedelta(days=7):  # a new key has no baseline yet
        if activity.busiest > max(1000, 10 * activity.busiest_before):
            yield (
                "used ten times as much as in any hour of a month",
                "ask its owner; rotate it if that was somebody else",
            )
        if activity.networks > max(10, 3 * activity.networks_before):
            yield (
                "used from three times as many networks as on any day of a month",
                "ask its owner who has it; rotate it if that was somebody else",
            )
    if activity.denied >= 100:
        yield (
            "refused 100 times in a day for want of a scope",
            "its owner tries what it may not; see the log",
        )
    if (
        (ends := key.old_key_expires_at)
        and (used := key.old_key_last_used_at)
        and ends < now + timedelta(hours=6)
        and used > now - timedelta(hours=1)
    ):
        yield (
            "its old secret is still in use, and ends within six hours",
            "its owner has to move to the new one now",
        )


def examine_usage(
    connection: sa.Connection, keys: Iterable[KeyView], now: datetime
) -> Iterator[Finding]:
    usage, none = api_key_usage.c, (0, 0, 0)
    served, refused = sa.func.sum(usage.served), sa.func.sum(usage.refused)
    requests = _activity(connection, api_key_usage, now - DAY, served + refused, refused)
    yesterday = now.replace(hour=0, minute=0, second=0, microsecond=0) - DAY
    count = sa.func.count()
    networks = _activity(connection, api_key_networks, yesterday, count, sa.literal(0))
    for key in keys:
        if key.status == "active":
            activity = Activity(*requests.get(key.id, none), *networks.get(key.id, none)[:2])
            for problem, advice in _anomalies(key, activity, now):
                yield Finding(id=key.id, name=key.name, problem=problem, advice=advice)
    refusal = api_key_refusals.c
    query = sa.select(refusal.network).where(refusal.starts_at >= now - DAY)
    query = query.group_by(refusal.network).having(sa.func.sum(refusal.refused) >= MAX_REFUSALS)
    for network in connection.scalars(query.order_by(refusal.network)):
        yield Finding(
            id="",
            name="",
            problem=f"{MAX_REFUSALS} requests or more without a key from {network} in a day",
            advice="keep it out, or tell whoever it is; the log has the reasons",
        )


def _activity(
    connection: sa.Connection,
    counted: sa.Table,
    recent: datetime,
    number: sa.ColumnElement[int],
    refused: sa.ColumnElement[int],
) -> dict[str, tuple[int, int, int]]:
    """For each key the largest number of an hour or a day, since `recent` and in the month before,
    and how often it was refused since then."""
    secret, start = api_key_secrets.c, counted.c.starts_at
    query = sa.select(secret.key_id, start, number.label("number"), refused.label("refused"))
    query = query.join(api_key_secrets, secret.digest == counted.c.digest)
    query = query.where(start >= recent - MONTH).group_by(secret.key_id, start)
    period = query.subquery().c
    is_recent = period.starts_at >= recent
    figures = (
        sa.func.max(sa.case((is_recent, period.number), else_=0)),
        sa.func.max(sa.case((is_recent, 0), else_=period.number)),
        sa.func.sum(sa.case((is_recent, period.refused), else_=0)),
    )
    rows = connection.execute(sa.select(period.key_id, *figures).group_by(period.key_id))
    return {id: (int(busiest), int(before), int(denied)) for id, busiest, before, denied in rows}


def remember(
    connection: sa.Connection, findings: Iterable[Finding], now: datetime
) -> list[Finding]:
    """Store the findings. Returns the new ones."""
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
    return [found[item] for item in new]

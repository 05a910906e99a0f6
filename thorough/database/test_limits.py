"""Limits hold exactly, in one process and in many, and cost nobody else anything."""

import asyncio
import math
import os
import re
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import AsyncMock, patch

import pytest
import sqlalchemy as sa
from fastapi import WebSocket

from app.auth import GuardedAPI, GuardedRouter, PublicRouter
from app.auth.database.engine import connect, transaction
from app.auth.errors import StoreUnavailableError
from app.auth.key import Key, digest, new_secret
from app.auth.keys.service import KeyService
from app.auth.store.cache import DatabaseKeyStore
from app.auth.usage import report
from app.constants import MISSING_KEY_STATUS
from app.limits.limit import (
    MOST_SLIDING,
    are_within,
    calendar_period,
    parse_limits,
    with_default,
)
from app.limits.limiter import OutOfReachError
from app.limits.policy import LimitPolicy
from app.limits.sqlite_counter import SqliteCounter
from app.policies import make_policies
from app.settings import load_settings
from tests.callers import answer_of, ask, status_of
from tests.thorough.commands import complaint, keys, run
from tests.thorough.replicas import Replica, started
from tests.thorough.services import make_service, patient_settings
from tests.thorough.test_store import statements
from tests.thorough.test_usage import clock_at, with_scopes

DAY = timedelta(days=1)
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


# How they are written.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", ""),
        ("600/minute", "600/minute"),
        ("50000/month 10/second 9/day 10000/hour", "10/second 10000/hour 9/day 50000/month"),
    ],
)
def test_limits_are_written_as_a_number_in_a_period(given: str, expected: str) -> None:
    assert " ".join(map(str, parse_limits(given.split()))) == expected


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("600", "is not a limit"),
        ("600/week", "is not a limit"),
        ("0/minute", "is not a limit"),
        ("-1/minute", "is not a limit"),
        ("1e3/minute", "is not a limit"),
        ("\u0661/minute", "is not a limit"),
        ("600/minute\n", "is not a limit"),
        (f"{'9' * 5000}/month", "is not a limit"),
        (f"{MOST_SLIDING + 1}/hour", "is too many: 10000 at most"),
        ("1000000001/month", "is too many: 1000000000 at most"),
    ],
)
def test_what_is_no_limit_names_one(given: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_limits([given])


def test_of_each_period_there_is_one() -> None:
    with pytest.raises(ValueError, match="second limit per minute"):
        parse_limits(["5/minute", "6/minute"])


def test_a_default_holds_where_none_slides() -> None:
    default = parse_limits(["5/minute"])
    assert with_default((), default) == default
    assert with_default(parse_limits(["9/hour"]), default) == parse_limits(["9/hour"])
    assert with_default(parse_limits(["9/day"]), default) == parse_limits(["5/minute", "9/day"])


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("", "", True),
        ("5/minute", "", True),
        ("", "5/minute", False),
        ("5/minute", "5/minute", True),
        ("6/minute", "5/minute", False),
        ("5/minute 9/day", "5/minute", True),
        ("9/day", "5/minute", False),
    ],
)
def test_who_keeps_to_less_keeps_to_more(inner: str, outer: str, expected: bool) -> None:
    assert are_within(parse_limits(inner.split()), parse_limits(outer.split())) is expected


@pytest.mark.parametrize(
    ("period", "begins_at", "ends_at"),
    [
        ("day", datetime(2026, 2, 28, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)),
        ("month", datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)),
    ],
)
def test_a_quota_is_of_the_calendar(period: str, begins_at: datetime, ends_at: datetime) -> None:
    for moment in (
        max(begins_at, datetime(2026, 2, 28, tzinfo=UTC)),
        ends_at - timedelta.resolution,
    ):
        assert calendar_period(period, moment.timestamp()) == (begins_at, ends_at.timestamp())


# The service.

MakeKey = Callable[..., bytes]


@pytest.fixture
def key_with(key_service: KeyService) -> MakeKey:
    def make(*limits: str, scopes: Sequence[str] = ()) -> bytes:
        bounds = {"limits": limits}
        return key_service.create("key", scopes, restrictions=bounds, actor="test").key.encode()

    return make


async def test_over_its_limit_a_key_is_told_when_to_try_again(
    service: GuardedAPI, key_with: MakeKey
) -> None:
    key = key_with("2/minute", "50/month")
    first = await answer_of(service, key)
    assert first.status == 200
    assert first.header("ratelimit-policy") == '"minute";q=2;w=60, "month";q=50'
    minute, month = (first.header("ratelimit") or "").split(", ")
    assert minute == '"minute";r=1;t=60'
    assert month.startswith('"month";r=49;t=')
    assert await status_of(service, key) == 200
    refused = await answer_of(service, key)
    assert (refused.status, refused.header("content-type")) == (429, "application/problem+json")
    assert refused.body == b'{"detail":"Too many requests: 2/minute"}'
    assert 58 <= int(refused.header("retry-after") or "") <= 60
    assert (refused.header("ratelimit") or "").startswith('"minute";r=0;t=')
    assert '"month";r=48;' in (refused.header("ratelimit") or "")
    assert refused.header("cache-control") == "no-store"


async def test_a_warm_request_with_limits_and_addresses_costs_one_charge(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    bounds = {"limits": ["99/minute", "99/month"], "networks": ["127.0.0.0/8"]}
    made = key_service.create("key", restrictions=bounds, actor="test")
    assert await status_of(service, made.key.encode()) == 200
    store._trusted_until = math.inf
    counter = policy_of(service)._limiter._counter
    with (
        patch("app.auth.access.rule.digest", side_effect=digest) as digests,
        patch.object(counter, "charge", wraps=counter.charge) as charges,
        statements() as seen,
    ):
        for _ in range(98):
            assert await status_of(service, made.key.encode()) == 200
        assert await status_of(service, made.key.encode()) == 429
    assert (digests.call_count, charges.call_count, seen) == (99, 99, [])


async def test_a_bounded_key_in_the_place_of_an_id_is_not_repeated_either(
    service: GuardedAPI, key_service: KeyService, caplog: pytest.LogCaptureFixture
) -> None:
    bounds = {"limits": ["9/hour"], "networks": ["127.0.0.1"]}
    made = key_service.create("key", restrictions=bounds, actor="test")
    key = made.key.encode()
    assert await status_of(service, key) == 200
    answer = await answer_of(service, path="/health/live", headers=[(b"x-request-id", key)])
    assert answer.header("x-request-id") not in (None, made.key)
    assert made.key not in caplog.text


async def test_a_key_without_a_limit_is_told_of_none(
    service: GuardedAPI, key_with: MakeKey
) -> None:
    answer = await answer_of(service, key_with())
    assert (answer.status, answer.header("ratelimit")) == (200, None)


@pytest.mark.parametrize("depth", range(6))
async def test_one_charge_however_many_requirements_nest(
    service: GuardedAPI, key_with: MakeKey, depth: int
) -> None:
    with_scopes(service, depth)
    key = key_with("3/hour", scopes=["a:b"])
    for type in ("http", "websocket", "http"):
        await ask(service, key, path="/nested", type=type)
    assert await status_of(service, key, path="/nested") == 429


async def test_a_websocket_counts_when_it_opens(service: GuardedAPI, key_with: MakeKey) -> None:
    router = GuardedRouter()

    @router.websocket("/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        for _ in range(10):
            await socket.send_text("changes_since")

    service.include_router(router)
    key = key_with("1/hour")
    opened: Any = await ask(service, key, path="/live", type="websocket")
    assert [each["type"] for each in opened] == ["websocket.accept", *["websocket.send"] * 10]
    refused: Any = await ask(service, key, path="/live", type="websocket")
    assert [each["type"] for each in refused] == ["websocket.close"]
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    told: Any = await ask(service, key, path="/live", type="websocket", extensions=extensions)
    assert told[0]["status"] == 429


async def test_both_secrets_of_a_rotation_share_a_limit(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    made = key_service.create("key", restrictions={"limits": ["3/hour", "5/month"]}, actor="test")
    assert await status_of(service, made.key.encode()) == 200
    renewed = key_service.rotate(made.id, actor="test")
    assert renewed.restrictions == {"limits": ["3/hour", "5/month"], "networks": []}
    await store.refresh()
    statuses = [
        await status_of(service, key.encode())
        for key in (renewed.key, made.key, renewed.key, made.key)
    ]
    assert statuses == [200, 200, 429, 429]


async def test_without_the_scope_a_request_counts_as_well(
    service: GuardedAPI, key_with: MakeKey
) -> None:
    with_scopes(service, 1)
    key = key_with("2/hour")
    statuses = [await status_of(service, key, path="/nested") for _ in range(3)]
    assert statuses == [403, 403, 429]


async def test_public_pages_are_open_to_who_is_over_a_limit(
    service: GuardedAPI, key_with: MakeKey
) -> None:
    public = PublicRouter()

    @public.get("/open")
    async def answer() -> None: ...

    service.include_router(public)
    key = key_with("1/hour")
    assert await status_of(service, key) == 200
    assert await status_of(service, key) == 429
    assert await status_of(service, key, path="/open") == 200


async def test_what_a_limit_refuses_is_told_apart_and_is_no_use(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    made = key_service.create("key", restrictions={"limits": ["2/hour"]}, actor="test")
    for _ in range(5):
        await status_of(service, made.key.encode())
    await store.flush()
    used = report.of_key(key_service.engine, made.id, DAY)
    assert (used.served, used.refused, used.limited, used.total) == (2, 0, 3, 5)
    assert report.of_all(key_service.engine, DAY).keys[0].limited == 3


async def test_the_default_holds_for_keys_without_one(
    database_url: sa.URL, monkeypatch: pytest.MonkeyPatch, secrets: list[str]
) -> None:
    monkeypatch.setenv("RATE_LIMIT", "1/minute, 5/hour")
    service = make_service(patient_settings())
    create = service.state.key_service.create
    plain, own, quota = (
        create("key", restrictions={"limits": limits} if limits else {}, actor="test").key.encode()
        for limits in ([], ["2/minute"], ["9/day"])
    )
    for key, allowed in ((plain, 1), (own, 2), (quota, 1), (secrets[0].encode(), 1)):
        statuses = [await status_of(service, key) for _ in range(3)]
        assert statuses == [200] * allowed + [429] * (3 - allowed)


async def test_who_is_over_a_limit_does_not_guess(
    service: GuardedAPI, key_with: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.auth.access.clients.BURST", 3)
    key = key_with("1/hour")
    assert [await status_of(service, key) for _ in range(10)] == [200] + [429] * 9
    assert await status_of(service, new_secret().encode()) == MISSING_KEY_STATUS


async def test_a_limited_key_that_is_revoked_is_refused_as_any_other(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    made = key_service.create("key", restrictions={"limits": ["1/hour"]}, actor="test")
    assert await status_of(service, made.key.encode()) == 200
    key_service.revoke(made.id, actor="test")
    await store.refresh()
    assert await status_of(service, made.key.encode()) == MISSING_KEY_STATUS


# Quotas.


@pytest.mark.parametrize(("quota", "next"), [("3/day", NOON + DAY), ("3/month", NOON + 31 * DAY)])
async def test_a_quota_begins_anew_with_its_period_and_outlives_the_service(
    database_url: sa.URL, quota: str, next: datetime
) -> None:
    with clock_at(NOON) as time:
        service, store = a_service()
        bounds = {"limits": [quota]}
        made = service.state.key_service.create("key", restrictions=bounds, actor="test")
        key = made.key.encode()
        assert [await status_of(service, key) for _ in range(2)] == [200] * 2
        await store.flush()
        again, _ = a_service()
        answer = await answer_of(again, key)
        assert (answer.status, (answer.header("ratelimit") or "").split(";")[1]) == (200, "r=0")
        refused = await answer_of(again, key)
        wait = calendar_period(quota.partition("/")[2], NOON.timestamp())[1] - NOON.timestamp()
        assert f"r=0;t={wait:.0f}" in (refused.header("ratelimit") or "")
        # Of a month not all, which timers of 32 bits cannot wait for.
        assert refused.header("retry-after") == f"{min(wait, DAY.total_seconds()):.0f}"
        time.return_value = next.timestamp()
        assert [await status_of(again, key) for _ in range(4)] == [200] * 3 + [429]


async def test_what_a_limit_refused_uses_up_no_quota(
    service: GuardedAPI, store: DatabaseKeyStore, key_with: MakeKey
) -> None:
    key = key_with("1/hour", "3/month")
    assert [await status_of(service, key) for _ in range(4)] == [200] + [429] * 3
    await store.flush()
    await forget(service)
    assert '"month";r=1;' in ((await answer_of(service, key)).header("ratelimit") or "")


async def test_many_that_find_out_at_once_that_a_month_began_count_exactly(
    service: GuardedAPI, key_with: MakeKey
) -> None:
    key = key_with("5/month")
    statuses = await asyncio.gather(*(status_of(service, key) for _ in range(20)))
    assert sorted(statuses) == [200] * 5 + [429] * 15


async def test_a_quota_that_nobody_can_tell_lets_nobody_in(
    service: GuardedAPI, key_with: MakeKey
) -> None:
    key, unlimited = key_with("5/month"), key_with()
    assert await status_of(service, unlimited) == 200
    with patch("app.limits.usage.StoreUsage._read", side_effect=StoreUnavailableError("gone")):
        assert await status_of(service, key) == 503
        assert await status_of(service, unlimited) == 200
    assert await status_of(service, key) == 200


def a_service() -> tuple[GuardedAPI, DatabaseKeyStore]:
    service = make_service(patient_settings())
    assert isinstance(service.keys, DatabaseKeyStore)
    return service, service.keys


async def test_a_quota_adds_what_is_not_yet_written(service: GuardedAPI, key_with: MakeKey) -> None:
    key = key_with("5/month")
    assert [await status_of(service, key) for _ in range(3)] == [200] * 3
    await forget(service)
    assert [await status_of(service, key) for _ in range(3)] == [200] * 2 + [429]


@pytest.mark.parametrize("then", ["5/month", "9/month", "6/day"])
async def test_what_was_used_without_a_quota_counts_in_the_next_one(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService, then: str
) -> None:
    bounds = {"limits": ["5/month"]}
    made = key_service.create("key", restrictions=bounds, actor="test")

    async def change(*limits: str) -> None:
        bounds = {"limits": limits}
        key_service.update(made.id, lambda _: {"restrictions": bounds}, actor="test")
        await store.refresh()

    assert await status_of(service, made.key.encode()) == 200
    for written in (False, True):  # by this server, which knows its own all the same
        await change()
        assert await status_of(service, made.key.encode()) == 200
        if written:
            await store.flush()
        await change(then)
        assert await status_of(service, made.key.encode()) == 200
    left = int(then.partition("/")[0]) - 5
    statuses = [await status_of(service, made.key.encode()) for _ in range(left + 1)]
    assert statuses == [200] * left + [429]


async def test_a_narrower_quota_counts_what_was_used_and_a_name_changes_nothing(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    bounds = {"limits": ["9/month", "8/hour"]}
    made = key_service.create("key", restrictions=bounds, actor="test")
    key = made.key.encode()
    update: Any
    updates: list[tuple[Any, int]] = [
        ({"restrictions": {"limits": ["5/month", "8/hour"]}}, 3),
        ({"name": "another"}, 2),
        ({"restrictions": {"limits": ["7/month", "4/hour"]}}, 1),
    ]
    assert await status_of(service, key) == 200
    for update, left in updates:
        key_service.update(made.id, lambda _: update, actor="test")  # noqa: B023
        await store.refresh()
        lefts = re.findall(r"r=(\d+)", (await answer_of(service, key)).header("ratelimit") or "")
        assert min(map(int, lefts)) == left - (left == 1)
    assert [await status_of(service, key) for _ in range(2)] == [429] * 2
    key_service.update(made.id, lambda _: {"restrictions": {}}, actor="test")
    await store.refresh()
    assert [await status_of(service, key) for _ in range(2)] == [200] * 2


async def forget(service: GuardedAPI) -> None:
    """What counts limits forgets them, as in a crash of PostgreSQL's server or a reboot."""
    counter = policy_of(service)._limiter._counter
    if isinstance(counter, SqliteCounter):
        assert counter._path
        counter._path.unlink()
    else:
        settings = load_settings()
        with transaction(connect(settings.database_url), write=True) as connection:
            connection.exec_driver_sql("TRUNCATE api_key_hits, api_key_quotas")


def policy_of(service: GuardedAPI) -> LimitPolicy:
    [policy] = [each for each in service.policies if isinstance(each, LimitPolicy)]
    return policy


async def test_without_a_store_a_policy_compares_and_admits_nobody(database_url: sa.URL) -> None:
    [policy] = [each for each in make_policies(load_settings()) if isinstance(each, LimitPolicy)]
    policy.check_within(["1/hour"], ["2/hour"])
    with pytest.raises(AttributeError):
        await policy.admit(Key("1", "key", frozenset(), {"limits": ("1/hour",)}), "")


async def test_its_start_says_that_it_cannot_count(
    service: GuardedAPI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    charge = AsyncMock(side_effect=OutOfReachError("gone"))
    monkeypatch.setattr(policy_of(service)._limiter._counter, "charge", charge)
    async with service.router.lifespan_context(service):
        pass
    assert "DATABASE_URL: limits cannot be counted there: gone. Each server" in caplog.text


def test_db_upgrade_makes_its_tables(database_url: sa.URL) -> None:
    if database_url.get_backend_name() == "sqlite":
        assert run("db", "upgrade").exit_code == 0
        return
    with transaction(connect(database_url), write=True) as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS api_key_hits, api_key_quotas")
        connection.exec_driver_sql("DROP FUNCTION IF EXISTS api_key_charge_2")
    for _ in range(2):
        assert run("db", "upgrade").exit_code == 0
        assert {"api_key_hits", "api_key_quotas"} <= {
            *sa.inspect(connect(database_url)).get_table_names()
        }


# Several processes count together, with nothing to configure.


def test_without_a_lifespan_limits_and_quotas_hold_over_processes_and_restarts(
    database_url: sa.URL, key_service: KeyService
) -> None:
    off = ("--lifespan", "off")
    hour, month = (
        key_service.create("key", restrictions={"limits": [limit]}, actor="test").key
        for limit in ("5/hour", "8/month")
    )
    with started(Replica(*off), Replica(*off)) as servers:
        statuses = [server.request(hour) for _ in range(5) for server in servers]
        assert statuses == [200] * 5 + [429] * 5
        assert [server.request(month) for _ in range(2) for server in servers] == [200] * 4
    with started(Replica(*off)) as [server]:
        assert [server.request(month) for _ in range(6)] == [200] * 4 + [429] * 2
        assert server.request(hour) == 429


def test_who_comes_after_a_server_that_hangs_or_was_killed_counts_on(
    database_url: sa.URL, key_service: KeyService
) -> None:
    bounds = {"limits": ["3/hour", "9/day"]}
    key = key_service.create("key", restrictions=bounds, actor="test").key
    with started(Replica(), Replica()) as [killed, frozen]:
        assert [each.request(key) for each in (killed, frozen)] == [200, 200]
        assert frozen.process.pid
        killed.process.kill()
        os.kill(frozen.process.pid, signal.SIGSTOP)  # its connections stay open
        try:
            with started(Replica()) as [server]:
                assert [server.request(key) for _ in range(2)] == [200, 429]
        finally:
            os.kill(frozen.process.pid, signal.SIGCONT)


# The command.


@pytest.mark.usefixtures("database_url")
def test_a_key_is_made_with_its_bounds_and_shows_them() -> None:
    bounds = ("--limit", "600/minute", "--limit", "10/second", "--quota", "50000/month")
    made = keys("create", "key", *bounds, "--from", "10.0.0.0/8", "--from", "2001:db8::7")
    assert made["limits"] == ["10/second", "600/minute", "50000/month"]
    assert made["networks"] == ["10.0.0.0/8", "2001:db8::7/128"]
    shown = run("keys", "show", made["id"]).stdout
    assert re.search(r"^limits: +10/second 600/minute 50000/month$", shown, re.MULTILINE)
    assert re.search(r"^networks: +10.0.0.0/8 2001:db8::7/128$", shown, re.MULTILINE)
    assert "networks" not in run("keys", "list").stdout.lower()


@pytest.mark.usefixtures("database_url")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--limit", "5/day"), "5/day is of the calendar: give it as --quota"),
        (("--quota", "5/hour"), "5/hour slides: give it as --limit"),
    ],
)
def test_a_limit_and_a_quota_are_told_apart(options: tuple[str, str], told: str) -> None:
    result = run("keys", "create", "key", *options)
    assert result.exit_code == 2
    assert told in " ".join(re.sub(r"[^ -~]", " ", result.stderr).split())


@pytest.mark.usefixtures("database_url")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--limit", "often"), "'often' is not a limit; write one like 600/minute or 50000/month"),
        (("--from", "10.0.0.7/8"), "'10.0.0.7/8' is an address within a network; write 10.0.0.0/8"),
    ],
)
def test_what_bounds_nothing_is_told_in_one_line(options: tuple[str, str], told: str) -> None:
    assert complaint("keys", "create", "key", *options) == told
    assert all(key["name"] != "key" for key in keys("list"))

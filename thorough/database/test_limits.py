"""Limits hold exactly, in one process and in many, and cost nobody else anything."""

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from fastapi import WebSocket
from hypothesis import given
from hypothesis import strategies as st

from app.auth import GuardedAPI, GuardedRouter, PublicRouter
from app.auth.database.engine import transaction
from app.auth.database.models import api_keys
from app.auth.errors import StoreUnavailableError
from app.auth.key import Key, digest, new_secret
from app.auth.keys.service import KeyService
from app.auth.store.cache import DatabaseKeyStore
from app.auth.usage import report
from app.constants import MISSING_KEY_STATUS
from app.limits.limit import (
    MOST_SLIDING,
    Charge,
    Limit,
    are_within,
    calendar_period,
    headers_of,
    parse_limits,
    with_default,
)
from app.limits.local import SECOND, LocalLimiter
from app.limits.policy import LimitPolicy
from app.limits.process_lock import ProcessLock
from app.policies import make_policies
from app.settings import load_settings
from tests.callers import answer_of, ask, status_of
from tests.thorough.commands import PATIENCE, Project, complaint, keys, run
from tests.thorough.services import make_service, patient_settings
from tests.thorough.test_store import statements
from tests.thorough.test_usage import clock_at, with_scopes

DAY = timedelta(days=1)
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


async def nothing_used(_: str, __: datetime) -> int:
    return 0


def lefts(charge: Charge) -> list[int]:
    return [left for left, _ in charge.told]


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


# Exact.

SCHEDULES = st.lists(
    st.tuples(
        # Milliseconds since the one before: many at once, and just at the end of a window.
        st.one_of(st.sampled_from([0, 1, 333, 334, 999, 1000, 1001, 59_000]), st.integers(0, 2000)),
        st.booleans(),  # whose
    ),
    max_size=60,
)
LIMITS = st.sampled_from(["1/second", "3/second", "3/second 5/minute", "2/minute 40/hour"])
SECONDS = {"second": 1, "minute": 60, "hour": 3600}


class Oracle:
    """Counts again for each request, by looking at all that were let in."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._limits = limits
        self._let_in: list[int] = []  # milliseconds

    def lets_in(self, now: int) -> bool:
        lets_in = all(
            sum(at > now - 1000 * SECONDS[limit.period] for at in self._let_in) < limit.requests
            for limit in self._limits
        )
        if lets_in:
            self._let_in.append(now)
        return lets_in

    def most_in_a_window(self, limit: Limit) -> int:
        span = 1000 * SECONDS[limit.period]
        return max(
            (sum(at <= each < at + span for each in self._let_in) for at in self._let_in), default=0
        )


@given(SCHEDULES, LIMITS)
async def test_no_window_has_more_than_the_limit_and_nobody_waits_for_less(
    schedule: list[tuple[int, bool]], written: str
) -> None:
    limits, now = parse_limits(written.split()), 0
    oracles = {False: Oracle(limits), True: Oracle(limits)}
    limiter = LocalLimiter(nothing_used, lambda: NOON.timestamp())
    with patch("app.limits.local.monotonic_ns", lambda: now * 1_000_000):
        for later, whose in schedule:
            now += later
            charge = await limiter.charge(f"{whose}", limits)
            assert (charge.over is None) is oracles[whose].lets_in(now)
            assert min(lefts(charge)) >= 0
            if charge.over:
                # Then, and no sooner, there is room.
                assert 0 < charge.wait <= SECONDS[charge.over.period]
                assert 0 in lefts(charge)
    for oracle in oracles.values():
        assert all(oracle.most_in_a_window(limit) <= limit.requests for limit in limits)


@given(st.sampled_from([1, 2, 3, 7, 10]), st.integers(1, 10))
async def test_steady_traffic_at_the_rate_is_never_refused(rate: int, seconds: int) -> None:
    limits = parse_limits([f"{rate}/second"])
    limiter = LocalLimiter(nothing_used, lambda: 0.0)
    for number in range(rate * seconds):
        now = -(-number * SECOND // rate)
        with patch("app.limits.local.monotonic_ns", return_value=now):
            assert (await limiter.charge("key", limits)).over is None


async def test_after_the_wait_one_gets_in() -> None:
    limits, now = parse_limits(["2/minute", "3/hour"]), 0.0
    limiter = LocalLimiter(nothing_used, lambda: 0.0)
    with patch("app.limits.local.monotonic_ns", lambda: int(now * SECOND)):
        for expected in (0, 0, 60, 60):
            charge = await limiter.charge("key", limits)
            assert charge.wait == expected
        now = 60.0
        assert (await limiter.charge("key", limits)).over is None
        charge = await limiter.charge("key", limits)
        assert (charge.over, charge.wait) == (Limit(3, "hour"), 3540)
        assert lefts(charge) == [1, 0]  # what one limit refuses is charged to none


async def test_of_several_limits_the_longest_wait_is_told() -> None:
    limits, now = parse_limits(["1/minute", "2/hour"]), 0.0
    limiter = LocalLimiter(nothing_used, lambda: 0.0)
    with patch("app.limits.local.monotonic_ns", lambda: int(now * SECOND)):
        assert (await limiter.charge("key", limits)).over is None
        now = 3590.0
        assert (await limiter.charge("key", limits)).over is None
        now = 3590.5
        charge = await limiter.charge("key", limits)
    assert (charge.over, charge.wait) == (limits[0], 59.5)
    assert dict(headers_of(charge, limits))[b"retry-after"] == b"60"  # who came sooner would fail


async def test_other_limits_of_a_key_begin_anew() -> None:
    """Somebody may write them into the database."""
    limiter = LocalLimiter(nothing_used, lambda: NOON.timestamp())
    for written in ("1/hour", "2/hour", "1/minute 5/day", "1/hour"):
        charge = await limiter.charge("key", parse_limits(written.split()))
        assert charge.over is None
    assert (await limiter.charge("key", parse_limits(["1/hour"]))).over


async def test_counts_of_keys_that_rest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.limits.local.MOST_IDLE", 10)
    limiter, now = LocalLimiter(nothing_used, lambda: NOON.timestamp()), 0.0
    limiter._forget_at = 10
    with patch("app.limits.local.monotonic_ns", lambda: int(now * SECOND)):
        for number in range(30):
            now += 0.25
            assert (await limiter.charge(f"{number}", parse_limits(["1/second"]))).over is None
            assert len(limiter._counts) <= 10
        await limiter.charge("with a quota", parse_limits(["1/day"]))
        now += 100
        for number in range(30):
            now += 0.25
            await limiter.charge(f"{number}", parse_limits(["1/second"]))
        assert (await limiter.charge("with a quota", parse_limits(["1/day"]))).over


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


async def test_a_warm_request_with_limits_and_addresses_costs_no_query_and_no_write(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    bounds = {"limits": ["99/minute", "99/month"], "networks": ["127.0.0.0/8"]}
    made = key_service.create("key", restrictions=bounds, actor="test")
    assert await status_of(service, made.key.encode()) == 200
    store._trusted_until = math.inf
    with patch("app.auth.access.rule.digest", side_effect=digest) as digests, statements() as seen:
        for _ in range(98):
            assert await status_of(service, made.key.encode()) == 200
        assert await status_of(service, made.key.encode()) == 429
    assert (digests.call_count, seen) == (99, [])


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
    again, _ = a_service()
    assert '"month";r=1;' in ((await answer_of(again, key)).header("ratelimit") or "")


async def test_a_clock_that_was_far_ahead_ends_no_quota() -> None:
    moment, limits = NOON + 90 * DAY, parse_limits(["1/day", "1/month"])
    limiter = LocalLimiter(nothing_used, lambda: moment.timestamp())
    assert (await limiter.charge("key", limits)).over is None
    assert (await limiter.charge("key", limits)).over
    moment = NOON
    assert (await limiter.charge("key", limits)).over is None
    refused = await limiter.charge("key", limits)
    assert 0 < refused.wait <= 31 * DAY.total_seconds()


async def test_who_comes_before_midnight_takes_no_day_back() -> None:
    midnight = calendar_period("day", NOON.timestamp())[1]
    moment, limits = midnight - 1, parse_limits(["1/day"])
    told = asyncio.Event()

    async def used(_: str, since: datetime) -> int:
        if since.timestamp() < midnight:
            await told.wait()
        return 0

    limiter = LocalLimiter(used, lambda: moment)
    early = asyncio.create_task(limiter.charge("key", limits))
    await asyncio.sleep(0)
    moment = midnight
    assert (await limiter.charge("key", limits)).over is None
    told.set()
    await early
    assert (await limiter.charge("key", limits)).over


async def test_many_that_find_out_at_once_that_a_month_began_count_exactly(
    service: GuardedAPI, key_with: MakeKey
) -> None:
    key = key_with("5/month")
    statuses = await asyncio.gather(*(status_of(service, key) for _ in range(20)))
    assert sorted(statuses) == [200] * 5 + [429] * 15


async def test_a_quota_that_nobody_can_tell_lets_nobody_in(
    service: GuardedAPI, store: DatabaseKeyStore, key_with: MakeKey
) -> None:
    key, unlimited = key_with("5/month"), key_with()
    assert await status_of(service, unlimited) == 200
    with patch.object(store._queries, "used", side_effect=StoreUnavailableError("gone")):
        assert await status_of(service, key) == 503
        assert await status_of(service, unlimited) == 200
    assert await status_of(service, key) == 200


def a_service() -> tuple[GuardedAPI, DatabaseKeyStore]:
    service = make_service(patient_settings())
    assert isinstance(service.keys, DatabaseKeyStore)
    return service, service.keys


# One process counts.


@pytest.fixture
async def running(service: GuardedAPI) -> AsyncGenerator[GuardedAPI]:
    async with service.router.lifespan_context(service):
        yield service


async def assert_does_not_start(service: GuardedAPI) -> None:
    with pytest.raises(Exception, match="VALKEY_URL: several processes count limits"):
        async with service.router.lifespan_context(service):
            raise AssertionError("it has started")


async def test_of_two_processes_that_would_count_apart_one_does_not_start(
    database_url: sa.URL, key_service: KeyService
) -> None:
    key_service.create("key", restrictions={"limits": ["1/second"]}, actor="test")
    one, _ = a_service()
    two, _ = a_service()
    async with one.router.lifespan_context(one):
        await assert_does_not_start(two)
    async with two.router.lifespan_context(two):
        pass


def policy_of(service: GuardedAPI) -> LimitPolicy:
    [policy] = [each for each in service.policies if isinstance(each, LimitPolicy)]
    return policy


@pytest.fixture
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.limits.policy.LOOK_EVERY", 0.01)


@asynccontextmanager
async def two_of_which_one_counts(
    key_service: KeyService,
) -> AsyncGenerator[tuple[AsyncExitStack, GuardedAPI]]:
    """What ends the service that counts, and the one that does not, after the first limit."""
    ends: dict[GuardedAPI, AsyncExitStack] = {}
    async with AsyncExitStack() as stack:
        for _ in range(2):
            service, _ = a_service()
            ends[service] = await stack.enter_async_context(AsyncExitStack())
            await ends[service].enter_async_context(service.router.lifespan_context(service))
        key_service.create("key", restrictions={"limits": ["1/second"]}, actor="test")
        for service in ends:
            assert isinstance(service.keys, DatabaseKeyStore)
            await service.keys.refresh()
        await until(lambda: any(policy_of(each)._said_not_alone for each in ends))
        counts, other = sorted(ends, key=lambda each: policy_of(each)._said_not_alone)
        assert not policy_of(counts)._said_not_alone
        yield ends[counts], other


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("looks_often")
async def test_of_those_who_run_when_the_first_limit_is_made_one_counts(
    database_url: sa.URL, key_service: KeyService
) -> None:
    async with two_of_which_one_counts(key_service) as (_, other):
        await assert_does_not_start(a_service()[0])
        assert policy_of(other)._said_not_alone


@pytest.mark.usefixtures("looks_often")
async def test_who_did_not_count_alone_does_so_once_the_others_have_ended(
    database_url: sa.URL, key_service: KeyService
) -> None:
    async with two_of_which_one_counts(key_service) as (end, other):
        await end.aclose()
        await until(lambda: not policy_of(other)._said_not_alone)
        await assert_does_not_start(a_service()[0])


@pytest.mark.usefixtures("looks_often")
async def test_a_database_that_is_away_stops_nobody_from_looking(
    database_url: sa.URL, key_service: KeyService
) -> None:
    one, store = a_service()
    policy = policy_of(one)
    async with one.router.lifespan_context(one):
        away = StoreUnavailableError("DATABASE_URL: out of reach")
        with patch.object(policy, "_counts_alone", side_effect=away) as asked:
            await until(lambda: asked.call_count > 1)
        key_service.create("key", restrictions={"limits": ["1/second"]}, actor="test")
        await store.refresh()
        await until(lambda: policy._hold._held is not None)


async def test_without_limits_there_may_be_many(database_url: sa.URL) -> None:
    one, _ = a_service()
    two, _ = a_service()
    async with one.router.lifespan_context(one), two.router.lifespan_context(two):
        pass


async def test_a_limit_of_a_key_that_was_revoked_keeps_nobody_out(
    database_url: sa.URL, key_service: KeyService
) -> None:
    made = key_service.create("key", restrictions={"limits": ["1/second"]}, actor="test")
    key_service.revoke(made.id, actor="test")
    await test_without_limits_there_may_be_many(database_url)


@pytest.mark.usefixtures("looks_often")
async def test_a_limit_that_comes_later_is_counted_apart_and_said_once(
    database_url: sa.URL, key_service: KeyService, caplog: pytest.LogCaptureFixture
) -> None:
    one, of_one = a_service()
    two, of_two = a_service()
    async with one.router.lifespan_context(one), two.router.lifespan_context(two):
        bounds = {"limits": ["1/hour"]}
        key = key_service.create("key", restrictions=bounds, actor="test").key.encode()
        for service, store in ((one, of_one), (two, of_two)):
            await store.refresh()
            assert await status_of(service, key) == 200
            assert await status_of(service, key) == 429
        await until(lambda: any(policy_of(each)._said_not_alone for each in (one, two)))
        await asyncio.sleep(0.1)  # they look again
    said = [each for each in caplog.messages if "several processes" in each]
    assert len(said) == 1
    assert "valkey://HOST:6379" in said[0]


def test_what_is_held_ends_with_who_holds_it(database_url: sa.URL) -> None:
    one, two = ProcessLock(database_url), ProcessLock(database_url)
    try:
        assert one.take()
        assert one.take()
        assert not two.take()
        one.release()
        assert two.take()
        if database_url.get_backend_name() == "postgresql":
            engine = sa.create_engine(database_url, poolclass=sa.NullPool)
            with engine.begin() as connection:
                connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks"
                    " WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
                )
            assert one.take()
            assert not two.take()  # it finds out
    finally:
        one.release()
        two.release()


def test_a_file_is_held_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to("keys.db")
    file, link = (
        ProcessLock(sa.URL.create("sqlite", database=str(tmp_path / name)))
        for name in ("keys.db", "link.db")
    )
    assert file.take()
    assert not link.take()
    file.release()
    assert link.take()
    link.release()


def test_what_cannot_be_held_is_not_said_to_be_held_by_others(tmp_path: Path) -> None:
    (tmp_path / "keys.db-limits").write_text("no database" * 100)
    with pytest.raises(StoreUnavailableError, match="out of reach: file is not a database"):
        ProcessLock(sa.URL.create("sqlite", database=str(tmp_path / "keys.db"))).take()


async def test_without_a_store_a_policy_compares_and_admits_nobody(database_url: sa.URL) -> None:
    [policy] = [each for each in make_policies(load_settings()) if isinstance(each, LimitPolicy)]
    key = Key("1", "key", frozenset(), {"limits": ("1/hour",)})
    policy.check_within(["1/hour"], ["2/hour"])
    async with policy.running():
        with pytest.raises(RuntimeError, match="no store"):
            await policy.admit(key, "")


# Several processes, as a supervisor starts them.


def test_workers_that_would_count_apart_end_in_one_line(tmp_path: Path) -> None:
    project = Project(tmp_path)
    server = ("-m", "uvicorn", "app.main:app", "--port", "0", "--workers", "2")
    _, output, said = project.run(*server, env={"RATE_LIMIT": "600/minute"})
    assert output == ""
    assert "VALKEY_URL: several processes count limits; name the Valkey that they share" in said
    assert "Traceback" not in said


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


async def test_where_servers_count_apart_the_command_says_so(
    database_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def says_so(*options: str) -> bool:
        return "each counts for itself" in run("keys", "create", "key", *options).stderr

    one, _ = a_service()
    two, _ = a_service()
    async with one.router.lifespan_context(one):
        assert not says_so("--limit", "5/minute")
    with transaction(KeyService(load_settings()).engine, write=True) as connection:
        connection.execute(sa.update(api_keys).values(revoked_at=NOON))
    async with one.router.lifespan_context(one), two.router.lifespan_context(two):
        assert says_so("--limit", "5/minute")
        assert says_so("--quota", "5/day")
        assert not says_so()
        monkeypatch.setenv("VALKEY_URL", "valkey://127.0.0.1:6379")
        assert not says_so("--limit", "5/minute")

"""What keys are used for: counted once, written in the background, exact, and told by hour."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Thread
from time import monotonic
from typing import Any
from unittest.mock import patch

import httpx
import pytest
import sqlalchemy as sa
from fastapi import WebSocket
from hypothesis import given
from hypothesis import strategies as st

from app.auth import GuardedAPI, GuardedRouter, require
from app.auth.database import clock
from app.auth.database.engine import connect, transaction
from app.auth.database.models import (
    LONGEST_REASON,
    api_key_networks,
    api_key_refusals,
    api_key_usage,
)
from app.auth.errors import StoreUnavailableError
from app.auth.key import digest, new_secret
from app.auth.keys.change import MANAGE
from app.auth.keys.service import KeyService
from app.auth.store.cache import DatabaseKeyStore
from app.auth.usage import report
from app.auth.usage.counts import (
    AT_ONCE,
    ELSEWHERE,
    HOURS_KEPT,
    MOST_NETWORKS,
    REFUSALS_KEPT,
    Counts,
    add,
    thin,
)
from app.constants import API_KEY_HEADER
from app.limits.usage import StoreUsage
from tests.callers import PROBE, ask, status_of
from tests.thorough.commands import keys, run
from tests.thorough.services import make_service, patient_settings

WEEK = timedelta(days=7)
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


@contextmanager
def clock_at(moment: datetime) -> Iterator[Any]:
    with patch("app.auth.database.clock.time", return_value=moment.timestamp()) as time:
        yield time


def with_scopes(service: GuardedAPI, depth: int) -> None:
    """A route behind `depth` requirements of the same scope, on routers and on itself."""
    router = GuardedRouter(dependencies=[require("a:b")] * bool(depth))

    @router.get("/nested", dependencies=[require("a:b")] * max(depth - 1, 0))
    async def nested() -> None: ...

    @router.websocket("/nested", dependencies=[require("a:b")] * max(depth - 1, 0))
    async def live(socket: WebSocket) -> None: ...

    service.include_router(router)


def of_key(key_service: KeyService, id: str, since: timedelta) -> report.UsageView:
    return report.of_key(key_service.engine, id, since)


def of_all(key_service: KeyService, since: timedelta) -> report.AllUsage:
    return report.of_all(key_service.engine, since)


# What counts.


@pytest.mark.parametrize("depth", range(6))
@pytest.mark.parametrize("type", ["http", "websocket"])
async def test_a_request_counts_once_however_many_requirements_nest(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService, depth: int, type: str
) -> None:
    with_scopes(service, depth)
    able = key_service.create("able", ["a:b"], actor="test")
    unable = key_service.create("unable", [], actor="test")
    for issued in (able, unable):
        for _ in range(3):
            await ask(service, issued.key.encode(), path="/nested", type=type)
    await store.flush()
    counted = [of_key(key_service, each.id, WEEK) for each in (able, unable)]
    may = [(3, 0), (0, 3) if depth else (3, 0)]
    assert [(each.served, each.refused) for each in counted] == may
    assert [each.total for each in counted] == [3, 3]


async def test_a_public_page_and_an_error_count_as_served_by_whoever_shows_a_key(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    router = GuardedRouter()

    @router.get("/failing")
    async def failing() -> None:
        raise RuntimeError("failed")

    service.include_router(router)
    issued = key_service.create("key", actor="test")
    await ask(service, issued.key.encode(), path="/health/live")
    await ask(service, issued.key.encode(), path="/no-such-page")
    with pytest.raises(RuntimeError):
        await ask(service, issued.key.encode(), path="/failing")
    await store.flush()
    assert of_key(key_service, issued.id, WEEK).served == 3


async def test_a_request_that_gets_no_answer_counts_too(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    router = GuardedRouter()

    @router.websocket("/gone")
    async def gone(socket: WebSocket) -> None:
        raise RuntimeError("failed")

    service.include_router(router)
    issued = key_service.create("key", actor="test")
    with pytest.raises(RuntimeError):
        await ask(service, issued.key.encode(), path="/gone", type="websocket")
    await store.flush()
    assert of_key(key_service, issued.id, WEEK).total == 1


async def test_strangers_count_by_reason_and_network_and_never_by_what_they_sent(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService, database_url: sa.URL
) -> None:
    gone = key_service.create("gone", actor="test")
    key_service.revoke(gone.id, actor="test")
    unknown = new_secret().encode()
    for client in ("192.0.2.7", "192.0.2.9", "::ffff:192.0.2.1", "2001:db8:1:2::3"):
        await ask(service, client=(client, 1))
        await ask(service, unknown, client=(client, 1))
    await ask(service, gone.key.encode(), client=("198.51.100.1", 1))
    await ask(service, client=None)
    await ask(service, path="/health/live", client=("192.0.2.7", 1))  # asks nobody for a key
    await store.flush()
    told = {
        (each.network, each.reason): each.refused for each in of_all(key_service, WEEK).strangers
    }
    assert told == {
        ("192.0.2.0/24", "no key"): 3,
        ("192.0.2.0/24", "unknown key"): 3,
        ("2001:db8:1::/48", "no key"): 1,
        ("2001:db8:1::/48", "unknown key"): 1,
        ("198.51.100.0/24", "revoked key"): 1,
        ("local", "no key"): 1,
    }
    with connect(database_url).begin() as connection:
        rows = connection.execute(sa.select(api_key_refusals)).all()
    assert digest(unknown).hex()[:12] not in f"{rows}"


async def test_what_cannot_be_told_in_short_is_cut_and_holds_up_nothing(
    store: DatabaseKeyStore, key_service: KeyService
) -> None:
    store.usage.counts.refuse("192.0.2.7", store.now(), "x" * 1000)
    await store.flush()
    assert not store.usage.counts
    with transaction(key_service.engine) as connection:
        assert connection.scalar(sa.select(api_key_refusals.c.reason)) == "x" * LONGEST_REASON


async def test_whoever_comes_while_the_keys_are_out_of_reach_is_no_stranger(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    secret = new_secret().encode()
    with patch.object(store, "lookup", side_effect=StoreUnavailableError("DATABASE_URL: gone")):
        assert await status_of(service, secret) == 503
    await store.flush()
    assert of_all(key_service, WEEK).strangers == []


def test_a_flood_from_everywhere_takes_no_memory() -> None:
    counts = Counts()
    for number in range(3 * MOST_NETWORKS):
        counts.refuse(f"{number // 65536}.{number // 256 % 256}.{number % 256}.1", 0.0, "no key")
    rows = [row for batch in counts.batches() for row in batch.rows]
    assert len(rows) <= MOST_NETWORKS + 1
    assert sum(row["refused"] for row in rows) == 3 * MOST_NETWORKS
    assert ELSEWHERE in {row["network"] for row in rows}


# Exact.


async def test_counts_are_exact_over_several_servers(
    service: GuardedAPI, key_service: KeyService
) -> None:
    issued = key_service.create("key", actor="test")
    services = [service, *(make_service(patient_settings()) for _ in range(2))]
    for number, each in enumerate(services):
        assert isinstance(each.keys, DatabaseKeyStore)
        async with each.keys.follow():
            for _ in range(10 * (number + 1)):
                assert await status_of(each, issued.key.encode()) == 200
                if number % 2:
                    await each.keys.flush()
    assert of_key(key_service, issued.id, WEEK).total == 60


async def test_a_write_whose_answer_is_lost_counts_once(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    issued = key_service.create("key", actor="test")
    await store.flush(starting=True)
    assert await status_of(service, issued.key.encode()) == 200
    add_once = store._queries.add

    def add_and_lose(batch: Any) -> None:
        add_once(batch)
        raise StoreUnavailableError("the line was cut")

    with patch.object(store._queries, "add", add_and_lose):
        await store.flush()
    assert await status_of(service, issued.key.encode()) == 200
    await store.flush()
    await store.flush()
    assert of_key(key_service, issued.id, WEEK).total == 2


async def test_a_write_that_fails_is_made_up_for(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    issued = key_service.create("key", actor="test")
    await status_of(service, issued.key.encode())
    with patch.object(store._queries, "add", side_effect=StoreUnavailableError("gone")):
        await store.flush()
    await status_of(service)
    await store.flush()
    assert of_key(key_service, issued.id, WEEK).total == 1
    assert [each.refused for each in of_all(key_service, WEEK).strangers] == [1]


async def test_many_counts_are_written_some_at_a_time(
    store: DatabaseKeyStore, key_service: KeyService
) -> None:
    await store.flush(starting=True)
    for number in range(2 * AT_ONCE + 1):
        store.usage.counts.use(number.to_bytes(32), number * 3600.0, "served", "")
    assert [len(batch.rows) for batch in store.usage.counts.batches()] == [AT_ONCE, AT_ONCE, 1]
    await store.flush()
    assert not store.usage.counts
    with transaction(key_service.engine) as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(api_key_usage)) == 1001


@pytest.mark.parametrize("order", ["read, write", "write, read"])
@pytest.mark.parametrize("write", ["succeeds", "fails", "loses its answer", "has begun before"])
async def test_the_use_of_a_key_counts_once_while_it_is_written(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService, order: str, write: str
) -> None:
    first = key_service.create("key", ["a:b"], actor="test")
    second = key_service.rotate(first.id, actor="test")
    other = key_service.create("other", actor="test")
    since = datetime.now(UTC) - WEEK
    usage = StoreUsage(store)
    loop, read, add_once = asyncio.get_running_loop(), usage._read, store._queries.add

    async def use() -> None:
        for issued in (first, second, other):
            assert await status_of(service, issued.key.encode()) == 200

    def add(batch: Any) -> None:
        if write != "fails":
            add_once(batch)
        if write != "succeeds":
            raise StoreUnavailableError("the line was cut")

    def write_and_read(*arguments: Any) -> Any:
        answer = read(*arguments) if order == "read, write" else None
        if not flushed:
            flushed.append(True)
            asyncio.run_coroutine_threadsafe(store.flush(), loop).result(60)
        return answer or read(*arguments)

    flushed: list[bool] = []
    await store.flush(starting=True)
    await use()
    await store.flush()
    await use()
    assert await usage.used_since(first.id, since) == 4
    with patch.object(store._queries, "add", add):
        if write == "has begun before":
            await store.flush()
            await use()
        with patch.object(usage, "_read", write_and_read):
            assert await usage.used_since(first.id, since) == 4 + 2 * (write == "has begun before")
    await store.flush()
    assert await usage.used_since(first.id, since) == 4 + 2 * (write == "has begun before")
    assert await usage.used_since(first.id, datetime.now(UTC) + WEEK) == 0


# By the hour, and later by the day.


async def test_usage_is_told_by_hour_and_by_secret(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    with clock_at(NOON) as time:
        issued = key_service.create("key", ["a:b"], actor="test")
        await status_of(service, issued.key.encode())
        renewed = key_service.rotate(issued.id, actor="test")
        await store.refresh()
        time.return_value += 7200
        for secret in (issued.key, renewed.key, renewed.key):
            await status_of(service, secret.encode())
        await store.flush()
        used = of_key(key_service, issued.id, WEEK)
        assert [(each.starts_at, each.hours, each.served) for each in used.by_hour] == [
            (NOON, 1, 1),
            (NOON + timedelta(hours=2), 1, 3),
        ]
        assert [(each.served, each.in_force) for each in used.by_secret] in (
            [(2, True), (2, True)],
        )
        assert used.last_used_at
        assert of_key(key_service, issued.id, timedelta(minutes=30)).total == 3
        assert [each.served for each in of_all(key_service, WEEK).keys] == [4]


@pytest.fixture(scope="module")
def thinned() -> Iterator[sa.Engine]:
    """The tables, and nothing in them."""
    engine = sa.create_engine("sqlite://")
    api_key_usage.metadata.create_all(engine, tables=COUNTED)
    yield engine
    engine.dispose()


COUNTED = [api_key_usage, api_key_refusals, api_key_networks]


def size(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return sum(
            connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
            for table in COUNTED
        )


def counted(engine: sa.Engine) -> Any:
    usage = api_key_usage.c
    sums = [sa.func.sum(usage[each]) for each in ("served", "refused")]
    strangers = sa.select(sa.func.sum(api_key_refusals.c.refused)).scalar_subquery()
    with engine.connect() as connection:
        return connection.execute(sa.select(*sums, strangers)).one()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 80 * 24), st.sampled_from([b"a", b"b"]), st.sampled_from([0, 1, 7])
        )
    ),
    st.integers(1, 4),
)
def test_thinning_loses_nothing_and_tells_the_last_month_by_hour(
    thinned: sa.Engine, rows: list[tuple[int, bytes, int]], at_once: int
) -> None:
    with thinned.begin() as connection:
        for table in COUNTED:
            connection.execute(sa.delete(table))
        for hours, secret, count in rows:
            when = {"starts_at": NOON - timedelta(hours=hours), "hours": 1, "refused": 1}
            add(connection, api_key_usage, [{**when, "digest": secret * 32, "served": count}])
            add(connection, api_key_refusals, [{**when, "network": "local", "reason": "no key"}])
    before = counted(thinned)
    with patch("app.auth.usage.counts.AT_ONCE", at_once):
        assert all(each <= at_once for each in thin(thinned, NOON))
    assert counted(thinned) == before
    kept_from = (NOON - HOURS_KEPT).replace(hour=0)
    with thinned.connect() as connection:
        for left in connection.execute(sa.select(api_key_usage)):
            assert left.hours == (1 if left.starts_at >= kept_from else 24)
    assert sum(thin(thinned, NOON)) == 0


def fill(engine: sa.Engine, number: int) -> None:
    """With as many refusals of one day, which are to be thinned at NOON."""
    begin = (NOON - HOURS_KEPT).replace(hour=0) - timedelta(days=1)
    rows = [
        {
            "network": f"{each}",
            "reason": "no key",
            "starts_at": begin + timedelta(hours=each % 24),
            "hours": 1,
            "refused": 1,
        }
        for each in range(number)
    ]
    with transaction(engine, write=True) as connection:
        connection.execute(sa.insert(api_key_refusals), rows)


def test_thinning_holds_no_change_up(key_service: KeyService) -> None:
    fill(key_service.engine, 8_000)
    ids = [key_service.create("key", actor="test").id for _ in range(5)]
    took: list[float] = []

    def revoke() -> None:
        for id in ids:
            began_at = monotonic()
            key_service.revoke(id, actor="test")
            took.append(monotonic() - began_at)

    thinning, beside = thin(key_service.engine, NOON), 0
    assert next(thinning) <= AT_ONCE
    revoking = Thread(target=revoke)
    revoking.start()
    for rows in thinning:
        assert rows <= AT_ONCE
        beside += bool(took)
    revoking.join()
    assert beside  # of the transactions some came after a revocation, and some before the next
    assert max(took) < 2.0  # on however busy a machine
    assert counted(key_service.engine)[2] == 8_000


def test_a_thinning_that_is_cut_off_has_counted_nothing_twice(key_service: KeyService) -> None:
    fill(key_service.engine, 3 * AT_ONCE)
    for rows in thin(key_service.engine, NOON):
        assert rows == AT_ONCE
        break

    def die(*arguments: Any) -> None:
        if arguments[2].startswith("DELETE"):
            raise OSError("killed")

    sa.event.listen(key_service.engine, "before_cursor_execute", die)
    with pytest.raises(OSError, match="killed"):
        sum(thin(key_service.engine, NOON))
    sa.event.remove(key_service.engine, "before_cursor_execute", die)
    assert counted(key_service.engine)[2] == 3 * AT_ONCE
    assert sum(thin(key_service.engine, NOON)) == 2 * AT_ONCE
    assert counted(key_service.engine)[2] == 3 * AT_ONCE


def test_what_is_years_old_goes(key_service: KeyService) -> None:
    fill(key_service.engine, 10)
    assert sum(thin(key_service.engine, NOON)) == 10
    later = NOON + REFUSALS_KEPT
    assert (sum(thin(key_service.engine, later)), size(key_service.engine)) == (10, 0)


# However many networks strangers have.


async def test_networks_are_told_apart_up_to_a_thousand_an_hour_over_all_servers(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    other = make_service(patient_settings()).keys
    assert isinstance(other, DatabaseKeyStore)
    with clock_at(NOON):
        for number in range(4 * MOST_NETWORKS):
            server = (store, other)[number // MOST_NETWORKS % 2]
            client = f"{number // 65536}.{number // 256 % 256}.{number % 256}.1"
            server.usage.counts.refuse(client, NOON.timestamp(), f"reason {number % 3}")
            if number % 500 == 499:
                await server.flush()
        with transaction(key_service.engine) as connection:
            rows = connection.execute(sa.select(api_key_refusals)).all()
        assert len(rows) <= MOST_NETWORKS + 3
        assert sum(row.refused for row in rows) == 4 * MOST_NETWORKS
        elsewhere = [row.refused for row in rows if row.network == ELSEWHERE]
        assert sum(elsewhere) == 3 * MOST_NETWORKS
        known = next(row for row in rows if row.network != ELSEWHERE)
        client = known.network.removesuffix("/24")
        store.usage.counts.refuse(client, NOON.timestamp(), known.reason)  # known before
        await store.flush()
        with transaction(key_service.engine) as connection:
            ours = sa.select(api_key_refusals.c.refused).where(
                api_key_refusals.c.network == known.network
            )
            assert connection.scalar(ours) == known.refused + 1


def test_networks_of_a_day_are_told_apart_up_to_a_thousand(key_service: KeyService) -> None:
    fill(key_service.engine, 3 * MOST_NETWORKS)
    assert sum(thin(key_service.engine, NOON)) == 3 * MOST_NETWORKS
    assert size(key_service.engine) == MOST_NETWORKS + 1
    assert counted(key_service.engine)[2] == 3 * MOST_NETWORKS


async def test_a_server_thins_once_a_day(store: DatabaseKeyStore, key_service: KeyService) -> None:
    old = NOON - 2 * HOURS_KEPT
    rows = [
        {
            "digest": b"a" * 32,
            "starts_at": old + timedelta(hours=hour),
            "hours": 1,
            "served": 1,
            "refused": 0,
        }
        for hour in range(3)
    ]
    with clock_at(NOON), transaction(key_service.engine, write=True) as connection:
        add(connection, api_key_usage, rows)
    thinning = patch.object(store._queries, "thin", side_effect=store._queries.thin)
    with clock_at(NOON) as time, thinning as thinned:
        await store.flush(starting=True)
        assert not thinned.called  # a start waits for nothing that can be done later
        for seconds, times in ((60, 1), (60, 1), (86_400, 2)):
            time.return_value += seconds
            store.usage.counts.refuse("192.0.2.7", time.return_value, "no key")
            await store.flush()
            assert thinned.call_count == times
        assert run("db", "thin").stdout == "0 rows compacted.\n"


# As it is shown.


async def test_the_command_tells_all_keys_and_one(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    assert run("keys", "usage").stdout == "None.\n"
    issued = key_service.create("billing", actor="test")
    for _ in range(4):
        await status_of(service, issued.key.encode())
    await store.flush()
    assert len(run("keys", "usage").stdout.splitlines()) == 2  # and nothing of strangers
    await status_of(service, client=("192.0.2.7", 1))
    await store.flush()

    said = run("keys", "usage").stdout
    assert "billing" in said
    assert "192.0.2.0/24  no key" in said
    everything = json.loads(run("keys", "usage", "--json").stdout)
    assert [each["served"] for each in everything["keys"]] == [4]
    assert everything["strangers"] == [
        {"network": "192.0.2.0/24", "reason": "no key", "refused": 1}
    ]

    for since, unit in (("7d", "DAY"), ("2d", "HOUR")):
        said = run("keys", "usage", issued.id, "--since", since).stdout
        assert unit in said
        assert "#" * 40 in said
    one = keys("usage", issued.id)
    assert (one["total"], len(one["by_hour"])) == (4, 1)
    assert one["last_used_at"]
    assert "DAY" in run("keys", "usage", keys("create", "unused")["id"]).stdout
    assert run("keys", "usage", "nobody").exit_code == 1
    for no_time in ("0d", "0s"):
        assert run("keys", "usage", "--since", no_time).exit_code == 2
    assert run("db", "thin").stdout == "0 rows compacted.\n"


async def test_it_is_told_over_http(
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    client: httpx.AsyncClient,
) -> None:
    manager = key_service.create("manager", [MANAGE], actor="test")
    await status_of(service, manager.key.encode(), path=PROBE)
    await store.flush()
    headers = {API_KEY_HEADER: manager.key}
    path = f"/api-keys/{manager.id}/usage"
    answer = await client.get(path, headers=headers, params={"days": 1})
    assert (answer.status_code, answer.json()["total"]) == (200, 1)
    assert (await client.get(path, headers=headers, params={"days": 0})).status_code == 422
    assert (await client.get("/api-keys/nobody/usage", headers=headers)).status_code == 404
    assert (await client.get(path)).status_code in (401, 403)


async def test_all_of_it_is_told_over_http_as_by_the_command(
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    client: httpx.AsyncClient,
) -> None:
    manager = key_service.create("manager", [MANAGE], actor="test")
    await status_of(service, manager.key.encode(), path=PROBE)
    await status_of(service, client=("192.0.2.7", 1))
    await store.flush()
    options: Any = {"headers": {API_KEY_HEADER: manager.key}, "params": {"days": 1}}
    told = await client.get("/api-keys/usage", **options)
    assert told.json() == json.loads(run("keys", "usage", "--since", "1d", "--json").stdout)
    assert [each["served"] for each in told.json()["keys"]] == [1]
    assert told.json()["strangers"][0]["network"] == "192.0.2.0/24"


async def test_a_page_of_keys_is_told_by_day_in_one_request(
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    client: httpx.AsyncClient,
) -> None:
    with clock_at(NOON) as time:
        manager = key_service.create("manager", [MANAGE], actor="test")
        one, two, other = (key_service.create("key", actor="test") for _ in range(3))
        await status_of(service, one.key.encode())
        renewed = key_service.rotate(one.id, overlap=timedelta(days=3), actor="test")
        await store.refresh()
        for after in (2 * 3600, 22 * 3600):  # the same day, and the next
            time.return_value += after
            for secret in (one.key, renewed.key, other.key):
                await status_of(service, secret.encode())
        await client.get("/api-keys", headers={API_KEY_HEADER: two.key})  # which it may not
        await store.flush()
        time.return_value += 7200

        async def told(days: int) -> Any:
            options: Any = {"id": [one.id, two.id, "nobody"], "days": days}
            headers = {API_KEY_HEADER: manager.key}
            answer = await client.get("/api-keys/usage/daily", headers=headers, params=options)
            return [tuple(each.values()) for each in answer.json()]

        first, next = (f"{NOON + timedelta(days=days):%Y-%m-%d}" for days in range(2))
        of_today = [(one.id, next, 2, 0, 0), (two.id, next, 0, 1, 0)]
        assert sorted(await told(1)) == sorted(of_today)
        assert sorted(await told(14)) == sorted([(one.id, first, 3, 0, 0), *of_today])
        time.return_value += 86400
        assert await told(1) == []


async def test_counting_adds_no_statement_to_a_request(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    issued = key_service.create("key", actor="test")
    secret = issued.key.encode()
    await status_of(service, secret)
    with patch.object(store._queries, "add", side_effect=AssertionError) as added:
        await asyncio.gather(*(status_of(service, secret) for _ in range(20)))
    assert not added.called
    await store.flush()
    assert of_key(key_service, issued.id, WEEK).total == 21


def test_a_day_that_is_told_as_a_whole_counts_from_any_hour_of_it(
    key_service: KeyService,
) -> None:
    issued = key_service.create("key", actor="test")
    row = {"digest": digest(issued.key.encode()), "served": 5, "refused": 0}
    stranger = {"network": "local", "reason": "no key", "refused": 7}
    ago = timedelta(days=50)
    with transaction(key_service.engine, write=True) as connection:
        day = (clock.now(connection) - ago).replace(hour=0, minute=0, second=0, microsecond=0)
        when = {"starts_at": day, "hours": 24}
        add(connection, api_key_usage, [{**row, **when}])
        add(connection, api_key_refusals, [{**stranger, **when}])
    for days, (used, knocked) in {49: (0, []), 50: (5, [7]), 51: (5, [7])}.items():
        since = timedelta(days=days)
        assert of_key(key_service, issued.id, since).total == used
        assert sum(key.served for key in of_all(key_service, since).keys) == used
        assert [each.refused for each in of_all(key_service, since).strangers] == knocked


# From where.


async def test_networks_of_a_key_are_told_apart_up_to_a_hundred_a_day(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    key = key_service.create("key", actor="test").key.encode()
    other = key_service.create("other", actor="test").key.encode()

    def networks() -> list[int]:
        count = sa.select(sa.func.count()).select_from(api_key_networks)
        count = count.group_by(api_key_networks.c.digest)
        with transaction(key_service.engine) as connection:
            return sorted(connection.scalars(count))

    with clock_at(NOON) as time:
        for number in range(130):
            for last in (1, 2):
                await status_of(service, key, client=(f"10.0.{number}.{last}", 1))
            if number % 50 == 10:
                await store.flush()
        await status_of(service, other, client=("10.0.0.1", 1))
        await store.flush()
        assert networks() == [1, 100]
        await status_of(service, key, client=("10.9.9.9", 1))
        await store.flush()
        assert networks() == [1, 100]
        time.return_value += 86400
        await status_of(service, key, client=("10.0.0.1", 1))
        await store.flush()
        assert networks() == [1, 101]
        time.return_value += 40 * 86400
        await status_of(service, other)
        await store.flush()
        assert networks() == [1]


async def test_a_network_that_is_known_is_not_written_again(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    key = key_service.create("key", actor="test").key.encode()
    for _ in range(3):
        await status_of(service, key)
        with patch.object(store._queries, "note_networks") as note:
            await store.flush()
    note.assert_not_called()


async def test_networks_that_cannot_be_written_are_written_later(
    service: GuardedAPI, store: DatabaseKeyStore, key_service: KeyService
) -> None:
    key = key_service.create("key", actor="test").key.encode()
    await status_of(service, key)
    with patch.object(store._queries, "note_networks", side_effect=StoreUnavailableError("gone")):
        await store.flush()
    await store.flush()
    with transaction(key_service.engine) as connection:
        assert connection.scalars(sa.select(api_key_networks.c.digest)).all() == [digest(key)]


def test_networks_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.auth.usage.counts.MOST_NETWORKS", 5)
    monkeypatch.setattr("app.auth.usage.counts.MOST_NOTED", 12)
    counts = Counts()
    for number in range(100):
        counts.use(b"key", 0.0, "served", f"10.0.{number}.1")
        assert len(counts.networks()) <= 5
        if number % 20 == 19:
            counts.noted(counts.networks())
        assert len(counts._noted) <= 12 + 5


async def test_the_first_are_told_and_how_many_more_there_are(
    service: GuardedAPI,
    store: DatabaseKeyStore,
    key_service: KeyService,
    client: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.auth.usage.report.MOST_LISTED", 2)
    told = of_all(key_service, WEEK)
    assert (told.keys, told.more_keys, told.served, told.strangers, told.more_strangers) == (
        *([], 0, 0),
        *([], 0),
    )
    issued = [key_service.create(f"key {n}", ["keys:manage"], actor="test") for n in range(4)]
    for number, each in enumerate(issued):
        for _ in range(number + 1):
            await status_of(service, each.key.encode())
            await status_of(service, client=(f"192.0.{number}.7", 1))
    await store.flush()
    told = of_all(key_service, WEEK)
    assert [(each.name, each.served) for each in told.keys] == [("key 3", 4), ("key 2", 3)]
    assert (told.more_keys, told.served, told.refused, told.limited) == (2, 10, 0, 0)
    assert [(each.network, each.refused) for each in told.strangers] == [
        ("192.0.3.0/24", 4),
        ("192.0.2.0/24", 3),
    ]
    assert (told.more_strangers, told.strangers_refused) == (2, 10)
    assert "2 more keys, 2 more networks" in run("keys", "usage").stdout
    headers = {API_KEY_HEADER: issued[0].key}
    answer = await client.get("/api-keys/usage", headers=headers)
    assert answer.json() == told.model_dump(mode="json")


def test_strangers_without_number_make_no_long_answer(key_service: KeyService) -> None:
    begin = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    row = {"reason": "no key", "starts_at": begin, "hours": 1, "refused": 1}
    with transaction(key_service.engine, write=True) as connection:
        rows = [{**row, "network": f"{number}"} for number in range(20_000)]
        connection.execute(sa.insert(api_key_refusals), rows)
    began_at = monotonic()
    told = of_all(key_service, WEEK)
    assert monotonic() - began_at < 2.0  # on however busy a machine
    assert len(told.strangers) == report.MOST_LISTED
    assert (told.more_strangers, told.strangers_refused) == (20_000 - report.MOST_LISTED, 20_000)

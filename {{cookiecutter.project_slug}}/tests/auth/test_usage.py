"""How keys are used: counted once, told by hour and secret; what is unusual; what `doctor` finds."""

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from fastapi import WebSocket

from app.auth import GuardedRouter, require
from app.auth.database.models import api_key_secrets, api_key_usage, api_keys, metadata
from app.auth.errors import StoreUnavailableError
from app.auth.key import digest, new_secret
from app.auth.keys.service import MANAGE
from app.auth.keys.views import KeyView
from app.auth.usage.anomalies import examine_usage
from app.auth.usage.counts import Counts
from app.auth.usage.doctor import examine
from app.auth.usage.report import of_all, of_key
from tests.callers import Clock, ask, keys, run
from tests.conftest import Server

WEEK, DAY, HOUR = timedelta(days=7), timedelta(days=1), timedelta(hours=1)
NOW = datetime(2030, 6, 15, 12, tzinfo=UTC)
ME = "tests"


@pytest.mark.parametrize("type", ["http", "websocket"])
@pytest.mark.parametrize("depth", [0, 1, 3])
async def test_a_request_counts_once_however_many_requirements_nest(
    server: Server, depth: int, type: str
) -> None:
    router = GuardedRouter(dependencies=[require("a:b")] * bool(depth))

    async def nested() -> None: ...

    async def live(websocket: WebSocket) -> None: ...

    needed = [require("a:b")] * max(depth - 1, 0)
    router.add_api_route("/nested", nested, dependencies=needed)
    router.add_api_websocket_route("/nested", live, dependencies=needed)
    server.api.include_router(router)
    counted = []
    for scopes in (["a:b"], []):
        key = server.keys.create("key", scopes, actor=ME)
        for _ in range(3):
            await ask(server.api, key.key.encode(), path="/nested", type=type)
        await server.store.flush()
        used = of_key(server.keys.engine, key.id, WEEK)
        counted.append((used.served, used.refused, used.total))
    assert counted == [(3, 0, 3), (0, 3, 3) if depth else (3, 0, 3)]


async def test_strangers_count_by_reason_and_network_and_never_by_what_they_sent(
    server: Server,
) -> None:
    service, store, key_service = server.api, server.store, server.keys
    gone, unknown = key_service.create("gone", actor=ME), new_secret().encode()
    key_service.revoke(gone.id, actor=ME)
    for client in ("192.0.2.7", "192.0.2.9", "::ffff:192.0.2.1", "2001:db8:1:2::3", "no address"):
        await ask(service, client=(client, 1))
    await ask(service, unknown, client=("192.0.2.7", 1))
    await ask(service, gone.key.encode(), client=("198.51.100.1", 1))
    await ask(service, path="/health/live", client=("192.0.2.7", 1))  # asks nobody for a key
    with patch.object(store, "find", side_effect=StoreUnavailableError("gone")):
        await ask(service, gone.key.encode())  # who may be no stranger
    await store.flush()
    told = {
        (each.network, each.reason): each.refused
        for each in of_all(key_service.engine, WEEK).strangers
    }
    assert told == {
        ("192.0.2.0/24", "no key"): 3,
        ("192.0.2.0/24", "unknown key"): 1,
        ("2001:db8:1::/48", "no key"): 1,
        ("198.51.100.0/24", "revoked key"): 1,
        ("local", "no key"): 1,
    }


def test_a_flood_from_everywhere_takes_no_memory() -> None:
    counts = Counts()
    for number in range(3000):
        counts.refuse(f"10.{number // 256}.{number % 256}.1", 0.0, "no key")
    rows = [row for batch in counts.batches() for row in batch.rows]
    assert len(rows) < 1100
    assert sum(row["refused"] for row in rows) == 3000


async def test_counts_are_exact_over_several_servers(
    server: Server, start_server: Callable[[], Server]
) -> None:
    key = server.keys.create("key", actor=ME)
    for number, each in enumerate((server, start_server()), start=1):
        async with each.store.follow():  # what is left is written at the stop
            for _ in range(3 * number):
                assert await each.status(key.key) == 200
            await each.store.flush()
            assert await each.status(key.key) == 200
    assert of_key(server.keys.engine, key.id, WEEK).total == 3 + 1 + 6 + 1


async def test_usage_is_told_by_hour_and_secret_and_after_a_month_by_day(
    clock: Clock, server: Server
) -> None:
    clock.now = NOW.timestamp()
    first = server.keys.create("billing", actor=ME)
    second = server.keys.rotate(first.id, actor=ME)
    for issued, hours in ((first, 0), (first, 1), (second, 0), (second, 0)):
        clock.pass_time(3600 * hours)
        assert await server.status(issued.key) == 200
    await server.store.flush()
    used = of_key(server.keys.engine, first.id, WEEK)
    hour = [(each.starts_at, each.hours, each.served) for each in used.by_hour]
    assert hour == [(NOW, 1, 1), (NOW + HOUR, 1, 3)]
    assert sorted(each.served for each in used.by_secret) == [2, 2]
    assert of_key(server.keys.engine, first.id, timedelta()).total == 3
    said = run("keys", "usage", first.id, "--since", "2d").stdout
    assert "2030-06-15 13:00Z  " + "#" * 40 in said
    assert "billing" in run("keys", "usage").stdout
    assert [
        each["served"] for each in json.loads(run("keys", "usage", "--json").stdout)["keys"]
    ] == [4]

    clock.pass_time(40 * 86_400)
    assert "rows less" in run("db", "thin").stdout
    used = of_key(server.keys.engine, first.id, 60 * DAY)
    day = [(each.starts_at, each.hours, each.served) for each in used.by_hour]
    assert day == [(NOW.replace(hour=0), 24, 4)]


# What is unusual.


@pytest.fixture
def connection() -> Iterator[sa.Connection]:
    engine = sa.create_engine("sqlite://")
    metadata.create_all(engine)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def a_key(**differences: Any) -> KeyView:
    """A healthy one: in use, as narrow as it can be, and not old."""
    unset: dict[str, Any] = dict.fromkeys(KeyView.model_fields)
    lists: dict[str, Any] = {"scopes": [], "restrictions": {}}
    what = {"id": "key", "name": "billing", "created_by": ME, "status": "active"}
    times = {"created_at": NOW - 60 * DAY, "issued_at": NOW, "last_used_at": NOW}
    return KeyView.model_validate({**unset, **lists, **what, **times, **differences})


OLD_SECRET = {"old_key_expires_at": NOW + 5 * HOUR, "old_key_last_used_at": NOW - HOUR / 2}


@pytest.mark.parametrize(
    ("differences", "usage", "problem"),
    [  # usage: how many hours ago, how many requests were served and refused
        ({}, [(1, 1000, 0)], None),
        ({}, [(1, 1001, 0)], "used ten times as much as in any hour of a month"),
        ({}, [(1, 5000, 0), (100, 500, 0)], None),
        ({"created_at": NOW - 6 * DAY}, [(1, 5000, 0)], None),
        ({}, [(1, 0, 100)], "refused 100 times in a day for want of a scope"),
        ({}, [(1, 0, 99), (30, 0, 99)], None),
        ({"last_used_at": NOW - 31 * DAY}, [], "silent for 30 days"),
        ({"last_used_at": NOW - 31 * DAY, "status": "revoked"}, [], None),
        (OLD_SECRET, [], "its old secret is still in use, and ends within six hours"),
        ({**OLD_SECRET, "old_key_expires_at": NOW + 7 * HOUR}, [], None),
    ],
)
def test_what_is_unusual_is_found(
    connection: sa.Connection,
    differences: dict[str, Any],
    usage: list[tuple[int, int, int]],
    problem: str | None,
) -> None:
    secret, made = digest(b"secret"), {"created_at": NOW, "created_by": ME}
    connection.execute(sa.insert(api_keys).values(id="key", name="key", scopes="", **made))
    row = {"digest": secret, "key_id": "key", "created_at": NOW}
    connection.execute(sa.insert(api_key_secrets).values(row))
    for ago, served, refused in usage:
        row = {"digest": secret, "starts_at": NOW - ago * HOUR, "hours": 1}
        row |= {"served": served, "refused": refused}
        connection.execute(sa.insert(api_key_usage).values(row))
    found = [each.problem for each in examine_usage(connection, [a_key(**differences)], NOW)]
    assert found == ([problem] if problem else [])


# What `doctor` finds.


@pytest.mark.parametrize(
    ("differences", "problem"),
    [
        ({}, None),
        ({"last_used_at": None}, "never used"),
        ({"last_used_at": None, "created_at": NOW - 7 * DAY}, None),
        ({"expires_at": NOW + 13 * DAY}, "expires on 2030-06-28"),
        ({"expires_at": NOW + 14 * DAY}, None),
        ({"issued_at": NOW - 91 * DAY}, "not rotated since 2030-03-16"),
        ({"scopes": ["*", "a"]}, "too many scopes: all there are"),
        (
            {"scopes": ["reports:*", "invoices:read"]},
            "scopes that no endpoint asks for: invoices:read",
        ),
        ({"scopes": ["*"], "status": "revoked"}, None),
    ],
)
def test_each_problem_of_a_key_is_found(differences: dict[str, Any], problem: str | None) -> None:
    found = examine([a_key(**differences)], {"reports:read"}, NOW)
    assert [each.problem for each in found] == ([problem] if problem else [])


def test_it_is_told_when_the_last_manager_is_about_to_expire() -> None:
    soon = a_key(scopes=[MANAGE], expires_at=NOW + DAY)
    found = [each.problem for each in examine([soon], {MANAGE}, NOW) if not each.id]
    assert found == ["no manager after 2030-06-16"]
    for other in (a_key(scopes=["keys:*"]), a_key(id="env-1", scopes=["*"])):
        assert not [each for each in examine([soon, other], {MANAGE}, NOW) if not each.id]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other modes")
def test_the_command_fails_while_there_is_something_to_do(
    server: Server, working_directory: Path
) -> None:
    result = run("keys", "doctor")
    assert (result.exit_code, result.stdout) == (0, "None.\n")
    assert keys("doctor") == []
    key = server.keys.create("billing", ["*"], actor=ME)
    (working_directory / ".env").touch(0o644)
    result = run("keys", "doctor", "--json")
    assert result.exit_code == 1
    found = [(each["id"], each["problem"]) for each in json.loads(result.stdout)]
    assert found == [("", "others may read .env"), (key.id, "too many scopes: all there are")]

"""How often, and from where, a key may be used."""

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.auth.keys.service import KeyService
from app.constants import MISSING_KEY_STATUS
from app.limits.sqlite_counter import SECOND
from tests.callers import Clock, answer_of, keys, run
from tests.conftest import Server

StartServer = Callable[..., Server]


@pytest.fixture
def ticks(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the service, also for limits that slide."""
    nanoseconds = lambda: round(clock.monotonic() * SECOND)  # noqa: E731
    monkeypatch.setattr("app.limits.sqlite_counter.monotonic_ns", nanoseconds)
    return clock


def make(service: KeyService, limits: list[str], networks: list[str] | None = None) -> str:
    restrictions = {"limits": limits, "networks": networks or []}
    return service.create("key", restrictions=restrictions, actor="tests").key


async def test_a_key_is_refused_over_its_limit_and_learns_when_to_come_back(
    server: Server, ticks: Clock
) -> None:
    key = make(server.keys, ["2/minute"])
    assert [await server.status(key) for _ in range(3)] == [200, 200, 429]
    refused = await answer_of(server.api, key.encode())
    assert refused.header("retry-after") == "60"
    assert refused.header("ratelimit-policy") == '"minute";q=2;w=60'
    assert (refused.header("ratelimit") or "").startswith('"minute";r=0;t=')
    ticks.pass_time(60)
    assert [await server.status(key) for _ in range(3)] == [200, 200, 429]


async def test_steady_traffic_at_the_rate_is_never_refused(server: Server, ticks: Clock) -> None:
    key = make(server.keys, ["10/second"])
    for _ in range(100):
        assert await server.status(key) == 200
        ticks.pass_time(0.1)


async def test_several_limits_are_charged_all_or_none(server: Server, ticks: Clock) -> None:
    key = make(server.keys, ["1/second", "2/hour"])
    assert [await server.status(key) for _ in range(3)] == [200, 429, 429]
    ticks.pass_time(1)
    assert await server.status(key) == 200  # the refused ones cost nothing
    ticks.pass_time(1)
    assert await server.status(key) == 429


async def test_both_secrets_of_a_rotation_share_a_limit(server: Server) -> None:
    issued = server.keys.create("key", restrictions={"limits": ["2/hour"]}, actor="tests")
    new = server.keys.rotate(issued.id, actor="tests").key
    assert [await server.status(each) for each in (issued.key, new, issued.key, new)] == [
        *(200, 200, 429, 429)
    ]


async def test_a_quota_survives_a_restart(start_server: StartServer) -> None:
    first = start_server()
    key = make(first.keys, ["3/month"])
    assert [await first.status(key) for _ in range(2)] == [200, 200]
    await first.store.flush(stopping=True)
    second = start_server()
    assert [await second.status(key) for _ in range(2)] == [200, 429]


async def test_a_key_from_another_address_is_a_stranger(server: Server) -> None:
    key = make(server.keys, [], ["192.0.2.0/24", "2001:db8::/32"]).encode()
    for client in ("192.0.2.9", "::ffff:192.0.2.9", "2001:db8::1"):
        assert (await answer_of(server.api, key, client=(client, 1))).status == 200
    stranger = await answer_of(server.api, headers=[(b"x-request-id", b"same")])
    for client in ("192.0.3.9", "2001:db9::1", "a socket"):
        same = {"client": (client, 1), "headers": [(b"x-request-id", b"same")]}
        assert await answer_of(server.api, key, **same) == stranger
    assert stranger.status == MISSING_KEY_STATUS


def test_the_command_line_restricts(database_url: sa.URL) -> None:
    options = ("--limit", "9/minute", "--quota", "99/month", "--from", "10.0.0.0/8")
    made = keys("create", "billing", *options)
    assert made["limits"] == ["9/minute", "99/month"]
    assert made["networks"] == ["10.0.0.0/8"]
    assert keys("show", made["id"]) | {"key": made["key"]} == made
    free = keys("create", "free")
    assert free["limits"] == free["networks"] == []
    assert "restrictions" not in free
    assert "give it as --quota" in run("keys", "create", "x", "--limit", "9/day").stderr
    assert "give it as --limit" in run("keys", "create", "x", "--quota", "9/hour").stderr


async def test_servers_that_share_a_database_count_together(start_server: StartServer) -> None:
    first, second = start_server(), start_server()
    key = make(first.keys, ["3/hour", "9/day"])
    statuses = [await each.status(key) for each in (first, second, first, second, first)]
    assert statuses == [200, 200, 200, 429, 429]


async def test_out_of_reach_each_server_counts_its_own_requests_and_says_so_once(
    database_url: sa.URL,
    start_server: StartServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("app.limits.sqlite_counter._boot", lambda: "-1")
    Path(f"{database_url.database}-limits-1").mkdir()
    servers = start_server(), start_server()
    key = make(servers[0].keys, ["1/hour"])
    for server in servers:
        assert [await server.status(key) for _ in range(3)] == [200, 429, 429]
    said = [each for each in caplog.messages if "limits cannot be counted there" in each]
    assert len(said) == len(servers)
